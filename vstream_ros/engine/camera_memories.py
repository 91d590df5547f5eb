"""The memories of all cameras behind one lock: any thread may add frames or take clips."""

from __future__ import annotations

import itertools
import logging
import reprlib
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from vstream_ros.errors import ConfigError, FrameError, InvalidRequestError
from vstream_ros.images import resize_rgb
from vstream_ros.memory import Clip, FrameStatus, MemoryConfig, MemoryStatus, SmartFrameManager, Verdict
from vstream_ros.memory.clip import NANOSECONDS
from vstream_ros.models.base import FrameSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TakenClips:
    """What a question is answered from: taken in one moment, and good as long as ``epochs`` are."""

    clips: tuple[Clip, ...] = ()
    """One per camera that has frames in the range, in prompt order."""
    epochs: Mapping[str, int] = field(default_factory=dict)
    """Of those cameras: what is computed of the clips is void when one of them has another."""
    whole: bool = False
    """Whether the clips are all of memory, however they were asked for."""


class CameraMemories:
    """One ``SmartFrameManager`` per camera. Thread-safe; the lock is held for a frame's bookkeeping only.

    Each memory counts its clearings as its epoch. A memory is cleared and clips are taken under the lock, so clips and
    epochs always belong together.
    """

    def __init__(self, configs: Mapping[str, MemoryConfig], frame_spec: FrameSpec) -> None:
        """``configs`` by camera name, in prompt order; raises ``ConfigError`` when there is none."""
        if not configs:
            raise ConfigError("cameras must name at least one camera")
        self._lock = threading.Lock()
        """Guards every memory, ``_frame_spec`` where it changes, ``_announcements`` and ``_clearings``."""
        ids = itertools.count()
        self._memories = {
            name: SmartFrameManager(config, camera=name, temporal_patch_size=frame_spec.temporal_patch_size, ids=ids)
            for name, config in configs.items()
        }
        self.max_tubelets = sum(config.max_tubelets(frame_spec.temporal_patch_size) for config in configs.values())
        """Most tubelets that a question over all cameras can be about."""
        self._frame_spec = frame_spec
        self._announcements: deque[str] = deque(maxlen=8)
        self._clearings = 0

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._memories)

    @property
    def announcements(self) -> tuple[str, ...]:
        """Why the memory was cleared lately, newest last."""
        with self._lock:
            return tuple(self._announcements)

    @property
    def clearings(self) -> int:
        """How often the memory was cleared, of one camera or of all."""
        with self._lock:
            return self._clearings

    def frame_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) at which an image of this size is kept; raises ``FrameError`` for an impossible one."""
        return self._frame_spec.fit(height, width)

    def use_frame_spec(self, frame_spec: FrameSpec, reason: str) -> None:
        """Take frames of other sizes from now on; clears everything where that changes something."""
        with self._lock:
            if frame_spec == self._frame_spec:
                return
            self._frame_spec = frame_spec
            empty = not any(memory.status().tubelets for memory in self._memories.values())
        if not empty:
            self.clear(reason)

    def check(self, camera: str, stamp_ns: int) -> Verdict:
        """Whether a frame with this stamp is wanted, before anyone pays for its conversion; counts it as offered."""
        with self._lock:
            return self._memory(camera).count_offered(stamp_ns)

    def add_frame(self, frame: np.ndarray, stamp_ns: int | None, camera: str | None) -> FrameStatus:
        """See ``DelayedBatchInferenceEngine.add_frame``."""
        name = camera if camera is not None else self._only_name()
        with self._lock:
            memory = self._memory(name)
            stamp_ns = _next_stamp(memory) if stamp_ns is None else stamp_ns
            if memory.check(stamp_ns) in (Verdict.SKIP, Verdict.BACKWARD):
                return memory.add_frame(frame, stamp_ns)  # drops it: no need to scale it first
        try:
            image = self._fitted(frame)
        except FrameError as error:
            self.reject(name, str(error))
            raise
        with self._lock:
            status = memory.add_frame(image, stamp_ns)
            if status.cleared:
                self._announce(f"camera {name}: {status.cleared}")
        return status

    def update_star_memory(self, frames: Iterable[tuple[np.ndarray, int]], camera: str | None) -> list[FrameStatus]:
        """See ``DelayedBatchInferenceEngine.update_star_memory``; stamps in nanoseconds."""
        name = camera if camera is not None else self._only_name()
        self.require([name])
        try:
            fitted = [(self._fitted(frame), stamp_ns) for frame, stamp_ns in frames]
        except FrameError as error:
            self.reject(name, str(error))
            raise
        with self._lock:
            return self._memory(name).update_star_memory(fitted)

    def reject(self, camera: str, reason: str) -> None:
        """Count an image that could not be used."""
        with self._lock:
            self._memory(camera).reject(reason)

    def clear(self, reason: str, camera: str | None = None) -> None:
        """Forget the frames of one camera or of all."""
        with self._lock:
            for memory in self._memories.values() if camera is None else (self._memory(camera),):
                memory.clear(reason)
            self._announce(reason if camera is None else f"camera {camera}: {reason}")

    def require(self, cameras: Sequence[str]) -> None:
        """Raise ``InvalidRequestError`` for an unknown name."""
        for camera in cameras:
            self._memory(camera)

    def take(self, cameras: Sequence[str] = (), start_ns: int = 0, end_ns: int = 0) -> TakenClips:
        """One clip per camera that has frames in the range (default: all cameras, all frames).

        Raises ``InvalidRequestError`` for an unknown name.
        """
        self.require(cameras)
        names = [name for name in self._memories if not cameras or name in cameras]
        with self._lock:
            found = {name: self._memories[name].clip(start_ns, end_ns) for name in names}
            clips = {name: clip for name, clip in found.items() if clip.tubelets}
            epochs = {name: self._memories[name].epoch for name in clips}
            held = sum(len(memory.clip()) for memory in self._memories.values())
        return TakenClips(tuple(clips.values()), epochs, whole=sum(map(len, clips.values())) == held)

    def cleared_since(self, epochs: Mapping[str, int]) -> list[str]:
        """The cameras of ``TakenClips.epochs`` whose memory was cleared since."""
        with self._lock:
            return [name for name, epoch in epochs.items() if self._memories[name].epoch != epoch]

    def held_tubelets(self) -> set[int]:
        """The ids of all tubelets that any memory would hand out, now or after its next slide."""
        with self._lock:
            return {tubelet.id for memory in self._memories.values() for tubelet in memory.clip().tubelets}

    def clips_ahead(self) -> tuple[tuple[Clip, ...], tuple[Clip, ...]]:
        """One clip per camera with frames, and the same after each memory's next slide.

        The second is empty where no memory can tell its next slide yet.
        """
        with self._lock:
            now = [memory.clip() for memory in self._memories.values()]
            ahead = [memory.next_clip() for memory in self._memories.values()]
        if not any(ahead):
            return tuple(clip for clip in now if clip.tubelets), ()
        merged = (later or clip for clip, later in zip(now, ahead, strict=True))
        return tuple(clip for clip in now if clip.tubelets), tuple(clip for clip in merged if clip.tubelets)

    def status(self) -> tuple[MemoryStatus, ...]:
        """Fill and counters per camera."""
        with self._lock:
            return tuple(memory.status() for memory in self._memories.values())

    def _fitted(self, frame: np.ndarray) -> np.ndarray:
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            found = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
            raise FrameError(f"a frame must be an RGB uint8 array (height, width, 3), got {found}")
        size = self.frame_size(*frame.shape[:2])
        return frame if frame.shape[:2] == size else resize_rgb(frame, size)

    def _memory(self, camera: str) -> SmartFrameManager:
        if camera not in self._memories:
            raise InvalidRequestError(f"unknown camera {reprlib.repr(camera)}; there are: {', '.join(self._memories)}")
        return self._memories[camera]

    def _only_name(self) -> str:
        if len(self._memories) != 1:
            raise InvalidRequestError(f"name the camera of the frame, one of: {', '.join(self._memories)}")
        return next(iter(self._memories))

    def _announce(self, reason: str) -> None:
        self._clearings += 1
        self._announcements.append(reason)
        logger.warning("memory cleared (epoch %d): %s", self._clearings, reason)


def _next_stamp(memory: SmartFrameManager) -> int:
    """One sampling period after the newest frame, for callers without a clock."""
    status = memory.status()
    return status.newest_stamp_ns + round(memory.period_s * NANOSECONDS) if status.stream_frames else 0
