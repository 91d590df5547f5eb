"""What the engine says of itself: counters, and what its caches hold, for any thread to read."""

from __future__ import annotations

import dataclasses
import threading

import torch

from vstream_ros.engine.answers import Answer, BackgroundState, DeviceMemory, EngineStatus
from vstream_ros.engine.camera_memories import CameraMemories
from vstream_ros.engine.device_memory import read_device_memory
from vstream_ros.engine.engine_config import EngineConfig
from vstream_ros.engine.model_host import ModelHost


@dataclasses.dataclass
class _Counters:
    """Totals since the engine was made."""

    cache_hits: int = 0
    cache_misses: int = 0
    tokens_reused: int = 0
    tokens_computed: int = 0
    answers: int = 0
    failures: int = 0
    last_failure: str = ""


@dataclasses.dataclass(frozen=True)
class _TimelineState:
    """What the model's thread last published about its timeline, for other threads to read."""

    tubelet_ids: tuple[int, ...] = ()
    tokens: int = 0
    nbytes: int = 0
    """Of the current KV cache; where it shares storage with others, the whole storage."""
    kv_cache: int = 0
    """Bytes of all KV caches, shared storage counted once."""
    features: int = 0
    ahead_ids: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Background:
    """The fields of ``EngineStatus`` of the same names."""

    background_state: BackgroundState = BackgroundState.OFF
    background_failures: int = 0
    background_error: str = ""


class StatusBoard:
    """The model's thread publishes, every thread reads."""

    def __init__(self, config: EngineConfig, cameras: CameraMemories, host: ModelHost) -> None:
        self._config = config
        self._cameras = cameras
        self._host = host
        self._lock = threading.Lock()
        self._counters = _Counters()
        """Guarded by ``_lock``: questions are refused in their callers' threads."""
        self._timeline = _TimelineState()
        """Replaced as a whole by the model's thread, so that readers need no lock."""
        self._background = _Background()
        """Likewise."""

    def count_answer(self, answer: Answer) -> None:
        """Count a question that was answered."""
        counters, metrics = self._counters, answer.metrics
        with self._lock:
            counters.answers += 1
            counters.cache_hits += metrics.cache_hit
            counters.cache_misses += not metrics.cache_hit
            counters.tokens_reused += metrics.prompt_tokens_reused
            counters.tokens_computed += metrics.prompt_tokens - metrics.prompt_tokens_reused

    def count_failure(self, error: Exception) -> None:
        """Count a question that failed."""
        with self._lock:
            self._counters.failures += 1
            self._counters.last_failure = f"{type(error).__name__}: {error}"

    def publish(self) -> None:
        """In the model's thread: what the caches hold now."""
        answerer = self._host.answerer
        if answerer is None:
            self._timeline = _TimelineState()
        else:
            timelines = answerer.timelines
            held, ahead = timelines.current, timelines.ahead
            self._timeline = _TimelineState(
                held.tubelet_ids,
                len(held),
                held.nbytes,
                timelines.nbytes + answerer.model.arena_bytes,
                answerer.vision.nbytes,
                ahead.tubelet_ids if ahead is not None else (),
            )

    def publish_background(self, state: BackgroundState, failures: int, error: str) -> None:
        """In the model's thread: how the work ahead goes; ``failures`` in a row, the last of them ``error``."""
        self._background = _Background(state, failures, error)

    def status(self, queued_questions: int, running_question: bool) -> EngineStatus:
        """A snapshot for diagnostics; cheap."""
        clips = self._cameras.take().clips
        wanted = {tubelet.id for clip in clips for tubelet in clip.tubelets}
        timeline = self._timeline
        held = set(timeline.tubelet_ids)
        with self._lock:
            counters = dataclasses.asdict(self._counters)
        model, state, error = self._host.describe()
        return EngineStatus(
            model=model,
            model_state=state,
            model_error=error,
            cameras=self._cameras.status(),
            clip_frames=sum(clip.frame_count for clip in clips),
            timeline_tubelets=len(timeline.tubelet_ids),
            timeline_tokens=timeline.tokens,
            timeline_bytes=timeline.nbytes,
            valid=bool(held) and held == wanted,
            pending_tubelets=len(wanted - held),
            ahead_pending_tubelets=self._behind_ahead(),
            queued_questions=queued_questions,
            running_question=running_question,
            memory_epoch=self._cameras.clearings,
            announcements=self._cameras.announcements,
            **counters,
            **vars(self._background),
        )

    def _behind_ahead(self) -> int:
        if self._config.background_encoding != "full":
            return 0
        _, next_clips = self._cameras.clips_ahead()
        return len({t.id for clip in next_clips for t in clip.tubelets} - set(self._timeline.ahead_ids))

    def device_memory(self) -> list[DeviceMemory]:
        """Bytes per device, and how they are shared between weights, frames, features and KV cache."""
        answerer, timeline = self._host.answerer, self._timeline
        host = torch.device("cpu")
        weights = {} if answerer is None else answerer.model.weight_bytes_by_device
        compute = host if answerer is None else answerer.model.device
        features = host if answerer is None else answerer.vision.device
        frames = sum(camera.nbytes + camera.archive_ram_bytes for camera in self._cameras.status())
        return [
            dataclasses.replace(
                read_device_memory(device),
                model=weights.get(device, 0),
                frames=frames if device == host else 0,
                features=timeline.features if device == features else 0,
                kv_cache=timeline.kv_cache if device == compute else 0,
            )
            for device in dict.fromkeys([compute, *weights, features, host])
        ]
