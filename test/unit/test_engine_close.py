"""The engine's end: whoever waits hears of it, the weights go, and the next engine loads after it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from support.engines import answerer_of, feed, hold_thread
from support.model_loads import StandInLoader
from vstream_ros import errors
from vstream_ros.engine import DelayedBatchInferenceEngine, ModelState, Question


@pytest.fixture
def engine(models_by_name: StandInLoader) -> Iterator[DelayedBatchInferenceEngine]:
    with DelayedBatchInferenceEngine("A", device="cpu", max_pixels=84 * 84, max_new_tokens=2) as made:
        yield made


def test_after_close_nothing_is_waited_for(engine: DelayedBatchInferenceEngine) -> None:
    engine.load().result(timeout=60)
    feed(engine, 2)
    engine.close()
    for future in (engine.submit(Question("what?")).future, engine.load("B"), engine.unload()):
        with pytest.raises(errors.NotReadyError, match="make another one"):
            future.result(timeout=10)
    with pytest.raises(errors.NotReadyError, match="make another one"):
        engine.ask("what?")
    feed(engine, 2)
    engine.clear()
    status = engine.status()
    assert (status.model_state, status.clip_frames) == (ModelState.UNLOADED, 0)
    assert engine.close().done()


def test_close_ends_what_waits_though_the_thread_is_busy(engine: DelayedBatchInferenceEngine) -> None:
    engine.load().result(timeout=60)
    feed(engine, 2)
    go_on = hold_thread(engine)
    try:
        waiting: list[Future[Any]] = [engine.submit(Question("what?")).future, engine._thread.run(lambda: None)]
        waiting.append(engine.load("B"))
        ended = engine.close("it is late", wait_s=0.0)
        assert all(future.done() for future in waiting)
        for future in waiting:
            with pytest.raises(errors.CanceledError, match="it is late"):
                future.result()
        assert not ended.done()
    finally:
        go_on.set()
    ended.result(timeout=60)
    assert engine.status().queued_questions == 0


def test_close_frees_the_weights(engine: DelayedBatchInferenceEngine) -> None:
    engine.load().result(timeout=60)
    model = weakref.ref(answerer_of(engine).model)
    engine.close().result(timeout=60)
    assert model() is None
    assert engine.device_memory()[0].model == 0


def test_engines_one_after_another_load_one_at_a_time(models_by_name: StandInLoader) -> None:
    """As configure, cleanup, configure, cleanup, configure during a slow load."""
    begun, go_on = threading.Event(), threading.Event()

    def slow(name: str) -> None:
        begun.set()
        assert go_on.wait(60)

    models_by_name.before = slow
    freed: Future[None] | None = None
    for _ in range(2):
        engine = DelayedBatchInferenceEngine("A", device="cpu", max_pixels=84 * 84, after=freed)
        engine.load()
        assert begun.wait(60)
        freed = engine.close("cleaned up", wait_s=0.2)
        assert not freed.done()  # the second's end is the first's too
    with DelayedBatchInferenceEngine("C", device="cpu", max_pixels=84 * 84, after=freed) as last:
        loading = last.load()
        assert last.status().model_state is ModelState.LOADING
        go_on.set()
        assert loading.result(timeout=60) == "C"
    assert models_by_name.loads == ["A", "C"]
    assert freed is not None
    assert freed.done()


def test_engines_side_by_side_load_one_at_a_time(models_by_name: StandInLoader) -> None:
    engines = [DelayedBatchInferenceEngine("A", device="cpu", max_pixels=84 * 84) for _ in range(3)]
    try:
        # Each load lasts until every other engine's thread has taken its load out of the inbox.
        announced = threading.Event()
        models_by_name.before = lambda name: wait_until_taken(announced, engines)
        loads = [engine.load() for engine in engines]
        announced.set()
        for loading in loads:
            loading.result(timeout=60)
        assert models_by_name.most_at_a_time == 1
    finally:
        for engine in engines:
            engine.close()


def wait_until_taken(announced: threading.Event, engines: list[DelayedBatchInferenceEngine]) -> None:
    assert announced.wait(60)
    while not all(engine._thread._inbox.empty() for engine in engines):
        threading.Event().wait(0.005)
