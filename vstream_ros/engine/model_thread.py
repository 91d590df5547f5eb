"""The thread that owns the model: it loads it, answers questions one after another, and frees it."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from vstream_ros.engine.answers import Answer, Question
from vstream_ros.errors import CanceledError, QuestionTimeoutError, VStreamError

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class PendingAnswer:
    """A question on its way. ``future`` ends in an ``Answer`` or in a ``VStreamError``."""

    question: Question
    deadline: float
    """``time.monotonic()`` at which it times out."""
    arrived_at: float
    on_text: Callable[[str, int], None] | None = None
    future: Future[Answer] = field(default_factory=Future)
    cancel_reason: str = ""

    def __post_init__(self) -> None:
        self.future.set_running_or_notify_cancel()  # from here on only the engine ends it

    def cancel(self, reason: str = "the caller cancelled the question") -> None:
        """End the question with ``CanceledError``, between two tokens at the latest. Any thread."""
        self.cancel_reason = reason

    def ending_reason(self) -> VStreamError | None:
        """Why the question must end now, or None."""
        if self.cancel_reason:
            return CanceledError(self.cancel_reason)
        if time.monotonic() >= self.deadline:
            return QuestionTimeoutError(
                f"no answer within {self.question.timeout_s:g} s; allow a longer timeout or lower max_new_tokens"
            )
        return None


class ModelThread:
    """Runs jobs and questions in the order in which they came.

    Jobs (load, unload) are plain callables. Questions wait in a list, so that those that were cancelled or whose time
    ran out end at once, also while another one is being answered.
    """

    def __init__(
        self,
        answer: Callable[[PendingAnswer], Answer],
        background: Callable[[], float | None] = lambda: None,
        name: str = "vstream-model",
    ) -> None:
        """
        Args:
            answer: computes one answer.
            background: called while there is nothing else to do: takes one short step and returns the seconds to wait
                before the next one, or None when there is nothing left (then ``poke`` says that there is).
        """
        self._answer = answer
        self._background = background
        self._inbox: queue.SimpleQueue[Callable[[], None] | PendingAnswer | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._questions: list[PendingAnswer] = []
        """Waiting or running. Guarded by ``_lock``."""
        self._waiting_jobs: set[Callable[[], None]] = set()
        """Those of ``run_once``. Guarded by ``_lock``."""
        self._running: PendingAnswer | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def questions(self) -> int:
        """Questions that wait or run."""
        with self._lock:
            return len(self._questions)

    def submit(self, pending: PendingAnswer, limit: int) -> bool:
        """Enqueue a question unless ``limit`` of them are there already."""
        with self._lock:
            if len(self._questions) >= limit:
                return False
            self._questions.append(pending)
        self._inbox.put(pending)
        return True

    def run(self, job: Callable[[], None]) -> Future[None]:
        """Enqueue a job; the future carries its exception."""
        future: Future[None] = Future()

        def guarded() -> None:
            try:
                job()
            except Exception as error:  # noqa: BLE001  (the caller finds it in the future)
                future.set_exception(error)
            else:
                future.set_result(None)

        self._inbox.put(guarded)
        return future

    def run_once(self, job: Callable[[], None]) -> None:
        """Enqueue a job unless it waits already: however often something happens, the inbox holds it once."""
        with self._lock:
            if job in self._waiting_jobs:
                return
            self._waiting_jobs.add(job)

        def run() -> None:
            with self._lock:
                self._waiting_jobs.discard(job)  # first: what happens from here on needs it again
            try:
                job()
            except Exception:  # the thread must outlive it
                logger.exception("a job of the model's thread failed")

        self._inbox.put(run)

    def poke(self) -> None:
        """There may be background work."""
        self.run_once(_nothing)

    def cancel_all(self, reason: str) -> None:
        """End every waiting and running question with ``CanceledError``."""
        with self._lock:
            for pending in self._questions:
                pending.cancel(reason)
        self._inbox.put(self.end_due_questions)

    def end_due_questions(self) -> None:
        """End the waiting questions that were cancelled or whose time ran out. Called between tokens and chunks."""
        with self._lock:
            waiting = [pending for pending in self._questions if pending is not self._running]
        for pending in waiting:
            if (error := pending.ending_reason()) is not None:
                self._finish(pending, error)

    def close(self, timeout_s: float = 5.0) -> None:
        """Cancel the questions and end the thread."""
        self.cancel_all("the engine is shutting down")
        self._inbox.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        pause_s: float | None = None
        while True:
            try:
                item = self._inbox.get(timeout=pause_s)
            except queue.Empty:
                pause_s = self._run_background()
                continue
            if item is None:
                return
            if isinstance(item, PendingAnswer):
                self._run_question(item)
            else:
                item()
            pause_s = 0.0

    def _run_background(self) -> float | None:
        try:
            return self._background()
        except Exception:  # the thread must outlive it; a question finds out for itself
            logger.exception("background work failed; it goes on with the next frame")
            return None

    def _run_question(self, pending: PendingAnswer) -> None:
        if pending.future.done():  # ended while it waited
            return
        self._running = pending
        outcome: Answer | VStreamError
        try:
            outcome = pending.ending_reason() or self._answer(pending)
        except VStreamError as error:
            outcome = error
        except Exception as error:  # the thread must outlive what one question does
            logger.exception("a question failed unexpectedly")
            outcome = VStreamError(f"{type(error).__name__}: {error}; this is a defect, the log has the traceback")
            outcome.__cause__ = error
        self._running = None
        self._finish(pending, outcome)

    def _finish(self, pending: PendingAnswer, outcome: Answer | VStreamError) -> None:
        with self._lock:
            self._questions.remove(pending)
        if isinstance(outcome, VStreamError):
            pending.future.set_exception(outcome)
        else:
            pending.future.set_result(outcome)


def _nothing() -> None:
    """The job of a poke: background work follows whatever was done."""
