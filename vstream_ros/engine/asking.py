"""A question on its way through the engine: is it valid, which frames is it about, what is the answer."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from vstream_ros.engine.answerer import Interrupts
from vstream_ros.engine.answers import Answer, Question
from vstream_ros.engine.camera_memories import CameraMemories
from vstream_ros.engine.device_memory import is_out_of_memory
from vstream_ros.engine.model_host import ModelHost
from vstream_ros.engine.model_thread import PendingAnswer
from vstream_ros.engine.status import StatusBoard
from vstream_ros.errors import CanceledError, InvalidRequestError, NoFramesError, OutOfMemoryError, VStreamError
from vstream_ros.memory import Clip

NOTHING_TAKEN: tuple[float, tuple[Clip, ...], int] = (float("-inf"), (), -1)


class QuestionDesk:
    """``validate`` runs in any thread, the rest in the model's."""

    def __init__(
        self, cameras: CameraMemories, host: ModelHost, board: StatusBoard, end_due_questions: Callable[[], None]
    ) -> None:
        """``end_due_questions``: ends the waiting questions whose time is over; called between steps of an answer."""
        self._cameras = cameras
        self._host = host
        self._board = board
        self._end_due_questions = end_due_questions
        self._taken = NOTHING_TAKEN
        """When the last question's clips were taken, the clips, and the epoch. The model's thread only."""

    def validate(self, question: Question) -> None:
        """Raise ``InvalidRequestError`` for a question that can't be answered, whatever memory holds."""
        if not question.text.strip():
            raise InvalidRequestError("the question is empty; put a sentence into question")
        if question.choices:
            raise InvalidRequestError("choices are not supported yet; leave them empty and put them into the question")
        if not 0.0 <= question.temperature <= 10.0:
            raise InvalidRequestError(f"temperature must be in [0, 10], got {question.temperature}")
        if question.timeout_s <= 0.0:
            raise InvalidRequestError(f"timeout must be > 0 s, or 0 for the default, got {question.timeout_s}")
        if question.end_ns and question.end_ns < question.start_ns:
            raise InvalidRequestError("end_time lies before start_time; swap them")
        self._cameras.require(question.cameras)
        if len(set(question.cameras)) != len(question.cameras):
            raise InvalidRequestError(f"cameras names one camera twice: {', '.join(question.cameras)}")

    def answer(self, pending: PendingAnswer) -> Answer:
        """In the model's thread: take clip and epoch, answer, publish what the timeline now holds."""
        try:
            answer = self._compute(pending)
        except VStreamError as error:
            self._board.count_failure(error)
            raise
        except Exception as error:
            if self._host.answerer is not None:
                self._host.answerer.drop_caches()
            if is_out_of_memory(error):
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                out_of_memory = OutOfMemoryError(
                    "the device ran out of memory; lower max_pixels, star_memory_size or stream_window_size "
                    "(the frames are kept, the caches were dropped)"
                )
                self._board.count_failure(out_of_memory)
                raise out_of_memory from error
            self._board.count_failure(error)
            raise
        finally:
            self._board.publish()
        self._board.count_answer(answer)
        return answer

    def _compute(self, pending: PendingAnswer) -> Answer:
        self._host.require()  # it may have been unloaded while the question waited
        answerer = self._host.answerer
        assert answerer is not None
        question = pending.question
        part = (question.cameras, question.start_ns, question.end_ns) if question.is_about_a_part else None
        clips, epoch = self._take_clips(pending)
        if not clips:
            raise NoFramesError(self._why_no_frames(question))

        def due() -> VStreamError | None:
            self._end_due_questions()
            if self._cameras.epoch != epoch:
                return CanceledError("the memory was cleared while the question was being answered; ask again")
            return pending.due()

        return answerer.answer(
            clips,
            question,
            part=part,
            arrived_at=pending.arrived_at,
            interrupts=Interrupts(due, pending.on_text),
        )

    def _take_clips(self, pending: PendingAnswer) -> tuple[tuple[Clip, ...], int]:
        """The clips of a question. Questions that waited together about all of memory share one set of clips, and so
        one prefill: it was taken after the last of them came."""
        question = pending.question
        if question.is_about_a_part:
            return self._cameras.clips(question.cameras, question.start_ns, question.end_ns)
        taken_at, clips, epoch = self._taken
        if pending.arrived_at >= taken_at or epoch != self._cameras.epoch or not clips:
            taken_at = time.monotonic()
            clips, epoch = self._cameras.clips()
            self._taken = (taken_at, clips, epoch)
        return clips, epoch

    def forget_clips(self) -> None:
        """Let go of the clips of the last question."""
        self._taken = NOTHING_TAKEN

    def _why_no_frames(self, question: Question) -> str:
        if question.start_ns or question.end_ns:
            return "the memory holds no frame of that time range; ask about another one or without start_time, end_time"
        return self._cameras.why_empty(question.cameras or self._cameras.names)
