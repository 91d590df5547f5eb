"""Where a prompt's tokens stand: what the installed transformers says, and the two rules that may change it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from transformers.video_utils import VideoMetadata

from vstream_ros.models.base import Segment


@dataclass(frozen=True)
class PositionRules:
    """What may differ from the installed transformers' own positions."""

    true_time: bool
    """Qwen2.5-VL: temporal ids from the tubelets' times instead of their order."""
    text_positions: str
    """Qwen2-VL and Qwen2.5-VL: where the text behind a video goes on.

    "checkpoint": at the greatest position of all three rows + 1, time included, as in Qwen's own code, with which these
    were trained, in transformers before 5 and in vLLM. "transformers": at the video's start + max(rows, columns), as in
    the installed one; behind minutes of video the text then stands before the newest tubelet in time.
    """


Spans = Sequence[tuple[int, int]]
"""Token range of each tubelet, in prompt order."""


def video_metadata(segment: Segment, frames_per_tubelet: int, *, true_time: bool) -> VideoMetadata:
    """What the processor is told of a segment's frames: when they were taken."""
    steps = segment.grid_steps(segment.origin_ns) if true_time else [float(k) for k in range(len(segment.tubelets))]
    return VideoMetadata(
        total_num_frames=len(steps) * frames_per_tubelet,
        fps=frames_per_tubelet / segment.second_per_grid,
        frames_indices=[step * frames_per_tubelet + offset for step in steps for offset in range(frames_per_tubelet)],
    )


def blocks(segments: Sequence[Segment], spans: Spans) -> Iterator[tuple[Segment, Spans]]:
    """Each segment with the token ranges of its own tubelets."""
    rest = iter(spans)
    for segment in segments:
        yield segment, list(islice(rest, len(segment.tubelets)))


def continue_at_greatest(positions: np.ndarray, segments: Sequence[Segment], spans: Spans) -> None:
    """Move, in place, everything behind each video to where its greatest position + 1 lets the text go on.

    ``positions``: (4, length), with text behind every video block. Blocks are taken in prompt order, so a later one
    starts behind text that was moved already.
    """
    for _, block in blocks(segments, spans):
        start, end = block[0][0], block[-1][1]
        positions[1:, end:] += positions[1:, start:end].max() + 1 - positions[1, end]


class Positions:
    """The positions of a family, (4, length) int64: text, temporal, height, width. This one has no rules of its own."""

    def __init__(self, model: Any) -> None:
        """``model``: a loaded ``…ForConditionalGeneration``; its configuration and its ``get_rope_index`` are used."""
        self._rope = model.model
        self._video_token_id = model.config.video_token_id
        self._vision = model.config.vision_config

    def stock(
        self, input_ids: np.ndarray, segments: Sequence[Segment], grids: Sequence[tuple[int, int, int]]
    ) -> np.ndarray:
        """Positions by the model's own ``get_rope_index``; ``grids``: (tubelets, patch rows, patch columns) each."""
        ids = torch.from_numpy(input_ids)[None]
        rope, _ = self._rope.get_rope_index(
            ids,
            mm_token_type_ids=torch.where(ids == self._video_token_id, 2, 0).int(),
            video_grid_thw=torch.tensor(grids),
            **self.rope_arguments(segments),
        )
        return with_text_row(rope)

    def rope_arguments(self, segments: Sequence[Segment]) -> dict[str, Any]:
        """What ``get_rope_index`` takes beyond ids and grids."""
        return {}

    def are_stock(self, rules: PositionRules) -> bool:
        """Whether ``apply_rules`` changes nothing, so that plain inference needs no positions from us."""
        return True

    def apply_rules(
        self, positions: np.ndarray, segments: Sequence[Segment], spans: Spans, rules: PositionRules
    ) -> None:
        """Turn stock ``positions`` into those of the rules, in place."""


def with_text_row(rope: torch.Tensor) -> np.ndarray:
    """(3, 1, length) of ``get_rope_index`` to (4, length): the row that counts all tokens stands before."""
    return np.concatenate([np.arange(rope.shape[-1])[None], rope[:, 0].cpu().numpy()]).astype(np.int64)
