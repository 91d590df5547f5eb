"""Frames through the engine's own API: what is kept, what is refused and counted, what clears a memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from support.engines import feed
from support.equality import compare, generated, native_answer, recorded_choices
from support.frames import random_frame
from vstream_ros import errors
from vstream_ros.engine import DelayedBatchInferenceEngine, Question
from vstream_ros.memory import MemoryConfig, Verdict


def test_important_frames_cost_their_own_encoding_and_the_prefill_behind_them(
    engine: DelayedBatchInferenceEngine,
) -> None:
    feed(engine, 12)
    engine.ask("warm up")
    rng = np.random.default_rng(7)
    important = [(random_frame(rng, 60, 80), seconds) for seconds in (3.9, 3.95, 9.0)]
    statuses = engine.update_star_memory(important)
    assert [(status.kept, status.stamp_ns) for status in statuses] == [(True, round(s * 1e9)) for _, s in important]
    answerer = engine._host.answerer
    assert answerer is not None
    question = Question("and now?", max_new_tokens=8)
    before = answerer.prompt(engine.clips(), "").spans[4][0]  # four tubelets stand before the first new one
    with recorded_choices(answerer) as recorded:
        answer = engine.submit(question).future.result(timeout=60)
    assert answer.frame_stamps_ns[8:10] == (3_900_000_000, 3_950_000_000)
    assert (answer.metrics.tubelets, answer.metrics.tubelets_reused) == (8, 6)
    assert answer.metrics.prompt_tokens_reused == before
    native = native_answer(answerer, engine.clips(), question)
    assert compare(generated(answer.token_ids, recorded[0]), native).equal
    # Header stamps are exact in nanoseconds only: the frame of second 9 is there already.
    engine.update_star_memory([(important[2][0], 9_000_000_000)], nanoseconds=True)
    assert engine.ask("and now?")[1]["cache_hit"] is True


def test_important_frames_that_cannot_be_used(engine: DelayedBatchInferenceEngine) -> None:
    feed(engine, 3)
    picture = random_frame(np.random.default_rng(0), 60, 80)
    for frames, says in (([(picture[:, :, 0], 9.0)], "RGB"), ([(picture, 2.0), (picture, 1.0)], "stamps must rise")):
        with pytest.raises(errors.FrameError, match=says):
            engine.update_star_memory(frames)
    with pytest.raises(errors.InvalidRequestError, match="'side'"):
        engine.update_star_memory([], camera="side")
    status = engine.status().cameras[0]
    assert (status.frames_kept, status.frames_rejected) == (3, 2)


def test_bad_frames_are_counted_and_change_nothing(engine: DelayedBatchInferenceEngine) -> None:
    feed(engine, 2)
    before = engine.clips()[0].tubelets
    for frame in (
        np.zeros((10, 10), np.uint8),
        np.zeros((10, 10, 4), np.uint8),
        np.zeros((10, 10, 3), np.float32),
        np.zeros((0, 10, 3), np.uint8),
        np.zeros((1, 5000, 3), np.uint8),
        "not an image",
    ):
        with pytest.raises(errors.FrameError):
            engine.add_frame(frame, 5.0)  # type: ignore[arg-type]
    assert engine.clips()[0].tubelets == before
    assert engine.status().cameras[0].frames_rejected == 6


def test_a_changed_resolution_clears_and_is_announced(engine: DelayedBatchInferenceEngine) -> None:
    feed(engine, 4)
    epoch = engine.status().memory_epoch
    status = engine.add_frame(np.zeros((80, 60, 3), np.uint8), 10.0)
    assert status.cleared
    after = engine.status()
    assert after.memory_epoch == epoch + 1
    assert after.clip_frames == 1
    assert any("camera" in reason for reason in after.announcements)


def test_a_camera_that_flips_its_size_is_kept_out_and_the_other_is_not_touched(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    memory = {name: MemoryConfig(sample_rate_hz=2.0) for name in ("good", "bad")}
    with DelayedBatchInferenceEngine(model, processor, "cpu", memory=memory, max_pixels=84 * 84) as engine:
        rng = np.random.default_rng(3)
        for k in range(300):
            if k % 15 == 0:
                engine.add_frame(random_frame(rng, 56, 84), camera="good", stamp_ns=k * 33_000_000)
            engine.add_frame(random_frame(rng, 56, (56, 84)[k % 2]), camera="bad", stamp_ns=k * 33_000_000)
        status = engine.status()
        good, bad = status.cameras
        assert (good.clears, good.frames_kept, good.quarantine) == ({}, 20, "")
        assert sum(bad.clears.values()) == status.memory_epoch == 4
        assert "its size or its clock" in bad.quarantine
        assert engine.ask("what?")[1]["frames"] == 20 + bad.stream_frames


def test_an_offer_says_what_keep_will_do(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    with DelayedBatchInferenceEngine(model, processor, "cpu", sample_rate_hz=2.0, max_pixels=84 * 84) as engine:
        frame = np.zeros((56, 56, 3), np.uint8)
        for stamp_ms, verdict in ((0, "KEEP"), (100, "SKIP"), (500, "KEEP"), (480, "BACKWARD"), (-5000, "JUMP")):
            stamp_ns = (10_000 + stamp_ms) * 1_000_000
            slot = engine.offer(stamp_ns)
            assert slot.verdict is Verdict[verdict]
            assert engine.keep(slot, frame).verdict is Verdict[verdict]
        state = engine.status().cameras[0]
        assert (state.frames_offered, state.frames_kept, state.frames_rejected) == (5, 3, 1)


@pytest.mark.parametrize("timestamp", [float("nan"), float("inf"), -float("inf"), 1e300, True, "1.5", 1j, [1]])
def test_what_is_no_time_is_refused_and_counted(engine: DelayedBatchInferenceEngine, timestamp: Any) -> None:
    feed(engine, 2)
    for call in (
        lambda: engine.add_frame(np.zeros((56, 56, 3), np.uint8), timestamp),
        lambda: engine.update_star_memory([(np.zeros((56, 56, 3), np.uint8), timestamp)]),
    ):
        with pytest.raises(errors.FrameError, match="stamp"):
            call()
    state = engine.status().cameras[0]
    assert (state.frames_offered, state.frames_kept, state.frames_rejected) == (4, 2, 2)
