"""The thread that owns the model: it loads it, answers questions, and frees it."""

from __future__ import annotations

import concurrent.futures
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from vstream_ros.engine.answers import Answer, Question
from vstream_ros.engine.recovery import forget_frames
from vstream_ros.errors import CanceledError, NotReadyError, QuestionTimeoutError, VStreamError

logger = logging.getLogger(__name__)
T = TypeVar("T")
CLOSED = "the engine is closed; make another one"


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
    """Set by any thread, once; read by the model's. No lock: one assignment is one step."""

    def __post_init__(self) -> None:
        self.future.set_running_or_notify_cancel()  # from here on only the engine ends it

    def cancel(self, reason: str = "the caller cancelled the question") -> None:
        """End the question with ``CanceledError``, between two tokens at the latest. Any thread."""
        self.cancel_reason = self.cancel_reason or reason

    def ending_reason(self) -> VStreamError | None:
        """Why the question must end now, or None."""
        if self.cancel_reason:
            return CanceledError(self.cancel_reason)
        if time.monotonic() >= self.deadline:
            return QuestionTimeoutError(
                f"no answer within {self.question.timeout_s:g} s; allow a longer timeout or lower max_new_tokens"
            )
        return None


class _Job(Generic[T]):
    """A callable on its way, and the future of what it returns or raises."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self.future: Future[T] = Future()
        self.future.set_running_or_notify_cancel()  # from here on only the engine ends it

    def __call__(self) -> None:
        try:
            result = self._work()
        except Exception as error:  # noqa: BLE001  (the caller finds it in the future)
            text = forget_frames(error)
            if not isinstance(error, VStreamError):
                logger.error("the model's thread could not do its job:\n%s", text)
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class Desk(Protocol):
    """What answers questions, several at a time, step by step. Called in the model's thread only."""

    @property
    def running(self) -> int:
        """Questions that have begun and not ended."""

    def has_room(self) -> bool:
        """Whether another question may begin. There is room where none is running."""

    def begin(self, pending: PendingAnswer) -> None:
        """Let a question begin; raises where it can't be answered."""

    def step(self) -> list[tuple[PendingAnswer, Answer | Exception]]:
        """Go on by one short step; the questions that have ended, each with what it ended in."""


