"""Qwen2.5-VL: absolute time in the temporal positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vstream_ros.models.base import Segment
from vstream_ros.models.qwen.positions import PositionRules, Spans, blocks, video_metadata
from vstream_ros.models.qwen.qwen2_vl import Qwen2Positions
from vstream_ros.models.qwen.video_model import QwenVideoModel


class Qwen25Positions(Qwen2Positions):
    """Temporal id = long(k x (tokens_per_second x second_per_grid)).

    Native takes k = 0, 1, 2 …; with true time, k is the tubelet's time in units of ``second_per_grid``. The product is
    float32, as in transformers, so that evenly spaced tubelets get native's ids exactly and a gap counts for what it
    lasted. In float64, which vLLM takes, some ids differ by one: at 2 tokens per second and 0.7, 0.9 or 1.4 s a tubelet
    those of tubelets 45, 15 and 45 are the first.
    """

    def rope_arguments(self, segments: Sequence[Segment]) -> dict[str, Any]:
        return {"second_per_grid_ts": self._second_per_grid(segments)}

    def are_stock(self, rules: PositionRules) -> bool:
        return not rules.true_time and super().are_stock(rules)

    def apply_rules(
        self, positions: np.ndarray, segments: Sequence[Segment], spans: Spans, rules: PositionRules
    ) -> None:
        if rules.true_time:
            self._apply_true_time(positions, segments, spans)
        super().apply_rules(positions, segments, spans, rules)

    def _apply_true_time(self, positions: np.ndarray, segments: Sequence[Segment], spans: Spans) -> None:
        seconds = self._second_per_grid(segments)
        for (segment, block), second_per_grid in zip(blocks(segments, spans), seconds, strict=True):
            interval = self._vision.tokens_per_second * second_per_grid
            offsets = (torch.tensor(segment.grid_steps(), dtype=interval.dtype) * interval).long().tolist()
            origin = int(positions[1, block[0][0]])  # the first tubelet's id is the block's start
            for offset, (start, end) in zip(offsets, block, strict=True):
                positions[1, start:end] = origin + offset

    def _second_per_grid(self, segments: Sequence[Segment]) -> torch.Tensor:
        # By way of the sampling rate, as the processor derives it: the detour decides the last bit.
        patch = self._vision.temporal_patch_size
        rates = (video_metadata(segment, patch, true_time=False).sampled_fps for segment in segments)
        return torch.tensor([patch / rate for rate in rates])


class Qwen25VideoModel(QwenVideoModel):
    """``model_type`` qwen2_5_vl."""

    positions_class = Qwen25Positions
