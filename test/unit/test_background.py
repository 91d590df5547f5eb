"""Work ahead of the question: the next question finds it done, and never waits for more than one step of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from support.engines import feed_tubelets, sliding_engine, wait_until
from vstream_ros.engine import DelayedBatchInferenceEngine, Question

QUESTION = Question("what?", max_new_tokens=4)


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[DelayedBatchInferenceEngine]:
    """Its indirect parameter: more of the engine's own."""
    with sliding_engine(**getattr(request, "param", {})) as made:
        yield made


@pytest.mark.parametrize("engine", [{"background_encoding": "full"}], indirect=True)
def test_full_makes_the_first_question_a_cache_hit(engine: DelayedBatchInferenceEngine) -> None:
    feed_tubelets(engine, 15)
    wait_until(lambda: engine.status().valid and engine.status().ahead_pending_tubelets == 0)
    _, metrics = engine.ask("what?")
    assert metrics["cache_hit"] is True
    assert "encoding_latency" not in metrics
    feed_tubelets(engine, 1, start=15)
    wait_until(lambda: engine.status().valid)
    assert engine.ask("what now?")[1]["cache_hit"] is True
    engine.clear()
    assert engine.status().valid is False


@pytest.mark.parametrize("engine", [{"background_encoding": "vision"}], indirect=True)
def test_vision_leaves_only_the_prefill(engine: DelayedBatchInferenceEngine) -> None:
    feed_tubelets(engine, 6)
    wait_until(lambda: engine._host.answerer is not None and len(engine._host.answerer.vision) == 6)
    _, metrics = engine.ask("what?")
    assert metrics["tubelets_reused"] == 6
    assert metrics["cache_hit"] is False


def test_off_computes_nothing_ahead(
    engine: DelayedBatchInferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    answerer = engine._host.answerer
    assert answerer is not None
    pokes: list[None] = []
    monkeypatch.setattr(engine._thread, "poke", lambda: pokes.append(None))
    feed_tubelets(engine, 4)
    assert not pokes  # the frames did not wake the thread
    steps: list[float | None] = []
    stepped = threading.Event()

    def watched() -> float | None:
        steps.append(engine._work_ahead.step())
        stepped.set()
        return steps[-1]

    engine._thread._background = watched
    engine._thread.run(lambda: None).result(timeout=60)
    assert stepped.wait(60)
    assert steps == [None]  # awake, it finds nothing to do, and waits for whatever comes next
    assert len(answerer.vision) == 0
    assert len(answerer.timelines.current) == 0


@pytest.mark.parametrize("engine", [{"background_encoding": "full"}], indirect=True)
def test_a_question_waits_for_one_step_at_most(
    engine: DelayedBatchInferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    answerer = engine._host.answerer
    assert answerer is not None
    in_step, go_on = threading.Event(), threading.Event()
    log: list[str] = []
    step, begin = answerer.prefill_ahead, answerer.begin

    def slow_step(*args: Any) -> bool:
        log.append("step")
        in_step.set()
        assert go_on.wait(60)
        return step(*args)

    def logged_begin(*args: Any, **kwargs: Any) -> Any:
        log.append("answer")
        return begin(*args, **kwargs)

    monkeypatch.setattr(answerer, "prefill_ahead", slow_step)
    monkeypatch.setattr(answerer, "begin", logged_begin)
    feed_tubelets(engine, 6)
    assert in_step.wait(60)
    pending = engine.submit(QUESTION)
    go_on.set()
    pending.future.result(timeout=60)
    assert log[: log.index("answer")] == ["step"]


@pytest.mark.parametrize("engine", [{"background_encoding": "full", "background_duty": 0.25}], indirect=True)
def test_the_duty_cycle_leaves_the_device_to_others(engine: DelayedBatchInferenceEngine) -> None:
    engine._thread.close("the test takes the steps itself")
    feed_tubelets(engine, 3)
    started = time.monotonic()
    pause_s = engine._work_ahead.step()
    took_s = time.monotonic() - started
    assert pause_s is not None
    assert 0.0 < pause_s <= 3.0 * took_s
    while engine._work_ahead.step() is not None:
        pass
    assert engine.status().valid


def test_questions_that_waited_together_share_one_prefill(engine: DelayedBatchInferenceEngine) -> None:
    feed_tubelets(engine, 3)
    reached, go_on = threading.Event(), threading.Event()

    def hold(text: str, tokens: int) -> None:
        reached.set()
        assert go_on.wait(60)

    first = engine.submit(QUESTION, on_text=hold)
    assert reached.wait(60)
    feed_tubelets(engine, 2, start=3)
    waiting = [engine.submit(QUESTION) for _ in range(3)]
    # Memory moves on while they are being answered; they are about what it held when the first of them began.
    waiting[0].on_text = lambda text, tokens: feed_tubelets(engine, 1, start=5) if tokens == 1 else None
    go_on.set()
    first.future.result(timeout=60)
    answers = [pending.future.result(timeout=60) for pending in waiting]
    assert [a.metrics.tubelets for a in answers] == [5, 5, 5]
    assert [a.metrics.cache_hit for a in answers] == [False, True, True]
    assert engine.submit(QUESTION).future.result(timeout=60).metrics.tubelets == 6
