"""Questions that are answered together, each as alone: randomised, with drafts, sampling and cancels."""

from __future__ import annotations

from support.batch_streams import run_batches
from support.controls import CONTROL_THRESHOLD
from support.equality import LOGIT_TOLERANCE
from vstream_ros.models.base import TEXT_POSITIONS
from vstream_ros.models.qwen.video_model import QwenVideoModel

SEEDS = range(6)


def test_answers_of_a_batch_are_natives_and_seen_siblings_are_noticed(any_model: QwenVideoModel) -> None:
    results = [run_batches(any_model, seed, text_positions=TEXT_POSITIONS[seed % 2]) for seed in SEEDS]
    comparisons = [c for r in results for c in r.comparisons]
    assert all(c.tokens_equal for c in comparisons)
    assert max(c.logit_difference for c in comparisons) <= LOGIT_TOLERANCE
    assert min(r.sibling_difference for r in results) > CONTROL_THRESHOLD
    # Or the streams would not have tested it.
    assert len(comparisons) > 40
    assert sum(r.cancelled for r in results) >= 2
    assert sum(r.drafted for r in results) > 8
    assert sum(r.wrong_drafts for r in results) > 10
    assert sum(r.sampled for r in results) > 4
    assert sum(r.chosen for r in results) > 4
