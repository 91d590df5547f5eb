"""True-time positions: native's own where the spacing is even, the time that passed where it is not."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from vstream_ros.engine.clip_batch import answer_alone
from vstream_ros.engine.timeline import Timeline
from vstream_ros.engine.vision_cache import VisionCache
from vstream_ros.errors import ModelFailedError
from vstream_ros.memory.clip import NANOSECONDS, Tubelet
from vstream_ros.models.base import TEXT_POSITIONS, GenerationOptions, Segment
from vstream_ros.models.loader import wrap_model
from vstream_ros.models.qwen.positions import PositionRules
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
            any_model.prompts._prefixes.clear()
            alone = any_model.build_prompt(segments, question, true_time=true_time)
            for name in ("input_ids", "position_ids", "tubelet_ids"):
                assert np.array_equal(getattr(kept, name), getattr(alone, name))
            assert kept.spans == alone.spans
            assert kept.tubelets == alone.tubelets
    assert any_model.prompts._prefixes


def test_the_layout_check_refuses_a_processor_that_lays_out_otherwise(
    any_model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = type(any_model.processor).__call__

    def other_layout(self: Any, text: list[str], **kwargs: Any) -> Any:
        return call(self, text=[text[0] + " "], **kwargs)

    monkeypatch.setattr(type(any_model.processor), "__call__", other_layout)
    with pytest.raises(ModelFailedError, match="lays out"):
        wrap_model(any_model.model, any_model.processor, name="x", min_pixels=56 * 56, max_pixels=112 * 112)


# -- the text behind a video -------------------------------------------------------------------------------------------


def positions_before_transformers_5(
    input_ids: list[int], blocks: list[tuple[list[int], int, int]], video_token_id: int
) -> np.ndarray:
    """(3, length), as ``get_rope_index`` of transformers 4 had it: the next part starts at the last one's ``max`` + 1.

    ``blocks``: of each video the temporal offsets of its tubelets, and the rows and columns of its tokens.
    """
    parts: list[np.ndarray] = []
    at = 0
    for offsets, rows, columns in blocks:
        text = input_ids.index(video_token_id, at) - at
        start = parts[-1].max() + 1 if parts else 0
        parts.append(np.tile(np.arange(text), (3, 1)) + start)
        grid = [(t, y, x) for t in offsets for y in range(rows) for x in range(columns)]
        parts.append(np.array(grid).T + text + start)
        at += text + len(grid)
    start = parts[-1].max() + 1
    parts.append(np.tile(np.arange(len(input_ids) - at), (3, 1)) + start)
    return np.concatenate(parts, axis=1)


def random_segments(model: QwenVideoModel, rng: np.random.Generator) -> list[Segment]:
    """One to four blocks of random sizes, spacings and gaps, with and without labels."""
    factor = model.frame_spec.factor
    segments = []
    for index in range(int(rng.integers(1, 5))):
        spacing_ns = round(NANOSECONDS * float(rng.choice([0.4, 0.5, 0.7, 0.9, 1.0, 2.0])))
        size = factor * rng.integers(2, 9, 2)
        slots = np.cumsum(rng.choice([1, 1, 1, 7, 400], int(rng.integers(1, 30))))
        frames = np.zeros((2, *size, 3), dtype=np.uint8)
        tubelets = tuple(
            Tubelet(100 * index + k, "camera", frames, (int(s) * spacing_ns,), int(s) * spacing_ns, 0.0)
            for k, s in enumerate(slots)
        )
        label = f"camera {index}:" if rng.random() < 0.7 else ""
        segments.append(Segment(tubelets, spacing_ns / NANOSECONDS, tubelets[0].time_ns, label))
    return segments


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("true_time", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_text_goes_on_as_before_transformers_5(
    models: dict[str, QwenVideoModel], family: str, true_time: bool, seed: int
) -> None:
    model, rng = models[family], np.random.default_rng(seed)
    segments = random_segments(model, rng)
    blocks = []
    for block in segments:
        steps = [round(k) if true_time and family == "qwen2_5_vl" else i for i, k in enumerate(block.grid_steps())]
        # float32, as in transformers of any version
        interval = np.float32(2) * np.float32(block.second_per_grid) if family == "qwen2_5_vl" else np.float32(1)
        offsets = [int(np.float32(step) * interval) for step in steps]
        height, width = block.tubelets[0].frames.shape[1:3]
        blocks.append((offsets, height // model.frame_spec.factor, width // model.frame_spec.factor))
    for question in ("what?", "and what came then?"):  # the second is made of the first one's video part
        prompt = model.build_prompt(segments, question, true_time=true_time)
        expected = positions_before_transformers_5(
            prompt.input_ids.tolist(), blocks, model.model.config.video_token_id
        )
        assert np.array_equal(prompt.position_ids[1:], expected)
        assert np.array_equal(prompt.position_ids[0], np.arange(len(prompt)))


@pytest.mark.parametrize("text_positions", TEXT_POSITIONS)
@pytest.mark.parametrize("true_time", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_native_inputs_have_the_same_ids_and_positions(
    any_model: QwenVideoModel, true_time: bool, text_positions: str, seed: int
) -> None:
    """And none at all where the installed transformers makes the same by itself."""
    segments = random_segments(any_model, np.random.default_rng(seed))
    prompt = any_model.build_prompt(segments, "what?", true_time=true_time, text_positions=text_positions)
    inputs = any_model.native.inputs(segments, "what?", PositionRules(true_time, text_positions))
    assert np.array_equal(prompt.input_ids, inputs["input_ids"][0].numpy())
    family = any_model.name
    stock = family == "qwen3_vl" or (text_positions == "transformers" and (family == "qwen2_vl" or not true_time))
    assert ("position_ids" in inputs) is not stock
    if stock:
        rope, _ = any_model.model.model.get_rope_index(**{k: v for k, v in inputs.items() if "pixel" not in k})
        assert np.array_equal(prompt.position_ids[1:], rope[:, 0].numpy())
    else:
        assert np.array_equal(prompt.position_ids, inputs["position_ids"][:, 0].numpy())


@pytest.mark.parametrize("text_positions", TEXT_POSITIONS)
@pytest.mark.parametrize("true_time", [True, False])
def test_decoding_goes_on_behind_the_last_position(
    any_model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch, true_time: bool, text_positions: str
) -> None:
    """In native and in cached answers, whatever positions an earlier call has left in the model."""
    monkeypatch.setattr(any_model.model.generation_config, "eos_token_id", None)
    segments = random_segments(any_model, np.random.default_rng(1))
    rules = {"true_time": true_time, "text_positions": text_positions}
    prompt = any_model.build_prompt(segments, "what?", **rules)
    timeline = Timeline(any_model, VisionCache(any_model, 1 << 30), 8)
    timeline.sync(prompt)
    seen: list[np.ndarray] = []
    language_model = any_model.model.model.language_model
    hook = language_model.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(kwargs["position_ids"][:, 0].numpy()), with_kwargs=True
    )
    try:
        any_model.model.model.rope_deltas = torch.tensor([[10**6]])
        cached = answer_alone(any_model, timeline, prompt, GenerationOptions(4)).token_ids
        any_model.model.model.rope_deltas = torch.tensor([[10**6]])
        native = any_model.native_generate(segments, "what?", GenerationOptions(4), **rules)
    finally:
        hook.remove()
    assert cached == native
    assert len(seen) == 8
    assert np.array_equal(seen[4], prompt.position_ids)
    assert np.array_equal(seen[0], prompt.position_ids[:, prompt.prefix_length :])
    for step in (1, 2, 3):
        for position in (seen[step], seen[4 + step]):
            assert np.array_equal(position, prompt.position_ids[:, -1:] + step)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_the_two_rules_are_two(models: dict[str, QwenVideoModel], family: str) -> None:
    """Behind ten minutes of video the question stands where they end, or at their beginning."""
    model = models[family]
    block = segment([k * NANOSECONDS for k in range(600)], 1.0, model.frame_spec.factor)
    for rule, distance in (("checkpoint", 1), ("transformers", 2 - (1198 if family == "qwen2_5_vl" else 599))):
        prompt = model.build_prompt([block], "what?", true_time=True, text_positions=rule)
        end = prompt.prefix_length
        assert prompt.position_ids[1, end] - prompt.position_ids[1, end - 1] == distance


def test_qwen3_knows_one_rule(models: dict[str, QwenVideoModel]) -> None:
    model = models["qwen3_vl"]
    segments = random_segments(model, np.random.default_rng(0))
    one, other = (
        model.build_prompt(segments, "what?", true_time=True, text_positions=rule) for rule in TEXT_POSITIONS
    )
    assert np.array_equal(one.position_ids, other.position_ids)


@pytest.mark.parametrize(
    ("seconds", "tubelet", "difference"), [(0.7, 45, 1), (0.9, 15, 1), (1.4, 45, 1), (1.3, 45, -1), (1.0, 0, 0)]
)
def test_temporal_ids_are_transformers_float32(
    models: dict[str, QwenVideoModel], seconds: float, tubelet: int, difference: int
) -> None:
    """``tubelet``: the first one whose id is another in float64 (which vLLM takes), by ``difference``."""
    model = models["qwen2_5_vl"]
    period_ns = round(seconds * NANOSECONDS)
    ids = temporal_ids(model, segment([k * period_ns for k in range(100)], seconds, model.frame_spec.factor), True)
    in_float64 = [int(k * (2 * (2 / (2 / seconds)))) for k in range(100)]  # by way of the rate, as the processor does
    differs = [k for k in range(100) if ids[k] != in_float64[k]]
    assert differs[:1] == ([tubelet] if difference else [])
    assert ids[tubelet] - in_float64[tubelet] == difference
