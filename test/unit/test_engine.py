"""The engine's own API, without ROS: the reference's usage, every kind of failure, threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.engines import Gate, fails_with, feed
from support.equality import compare, generated, native_answer, recorded_choices
from support.frames import random_frame
from vstream_ros import errors
from vstream_ros.engine import DelayedBatchInferenceEngine, ModelState, Question
from vstream_ros.memory import MemoryConfig, Verdict
from vstream_ros.models.qwen.video_model import QwenVideoModel
from vstream_ros.synthetic.random_model import random_model, write_random_checkpoint


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return random_model("qwen2_5_vl")


@pytest.fixture
def engine(loaded: tuple[Any, Any]) -> Iterator[DelayedBatchInferenceEngine]:
    model, processor = loaded
    with DelayedBatchInferenceEngine(
        model=model, processor=processor, device="cpu", max_pixels=84 * 112, max_new_tokens=8, scene_threshold=1.0
    ) as made:
        yield made


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


def test_a_timeout_keeps_the_text_so_far(engine: DelayedBatchInferenceEngine) -> None:
    feed(engine, 4)

    def slow(text: str, tokens: int) -> None:
        time.sleep(1.1)  # longer than it has, so that the first token is the last one on any machine

    pending = engine.submit(Question("talk", max_new_tokens=4000, timeout_s=1.0), on_text=slow)
    error = fails_with(pending.future, errors.QuestionTimeoutError)
    assert error.answer
    assert error.code == "TIMEOUT"
    assert engine.ask("and now?")[1]["cache_hit"] is True  # what was prefilled stays


def test_a_waiting_question_times_out_while_another_is_answered(engine: DelayedBatchInferenceEngine) -> None:
    feed(engine, 2)
    ended: list[str] = []

    gate = Gate()  # holds the long answer until the short one's time is over, however quick the machine
    long = engine.submit(Question("talk", max_new_tokens=200), on_text=gate)
    long.future.add_done_callback(lambda _: ended.append("long"))
    assert gate.reached.wait(60)
    short = engine.submit(Question("wait", timeout_s=0.05))
    short.future.add_done_callback(lambda _: ended.append("short"))
    time.sleep(0.1)
    gate.open()
    fails_with(short.future, errors.QuestionTimeoutError)
    long.future.result(timeout=60)
    assert ended == ["short", "long"]


def test_cancel_ends_a_running_and_a_waiting_question(engine: DelayedBatchInferenceEngine) -> None:
    feed(engine, 2)
    gate = Gate()
    running = engine.submit(Question("talk", max_new_tokens=4000), on_text=gate)
    waiting = engine.submit(Question("wait"))
    assert gate.reached.wait(60)
    running.cancel()
    waiting.cancel("not needed any more")
    gate.open()
    assert fails_with(running.future, errors.CanceledError).answer
    assert "not needed" in str(fails_with(waiting.future, errors.CanceledError))
    assert engine.status().queued_questions == 0


def test_clearing_voids_the_answer_in_flight(engine: DelayedBatchInferenceEngine) -> None:
    feed(engine, 4)
    gate = Gate()
    running = engine.submit(Question("talk", max_new_tokens=4000), on_text=gate)
    assert gate.reached.wait(60)
    epoch = engine.status().memory_epoch
    engine.clear("test")
    gate.open()
    assert "cleared" in str(fails_with(running.future, errors.CanceledError))
    status = engine.status()
    assert status.memory_epoch == epoch + 1
    assert status.clip_frames == 0
    assert "test" in status.announcements
    fails_with(engine.submit(Question("what?")).future, errors.NoFramesError)


def test_clearing_forgets_also_what_was_computed(engine: DelayedBatchInferenceEngine) -> None:
    for clear in (lambda: engine.clear("test"), lambda: engine.add_frame(np.zeros((80, 60, 3), np.uint8), 99.0)):
        feed(engine, 4)
        engine.ask("what?")
        assert engine.device_memory()[0].kv_cache > 0
        clear()
        deadline = time.monotonic() + 60
        while engine.device_memory()[0].kv_cache or engine.device_memory()[0].features:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert engine._desk._shared.clips == ()
        engine.clear("between")


def test_a_full_queue_answers_busy(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    with DelayedBatchInferenceEngine(model, processor, "cpu", max_queued_questions=3, max_pixels=84 * 84) as engine:
        feed(engine, 2)
        gate = Gate()
        first = engine.submit(Question("talk", max_new_tokens=2), on_text=gate)
        assert gate.reached.wait(60)
        more = [engine.submit(Question("more", max_new_tokens=2)) for _ in range(9)]
        busy = [p for p in more if p.future.done()]
        assert len(busy) == 7
        for pending in busy:
            fails_with(pending.future, errors.BusyError)
        gate.open()
        for pending in [first, *(p for p in more if p not in busy)]:
            assert pending.future.result(timeout=60).metrics.new_tokens


def test_the_status_tells_waiting_questions_from_the_running_one(engine: DelayedBatchInferenceEngine) -> None:
    feed(engine, 2)
    gate = Gate()
    first = engine.submit(Question("talk", max_new_tokens=2), on_text=gate)
    assert gate.reached.wait(60)
    assert (engine.status().queued_questions, engine.status().running_question) == (0, True)
    more = [engine.submit(Question("more", max_new_tokens=2)) for _ in range(2)]
    assert (engine.status().queued_questions, engine.status().running_question) == (2, True)
    gate.open()
    for pending in (first, *more):
        pending.future.result(timeout=60)
    assert (engine.status().queued_questions, engine.status().running_question) == (0, False)


def test_a_defect_is_an_error_of_one_question(
    engine: DelayedBatchInferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(engine, 4)
    host = engine._host
    assert host.answerer is not None
    model = host.answerer.model
    assert isinstance(model, QwenVideoModel)

    def broken(*args: object) -> None:
        raise KeyError("boom")

    def out_of_memory(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    for failure, code in ((broken, "INTERNAL"), (out_of_memory, "OUT_OF_MEMORY")):
        with monkeypatch.context() as patch:
            patch.setattr(model, "encode", failure)
            engine.clear()
            feed(engine, 4)
            with pytest.raises(errors.VStreamError) as caught:
                engine.ask("what?")
            assert caught.value.code == code
        _, metrics = engine.ask("what?")
        assert metrics["frames"] == 4
        assert engine.status().last_failure


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


def test_loading_failing_and_loading_again(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    with DelayedBatchInferenceEngine(model=str(folder), device="cpu", max_pixels=84 * 84, max_new_tokens=2) as engine:
        feed(engine, 2)
        with pytest.raises(errors.ModelFailedError, match="does not exist"):
            engine.load().result(timeout=60)
        assert engine.status().model_state is ModelState.FAILED
        assert "does not exist" in str(fails_with(engine.submit(Question("a")).future, errors.ModelFailedError))

        write_random_checkpoint(folder)
        loading = engine.load()
        assert engine.status().model_state in (ModelState.LOADING, ModelState.READY)
        loading.result(timeout=120)
        assert engine.status().model_state is ModelState.READY
        assert engine.ask("what?")[1]["frames"] == 2

        engine.unload().result(timeout=60)
        assert engine.status().model_state is ModelState.UNLOADED
        assert engine.device_memory()[0].model == 0
        fails_with(engine.submit(Question("a")).future, errors.NotReadyError)
        assert engine.ask("what?")[1]["cache_hit"] is False  # ask loads what is named


@pytest.mark.parametrize("damage", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("how", ["missing", "corrupt"])
def test_a_damaged_checkpoint_is_one_sentence(tmp_path: Path, damage: str, how: str) -> None:
    folder = write_random_checkpoint(tmp_path / "checkpoint")
    if how == "missing":
        (folder / damage).unlink()
    else:
        (folder / damage).write_bytes(b"\x00\x01 not what it was")
    with DelayedBatchInferenceEngine(model=str(folder), device="cpu", local_files_only=True) as engine:
        with pytest.raises(errors.ModelFailedError) as caught:
            engine.load().result(timeout=120)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_unload_overtakes_a_load(tmp_path: Path) -> None:
    folder = write_random_checkpoint(tmp_path / "checkpoint")
    with DelayedBatchInferenceEngine(model=str(folder), device="cpu") as engine:
        engine.load()
        engine.unload().result(timeout=120)
        assert engine.status().model_state is ModelState.UNLOADED
        assert engine._host.answerer is None


def test_cuda_asked_for_without_cuda(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with (
        DelayedBatchInferenceEngine(model=str(tmp_path), device="cuda") as engine,
        pytest.raises(errors.ConfigError, match="no CUDA"),
    ):
        engine.load().result(timeout=60)


def test_another_familys_frame_size_scales_what_was_kept(tmp_path: Path) -> None:
    folder = write_random_checkpoint(tmp_path / "checkpoint", "qwen3_vl")
    with DelayedBatchInferenceEngine(device="cpu", max_pixels=112 * 112) as engine:
        assert engine.frame_size(112, 112) == (112, 112)
        feed(engine, 4)
        engine.load(str(folder)).result(timeout=120)
        assert engine.frame_size(112, 112) == (96, 96)  # multiples of 32 instead of 28
        assert engine.status().clip_frames == 4
        assert engine.status().announcements == ()


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
