"""Grouped-query attention over a long cache without copying it.

With a mask, and new tokens behind a cache always need one, transformers' SDPA first repeats keys and values for every
query head of their group. Behind thousands of cached tokens that copy takes most of a short question's time. Here the
query heads of a group stand as further rows of one head instead: the same products, and keys and values stay where
they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

STOCK, FOLDED = "sdpa", "sdpa_folded"


def folded_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers: ``sdpa`` with the heads of a group folded into rows.

    Args:
        module: the attention layer.
        query: (B, heads, rows, head size).
        key: (B, key heads, tokens, head size).
        value: as ``key``.
        attention_mask: (B, 1, rows, tokens), added to the scores; without one ``sdpa`` itself copies
            nothing and does the work.
        scaling: of the scores.
        kwargs: for ``sdpa``.

    Returns:
        (B, rows, heads, head size) and None for the weights.
    """
    batch, heads, rows, size = query.shape
    groups = heads // key.shape[1]
    if groups == 1 or attention_mask is None or attention_mask.shape[1] != 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    folded = query.reshape(batch, key.shape[1], groups * rows, size)
    mask = attention_mask.expand(-1, groups, -1, -1).reshape(attention_mask.shape[0], 1, groups * rows, -1)
    mixed = torch.nn.functional.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    return mixed.reshape(batch, heads, rows, size).transpose(1, 2), None


def additive_mask(*args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> torch.Tensor | None:
    """A mask function of transformers: ``sdpa``'s mask, 0 and -inf instead of True and False.

    SDPA makes that of a bool mask by itself, but in every layer anew, and for the folded rows as well.
    """
    mask = sdpa_mask(*args, dtype=dtype, **kwargs)
    return None if mask is None else mask.new_zeros(mask.shape, dtype=dtype).masked_fill_(~mask, float("-inf"))


AttentionInterface.register(FOLDED, folded_sdpa)
AttentionMaskInterface.register(FOLDED, additive_mask)


@contextmanager
def folded_attention(text_config: Any) -> Iterator[None]:
    """Within it a language model on ``sdpa`` attends by ``folded_sdpa``; any other implementation is left alone.

    Args:
        text_config: of the language model, which reads it in every forward. Not thread-safe.
    """
    if text_config._attn_implementation != STOCK:
        yield
        return
    text_config._attn_implementation = FOLDED
    try:
        yield
    finally:
        text_config._attn_implementation = STOCK
