"""The language model's forward on batches of clips with several isolated questions each.

A clip is computed once; its questions see it and themselves, but not each other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from training.batches import AUX_LAYERS, Batch


def decoder_layer(
    layer: Any,
    states: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    bias: torch.Tensor,
    first: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """``layer``'s output (B, tokens - first, hidden) float32 for the tokens from ``first`` on.

    ``states``: (B, tokens, hidden); ``cos`` and ``sin``: (B, tokens, 1, head size); ``bias``: ``Batch``'s; ``first``: 0
    or where the questions begin.
    """
    attention, mlp = layer.self_attn, layer.mlp
    normed = layer.input_layernorm(states).to(dtype)
    sources = ((normed[:, first:], attention.q_proj), (normed, attention.k_proj), (normed, attention.v_proj))
    query, key, value = (
        _linear(part, proj, dtype).float().unflatten(-1, (-1, attention.head_dim)) for part, proj in sources
    )
    query, key = _rotate(query, cos[:, first:], sin[:, first:]), _rotate(key, cos, sin)
    mixed = _attend(query, key, value, bias).to(dtype)
    states = states[:, first:] + _linear(mixed, attention.o_proj, dtype)
    normed = layer.post_attention_layernorm(states).to(dtype)
    gated = nn.functional.silu(_linear(normed, mlp.gate_proj, dtype)) * _linear(normed, mlp.up_proj, dtype)
    return states + _linear(gated, mlp.down_proj, dtype)


def forward(
    model: Any, batch: Batch, dtype: torch.dtype = torch.float32, layer: Callable[..., torch.Tensor] = decoder_layer
) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """The language model on a batch: (final hidden states of the questions (B, Q, hidden); by layer with auxiliary
    targets those of all tokens (B, V + Q, hidden); the first question's first token ends the video).

    The same as the model's own forward on each question apart. ``dtype``: of the large matrix products; bfloat16 is
    several times as quick where the CPU has it. Attention is float32: finding the newest tubelet takes sharp scores.
    ``layer``: ``decoder_layer``, compiled or not.
    """
    text = model.model.language_model
    cut = batch.prefix_ids.shape[1]
    states = text.embed_tokens(torch.cat([batch.prefix_ids, batch.question_ids], dim=1))
    start = cut - batch.features.shape[1]
    states = torch.cat([states[:, :start], batch.features, states[:, cut:]], dim=1)
    cos, sin = (t[:, :, None] for t in text.rotary_emb(states, batch.positions))
    kept: dict[int, torch.Tensor] = {}
    for number, weights in enumerate(text.layers, start=1):
        first = cut if number == len(text.layers) else 0  # nobody reads the prefix's last states
        states = layer(weights, states, cos, sin, batch.bias, first, dtype)
        if number in AUX_LAYERS:
            kept[number] = states
    return text.norm(states), kept


def _linear(states: torch.Tensor, layer: nn.Linear, dtype: torch.dtype) -> torch.Tensor:
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return nn.functional.linear(states, layer.weight.to(dtype), bias)


def _rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    one, other = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-other, one), dim=-1) * sin


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Grouped-query attention; all (B, tokens, heads, head size) float32, the result (B, tokens, heads x head size).

    The last queries are the questions' and see what ``bias`` says; those before, if any, see what stands before them.
    """
    query, key, value = (states.transpose(1, 2) for states in (query, key, value))
    attend = functools.partial(nn.functional.scaled_dot_product_attention, enable_gqa=True)
    asked = bias.shape[1]
    cut = key.shape[2] - asked
    mixed = attend(query[:, :, -asked:], key, value, bias[:, None])
    if query.shape[2] > asked:
        video = attend(query[:, :, :cut], key[:, :, :cut], value[:, :, :cut], is_causal=True)
        mixed = torch.cat([video, mixed], dim=2)
    return mixed.transpose(1, 2).flatten(2)
