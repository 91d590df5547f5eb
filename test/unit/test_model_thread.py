"""The thread that owns the model: whose turn it is, and that everything that came in ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from support.engines import fails_with
from vstream_ros.engine.answers import Answer, AnswerMetrics, Question
from vstream_ros.engine.model_thread import ModelThread, PendingAnswer
from vstream_ros.errors import CanceledError, NoFramesError, NotReadyError, QuestionTimeoutError, VStreamError

WAIT_S = 60


class ScriptedDesk:
    """Answers up to ``room`` questions side by side; each one ends when the test says so, or when it is due."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._at_work: list[PendingAnswer] = []
        self.log: list[str] = []
        """What began and ended, in that order."""
        self.may_end: set[str] = set()
        self.steps = 0
        self.unable: dict[str, Exception] = {}

    @property
    def running(self) -> int:
        return len(self._at_work)

    def has_room(self) -> bool:
        return self.running < self._room

    def begin(self, pending: PendingAnswer) -> None:
        if (error := self.unable.get(pending.question.text)) is not None:
            raise error
        self.log.append(f"begin {pending.question.text}")
        self._at_work.append(pending)

    def step(self) -> list[tuple[PendingAnswer, Answer | Exception]]:
        self.steps += 1
        ended: list[tuple[PendingAnswer, Answer | Exception]] = []
        for pending in list(self._at_work):
            text = pending.question.text
            outcome = pending.ending_reason() or (Answer(text, AnswerMetrics()) if text in self.may_end else None)
            if outcome is not None:
                self._at_work.remove(pending)
                self.log.append(f"end {text}")
                ended.append((pending, outcome))
        return ended


@pytest.fixture
def desk() -> ScriptedDesk:
    return ScriptedDesk(room=2)


@pytest.fixture
def thread(desk: ScriptedDesk) -> Iterator[ModelThread]:
    made = ModelThread(desk)
    yield made
    made.close("the test is over", wait_s=WAIT_S)
    assert made.ended.done()


def asked(thread: ModelThread, text: str, timeout_s: float = 1000.0) -> PendingAnswer:
    now = time.monotonic()
    pending = PendingAnswer(Question(text, timeout_s=timeout_s), now + timeout_s, now)
    assert thread.submit(pending, limit=100)
    return pending


def steps_on(desk: ScriptedDesk, count: int = 3) -> None:
    """Until the thread has taken as many steps more."""
    end, deadline = desk.steps + count, time.monotonic() + WAIT_S
    while desk.steps < end:
        assert time.monotonic() < deadline, "the thread takes no steps"
        time.sleep(0.001)


def test_as_many_as_have_room_run_together_in_the_order_of_arrival(thread: ModelThread, desk: ScriptedDesk) -> None:
    pending = [asked(thread, text) for text in "abcd"]
    steps_on(desk)
    assert desk.log == ["begin a", "begin b"]
    assert thread.count_questions() == (2, True)
    desk.may_end.add("b")
    assert pending[1].future.result(WAIT_S).text == "b"
    steps_on(desk)
    assert desk.log == ["begin a", "begin b", "end b", "begin c"]
    desk.may_end.update("acd")
    assert [p.future.result(WAIT_S).text for p in pending] == list("abcd")
    assert desk.log.index("begin c") < desk.log.index("begin d")
    assert thread.count_questions() == (0, False)


def test_a_job_waits_for_those_before_it_and_those_behind_it_for_the_job(
    thread: ModelThread, desk: ScriptedDesk
) -> None:
    before = [asked(thread, text) for text in "abc"]  # one more than there is room for
    job = thread.run(lambda: desk.log.append("job") or "done")
    after = asked(thread, "z")
    once = threading.Event()
    thread.run_once(once.set)
    desk.may_end.update("az")
    before[0].future.result(WAIT_S)
    steps_on(desk)
    assert not job.done()
    assert "begin c" in desk.log
    assert "begin z" not in desk.log
    desk.may_end.update("bc")
    assert job.result(WAIT_S) == "done"
    assert after.future.result(WAIT_S).text == "z"
    assert once.wait(WAIT_S)
    at = desk.log.index("job")
    assert {"end a", "end b", "end c"} <= set(desk.log[:at])
    assert desk.log[at + 1 :] == ["begin z", "end z"]


def test_a_job_that_fails_tells_its_caller_and_the_thread_goes_on(thread: ModelThread, desk: ScriptedDesk) -> None:
    def fail() -> None:
        raise KeyError("boom")

    assert isinstance(thread.run(fail).exception(WAIT_S), KeyError)
    thread.run_once(fail)
    desk.may_end.add("a")
    assert asked(thread, "a").future.result(WAIT_S).text == "a"


