"""The memories of all cameras behind one lock: any thread may add frames or take clips."""

from __future__ import annotations

import itertools
import logging
import reprlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from vstream_ros.errors import ConfigError, FrameError, InvalidRequestError, MemoryFileError
from vstream_ros.images.resize import check_rgb, resize_rgb
from vstream_ros.memory import Clip, FrameSlot, FrameStatus, MemoryConfig, MemoryStatus, SmartFrameManager
from vstream_ros.memory.clip import NANOSECONDS
from vstream_ros.memory.future_stamps import Clock
from vstream_ros.memory.saved_state import Capacity, SavedState
from vstream_ros.memory.slot import Size
from vstream_ros.memory.stamps import stamp_ns_of_seconds
from vstream_ros.models.frame_spec import FrameSpec

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

    def __init__(
        self,
        configs: Mapping[str, MemoryConfig],
        frame_spec: FrameSpec,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
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
        self._clock = clock
        self._last_clears: dict[str, tuple[float, str]] = {}
        """When and why each camera's memory was cleared last. Guarded by ``_lock``."""

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
        """Keep frames of other sizes from now on; those that are held are scaled.

        Where tubelets get another length everything is cleared, which ``reason`` explains; raises ``ConfigError``
        where a memory is smaller than one such tubelet. Scaling keeps the lock for some milliseconds a camera.
        """
        patch = frame_spec.temporal_patch_size
        with self._lock:
            if patch != self._frame_spec.temporal_patch_size:
                for config in (memory.config for memory in self._memories.values()):
                    if patch > min(config.star_memory_size, config.stream_window_size):
                        raise ConfigError(f"star_memory_size, stream_window_size must be >= a tubelet ({patch} frames)")
                for memory in self._memories.values():
                    memory.regroup(patch, reason)
                self.max_tubelets = sum(memory.config.max_tubelets(patch) for memory in self._memories.values())
                self._announce(f"{reason}: tubelets of {patch} frames")
            self._frame_spec = frame_spec
            scaled = {name: memory.resize(frame_spec.fit) for name, memory in self._memories.items()}
        for name, count in scaled.items():
            if count:
                logger.warning("camera %s: what memory holds (%d tubelets) was scaled: %s", name, count, reason)

    # -- saving ------------------------------------------------------------------------------------------------------

    def saved_states(self) -> list[SavedState]:
        """What every memory holds at one moment; copies no pixels."""
        with self._lock:
            return [memory.saved_state() for memory in self._memories.values()]

    @property
    def capacities(self) -> dict[str, Capacity]:
        """What each memory can take over, by camera."""
        with self._lock:
            return {name: memory.capacity for name, memory in self._memories.items()}

    def sample_rate_hz(self, camera: str) -> float | None:
        """Frames per second that are kept of a camera; None: every frame."""
        return self._memory(camera).config.sample_rate_hz

    @property
    def max_frame_pixels(self) -> int:
        """Of a frame as it is kept now."""
        return self._frame_spec.max_pixels

    def restore(self, snapshots: Sequence[SavedState], reason: str) -> dict[str, int]:
        """Hold what other memories held, of their cameras, in the place of all that is held; the epochs rise.

        Returns how many tubelets had to be scaled, by camera. Raises ``MemoryFileError``, and changes nothing, where
        one of them doesn't fit. What takes time is done before the lock is taken.
        """
        scorers = [self._memory(snapshot.camera).scorer_after(snapshot) for snapshot in snapshots]
        with self._lock:
            spec = self._frame_spec
            for snapshot in snapshots:  # another model may have come while the file was read
                _check_fits(snapshot, self._memories[snapshot.camera].capacity, spec)
            scaled = {}
            for snapshot, scorer in zip(snapshots, scorers, strict=True):
                memory = self._memories[snapshot.camera]
                memory.restore(snapshot, scorer)
                scaled[snapshot.camera] = memory.resize(spec.fit)
                self._announce(reason, snapshot.camera, what="restored")
        return scaled

    # -- frames ------------------------------------------------------------------------------------------------------

    def offer(self, stamp_ns: int | None, camera: str | None, clock: Clock | None = None) -> FrameSlot:
        """See ``DelayedBatchInferenceEngine.offer``."""
        name = camera if camera is not None else self._only_name()
        with self._lock:
            memory = self._memory(name)
            slot = memory.offer(_next_stamp(memory) if stamp_ns is None else stamp_ns, clock)
            slot.fit = self._frame_spec.fit
            return slot

    def keep(self, slot: FrameSlot, frame: np.ndarray) -> FrameStatus:
        """See ``DelayedBatchInferenceEngine.keep``."""
        memory = self._memory(slot.camera)
        while True:
            spec = self._frame_spec
            try:
                image = _fitted(frame, slot, spec) if slot.wanted else frame
            except FrameError as error:
                self.reject(slot, str(error))
                raise
            with self._lock:
                if spec is not self._frame_spec:  # another model came while the frame was being scaled
                    continue
                status = memory.keep(slot, image)
                if status.cleared:
                    self._announce(status.cleared, slot.camera)
                return status

    def reject(self, slot: FrameSlot, reason: str) -> None:
        """Count an offered image that could not be used."""
        with self._lock:
            self._memory(slot.camera).reject(slot, reason)

    def reject_unstamped(self, camera: str | None, reason: str) -> None:
        """Count an image that could not even be offered."""
        with self._lock:
            self._memory(camera if camera is not None else self._only_name()).reject_unstamped(reason)

    def stamp_ns_of(self, timestamp: float, camera: str | None) -> int:
        """Seconds in whole nanoseconds; raises ``FrameError``, counted as a rejected frame, for what is no time."""
        try:
            return stamp_ns_of_seconds(timestamp)
        except FrameError as error:
            self.reject_unstamped(camera, str(error))
            raise

    def update_star_memory(self, frames: Iterable[tuple[np.ndarray, int]], camera: str | None) -> list[FrameStatus]:
        """See ``DelayedBatchInferenceEngine.update_star_memory``; stamps in nanoseconds."""
        name = camera if camera is not None else self._only_name()
        self.require([name])
        try:
            fitted = [(resize_rgb(frame, self._rgb_size(frame)), stamp_ns) for frame, stamp_ns in frames]
        except FrameError as error:
            self.reject_unstamped(name, str(error))
            raise
        with self._lock:
            return self._memory(name).update_star_memory(fitted)

    def clear(self, reason: str, camera: str | None = None) -> None:
        """Forget the frames of one camera or of all."""
        with self._lock:
            for memory in self._memories.values() if camera is None else (self._memory(camera),):
                memory.clear(reason)
            self._announce(reason, camera)

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

    def why_empty(self, cameras: Sequence[str]) -> str:
        """Why the memories of these cameras hold nothing, and what to do about it."""
        with self._lock:
            states = [self._memory(name).status() for name in cameras]
            clears, now = dict(self._last_clears), self._clock()
        causes = []
        for name, state in zip(cameras, states, strict=True):
            if name in clears and state.frames_offered:
                at, reason = clears[name]
                causes.append(
                    f"the memory of {name} was cleared {now - at:.0f} s ago ({reason}) and no frame was kept since; "
                    "ask again when one was"
                )
            elif state.frames_offered:
                causes.append(f"no frame of {name} could be used: {state.last_rejection}")
        if silent := [name for name, state in zip(cameras, states, strict=True) if not state.frames_offered]:
            causes.append(f"no frame came yet from: {', '.join(silent)}; check the image topics and the camera drivers")
        return "; ".join(causes)

    def _rgb_size(self, frame: np.ndarray) -> Size:
        """The size at which an RGB image is kept; raises ``FrameError`` for what is none."""
        check_rgb(frame)
        return self.frame_size(*frame.shape[:2])

    def _memory(self, camera: str) -> SmartFrameManager:
        if camera not in self._memories:
            raise InvalidRequestError(f"unknown camera {reprlib.repr(camera)}; there are: {', '.join(self._memories)}")
        return self._memories[camera]

    def _only_name(self) -> str:
        if len(self._memories) != 1:
            raise InvalidRequestError(f"name the camera of the frame, one of: {', '.join(self._memories)}")
        return next(iter(self._memories))

    def _announce(self, reason: str, camera: str | None = None, what: str = "cleared") -> None:
        """Say that the memory of one camera or of all was cleared, or restored; under the lock."""
        for name in self.names if camera is None else (camera,):
            self._last_clears[name] = (self._clock(), reason)
        text = reason if camera is None else f"camera {camera}: {reason}"
        self._clearings += 1
        self._announcements.append(text)
        logger.warning("memory %s (epoch %d): %s", what, self._clearings, text)


def _check_fits(snapshot: SavedState, capacity: Capacity, spec: FrameSpec) -> None:
    """Raise ``MemoryFileError`` where a memory can't take a snapshot over."""
    held, patch = snapshot.held, snapshot.temporal_patch_size
    capacity.check(snapshot.camera, temporal_patch_size=patch, star=len(held.star), stream=len(held.stream))
    try:
        for size in (snapshot.source_size, snapshot.frame_size):
            if size is not None:
                spec.fit(*size)
    except FrameError as error:
        raise MemoryFileError(f"camera {snapshot.camera}: no model takes its frames: {error}") from error


def _fitted(frame: np.ndarray, slot: FrameSlot, spec: FrameSpec) -> np.ndarray:
    """The frame at the size that ``spec`` wants for the camera's own image; raises ``FrameError`` for what is none."""
    check_rgb(frame)
    size: Size = frame.shape[:2]
    if slot.source_size is None or size != slot.decoded_size:
        slot.source_size = size
    return resize_rgb(frame, spec.fit(*slot.source_size))


def _next_stamp(memory: SmartFrameManager) -> int:
    """One sampling period after the newest frame, for callers without a clock."""
    status = memory.status()
    return status.newest_stamp_ns + round(memory.period_s * NANOSECONDS) if status.stream_frames else 0
