"""Ask about a recording without ROS: its frames go through the same memory and engine that the node has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vstream_ros.errors import FrameError, InvalidRequestError, VStreamError
from vstream_ros.replay.frames import Source

if TYPE_CHECKING:
    from vstream_ros.engine import DelayedBatchInferenceEngine, Question


MAX_SCHEMA_BYTES = 1 << 20
"""Of a file; the engine's ``max_question_bytes`` bounds it further."""


@dataclass
class Fed:
    """What became of a recording's frames."""

    read: int = 0
    kept: int = 0
    """Handed to the memory (it may have let go of some since)."""
    damaged: int = 0
    """Messages or packets that could not be read, and images that could not be decoded."""
    last_fault: str = ""
    first_stamp_ns: int = 0
    """The earliest header stamp of all that were read; a video's stamps count from its start."""
    last_stamp_ns: int = 0
    """The latest."""


@dataclass(frozen=True)
class Reply:
    """One question's outcome: an answer with its metrics, or an error's code and message."""

    question: str
    answer: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Seconds and counts as in ``msg/AnswerMetrics``; without ``encoding_latency`` when nothing was encoded."""
    error_code: str = ""
    """Name of a constant of ``srv/AskVideo``; empty: success."""
    message: str = ""
    confidence: float = 0.0
    """As in ``srv/AskVideo``."""
    probabilities: dict[str, float] = field(default_factory=dict)
    """By choice; empty: free text."""
    frame_cameras: tuple[str, ...] = ()
    """Parallel to ``frame_stamps_ns``."""
    frame_stamps_ns: tuple[int, ...] = ()
    """Header stamps of the frames that the model was shown, in prompt order."""

    def as_dict(self) -> dict[str, Any]:
        """The fields that say something, for JSON: of an answer what it rests on, of a failure why."""
        failure = {"error_code", "message"}
        success = {"metrics", "confidence", "probabilities", "frame_cameras", "frame_stamps_ns"}
        left_out = success if self.error_code else failure if self.probabilities else {*failure, "probabilities"}
        return {name: value for name, value in vars(self).items() if name not in left_out}


def camera_names(topics: Sequence[str]) -> dict[str, str]:
    """Return a camera name for each topic: the topic without its leading slash."""
    return {topic: topic.lstrip("/") for topic in topics}


def feed(
    engine: DelayedBatchInferenceEngine,
    source: Source,
    cameras: Mapping[str, str],
    on_progress: Callable[[int, int], None] | None = None,
) -> Fed:
    """Put a recording's frames into the engine's memory, as fast as they can be read.

    ``cameras``: topic -> camera. Only frames that the sampling grid wants are decoded. A damaged one is counted and
    passed over. ``on_progress(frames read, frames expected or 0)`` is called for each. Raises ``InvalidRequestError``
    when the recording breaks off or holds no frame at all.
    """
    fed = Fed()
    for frame in source:
        fed.first_stamp_ns = min(fed.first_stamp_ns, frame.stamp_ns) if fed.read else frame.stamp_ns
        fed.last_stamp_ns = max(fed.last_stamp_ns, frame.stamp_ns) if fed.read else frame.stamp_ns
        fed.read += 1
        if on_progress is not None:
            on_progress(fed.read, source.frame_count)
        camera = cameras[frame.topic]
        slot = engine.offer(frame.stamp_ns, camera=camera)
        if not slot.wanted:
            continue
        try:
            image = frame.rgb(slot.frame_size)
        except FrameError as error:
            engine.reject(slot, str(error))
            fed.damaged += 1
            fed.last_fault = str(error)
            continue
        fed.kept += engine.keep(slot, image).kept
    fed.damaged += source.skipped
    fed.last_fault = fed.last_fault or source.last_fault
    return fed


def read_schema(text_or_file: str) -> str:
    """A JSON schema that a command line gives as such or by the name of its file; "" for "".

    Raises ``InvalidRequestError`` where there is no such file, or no text in it.
    """
    if not text_or_file or text_or_file.lstrip().startswith("{"):
        return text_or_file
    path = Path(text_or_file)
    try:
        if not path.is_file():  # a pipe might never end
            raise InvalidRequestError(f"{path} is neither a JSON object nor a file that holds one")
        if path.stat().st_size > MAX_SCHEMA_BYTES:
            raise InvalidRequestError(f"{path} is larger than {MAX_SCHEMA_BYTES} bytes: no schema for an answer")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        if isinstance(error, InvalidRequestError):
            raise
        raise InvalidRequestError(f"{path} can't be read: {error}") from error


def answer_questions(
    engine: DelayedBatchInferenceEngine,
    questions: Sequence[str],
    *,
    start_ns: int = 0,
    end_ns: int = 0,
    choices: Sequence[str] = (),
    json_schema: str = "",
) -> Iterator[Reply]:
    """Ask one question after the other; one that fails is a reply too, and the next is asked all the same.

    ``start_ns`` and ``end_ns``: header stamps of the frames to ask about, inclusive; 0: unbounded. ``choices``: what
    each question is to be answered with; none: free text. ``json_schema``: a JSON text that every answer is held to.
    """
    # Here: the engine brings torch, which takes seconds, and whoever wants another name of this module no time.
    from vstream_ros.engine import Question

    for text in questions:
        yield _ask(
            engine,
            Question(text, start_ns=start_ns, end_ns=end_ns, choices=tuple(choices), json_schema=json_schema),
        )


def _ask(engine: DelayedBatchInferenceEngine, question: Question) -> Reply:
    try:
        answer = engine.submit(question).future.result()
    except VStreamError as error:
        return Reply(question.text, error.answer, error_code=error.code, message=str(error))
    return Reply(
        question.text, answer.text, answer.metrics.as_dict(), confidence=answer.confidence,
        probabilities=dict(zip(question.choices, answer.probabilities, strict=False)),  # free text has none
        frame_cameras=answer.frame_cameras, frame_stamps_ns=answer.frame_stamps_ns,
    )
