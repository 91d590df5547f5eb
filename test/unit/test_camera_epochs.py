"""What happens to one camera voids the questions and the caches that used it, and no others."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from support.engines import Gate, answerer_of, fails_with, feed
from support.equality import compare, generated, native_answer, recorded_choices
from vstream_ros import errors
from vstream_ros.engine import DelayedBatchInferenceEngine, Question
from vstream_ros.memory import MemoryConfig

MEMORY = MemoryConfig(scene_threshold=1.0)


@pytest.fixture
def engine(loaded: tuple[Any, Any]) -> Iterator[DelayedBatchInferenceEngine]:
    with DelayedBatchInferenceEngine(
        *loaded, "cpu", memory={"good": MEMORY, "bad": MEMORY}, max_pixels=84 * 84, max_new_tokens=4
    ) as made:
        feed(made, 8, camera="good")
        feed(made, 6, camera="bad")
        yield made


def settle(engine: DelayedBatchInferenceEngine) -> None:
    """Until the model's thread has done what was asked of it so far."""
    engine._thread.run(lambda: None).result(timeout=60)


def ids_of(engine: DelayedBatchInferenceEngine, camera: str) -> set[int]:
    return {t.id for clip in engine.clips(Question("", cameras=(camera,))) for t in clip.tubelets}


@pytest.mark.parametrize("cleared", ["bad", None])
def test_a_cleared_camera_voids_what_is_asked_about_it_and_nothing_else(
    engine: DelayedBatchInferenceEngine, cleared: str | None
) -> None:
    voided = [("bad",), ("good", "bad"), ()] if cleared else [("good",), ("bad",), ()]
    for cameras in [("good",), *voided]:
        gate = Gate()
        running = engine.submit(Question("talk", cameras=cameras, max_new_tokens=6), on_text=gate)
        assert gate.reached.wait(60)
        engine.clear("test", camera=cleared)
        gate.open()
        if cameras in voided:
            assert "cleared" in str(fails_with(running.future, errors.CanceledError))
        else:
            assert set(running.future.result(timeout=60).frame_cameras) == {"good"}
        for camera in ("good", "bad"):
            if not ids_of(engine, camera):
                feed(engine, 4, start=20, camera=camera)


def test_a_camera_without_frames_takes_no_part(engine: DelayedBatchInferenceEngine) -> None:
    engine.clear("test", camera="bad")
    gate = Gate()
    running = engine.submit(Question("about all"), on_text=gate)
    assert gate.reached.wait(60)
    engine.clear("again", camera="bad")
    gate.open()
    assert set(running.future.result(timeout=60).frame_cameras) == {"good"}


def test_a_camera_that_flips_its_size_cancels_no_question_about_another(engine: DelayedBatchInferenceEngine) -> None:
    flips = 0

    def flip(text: str, tokens: int) -> None:
        nonlocal flips
        size = (60, 80) if flips % 2 else (80, 60)
        flips += 1
        with contextlib.suppress(errors.FrameError):
            engine.add_frame(np.zeros((*size, 3), np.uint8), 3 + flips / 2, camera="bad")

    for _ in range(5):
        pending = engine.submit(Question("what?", cameras=("good",)), on_text=flip)
        assert pending.future.result(timeout=60).metrics.new_tokens
    assert flips


def test_what_was_computed_of_other_cameras_stays(engine: DelayedBatchInferenceEngine) -> None:
    engine.ask("warm up")
    engine.ask("warm up", cameras=("good",))
    engine.ask("warm up", cameras=("bad",))
    answerer, dead = answerer_of(engine), ids_of(engine, "bad")
    assert all(tubelet in answerer.vision for tubelet in dead)
    engine.clear("test", camera="bad")
    settle(engine)
    assert not any(tubelet in answerer.vision for tubelet in dead)
    for timeline in answerer.timelines:
        assert dead.isdisjoint(timeline.tubelet_ids)
    answerer.timelines.check_integrity()
    answerer.vision.check_integrity()
    metrics = engine.ask("and now?")[1]
    assert (metrics["tubelets"], metrics["tubelets_reused"]) == (4, 4)
    feed(engine, 6, start=20, camera="bad")
    assert engine.ask("and now?", cameras=("good",))[1]["cache_hit"] is True
    metrics = engine.ask("and now?")[1]
    assert (metrics["tubelets"], metrics["tubelets_reused"]) == (7, 4)


