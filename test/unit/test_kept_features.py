"""Vision features and clips are kept of what memory holds, and of nothing else."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from support.engines import Gate, answerer_of, feed
from vstream_ros.engine import DelayedBatchInferenceEngine, Question
from vstream_ros.memory import MemoryConfig

MEMORY = MemoryConfig(star_memory_size=2, stream_window_size=4, stream_slide=2, scene_threshold=1.0)


@pytest.fixture
def engine(request: pytest.FixtureRequest, loaded: tuple[Any, Any]) -> Iterator[DelayedBatchInferenceEngine]:
    with DelayedBatchInferenceEngine(
        *loaded, "cpu", memory=MEMORY, max_pixels=84 * 84, max_new_tokens=2, **getattr(request, "param", {})
    ) as made:
        yield made


def held_ids(engine: DelayedBatchInferenceEngine) -> set[int]:
    return {tubelet.id for clip in engine.clips() for tubelet in clip.tubelets}


@pytest.mark.parametrize("part", [{}, {"start_ns": 1}])
def test_features_are_kept_of_what_memory_holds_only(engine: DelayedBatchInferenceEngine, part: dict[str, Any]) -> None:
    answerer = answerer_of(engine)
    for k in range(0, 40, 4):
        feed(engine, 4, start=k)
        engine.ask("what?", **part)
        assert set(answerer.vision._features) <= held_ids(engine)
        answerer.vision.check_integrity()
    assert len(answerer.vision) > 0


@pytest.mark.parametrize("mode", ["vision", "full"])
def test_work_ahead_lets_go_of_what_memory_forgot(loaded: tuple[Any, Any], mode: str) -> None:
    with DelayedBatchInferenceEngine(
        *loaded, "cpu", memory=MEMORY, max_pixels=84 * 84, background_encoding=mode
    ) as engine:
        answerer = answerer_of(engine)
        engine._thread.close("the test takes the steps itself")
        for k in range(0, 40, 4):
            feed(engine, 4, start=k)
            while engine._work_ahead.step() is not None:
                pass
            assert set(answerer.vision._features) == held_ids(engine)


def test_features_of_a_provisional_tubelet_are_never_stored(engine: DelayedBatchInferenceEngine) -> None:
    answerer = answerer_of(engine)
    feed(engine, 5)
    provisional = engine.clips()[0].tubelets[-1]
    assert provisional.provisional
    for _ in range(2):
        assert engine.ask("what?")[1]["tubelets"] == 3
        assert provisional.id not in answerer.vision
        assert len(answerer.vision) == 2
        answerer.drop_caches()


def test_frames_that_memory_forgot_are_freed_after_the_last_question(engine: DelayedBatchInferenceEngine) -> None:
    feed(engine, 6)
    gate = Gate()
    running = engine.submit(Question("hold"), on_text=gate)
    assert gate.reached.wait(60)
    waiting = [engine.submit(Question("and then?")) for _ in range(2)]
    gate.open()
    for pending in (running, *waiting):
        pending.future.result(timeout=60)
    asked_about = [weakref.ref(tubelet) for tubelet in engine.clips()[0].tubelets]
    feed(engine, 20, start=6)
    del running, waiting, pending
    gc.collect()
    alive = {tubelet.id for ref in asked_about if (tubelet := ref()) is not None}
    assert len(alive) < len(asked_about)
    assert alive <= held_ids(engine)
