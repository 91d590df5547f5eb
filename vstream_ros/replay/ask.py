"""Ask about a recording without ROS: its frames go through the same memory and engine that the node has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vstream_ros.errors import FrameError, VStreamError
from vstream_ros.replay.frames import Source

if TYPE_CHECKING:
    from vstream_ros.engine import DelayedBatchInferenceEngine


@dataclass
class Fed:
    """What became of a recording's frames."""

    read: int = 0
    kept: int = 0
    """Handed to the memory (it may have let go of some since)."""
    damaged: int = 0
    """Messages or packets that could not be read, and images that could not be decoded."""
    last_fault: str = ""


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

    def as_dict(self) -> dict[str, Any]:
        """The fields that say something, for JSON."""
        return {name: value for name, value in vars(self).items() if value or name in ("question", "answer")}


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


def ask_all(engine: DelayedBatchInferenceEngine, questions: Sequence[str]) -> Iterator[Reply]:
    """Ask one question after the other; one that fails is a reply too, and the next is asked all the same."""
    for question in questions:
        yield _ask(engine, question)


def _ask(engine: DelayedBatchInferenceEngine, question: str) -> Reply:
    try:
        answer, metrics = engine.ask(question)
    except VStreamError as error:
        return Reply(question, error.answer, error_code=error.code, message=str(error))
    return Reply(question, answer, metrics)