class ModelThread:
    """Begins jobs and questions in the order in which they came.

    Jobs (load, unload) are plain callables; one runs when all questions that came before it have ended. Questions wait
    in a list, so that those that were cancelled or whose time ran out end at once, also while others are being
    answered. Those are answered together as far as the desk has room.
    """

    def __init__(
        self,
        desk: Desk,
        background: Callable[[], float | None] = lambda: None,
        name: str = "vstream-model",
        after: Future[Any] | None = None,
    ) -> None:
        """
        Args:
            desk: answers the questions.
            background: called while there is nothing else to do: takes one short step and returns the seconds to wait
                before the next one, or None when there is nothing left (then ``poke`` says that there is).
            after: nothing is done before this has ended: another thread's ``ended``. So ``ended`` of a chain's last
                thread means that all of them have ended.
        """
        self._desk = desk
        self._background = background
        self._after = after
        self._inbox: queue.SimpleQueue[Callable[[], None] | PendingAnswer | None] = queue.SimpleQueue()
        """Filled with ``_lock`` held, so that nothing comes in once ``_closed`` is set."""
        self._lock = threading.Lock()
        self._questions: list[PendingAnswer] = []
        """Waiting or running. Guarded by ``_lock``."""
        self._waiting_jobs: set[Callable[[], None]] = set()
        """Those of ``run_once``. Guarded by ``_lock``."""
        self._running: set[PendingAnswer] = set()
        """At the desk. Guarded by ``_lock``; changed by the model's thread."""
        self._arrived: deque[PendingAnswer] = deque()
        """Taken out of the inbox, not at the desk yet. The model's thread only."""
        self._closed = False
        """Guarded by ``_lock``."""
        self.ended: Future[None] = Future()
        """Ends with the thread. Its callbacks run in it."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def count_questions(self) -> tuple[int, bool]:
        """Questions that wait, and whether others are being answered."""
        with self._lock:
            return len(self._questions) - len(self._running), bool(self._running)

    def submit(self, pending: PendingAnswer, limit: int) -> bool:
        """Enqueue a question unless ``limit`` of them are there already. Raises ``NotReadyError`` after ``close``."""
        with self._lock:
            if self._closed:
                raise NotReadyError(CLOSED)
            if len(self._questions) >= limit:
                return False
            self._questions.append(pending)
            self._inbox.put(pending)
        return True

    def run(self, job: Callable[[], T]) -> Future[T]:
        """Enqueue a job. The future carries what it returns or raises, ``NotReadyError`` after ``close``."""
        enqueued = _Job(job)
        with self._lock:
            if not self._closed:
                self._inbox.put(enqueued)
                return enqueued.future
        enqueued.future.set_exception(NotReadyError(CLOSED))
        return enqueued.future

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

        self._put(run)

    def poke(self) -> None:
        """There may be background work."""
        self.run_once(_nothing)

    def cancel_all(self, reason: str) -> None:
        """End every waiting and running question with ``CanceledError``."""
        with self._lock:
            for pending in self._questions:
                pending.cancel(reason)
        self._put(self.end_due_questions)

    def end_due_questions(self) -> None:
        """End the waiting questions that were cancelled or whose time ran out. Called between steps."""
        with self._lock:
            waiting = [pending for pending in self._questions if pending not in self._running]
        for pending in waiting:
            if (error := pending.ending_reason()) is not None:
                self._finish(pending, error)

    def close(self, reason: str, last_job: Callable[[], None] = lambda: None, wait_s: float = 5.0) -> None:
        """Take nothing more in, end what waits with ``CanceledError``, and end the thread after ``last_job``.

        What runs, ends first: a question at its next token, a load when it is through. Waits for ``wait_s`` at most;
        a second call waits only.
        """
        with self._lock:
            first, self._closed = not self._closed, True
            for pending in self._questions:
                pending.cancel(reason)
        if first:
            self._end_inbox(reason)
            self._inbox.put(_Job(last_job))
            self._inbox.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(wait_s)

    def _end_inbox(self, reason: str) -> None:
        """In the closing thread: nobody has to wait until a load is through."""
        while True:
            try:
                item = self._inbox.get_nowait()
            except queue.Empty:
                return
            if isinstance(item, PendingAnswer):
                self._finish(item, CanceledError(reason))
            elif isinstance(item, _Job):
                item.future.set_exception(CanceledError(reason))

    def _put(self, item: Callable[[], None]) -> None:
        with self._lock:
            if not self._closed:
                self._inbox.put(item)

    def _run(self) -> None:
        if self._after is not None:
            concurrent.futures.wait([self._after])
        try:
            self._work_through()
        finally:
            self.ended.set_result(None)

    def _work_through(self) -> None:
        pause_s: float | None = None
        while True:
            if self._arrived or self._desk.running:
                if self._inbox.empty():
                    self._step()
                    pause_s = 0.0
                    continue
                pause_s = None
            item = self._next(pause_s)
            if item is _no_item:
                pause_s = self._run_background()
                continue
            if item is None:
                return
            if isinstance(item, PendingAnswer):
                self._arrived.append(item)
            else:
                while isinstance(item, _Job) and (self._arrived or self._desk.running):
                    self._step()
                item()
            del item  # else the thread would keep the last question and all that its error holds until the next one
            pause_s = 0.0

    def _next(self, timeout_s: float | None) -> Callable[[], None] | PendingAnswer | None:
        """The next item of the inbox; ``_no_item`` where none came in time."""
        try:
            return self._inbox.get(timeout=timeout_s)
        except queue.Empty:
            return _no_item

    def _step(self) -> None:
        """Begin the questions that there is room for, and go on with those that have begun."""
        self.end_due_questions()
        while self._arrived and self._desk.has_room():
            self._begin(self._arrived.popleft())
        if self._desk.running:
            for pending, outcome in self._desk.step():
                self._finish(pending, _told(outcome) if isinstance(outcome, Exception) else outcome)

    def _run_background(self) -> float | None:
        try:
            return self._background()
        except Exception:  # the thread must outlive it; a question finds out for itself
            logger.exception("background work failed; it goes on with the next frame")
            return None

    def _begin(self, pending: PendingAnswer) -> None:
        with self._lock:
            if pending not in self._questions:  # ended while it waited
                return
            self._running.add(pending)
        outcome: VStreamError | None = pending.ending_reason()
        if outcome is None:
            try:
                self._desk.begin(pending)
            except Exception as error:  # noqa: BLE001  (the thread must outlive what one question does)
                outcome = _told(error)
        if outcome is not None:
            self._finish(pending, outcome)

    def _finish(self, pending: PendingAnswer, outcome: Answer | VStreamError) -> None:
        """End a question, unless another thread has ended it."""
        with self._lock:
            self._running.discard(pending)
            if pending not in self._questions:
                return
            self._questions.remove(pending)
        if isinstance(outcome, VStreamError):
            pending.future.set_exception(outcome)
        else:
            pending.future.set_result(outcome)


def _told(error: Exception) -> VStreamError:
    """What the caller gets, parted from the frames that it came through: callers may keep it for ever."""
    text = forget_frames(error)
    if isinstance(error, VStreamError):
        return error
    logger.error("a question failed unexpectedly:\n%s", text)
    told = VStreamError(f"{type(error).__name__}: {error}; this is a defect, the log has the traceback")
    told.__cause__ = error
    return told


def _no_item() -> None:
    """Stands for an inbox that stayed empty."""


def _nothing() -> None:
    """The job of a poke: background work follows whatever was done."""
