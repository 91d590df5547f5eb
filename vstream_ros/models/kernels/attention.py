"""Grouped-query attention over a long cache without copying it.

With a mask, and new tokens behind a cache always need one, transformers' SDPA first repeats keys and values for every
query head of their group. Behind thousands of cached tokens that copy takes most of a short question's time. Here keys
and values stay where they are: PyTorch's CPU kernel finds a group's keys by itself; elsewhere the query heads of a
group stand as further rows of one head, which is the same products, as long as their mask is smaller than the copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

STOCK, GROUPED = "sdpa", "sdpa_grouped"


def grouped_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers: what ``sdpa`` gives, without repeated keys and values.

    Args:
        module: the attention layer.
        query: (B, heads, rows, head size).
        key: (B, key heads, tokens, head size).
        value: as ``key``.
        attention_mask: (B, 1, rows, tokens), added to the scores; without one ``sdpa`` itself copies nothing.
        scaling: of the scores.
        kwargs: for ``sdpa``.

    Returns:
        (B, rows, heads, head size) and None for the weights.
    """
    heads, rows, size = query.shape[1:]
    key_heads = key.shape[1]
    copies = heads != key_heads and attention_mask is not None and attention_mask.shape[1] == 1
    if copies and query.device.type == "cpu":
        mixed = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True
        )
    elif copies and rows <= 2 * key_heads * size:
        mixed = folded_sdpa(query, key, value, attention_mask, scaling)
    else:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return mixed.transpose(1, 2), None


def folded_sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """(B, heads, rows, head size): a group's query heads as rows of one head. Arguments as of ``grouped_sdpa``."""
    groups, key_heads = query.shape[1] // key.shape[1], key.shape[1]
    folded = query.unflatten(1, (key_heads, groups)).flatten(2, 3)
    mask = attention_mask.expand(-1, groups, -1, -1).flatten(1, 2).unsqueeze(1)
    mixed = torch.nn.functional.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    return mixed.unflatten(2, (groups, -1)).flatten(1, 2)


def additive_mask(*args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> torch.Tensor | None:
    """A mask function of transformers: ``sdpa``'s mask, 0 and -inf instead of True and False.

    SDPA makes that of a bool mask by itself, but in every layer anew.
    """
    mask = sdpa_mask(*args, dtype=dtype, **kwargs)
    return None if mask is None else mask.new_zeros(mask.shape, dtype=dtype).masked_fill_(~mask, float("-inf"))


AttentionInterface.register(GROUPED, grouped_sdpa)
AttentionMaskInterface.register(GROUPED, additive_mask)


@contextmanager
def grouped_attention(text_config: Any) -> Iterator[None]:
    """Within it a language model on ``sdpa`` attends by ``grouped_sdpa``; any other implementation is left alone.

    Args:
        text_config: of the language model, which reads it in every forward. Not thread-safe.
    """
    if text_config._attn_implementation != STOCK:
        yield
        return
    text_config._attn_implementation = GROUPED
    try:
        yield
    finally:
        text_config._attn_implementation = STOCK
