"""The engine's own API, without ROS: the reference's usage, parameters, answers, status, threads."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from support.engines import fails_with, feed
from support.equality import compare, generated, native_answer, recorded_choices
from support.frames import random_frame
from vstream_ros import errors
from vstream_ros.engine import DelayedBatchInferenceEngine, Question
from vstream_ros.memory import MemoryConfig
from vstream_ros.synthetic.random_model import random_model


def test_the_reference_example(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    engine = DelayedBatchInferenceEngine(
        model=model,
        processor=processor,
        device="cpu",
        star_memory_size=20,
        stream_window_size=20,
        max_pixels=4 * 224 * 224,
    )
    picture = random_frame(np.random.default_rng(0), 120, 160)
    for k in range(6):
        status = engine.add_frame(np.roll(picture, k, axis=1), k / 24)
        assert status.kept
        assert "stream" in str(status)
    answer, metrics = engine.ask("请描述视频内容。")
    assert isinstance(answer, str)
    assert metrics["encoding_latency"] > 0
    assert metrics["cache_hit"] is False
    _, metrics2 = engine.ask("视频中有什么人物？")
    assert metrics2.get("encoding_latency", "N/A") == "N/A"
    assert metrics2["cache_hit"] is True
    engine.add_frame(np.roll(picture, 6, axis=1), 6 / 24)
    _, metrics3 = engine.ask("新增内容是什么？")
    assert metrics3["encoding_latency"] > 0
    assert metrics3["frames"] == 7
    assert metrics3["tubelets_reused"] == metrics3["tubelets"] - 1  # the new frame's tubelet alone was encoded
    engine.close()


def test_an_engine_without_a_model_takes_the_tuning_parameters() -> None:
    with DelayedBatchInferenceEngine(star_memory_size=10, stream_window_size=10, max_pixels=2 * 224 * 224) as engine:
        assert engine.config.max_pixels == 2 * 224 * 224
        camera = engine.status().cameras[0]
        assert camera.star_capacity == 10
        error = fails_with(engine.submit(Question("hello?")).future, errors.NotReadyError)
        assert "no model" in str(error)


@pytest.mark.parametrize(
    "overrides",
    [
        {"star_memory_size": 3},
        {"stream_window_size": 0},
        {"max_pixels": 0},
        {"time_positions": "maybe"},
        {"timeout_s": -1.0},
        {"no_such_parameter": 1},
        {"memory": {}},
    ],
)
def test_a_parameter_out_of_range_is_named(overrides: dict[str, Any]) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        DelayedBatchInferenceEngine(**overrides)
    name = next(iter(overrides))
    assert ("cameras" if name == "memory" else name) in str(caught.value)


def test_answers_through_the_engine_equal_native(engine: DelayedBatchInferenceEngine) -> None:
    feed(engine, 20)
    answerer = engine._host.answerer
    assert answerer is not None
    question = Question("what happened?", max_new_tokens=8)
    with recorded_choices(answerer) as recorded:
        answer = engine.submit(question).future.result(timeout=60)
    native = native_answer(answerer, engine.clips(), question)
    assert list(answer.token_ids) == native.tokens
    assert compare(generated(answer.token_ids, recorded[0]), native).equal
    probabilities = native.logits.log_softmax(-1)[range(len(native.tokens)), native.tokens]
    assert answer.confidence == pytest.approx(float(probabilities.mean().exp()), rel=1e-4)
    assert answer.frame_stamps_ns == tuple(round(k / 2 * 1e9) for k in range(20))


def test_a_time_range_is_answered_beside_the_warm_timeline(engine: DelayedBatchInferenceEngine) -> None:
    feed(engine, 12)
    engine.ask("warm up")
    part = engine.submit(Question("then?", start_ns=1_000_000_000, end_ns=2_500_000_000)).future.result(timeout=60)
    assert part.frame_stamps_ns == tuple(round(t * 1e9) for t in (1.0, 1.5, 2.0, 2.5))
    assert part.metrics.tubelets_reused == 2  # vision features are shared
    _, metrics = engine.ask("and now?")
    assert metrics["cache_hit"] is True
    error = fails_with(engine.submit(Question("then?", start_ns=10**12)).future, errors.NoFramesError)
    assert "time range" in str(error)


def test_several_cameras(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    memory = MemoryConfig(scene_threshold=1.0)
    with DelayedBatchInferenceEngine(
        model, processor, "cpu", memory={"front": memory, "rear": memory}, max_pixels=84 * 84, max_new_tokens=4
    ) as engine:
        with pytest.raises(errors.InvalidRequestError, match="name the camera"):
            feed(engine, 1)
        feed(engine, 4, camera="front")
        answer = engine.submit(Question("what?")).future.result(timeout=60)
        assert set(answer.frame_cameras) == {"front"}
        feed(engine, 6, camera="rear")
        answer = engine.submit(Question("what?")).future.result(timeout=60)
        assert answer.frame_cameras == ("front",) * 4 + ("rear",) * 6
        answer = engine.submit(Question("what?", cameras=("rear",))).future.result(timeout=60)
        assert set(answer.frame_cameras) == {"rear"}
        assert answer.metrics.frames == 6
        with pytest.raises(errors.InvalidRequestError, match="front, rear"):
            engine.add_frame(np.zeros((56, 56, 3), np.uint8), 9.0, camera="side")


@pytest.mark.parametrize(
    ("question", "error", "says"),
    [
        (Question(""), errors.InvalidRequestError, "empty"),
        (Question("  \n"), errors.InvalidRequestError, "empty"),
        (Question("a", cameras=("x",)), errors.InvalidRequestError, "'x'"),
        (Question("a", cameras=("camera", "camera")), errors.InvalidRequestError, "twice"),
        (Question("a", choices=("b", "b")), errors.InvalidRequestError, "choices"),
        (Question("a", choices=("b", " ")), errors.InvalidRequestError, "choices"),
        (Question("a", temperature=-1.0), errors.InvalidRequestError, "temperature"),
        (Question("a", temperature=float("nan")), errors.InvalidRequestError, "temperature"),
        (Question("a", timeout_s=-1.0), errors.InvalidRequestError, "timeout"),
        (Question("a", start_ns=2, end_ns=1), errors.InvalidRequestError, "before start_time"),
        (Question("a " * 20000), errors.InvalidRequestError, "exceed"),
        (Question("a", max_new_tokens=1_000_000), errors.InvalidRequestError, "exceed"),
    ],
)
def test_impossible_questions_say_what_to_do(
    engine: DelayedBatchInferenceEngine, question: Question, error: type[errors.VStreamError], says: str
) -> None:
    feed(engine, 2)
    failure = fails_with(engine.submit(question).future, error)
    assert says in str(failure)
    assert failure.code == "INVALID_REQUEST"
    assert engine.ask("still there?")[1]["new_tokens"] > 0


def test_a_memory_that_exceeds_the_models_context_is_refused_at_once() -> None:
    model, processor = random_model("qwen2_5_vl", context=2000)
    with pytest.raises(errors.ConfigError, match="2000") as caught:
        DelayedBatchInferenceEngine(model, processor, "cpu", max_pixels=112 * 112, star_memory_size=220)
    assert "star_memory_size" in str(caught.value)
    DelayedBatchInferenceEngine(model, processor, "cpu", max_pixels=112 * 112).close()


def test_no_frames(engine: DelayedBatchInferenceEngine) -> None:
    error = fails_with(engine.submit(Question("what?")).future, errors.NoFramesError)
    assert "camera" in str(error)


def test_status_and_memory_add_up(engine: DelayedBatchInferenceEngine) -> None:
    feed(engine, 10)
    before = engine.status()
    assert (before.valid, before.pending_tubelets, before.clip_frames) == (False, 5, 10)
    engine.ask("what?")
    engine.ask("what else?")
    after = engine.status()
    assert after.valid
    assert after.pending_tubelets == 0
    assert after.timeline_tubelets == 5
    assert (after.cache_hits, after.cache_misses, after.answers, after.failures) == (1, 1, 2, 0)
    assert after.tokens_reused > 0
    assert after.timeline_bytes > 0
    feed(engine, 2, start=10)
    assert engine.status().valid is False
    memory = engine.device_memory()[0]
    assert memory.device == "cpu"
    assert 0 < memory.model < memory.allocated <= memory.peak_allocated
    height, width = engine.frame_size(60, 80)
    assert memory.frames == 12 * height * width * 3
    assert memory.kv_cache == after.timeline_bytes
    assert memory.features > 0
    answerer = engine._host.answerer
    assert answerer is not None
    engine.ask("then?", start_ns=1_000_000_000)  # on a KV cache of its own, beside the current one
    current, every = engine.status().timeline_bytes, engine.device_memory()[0].kv_cache
    assert (current, every) == (answerer.timelines.current.nbytes, answerer.timelines.nbytes)
    assert current < every


def test_frames_may_be_added_while_questions_are_answered(engine: DelayedBatchInferenceEngine) -> None:
    feed(engine, 4)
    stop = threading.Event()
    failures: list[BaseException] = []

    def camera() -> None:
        try:
            k = 100
            while not stop.is_set():
                feed(engine, 1, start=k)
                k += 1
        except BaseException as error:  # noqa: BLE001  (reported below)
            failures.append(error)

    thread = threading.Thread(target=camera)
    thread.start()
    try:
        for _ in range(20):
            answer = engine.submit(Question("what?", max_new_tokens=2)).future.result(timeout=60)
            assert list(answer.frame_stamps_ns) == sorted(answer.frame_stamps_ns)
            answerer = engine._host.answerer
            assert answerer is not None
    finally:
        stop.set()
        thread.join()
    assert not failures
    answerer.timelines.check_integrity()
    answerer.vision.check_integrity()
