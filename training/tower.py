"""Quick, batched use of Qwen2.5-VL's vision tower on tubelets of one size: for training, where calls are counted."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from training.tiny_config import MERGE, PATCH
from vstream_ros.models.kernels.forwards import replaced_forwards
from vstream_ros.models.kernels.patch_embedding import linear_patch_embedding


def patchify(frames: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """What the processor makes of tubelets: (pixel values (patches, 1176) float32, grid (tubelets, 3)).

    ``frames``: (tubelets, 2, height, width, 3) uint8 RGB. One grid per tubelet: they don't see each other.
    """
    count, patch, height, width, _ = frames.shape
    rows, columns = height // PATCH, width // PATCH
    mean, std = (torch.tensor(v, dtype=torch.float32) * 255 for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    pixels = (torch.from_numpy(frames).float() - mean) / std
    pixels = pixels.reshape(count, patch, rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH, 3)
    # Patches in the order of the merger's groups; in each the channels, the frames, the pixels.
    pixels = pixels.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(count * rows * columns, -1)
    return pixels, torch.tensor([[1, rows, columns]] * count)


@contextmanager
def batched_attention(tower: nn.Module, patches: int) -> Iterator[None]:
    """Within: attention of all tubelets in one call, instead of one call for each window of each tubelet.

    All tubelets have the same number of ``patches``. They are embedded by a matrix product, which is 50 times as quick
    to train on a CPU as the convolution. The results are the same within rounding.
    """
    attentions = [block.attn for block in tower.blocks]
    quick = replaced_forwards((attention, functools.partial(_attend, attention, patches)) for attention in attentions)
    with quick, linear_patch_embedding(tower.patch_embed.proj):
        yield


def _attend(
    attention: Any,
    patches: int,
    hidden_states: torch.Tensor,
    cu_seqlens: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    **_: Any,
) -> torch.Tensor:
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

    length = hidden_states.shape[0]
    heads = attention.num_heads
    query, key, value = attention.qkv(hidden_states).reshape(length, 3, heads, -1).unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
    mask = None
    if len(cu_seqlens) - 1 > length // patches:
        window = torch.bucketize(torch.arange(patches), cu_seqlens[1:], right=True)
        mask = window[:, None] == window[None, :]
    parts = [t.reshape(length // patches, patches, heads, -1).transpose(1, 2) for t in (query, key, value)]
    query, key, value = (part.to(value.dtype) for part in parts)
    scores = (query @ key.transpose(-1, -2)).float() * attention.scaling
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    mixed = scores.softmax(-1).to(value.dtype) @ value
    out: torch.Tensor = attention.proj(mixed.transpose(1, 2).reshape(length, -1))
    return out


def encode_tubelets(tower: nn.Module, frames: np.ndarray) -> torch.Tensor:
    """(tubelets, tokens, hidden) features of (tubelets, 2, height, width, 3) uint8 frames, batched."""
    pixels, grid = patchify(frames)
    patches = int(grid[0].prod())
    with batched_attention(tower, patches):
        merged: torch.Tensor = tower(pixels, grid_thw=grid).pooler_output
    return merged.reshape(len(frames), patches // MERGE**2, -1)
