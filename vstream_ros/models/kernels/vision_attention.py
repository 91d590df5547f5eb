"""The vision encoder's attention with all windows of one length in one call.

transformers on ``sdpa`` attends to one window after another in every layer, and derives windows and positions from the
grids anew in every call: 3,616 calls of SDPA and 107 reads from the device for eight tubelets at the dimensions of
Qwen2.5-VL-3B. A window's result depends on its own patches only, so windows of equal length are a batch; and what
follows from the grids alone is computed once for each shape of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from vstream_ros.models.kernels.attention import STOCK
from vstream_ros.models.kernels.forwards import replaced_forwards

Grids = tuple[tuple[int, int, int], ...]
"""(frames, rows, columns) in patches of each tubelet."""
SHAPES = 32
"""Shapes of a batch whose plan is kept: a chunk has one to eight tubelets, a stream one size or few."""


@dataclass(frozen=True, eq=False)
class SegmentGroup:
    """Stretches of the sequence of one length; patches attend within their own stretch."""

    length: int
    rows: torch.Tensor | None
    """(stretches x length,) which rows of the sequence these are; None: all of them, in order."""

    def take(self, states: torch.Tensor) -> torch.Tensor:
        """(rows, heads, head size) to (stretches, heads, length, head size)."""
        own = states if self.rows is None else states[self.rows]
        return own.unflatten(0, (-1, self.length)).transpose(1, 2)


def group_segments(boundaries: Sequence[int], device: torch.device) -> tuple[SegmentGroup, ...]:
    """By length, the segments of a sequence whose ``boundaries`` are 0, … and its own length."""
    starts: dict[int, list[int]] = {}
    for start, end in pairwise(boundaries):
        starts.setdefault(end - start, []).append(start)
    if len(starts) == 1:
        return (SegmentGroup(next(iter(starts)), None),)
    return tuple(
        SegmentGroup(length, (torch.tensor(first)[:, None] + torch.arange(length)).flatten().to(device))
        for length, first in starts.items()
    )


class VisionPlan:
    """What a vision encoder derives from the grids alone, on its device."""

    def __init__(self, inputs: dict[str, torch.Tensor], device: torch.device) -> None:
        """``inputs``: what the encoder's forward takes so that it need not derive it, on any device."""
        self.inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        self._device = device
        self._groups = {
            id(self.inputs[name]): group_segments(inputs[name].tolist(), device)
            for name in ("cu_seqlens", "cu_window_seqlens")
            if name in inputs
        }

    def groups(self, cu_seqlens: torch.Tensor) -> tuple[SegmentGroup, ...]:
        """The stretches that one of ``inputs``, or any other (segments + 1,) boundaries, parts the sequence into."""
        known = self._groups.get(id(cu_seqlens))
        return group_segments(cu_seqlens.tolist(), self._device) if known is None else known


class BatchedVision:
    """The vision encoder of one model, for our own calls. Not thread-safe."""

    def __init__(self, visual: Any) -> None:
        """``visual``: Qwen2-VL's, Qwen2.5-VL's or Qwen3-VL's vision encoder."""
        self._visual = visual
        self._plan = functools.lru_cache(maxsize=SHAPES)(self._make_plan)

    def plan(self, grids: torch.Tensor) -> VisionPlan:
        """For (tubelets, 3) grids, on the CPU so that nothing waits for a device."""
        return self._plan(tuple(map(tuple, grids.tolist())), next(self._visual.parameters()).device)

    def attention(self, plan: VisionPlan) -> AbstractContextManager[None]:
        """Within it the encoder's layers attend in batches by ``plan``; as ``replaced_forwards``.

        An encoder on another implementation than ``sdpa`` is left alone.
        """
        if self._visual.config._attn_implementation != STOCK:
            return nullcontext()
        layers = (block.attn for block in self._visual.blocks)
        return replaced_forwards((layer, functools.partial(batched_attention, layer, plan.groups)) for layer in layers)

    def _make_plan(self, grids: Grids, device: torch.device) -> VisionPlan:
        visual = self._visual
        shape, merge = torch.tensor(grids), visual.spatial_merge_size
        inputs = {
            "position_ids": get_vision_position_ids(shape, merge),
            "cu_seqlens": get_vision_cu_seqlens(shape),
        }
        if hasattr(visual, "window_size"):  # Qwen2.5-VL
            inputs["window_index"], inputs["cu_window_seqlens"] = get_vision_window_index(
                shape, spatial_merge_size=merge, window_size=visual.window_size, patch_size=visual.patch_size
            )
        if hasattr(visual, "num_grid_per_side"):  # Qwen3-VL
            inputs["interp_indices"], inputs["interp_weights"] = get_vision_interpolation_indices_and_weights(
                shape,
                num_grid_per_side=visual.num_grid_per_side,
                mode=visual.interpolation_mode,
                align_corners=visual.interpolation_align_corners,
                spatial_merge_size=visual.config.spatial_merge_size,
            )
        return VisionPlan(inputs, device)


def batched_attention(
    layer: Any,
    groups_of: Callable[[torch.Tensor], tuple[SegmentGroup, ...]],
    hidden_states: torch.Tensor,
    cu_seqlens: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    **kwargs: Any,
) -> torch.Tensor:
    """What a vision attention layer's ``forward`` gives, one call of SDPA for each length of segments.

    Args:
        layer: the attention module.
        groups_of: the groups of the segments that ``cu_seqlens`` means.
        hidden_states: (rows, size).
        cu_seqlens: (segments + 1,) boundaries of the segments.
        position_embeddings: cosines and sines, (rows, head size) each.
        kwargs: of other implementations.

    Returns:
        (rows, size).
    """
    rows = hidden_states.shape[0]
    query, key, value = layer.qkv(hidden_states).reshape(rows, 3, layer.num_heads, -1).unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
    mixed = torch.empty_like(query)
    for group in groups_of(cu_seqlens):
        parts = (group.take(states) for states in (query, key, value))
        attended = torch.nn.functional.scaled_dot_product_attention(*parts, scale=layer.scaling)
        attended = attended.transpose(1, 2).flatten(0, 1)
        if group.rows is None:
            mixed = attended
        else:
            mixed[group.rows] = attended
    projected: torch.Tensor = layer.proj(mixed.reshape(rows, -1))
    return projected
