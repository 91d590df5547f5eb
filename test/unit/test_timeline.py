"""What a KV cache keeps, and what it says of itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from support.decoding import free_text, passes_of
from support.equality import Generated, compare, recorded_logits
from support.faults import fault_at
from support.frames import random_frame
from vstream_ros.engine.clip_batch import ClipBatch, answer_alone
from vstream_ros.engine.continuation import Interrupts
from vstream_ros.engine.timeline import Timeline
from vstream_ros.engine.vision_cache import VisionCache
from vstream_ros.errors import CanceledError
from vstream_ros.memory.clip import NANOSECONDS, Tubelet
from vstream_ros.models.base import GenerationOptions, Prompt, Segment
from vstream_ros.models.qwen.video_model import QwenVideoModel


@pytest.fixture
def model(models: dict[str, QwenVideoModel]) -> QwenVideoModel:
    return models["qwen2_5_vl"]


@pytest.fixture
def tubelets(model: QwenVideoModel) -> list[Tubelet]:
    rng = np.random.default_rng(0)
    size = model.frame_spec.fit(56, 84)
    return [
        Tubelet(k, "camera", np.stack([random_frame(rng, *size)] * 2), (k,), k * NANOSECONDS, 0.0) for k in range(8)
    ]


def prompt_of(model: QwenVideoModel, tubelets: list[Tubelet], question: str = "what?") -> Prompt:
    return model.build_prompt([Segment(tuple(tubelets), 1.0, 0)], question, true_time=True)


def timeline_of(model: QwenVideoModel, chunk: int = 2, max_bytes: int = 1 << 30) -> Timeline:
    return Timeline(model, VisionCache(model, max_bytes), chunk)


def test_growth_reuses_everything_and_eviction_what_stands_before_it(
    model: QwenVideoModel, tubelets: list[Tubelet]
) -> None:
    timeline = timeline_of(model)
    first = prompt_of(model, tubelets[:3])
    report = timeline.sync(first)
    timeline.check_integrity()
    assert (report.tokens_reused, report.tubelets_encoded, report.tubelets_prefilled) == (0, 3, 3)

    report = timeline.sync(prompt_of(model, tubelets[:5], "another question"))
    timeline.check_integrity()
    assert report.tokens_reused == first.prefix_length
    assert (report.tubelets_encoded, report.tubelets_prefilled) == (2, 2)
    assert timeline.tubelet_ids == (0, 1, 2, 3, 4)

    evicted = prompt_of(model, [tubelets[0], *tubelets[2:5]])
    report = timeline.sync(evicted)
    timeline.check_integrity()
    assert report.tokens_reused == first.spans[0][1]
    assert (report.tubelets_encoded, report.tubelets_prefilled) == (0, 3)  # features stay, keys and values can't
    assert timeline.tubelet_ids == (0, 2, 3, 4)


def test_equal_pixels_under_another_id_are_not_taken_for_the_same(
    model: QwenVideoModel, tubelets: list[Tubelet]
) -> None:
    timeline = timeline_of(model)
    timeline.sync(prompt_of(model, tubelets[:3]))
    report = timeline.sync(prompt_of(model, [tubelets[0], replace(tubelets[1], id=99), tubelets[2]]))
    assert report.tubelets_prefilled == 2


def test_a_changed_time_invalidates_from_there_on(model: QwenVideoModel, tubelets: list[Tubelet]) -> None:
    timeline = timeline_of(model)
    timeline.sync(prompt_of(model, tubelets[:4]))
    later = [*tubelets[:2], *(replace(t, time_ns=t.time_ns + 5 * NANOSECONDS) for t in tubelets[2:4])]
    assert timeline.sync(prompt_of(model, later)).tubelets_prefilled == 2


def test_an_interrupted_sync_keeps_what_was_prefilled(model: QwenVideoModel, tubelets: list[Tubelet]) -> None:
    timeline = timeline_of(model, chunk=2)
    calls = 0

    def interrupt() -> CanceledError | None:
        nonlocal calls
        calls += 1
        return CanceledError("enough") if calls == 3 else None

    prompt = prompt_of(model, tubelets)
    batch = ClipBatch(model, timeline, prompt)
    answer = free_text(model, prompt, GenerationOptions(2), interrupts=Interrupts(interrupt))
    batch.add(answer)
    batch.finish()
    assert isinstance(answer.failure, CanceledError)
    timeline.check_integrity()
    assert timeline.tubelet_ids == (0, 1, 2, 3)
    assert timeline.sync(prompt).tubelets_prefilled == 4


def test_a_failing_layer_leaves_no_half_grown_cache(
    model: QwenVideoModel, tubelets: list[Tubelet], monkeypatch: pytest.MonkeyPatch
) -> None:
    timeline = timeline_of(model, chunk=1)
    timeline.sync(prompt_of(model, tubelets[:2]))

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the second layer broke")

    with monkeypatch.context() as patch:
        patch.setattr(model.model.model.language_model.layers[1], "forward", fail)
        with pytest.raises(RuntimeError, match="second layer"):
            timeline.sync(prompt_of(model, tubelets[:4]))
    timeline.check_integrity()
    assert timeline.tubelet_ids == (0, 1)
    assert timeline.sync(prompt_of(model, tubelets[:4])).tubelets_prefilled == 2


def test_the_last_chunk_and_the_question_are_one_pass(any_model: QwenVideoModel, tubelets: list[Tubelet]) -> None:
    model = any_model
    rng = np.random.default_rng(1)
    size = model.frame_spec.fit(56, 84)
    tubelets = [replace(t, frames=np.stack([random_frame(rng, *size)] * 2)) for t in tubelets]
    timeline = timeline_of(model, chunk=2)
    for shown, prefilled in ((5, 5), (5, 0), (6, 1)):
        prompt = prompt_of(model, tubelets[:shown])
        batch = ClipBatch(model, timeline, prompt)
        answer = free_text(model, prompt, GenerationOptions(3))
        batch.add(answer)
        with passes_of(model) as passes:
            batch.finish()
        report, said = batch.report, answer.token_ids
        timeline.check_integrity()
        assert (report.tubelets_encoded, report.tubelets_prefilled) == (prefilled, prefilled)
        assert report.tokens_reused + report.tokens_computed == len(timeline) == prompt.prefix_length
        assert (report.encoding_s > 0) == bool(prefilled)
        ends = [prompt.spans[1][1], prompt.spans[3][1]] if report.tokens_reused == 0 else []
        bounds = [report.tokens_reused, *ends, len(prompt)]
        assert passes == [*np.diff(bounds), *[1] * (len(said) - 1)]
        segments = [Segment(tuple(tubelets[:shown]), 1.0, 0)]
        assert said == model.native_generate(segments, "what?", GenerationOptions(3), true_time=True)


@pytest.mark.parametrize("fails_in", ["question", "second token", "callback"])
def test_a_failing_answer_keeps_what_every_layer_holds(
    model: QwenVideoModel, tubelets: list[Tubelet], monkeypatch: pytest.MonkeyPatch, fails_in: str
) -> None:
    monkeypatch.setattr(model.model.generation_config, "eos_token_id", None)  # there is a second token
    timeline = timeline_of(model, chunk=1)
    prompt = prompt_of(model, tubelets[:3])
    layer = model.model.model.language_model.layers[1]
    forward = layer.forward

    def fail(hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        asked = hidden_states.shape[1]
        if asked == (1 if fails_in == "second token" else len(prompt) - prompt.spans[1][1]):
            raise RuntimeError("the second layer broke")
        return forward(hidden_states, **kwargs)

    def callback(text: str, tokens: int) -> None:
        raise RuntimeError("the listener broke")

    batch = ClipBatch(model, timeline, prompt)
    with monkeypatch.context() as patch:
        if fails_in == "callback":
            answer = free_text(model, prompt, GenerationOptions(2), interrupts=Interrupts(on_text=callback))
            batch.add(answer)
            batch.finish()
            assert "the listener broke" in str(answer.failure)
        else:
            patch.setattr(layer, "forward", fail)
            batch.add(free_text(model, prompt, GenerationOptions(2)))
            with pytest.raises(RuntimeError, match="broke"):
                batch.finish()
    timeline.check_integrity()
    kept = (0, 1) if fails_in == "question" else (0, 1, 2)
    assert timeline.tubelet_ids == kept
    batch = ClipBatch(model, timeline, prompt)
    batch.add(free_text(model, prompt, GenerationOptions(2)))
    batch.finish()
    assert batch.report.tubelets_prefilled == 3 - len(kept)
    timeline.check_integrity()


def test_a_first_pass_that_fails_leaves_an_empty_cache(
    model: QwenVideoModel, tubelets: list[Tubelet], monkeypatch: pytest.MonkeyPatch
) -> None:
    timeline = timeline_of(model, chunk=8)

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the first layer broke")

    monkeypatch.setattr(model.model.model.language_model.layers[0], "forward", fail)
    with pytest.raises(RuntimeError, match="first layer"):
        answer_alone(model, timeline, prompt_of(model, tubelets), GenerationOptions(2))
    timeline.check_integrity()
    assert len(timeline) == 0


def test_whatever_call_fails_what_is_kept_is_right(any_model: QwenVideoModel) -> None:
    model, rng = any_model, np.random.default_rng(3)
    size = model.frame_spec.fit(56, 56)
    timeline = timeline_of(model, chunk=2)
    forks: list[Timeline] = []
    fired, kept = 0, 0
    for round_ in range(40):
        ids = np.sort(rng.choice(12, int(rng.integers(1, 8)), replace=False))
        shown = [
            Tubelet(int(k), "", np.full((2, *size, 3), 20 * k, np.uint8), (), int(k) * NANOSECONDS, 0.0) for k in ids
        ]
        prompt = prompt_of(model, shown)
        with fault_at(model.model, int(rng.integers(1, 200)), RuntimeError) as raised:
            try:
                answer_alone(model, timeline, prompt, GenerationOptions(3))
            except RuntimeError:
                fired += 1
        timeline.check_integrity()
        kept += bool(raised and timeline.tubelet_ids)
        if round_ % 4 == 0:
            forks = [*forks[-2:], timeline.fork(timeline.common_prefix(prompt))]
        if round_ % 5 == 0:
            timeline.keep_only(set(rng.choice(12, 9).tolist()))
            timeline.check_integrity()
        for held in (timeline, *forks):
            with recorded_logits(model.model) as rows:
                said = answer_alone(model, held, prompt, GenerationOptions(3)).token_ids
            held.check_integrity()
            with recorded_logits(model.model) as native_rows:
                native = model.native_generate(
                    [Segment(tuple(shown), 1.0, 0)], "what?", GenerationOptions(3), true_time=True
                )
            assert compare(Generated(said, torch.stack(rows)), Generated(native, torch.stack(native_rows))).equal
    assert fired >= 10
    assert kept >= 5, "nothing was kept after a failure, so nothing was tested"


def test_what_stands_behind_a_forgotten_tubelet_is_cropped(model: QwenVideoModel, tubelets: list[Tubelet]) -> None:
    timeline = timeline_of(model)
    prompt = prompt_of(model, tubelets)
    timeline.sync(prompt)
    assert timeline.keep_only({0, 1, 2, 4, 5, 6, 7})
    timeline.check_integrity()
    assert timeline.tubelet_ids == (0, 1, 2)
    assert len(timeline) == prompt.spans[3][0]
    assert timeline.nbytes > 0
    assert not timeline.keep_only({1, 2})
    timeline.check_integrity()
    assert (len(timeline), timeline.nbytes) == (0, 0)
    assert not timeline.keep_only(set())


def test_bytes_are_those_of_the_storage(model: QwenVideoModel, tubelets: list[Tubelet]) -> None:
    timeline = timeline_of(model)
    assert timeline.nbytes == 0
    timeline.sync(prompt_of(model, tubelets))
    config = model.model.config.get_text_config()
    per_token = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * 16
    assert timeline.nbytes >= len(timeline) * per_token
    full = timeline.nbytes
    timeline.rollback(10)
    timeline.check_integrity()
    assert timeline.nbytes == full  # a cropped view keeps its storage: saying otherwise would hide it
    timeline.reset()
    assert (timeline.nbytes, len(timeline), timeline.tubelet_ids) == (0, 0, ())


def test_the_vision_cache_stays_within_its_bytes(model: QwenVideoModel, tubelets: list[Tubelet]) -> None:
    one = model.encode(tubelets[:1])[0].nbytes
    vision = VisionCache(model, 3 * one)
    _, encoded = vision.features(tubelets[:5])
    vision.check_integrity()
    assert encoded == 5
    assert [tubelet.id in vision for tubelet in tubelets[:5]] == [False, False, True, True, True]
    _, encoded = vision.features([tubelets[2], tubelets[0]])  # touching 2 makes 3 the oldest
    vision.check_integrity()
    assert encoded == 1
    assert 3 not in vision
    assert 2 in vision
    assert len(vision) == 3
    vision.clear()
    vision.check_integrity()
    assert vision.nbytes == 0
