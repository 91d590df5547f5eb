"""Qwen2.5-VL: absolute time in the temporal positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vstream_ros.models.base import Segment
from vstream_ros.models.qwen.video_model import QwenVideoModel


class Qwen25VideoModel(QwenVideoModel):
    """``model_type`` qwen2_5_vl: temporal id = long(k x (tokens_per_second x second_per_grid)).

    Native takes k = 0, 1, 2 …; with true time, k is the tubelet's time in units of ``second_per_grid``, computed in
    the same dtype, so that evenly spaced tubelets get native's ids exactly and a gap counts for what it lasted.
    """

    def rope_arguments(self, segments: Sequence[Segment]) -> dict[str, Any]:
        return {"second_per_grid_ts": self._second_per_grid(segments)}

    def _second_per_grid(self, segments: Sequence[Segment]) -> torch.Tensor:
        # By way of the sampling rate, as the processor derives it: the detour decides the last bit.
        patch = self.frame_spec.temporal_patch_size
        return torch.tensor([patch / self.metadata(segment, False).sampled_fps for segment in segments])

    def apply_true_time(
        self, positions: np.ndarray, segments: Sequence[Segment], spans: Sequence[tuple[int, int]]
    ) -> None:
        tokens_per_second = self.model.config.vision_config.tokens_per_second
        index = 0
        for segment, second_per_grid in zip(segments, self._second_per_grid(segments), strict=True):
            interval = tokens_per_second * second_per_grid
            start = int(positions[1, spans[index][0]])  # the first tubelet's id is the block's start
            offsets = (torch.tensor(segment.grid_steps(), dtype=interval.dtype) * interval).long().tolist()
            for offset in offsets:
                first, last = spans[index]
                positions[1, first:last] = start + offset
                index += 1
