"""Qwen2-VL: temporal positions count tubelets; there is no time in the prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vstream_ros.models.base import Segment
from vstream_ros.models.qwen.positions import PositionRules, Positions, Spans, continue_at_greatest
from vstream_ros.models.qwen.video_model import QwenVideoModel


class Qwen2Positions(Positions):
    """One block per video, behind which the text goes on by one of two rules."""

    def are_stock(self, rules: PositionRules) -> bool:
        return rules.text_positions == "transformers"

    def apply_rules(
        self, positions: np.ndarray, segments: Sequence[Segment], spans: Spans, rules: PositionRules
    ) -> None:
        if rules.text_positions == "checkpoint":
            continue_at_greatest(positions, segments, spans)


class Qwen2VideoModel(QwenVideoModel):
    """``model_type`` qwen2_vl. ``time_positions`` has no effect: the family knows order only."""

    positions_class = Qwen2Positions