def test_after_random_clearings_every_answer_is_natives(engine: DelayedBatchInferenceEngine) -> None:
    rng = np.random.default_rng(0)
    answerer = answerer_of(engine)
    fed, hits = {"good": 8, "bad": 6}, 0
    for _ in range(40):
        camera = ("good", "bad")[int(rng.integers(2))]
        if rng.random() < 0.3:
            engine.clear("test", camera=camera)
        if rng.random() < 0.7:
            count = int(rng.integers(1, 5))
            feed(engine, count, start=fed[camera], camera=camera)
            fed[camera] += count
        part = [{}, {"cameras": ("good",)}, {"cameras": ("bad",)}, {"start_ns": 10**10}][int(rng.integers(4))]
        question = Question("what?", max_new_tokens=3, **part)  # type: ignore[arg-type]
        if not engine.clips(question):
            fails_with(engine.submit(question).future, errors.NoFramesError)
            continue
        with recorded_choices(answerer) as recorded:
            answer = engine.submit(question).future.result(timeout=60)
        native = native_answer(answerer, engine.clips(question), question)
        assert compare(generated(answer.token_ids, recorded[0]), native).equal
        hits += answer.metrics.prompt_tokens_reused > 30
        answerer.timelines.check_integrity()
        answerer.vision.check_integrity()
    assert hits >= 5, "nothing was reused, so nothing was tested"


def test_the_last_cameras_clearing_frees_everything(engine: DelayedBatchInferenceEngine) -> None:
    engine.ask("warm up")
    engine.ask("warm up", cameras=("good",))
    engine.clear("test", camera="bad")
    engine.clear("test", camera="good")
    settle(engine)
    memory = engine.device_memory()[0]
    assert (memory.kv_cache, memory.features) == (0, 0)


def test_epochs_are_counted_per_camera_and_clearings_in_all(engine: DelayedBatchInferenceEngine) -> None:
    def counted() -> tuple[int, dict[str, int]]:
        status = engine.status()
        return status.memory_epoch, {camera.camera: camera.epoch for camera in status.cameras}

    assert counted() == (0, {"good": 0, "bad": 0})
    engine.clear("test", camera="bad")
    assert counted() == (1, {"good": 0, "bad": 1})
    engine.clear("test")
    assert counted() == (2, {"good": 1, "bad": 2})
    feed(engine, 2, camera="bad")
    engine.add_frame(np.zeros((80, 60, 3), np.uint8), 1.0, camera="bad")  # another size
    assert counted() == (3, {"good": 1, "bad": 3})


@pytest.mark.parametrize("background", ["off", "full"])
def test_frames_and_clearings_during_a_load_do_not_fill_the_inbox(loaded: tuple[Any, Any], background: str) -> None:
    with DelayedBatchInferenceEngine(
        *loaded, "cpu", memory=MEMORY, max_pixels=84 * 84, background_encoding=background
    ) as engine:
        busy, go_on = threading.Event(), threading.Event()

        def load() -> None:
            busy.set()
            assert go_on.wait(60)

        engine._thread.run(load)
        assert busy.wait(60)
        for k in range(50):
            engine.add_frame(np.zeros(((80, 60, 3), (60, 80, 3))[k % 2], np.uint8), k / 2)
            engine.clear("test")
        assert engine._thread._inbox.qsize() <= 2
        go_on.set()
        feed(engine, 2, start=50)
        assert engine.ask("what?")[1]["frames"] == 2