@pytest.mark.parametrize("behind_a_job", [False, True])
def test_a_waiting_question_ends_at_its_deadline_while_others_run(
    thread: ModelThread, desk: ScriptedDesk, behind_a_job: bool
) -> None:
    running = [asked(thread, text) for text in "ab"]
    steps_on(desk)
    job = thread.run(lambda: None) if behind_a_job else None
    late, other = asked(thread, "late", timeout_s=0.001), asked(thread, "other")
    other.cancel("not needed any more")
    assert "within 0.001 s" in str(fails_with(late.future, QuestionTimeoutError))
    assert "not needed" in str(fails_with(other.future, CanceledError))
    assert not any(p.future.done() for p in running)
    assert job is None or not job.done()
    assert thread.count_questions() == (0, True)
    desk.may_end.update("ab")
    assert [p.future.result(WAIT_S).text for p in running] == ["a", "b"]
    assert not any("late" in entry or "other" in entry for entry in desk.log)


def test_a_running_question_ends_at_its_deadline_and_its_place_is_free(
    thread: ModelThread, desk: ScriptedDesk
) -> None:
    first, second = asked(thread, "a", timeout_s=0.05), asked(thread, "b")
    third = asked(thread, "c")
    fails_with(first.future, QuestionTimeoutError)
    desk.may_end.add("c")
    assert third.future.result(WAIT_S).text == "c"
    assert not second.future.done()


def test_one_that_cannot_begin_fails_alone(thread: ModelThread, desk: ScriptedDesk) -> None:
    desk.unable = {"empty": NoFramesError("no frames"), "defect": KeyError("boom")}
    beside = asked(thread, "a")
    fails_with(asked(thread, "empty").future, NoFramesError)
    told = fails_with(asked(thread, "defect").future, VStreamError)
    assert "KeyError" in str(told)
    assert "defect" in str(told)
    desk.may_end.add("a")
    assert beside.future.result(WAIT_S).text == "a"
    assert thread.count_questions() == (0, False)


def test_a_full_queue_takes_nothing(thread: ModelThread, desk: ScriptedDesk) -> None:
    for text in "abc":
        asked(thread, text)
    more = PendingAnswer(Question("d"), time.monotonic() + 1000, time.monotonic())
    assert not thread.submit(more, limit=3)  # those that run count as well
    assert thread.submit(more, limit=4)


def test_cancel_all_ends_what_runs_and_what_waits(thread: ModelThread, desk: ScriptedDesk) -> None:
    pending = [asked(thread, text) for text in "abcde"]
    steps_on(desk)
    thread.cancel_all("unloaded")
    for each in pending:
        assert "unloaded" in str(fails_with(each.future, CanceledError))
    desk.may_end.add("f")
    assert asked(thread, "f").future.result(WAIT_S).text == "f"


def test_close_ends_everything(thread: ModelThread, desk: ScriptedDesk) -> None:
    questions = [asked(thread, text) for text in "abc"]
    steps_on(desk)
    job = thread.run(lambda: desk.log.append("job"))
    behind = asked(thread, "d")
    thread.close("shutting down", lambda: desk.log.append("last"), wait_s=WAIT_S)
    assert thread.ended.done()
    for each in (*questions, behind):
        assert "shutting down" in str(fails_with(each.future, CanceledError))
    assert job.done()  # run, where the thread had it in hand already, or cancelled
    assert job.exception() is None or isinstance(job.exception(), CanceledError)
    assert desk.running == 0
    assert desk.log[-1] == "last"
    with pytest.raises(NotReadyError, match="closed"):
        asked(thread, "e")
    fails_with(thread.run(lambda: None), NotReadyError)  # type: ignore[arg-type]
    thread.close("again", wait_s=WAIT_S)
    assert desk.log.count("last") == 1


def test_background_work_waits_for_questions(desk: ScriptedDesk) -> None:
    seen: list[Any] = []
    worked = threading.Event()

    def background() -> float | None:
        seen.append(desk.running)
        worked.set()
        if len(seen) == 1:
            raise KeyError("the thread outlives it")
        return None

    thread = ModelThread(desk, background)
    running = asked(thread, "a")
    steps_on(desk)
    thread.poke()
    steps_on(desk)
    desk.may_end.add("a")
    running.future.result(WAIT_S)
    assert worked.wait(WAIT_S)
    thread.run(lambda: None).result(WAIT_S)
    thread.close("the test is over", wait_s=WAIT_S)
    assert seen
    assert set(seen) == {0}
