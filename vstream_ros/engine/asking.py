"""A question on its way through the engine: is it valid, which frames is it about, what is the answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from vstream_ros.engine.answerer import Running, tubelet_ids
from vstream_ros.engine.answers import Answer, Question
from vstream_ros.engine.camera_memories import CameraMemories, TakenClips
from vstream_ros.engine.continuation import Interrupts
from vstream_ros.engine.device_memory import is_out_of_memory
from vstream_ros.engine.engine_config import EngineConfig
from vstream_ros.engine.model_host import ModelHost
from vstream_ros.engine.model_thread import PendingAnswer
from vstream_ros.engine.recovery import first_line, forget_frames, recover_from_out_of_memory
from vstream_ros.engine.status_board import StatusBoard
from vstream_ros.engine.validation import checked_question
from vstream_ros.errors import CanceledError, NoFramesError, OutOfMemoryError, VStreamError

logger = logging.getLogger(__name__)

NOTHING_TAKEN = TakenClips()


class QuestionDesk:
    """``validate`` runs in any thread, the rest in the model's."""

    def __init__(
        self,
        config: EngineConfig,
        cameras: CameraMemories,
        host: ModelHost,
        board: StatusBoard,
        others_wait: Callable[[], bool],
        on_answer: Callable[[], None],
    ) -> None:
        """
        Args:
            others_wait: whether any question waits beside those that are being answered.
            on_answer: called when a question was answered.
        """
        self._config = config
        self._cameras = cameras
        self._host = host
        self._board = board
        self._others_wait = others_wait
        self._on_answer = on_answer
        self._running: dict[Running, PendingAnswer] = {}
        """The model's thread only."""
        self._shared = NOTHING_TAKEN
        """All of memory, as the last question about it took it, while others wait. The model's thread only."""
        self._shared_at = 0.0
        """``time.monotonic()`` just before it was taken. The model's thread only."""

    def validate(self, question: Question) -> Question:
        """The question with the defaults filled in; see ``checked_question``, which raises ``InvalidRequestError``."""
        return checked_question(question, self._config, self._cameras)

    @property
    def running(self) -> int:
        """Questions that are being answered."""
        return len(self._running)

    def has_room(self) -> bool:
        """Whether another question may ``begin``."""
        answerer = self._host.answerer
        return answerer is None or answerer.has_room()

    def begin(self, pending: PendingAnswer) -> None:
        """In the model's thread: take clips and epochs, and let the question join those that are being answered.

        Raises ``VStreamError`` where there is nothing to answer from.
        """
        try:
            self._begin(pending)
        except Exception as error:
            self._board.count_failure(error)
            raise
        finally:
            if not self._others_wait():
                self._shared = NOTHING_TAKEN  # it would keep frames alive that memory has let go

    def step(self) -> list[tuple[PendingAnswer, Answer | Exception]]:
        """In the model's thread: go on by one step; the questions that have ended. Only while some are ``running``."""
        answerer = self._host.answerer
        assert answerer is not None  # it is freed only when no question is running
        ended: list[tuple[PendingAnswer, Answer | Exception]] = []
        out_of_memory = False
        try:
            outcomes = answerer.step()
        except Exception as error:  # noqa: BLE001  (a defect: each question's caller gets it, and the thread lives on)
            answerer.abandon()
            outcomes = [(running, error) for running in self._running]
        for running, outcome in outcomes:
            if isinstance(outcome, Exception) and not isinstance(outcome, VStreamError) and is_out_of_memory(outcome):
                outcome, out_of_memory = _out_of_memory(outcome), True
            ended.append((self._running.pop(running), outcome))
        if out_of_memory:  # nobody holds any more what the failed step had computed
            recover_from_out_of_memory(answerer, keep_intact=False)
        if ended:
            self._after(ended)
        return ended

    def forget_cleared(self) -> None:
        """In the model's thread, after a clearing: free what was computed from frames that are gone."""
        if self._cameras.cleared_since(self._shared.epochs):
            self._shared = NOTHING_TAKEN
        self._keep_only_what_is_held(NOTHING_TAKEN)
        self._board.publish()

    def _begin(self, pending: PendingAnswer) -> None:
        answerer = self._host.require()  # it may have been unloaded while the question waited
        question = pending.question
        taken = self._take_clips(pending)
        self._keep_only_what_is_held(taken)
        if not taken.clips:
            raise NoFramesError(self._why_no_frames(question))

        def ending_reason() -> VStreamError | None:
            if cleared := self._cameras.cleared_since(taken.epochs):
                return CanceledError(
                    f"the memory was cleared while the question was being answered ({', '.join(cleared)}); ask again"
                )
            return pending.ending_reason()

        running = answerer.begin(
            taken.clips,
            question,
            part=None if taken.whole else (question.cameras, question.start_ns, question.end_ns),
            arrived_at=pending.arrived_at,
            interrupts=Interrupts(ending_reason, pending.on_text),
        )
        self._running[running] = pending

    def _after(self, ended: Sequence[tuple[PendingAnswer, Answer | Exception]]) -> None:
        """Count and publish."""
        self._keep_only_what_is_held(NOTHING_TAKEN)
        self._board.publish()
        for _, outcome in ended:
            if isinstance(outcome, Exception):
                self._board.count_failure(outcome)
            else:
                self._board.count_answer(outcome)
                self._on_answer()

    def _take_clips(self, pending: PendingAnswer) -> TakenClips:
        """The clips of a question. Questions that waited together about all of memory share one set of clips, and so
        one prefill: it was taken after the last of them came."""
        question, shared = pending.question, self._shared
        still_good = bool(shared.clips) and not self._cameras.cleared_since(shared.epochs)
        if still_good and pending.arrived_at < self._shared_at and not question.names_a_part:
            return shared
        taken_at = time.monotonic()
        taken = self._cameras.take(question.cameras, question.start_ns, question.end_ns)
        if taken.whole:
            self._shared, self._shared_at = taken, taken_at
        return taken

    def _keep_only_what_is_held(self, taken: TakenClips) -> None:
        """Free what was computed from tubelets that neither memory nor a question (``taken``, ``_shared``) holds."""
        if self._host.answerer is not None:
            in_questions = tubelet_ids((*taken.clips, *self._shared.clips))
            self._host.answerer.keep_only(self._cameras.held_tubelets() | in_questions)

    def _why_no_frames(self, question: Question) -> str:
        if question.start_ns or question.end_ns:
            return "the memory holds no frame of that time range; ask about another one or without start_time, end_time"
        return self._cameras.why_empty(question.cameras or self._cameras.names)


def _out_of_memory(error: Exception) -> OutOfMemoryError:
    """What the caller of a question is told of it; ``error`` then holds nothing that the failed step had computed."""
    reason = first_line(error)
    logger.warning("a question ran out of memory:\n%s", forget_frames(error))
    return OutOfMemoryError(
        "the device ran out of memory; lower max_pixels, star_memory_size or stream_window_size "
        f"(the frames are kept, the caches were dropped): {reason}"
    )
