"""What goes into the engine and what comes out of it. Plain data: no torch, no ROS."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

from vstream_ros.memory.clip import MemoryStatus


@dataclass(frozen=True)
class Question:
    """One question about the frames in memory. Zero or empty means: the engine's default."""

    text: str
    cameras: tuple[str, ...] = ()
    """Camera names; empty: all."""
    start_ns: int = 0
    """Header stamps, inclusive; 0: unbounded."""
    end_ns: int = 0
    choices: tuple[str, ...] = ()
    """The answer is one of these, 100 at most; white space around one does not count. Empty: free text.
    ``max_new_tokens``, ``temperature`` and ``seed`` change nothing then."""
    max_new_tokens: int = 0
    temperature: float = 0.0
    """0: greedy; else from 0.001 to 10."""
    seed: int = 0
    """0: drawn, and reported in the metrics. Only sampling (temperature > 0) uses it."""
    timeout_s: float = 0.0
    """Wall time including the queue; 0: the engine's default."""
    json_schema: str = ""
    """The answer is compact JSON that is valid under this schema, a JSON text; empty: free text."""

    @property
    def names_a_part(self) -> bool:
        """Whether it names cameras or a time range, which may still cover all of memory."""
        return bool(self.cameras or self.start_ns or self.end_ns)


@dataclass
class AnswerMetrics:
    """Seconds on the steady clock and counts; the fields of ``msg/AnswerMetrics``, documented there."""

    queue_latency: float = 0.0
    encoding_latency: float = 0.0
    first_token_latency: float = 0.0
    generation_latency: float = 0.0
    total_latency: float = 0.0
    cache_hit: bool = False
    frames: int = 0
    tubelets: int = 0
    tubelets_reused: int = 0
    visual_tokens: int = 0
    prompt_tokens: int = 0
    prompt_tokens_reused: int = 0
    new_tokens: int = 0
    passes: int = 0
    draft_tokens: int = 0
    draft_tokens_right: int = 0
    seed: int = 0
    model: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The reference's form: ``encoding_latency`` is there only when something was encoded."""
        values = dict(vars(self))
        if self.encoding_latency == 0.0:
            del values["encoding_latency"]
        return values


@dataclass(frozen=True)
class Answer:
    """The answer to a question; a failed question raises a ``VStreamError`` instead."""

    text: str
    metrics: AnswerMetrics
    confidence: float = 0.0
    """Geometric mean of the generated tokens' probabilities (after logits processors, before temperature), under a
    schema among the tokens that it allows; of a choice: its share in ``probabilities``."""
    choice_index: int = -1
    """In ``Question.choices``; -1: free text."""
    probabilities: tuple[float, ...] = ()
    """Of each choice, given that it is one of them: they sum to 1."""
    frame_cameras: tuple[str, ...] = ()
    """Parallel to ``frame_stamps_ns``, in prompt order."""
    frame_stamps_ns: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()
    """The generated token ids, end token included."""


class ModelState(enum.IntEnum):
    """The values of ``msg/CacheStatus.model_state``."""

    UNLOADED = 0
    LOADING = 1
    READY = 2
    FAILED = 3


class BackgroundState(enum.Enum):
    """How the work ahead of questions goes."""

    OFF = "off"
    """``background_encoding`` is off."""
    ON = "on"
    PAUSED = "paused"
    """It failed; it goes on by itself after a pause that doubles with each failure in a row."""
    STOPPED = "stopped"
    """It failed too often in a row; it goes on after an answered question, a clearing of the memory, or a load."""


@dataclass(frozen=True)
class EngineStatus:
    """A snapshot for diagnostics, cheap to take from any thread."""

    model: str
    model_state: ModelState
    model_error: str
    """Why the last load failed ("" if it did not), one line; READY nevertheless where the model before it was kept."""
    cameras: tuple[MemoryStatus, ...] = ()
    clip_frames: int = 0
    timeline_tubelets: int = 0
    timeline_tokens: int = 0
    timeline_bytes: int = 0
    """Of the current KV cache alone; ``DeviceMemory.kv_cache`` counts all of them."""
    valid: bool = False
    """The KV cache holds exactly the clip that memory would hand out now."""
    pending_tubelets: int = 0
    """Tubelets of the clip that are not in the KV cache."""
    ahead_pending_tubelets: int = 0
    """Tubelets that the KV cache for the next slide still lacks (background_encoding "full")."""
    queued_questions: int = 0
    """Waiting, the running one not counted."""
    running_question: bool = False
    cache_hits: int = 0
    cache_misses: int = 0
    tokens_reused: int = 0
    tokens_computed: int = 0
    memory_epoch: int = 0
    """Clearings of the memory, of one camera or of all; ``cameras`` count their own as ``epoch``."""
    answers: int = 0
    failures: int = 0
    last_failure: str = ""
    announcements: tuple[str, ...] = field(default_factory=tuple)
    """Why the memory was cleared lately (resolution, time jump, request), newest last."""
    background_state: BackgroundState = BackgroundState.OFF
    background_failures: int = 0
    """Of the work ahead, in a row."""
    background_error: str = ""
    """The last of them, one line."""


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on one device; the fields of ``msg/VramStatus``, documented there."""

    device: str
    total: int
    free: int
    allocated: int
    reserved: int
    peak_allocated: int
    model: int = 0
    frames: int = 0
    features: int = 0
    kv_cache: int = 0
