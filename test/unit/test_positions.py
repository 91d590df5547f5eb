"""True-time positions: native's own where the spacing is even, the time that passed where it is not."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from vstream_ros.errors import ModelFailedError
from vstream_ros.memory.clip import NANOSECONDS, Tubelet
from vstream_ros.models.base import Segment
from vstream_ros.models.loader import wrap_model
from vstream_ros.models.qwen.video_model import QwenVideoModel


def segment(times_ns: list[int], second_per_grid: float, factor: int) -> Segment:
    frames = np.zeros((2, 2 * factor, 2 * factor, 3), dtype=np.uint8)
    tubelets = tuple(
        Tubelet(id=k, camera="camera", frames=frames, stamps_ns=(t,), time_ns=t, importance=0.0)
        for k, t in enumerate(times_ns)
    )
    return Segment(tubelets, second_per_grid, times_ns[0])


def temporal_ids(model: QwenVideoModel, block: Segment, true_time: bool) -> np.ndarray:
    """Temporal id of each tubelet, relative to the first."""
    prompt = model.build_prompt([block], "what?", true_time=true_time)
    starts = [prompt.position_ids[1, start] for start, _ in prompt.spans]
    return np.asarray(starts) - starts[0]


@pytest.mark.parametrize("rate_hz", [0.2, 0.5, 1.0, 2.0, 3.0, 4.0, 7.5, 10.0, 24.0, 29.97, 30.0])
def test_even_spacing_gives_the_processors_own_prompt(any_model: QwenVideoModel, rate_hz: float) -> None:
    period_ns = round(NANOSECONDS / rate_hz)
    second_per_grid = 2 / rate_hz
    for start in (0, 1_700_000_000_123_456_789):
        block = segment([start + 2 * k * period_ns for k in range(60)], second_per_grid, any_model.frame_spec.factor)
        one = any_model.build_prompt([block], "what?", true_time=True)
        other = any_model.build_prompt([block], "what?", true_time=False)
        assert np.array_equal(one.position_ids, other.position_ids)
        assert np.array_equal(one.input_ids, other.input_ids)


def test_qwen2_5_counts_the_time_of_a_gap(models: dict[str, QwenVideoModel]) -> None:
    model = models["qwen2_5_vl"]
    tokens_per_second = model.model.config.vision_config.tokens_per_second
    seconds = [0, 1, 2, 10, 11.5, 3600]
    block = segment([round(s * NANOSECONDS) for s in seconds], 1.0, model.frame_spec.factor)
    assert temporal_ids(model, block, True).tolist() == [int(s * tokens_per_second) for s in seconds]
    assert temporal_ids(model, block, False).tolist() == [k * tokens_per_second for k in range(len(seconds))]


def test_qwen3_spells_the_time_of_a_gap(models: dict[str, QwenVideoModel]) -> None:
    model = models["qwen3_vl"]
    block = segment([0, NANOSECONDS, 60 * NANOSECONDS], 1.0, model.frame_spec.factor)

    def spelled(true_time: bool) -> list[str]:
        prompt = model.build_prompt([block], "what?", true_time=true_time)
        text = model.processor.tokenizer.decode(prompt.input_ids)
        return [part.split("<")[-1] for part in text.split(" seconds>")[:-1]]

    assert spelled(True) == ["0.2", "1.2", "60.2"]
    assert spelled(False) == ["0.2", "1.2", "2.2"]


def test_qwen2_knows_order_only(models: dict[str, QwenVideoModel]) -> None:
    model = models["qwen2_vl"]
    block = segment([0, NANOSECONDS, 60 * NANOSECONDS], 1.0, model.frame_spec.factor)
    assert temporal_ids(model, block, True).tolist() == [0, 1, 2]


def test_eviction_in_the_middle_keeps_the_times_of_the_rest(models: dict[str, QwenVideoModel]) -> None:
    model = models["qwen2_5_vl"]
    whole = segment([k * NANOSECONDS for k in range(10)], 1.0, model.frame_spec.factor)
    evicted = dataclasses.replace(whole, tubelets=whole.tubelets[:3] + whole.tubelets[6:])
    full = temporal_ids(model, whole, True)
    assert temporal_ids(model, evicted, True).tolist() == [*full[:3], *full[6:]]


@pytest.mark.parametrize("true_time", [True, False])
def test_the_next_question_about_a_clip_gets_the_prompt_that_it_would_get_alone(
    any_model: QwenVideoModel, true_time: bool
) -> None:
    factor = any_model.frame_spec.factor
    one, other = (segment([s * NANOSECONDS for s in seconds], 1.0, factor) for seconds in ([0, 1, 9], [0, 2, 9]))
    labelled = [dataclasses.replace(one, label="front:"), dataclasses.replace(other, label="rear:")]
    questions = ["what?", "", "and what came then, " * 9, "what? <|video_pad|>"]
    for segments in ([one], [other], labelled, labelled[::-1], [one]):
        for question in questions:
            kept = any_model.build_prompt(segments, question, true_time=true_time)
            any_model._prefixes.clear()
            alone = any_model.build_prompt(segments, question, true_time=true_time)
            for name in ("input_ids", "position_ids", "tubelet_ids"):
                assert np.array_equal(getattr(kept, name), getattr(alone, name))
            assert kept.spans == alone.spans
            assert kept.tubelets == alone.tubelets
    assert any_model._prefixes


def test_the_layout_check_refuses_a_processor_that_lays_out_otherwise(
    any_model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = type(any_model.processor).__call__

    def other_layout(self: Any, text: list[str], **kwargs: Any) -> Any:
        return call(self, text=[text[0] + " "], **kwargs)

    monkeypatch.setattr(type(any_model.processor), "__call__", other_layout)
    with pytest.raises(ModelFailedError, match="lays out"):
        wrap_model(any_model.model, any_model.processor, name="x", min_pixels=56 * 56, max_pixels=112 * 112)
