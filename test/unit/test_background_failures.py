"""Work ahead that fails: it pauses, tries again, ends, and begins anew when something has changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from support.engines import feed_tubelets, sliding_engine, wait_until
from vstream_ros.engine import BackgroundState, DelayedBatchInferenceEngine, PendingAnswer, Question, background
from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.engine.background import FIRST_PAUSE_S, MAX_FAILURES, WorkAhead

QUESTION = Question("what?", max_new_tokens=4)


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[DelayedBatchInferenceEngine]:
    """Its indirect parameter: more of the engine's own."""
    with sliding_engine(**getattr(request, "param", {})) as made:
        yield made


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def work_of(engine: DelayedBatchInferenceEngine, clock: Clock) -> WorkAhead:
    """The engine's work ahead, on ``clock``; the test takes the steps itself."""
    engine._thread.close("the test takes the steps itself")
    engine._work_ahead = WorkAhead(engine.config, engine._cameras, engine._host, engine._board, clock)
    engine._loads._ahead = engine._work_ahead
    return engine._work_ahead


def steps_until_pause(work: WorkAhead) -> float | None:
    """What the thread does while nothing else comes in: the first pause, None where nothing is left."""
    while (pause_s := work.step()) == 0.0:
        pass
    return pause_s


def refuse_the_fifth(
    answerer: ClipAnswerer, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> list[int]:
    """The fifth tubelet can't be prefilled; the tubelets of every try appear in the list."""
    tries: list[int] = []
    prefill = answerer.model.prefill

    def limited(prompt: Any, end: int, features: Any, cache: Any) -> None:
        tries.append(sum(span[1] <= end for span in prompt.spans))
        prefill(prompt, end, features, cache)
        if tries[-1] == 5:
            raise error

    monkeypatch.setattr(answerer.model, "prefill", limited)
    return tries


@pytest.mark.parametrize("engine", [{"background_encoding": "full"}], indirect=True)
def test_work_that_does_not_fit_pauses_ends_and_begins_again_with_an_answer(
    engine: DelayedBatchInferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    work = work_of(engine, clock)
    answerer = engine._host.answerer
    assert answerer is not None
    with monkeypatch.context() as patch:
        tries = refuse_the_fifth(answerer, patch, torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB\nand more"))
        feed_tubelets(engine, 4)
        assert steps_until_pause(work) is None
        assert engine.status().background_state is BackgroundState.ON
        pauses = []
        for count in range(MAX_FAILURES - 1):
            feed_tubelets(engine, 1, start=4 + count)
            pauses.append(steps_until_pause(work))
            assert len(tries) == 5 + count
            clock.now_s += 0.25
            assert work.step() == pauses[-1] - 0.25  # a frame wakes it too early
            status = engine.status()
            assert (status.background_state, status.background_failures) == (BackgroundState.PAUSED, count + 1)
            assert status.background_error == "OutOfMemoryError: CUDA out of memory. Tried 2 GiB"
            assert status.timeline_tubelets == 4  # what was prefilled before stays
            answerer.timelines.check_integrity()
            clock.now_s += pauses[-1]
        assert pauses == [FIRST_PAUSE_S * 2**k for k in range(MAX_FAILURES - 1)]
        feed_tubelets(engine, 1, start=20)
        assert work.step() is None
        status = engine.status()
        assert (status.background_state, status.background_failures) == (BackgroundState.STOPPED, MAX_FAILURES)
        for k in range(20):
            clock.now_s += 1e6
            feed_tubelets(engine, 1, start=21 + k)
            assert work.step() is None
        assert tries == [1, 2, 3, 4] + [5] * MAX_FAILURES
    engine._desk.begin(PendingAnswer(QUESTION, deadline=float("inf"), arrived_at=0.0))
    while engine._desk.running:
        engine._desk.step()
    status = engine.status()
    assert (status.background_state, status.background_failures, status.background_error) == (BackgroundState.ON, 0, "")
    assert steps_until_pause(work) is None
    assert engine.status().valid
    assert engine.status().ahead_pending_tubelets == 0


@pytest.mark.parametrize("change", ["clear", "load"])
@pytest.mark.parametrize("engine", [{"background_encoding": "full"}], indirect=True)
def test_any_failure_counts_and_a_change_begins_anew(
    engine: DelayedBatchInferenceEngine, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    clock = Clock()
    work = work_of(engine, clock)
    answerer = engine._host.answerer
    assert answerer is not None
    feed_tubelets(engine, 6)
    with monkeypatch.context() as patch:
        tries = refuse_the_fifth(answerer, patch, KeyError("boom"))
        while (pause_s := steps_until_pause(work)) is not None:
            assert len(answerer.timelines.current) == 0  # nobody knows what it left behind
            clock.now_s += pause_s
        assert tries == [1, 2, 3, 4, 5] * MAX_FAILURES  # steps that succeed on the way don't end the row
    assert engine.status().background_error == "KeyError: 'boom'"
    if change == "clear":
        engine._forget_cleared()
    else:
        engine._loads.use(answerer.model, engine._host.announce_load(None))
    assert engine.status().background_state is BackgroundState.ON
    assert steps_until_pause(work) is None
    assert engine.status().valid


@pytest.mark.parametrize("engine", [{"background_encoding": "full"}], indirect=True)
def test_the_thread_tries_again_by_itself_and_ends(
    engine: DelayedBatchInferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    answerer = engine._host.answerer
    assert answerer is not None
    monkeypatch.setattr(background, "FIRST_PAUSE_S", 1e-3)
    tries: list[None] = []

    def fail(*args: Any) -> bool:
        tries.append(None)
        raise KeyError("boom")

    monkeypatch.setattr(answerer, "prefill_ahead", fail)
    feed_tubelets(engine, 3)
    wait_until(lambda: engine.status().background_state is BackgroundState.STOPPED)
    feed_tubelets(engine, 3, start=3)
    engine._thread.run(lambda: None).result(timeout=60)
    assert len(tries) == MAX_FAILURES
    assert engine.ask("what?")[1]["tubelets"] == 6


@pytest.mark.parametrize("engine", [{"background_encoding": "full"}], indirect=True)
def test_a_failing_step_is_logged_and_the_question_is_answered(
    engine: DelayedBatchInferenceEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answerer = engine._host.answerer
    assert answerer is not None

    def fail(*args: Any) -> bool:
        raise KeyError("boom")

    monkeypatch.setattr(answerer, "prefill_ahead", fail)
    feed_tubelets(engine, 3)
    wait_until(lambda: "background work failed" in caplog.text)
    assert engine.ask("what?")[1]["tubelets"] == 3
