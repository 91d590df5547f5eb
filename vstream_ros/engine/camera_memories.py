"""The memories of all cameras behind one lock: any thread may add frames or take clips."""

from __future__ import annotations

import functools
import itertools
import logging
import reprlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from vstream_ros.engine.camera_archives import CameraArchives
from vstream_ros.engine.clearings import Clearings
from vstream_ros.engine.offered_frames import fitted, next_stamp
from vstream_ros.errors import ConfigError, FrameError, InvalidRequestError
from vstream_ros.images.resize import check_rgb, resize_rgb
from vstream_ros.memory import (
    Clip,
    FrameSlot,
    FrameStatus,
    MemoryConfig,
    MemorySnapshot,
    MemoryStatus,
    SmartFrameManager,
)
from vstream_ros.memory.future_stamps import Clock
from vstream_ros.memory.memory_config import MaxTubelets
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
        *,
        star_max_pixels: int = 0,
    ) -> None:
        """``configs`` by camera name, in prompt order; ``star_max_pixels``: of a frame in star, 0: as it is held.
        Raises ``ConfigError`` where there is no camera."""
        if not configs:
            raise ConfigError("cameras must name at least one camera")
        self._lock = threading.Lock()
        """Guards every memory, ``_frame_spec`` where it changes, and ``_clearings``."""
        ids = itertools.count()
        self._archives = CameraArchives(configs, ids)
        patch = frame_spec.temporal_patch_size
        self._memories = {
            name: SmartFrameManager(
                # The engine looks at vision features, later (``reweigh``): until they are there, pixels count.
                replace(config, selection_method="pixel"), camera=name, temporal_patch_size=patch, ids=ids,
                archive=self._archives.of(name),
            )
            for name, config in configs.items()
        }
        self._star_max_pixels = star_max_pixels
        self._frame_spec = frame_spec
        self._clearings = Clearings(self.names, clock)
        for memory in self._memories.values():
            self._fit(memory)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._memories)

    @property
    def max_tubelets(self) -> MaxTubelets:
        """Most tubelets that a question over all cameras can be about."""
        return MaxTubelets.of((m.config for m in self._memories.values()), self._frame_spec.temporal_patch_size)

    @property
    def announcements(self) -> tuple[str, ...]:
        """Why the memory was cleared lately, newest last."""
        with self._lock:
            return tuple(self._clearings.announcements)

    @property
    def clearings(self) -> int:
        """How often the memory was cleared, of one camera or of all."""
        with self._lock:
            return self._clearings.count

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
                self._clearings.announce(f"{reason}: tubelets of {patch} frames")
            self._frame_spec = frame_spec
            scaled = {name: self._fit(memory) for name, memory in self._memories.items()}
        self._archives.settle()
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

    def restore(self, states: Sequence[SavedState], reason: str) -> dict[str, int]:
        """Hold what other memories held, of their cameras, in the place of all that is held; the epochs rise.

        Returns how many tubelets had to be scaled, by camera. Raises ``MemoryFileError``, and changes nothing, where
        one of them doesn't fit. What takes time is done before the lock is taken.
        """
        scorers = [self._memory(state.camera).scorer_after(state) for state in states]
        with self._lock:
            spec = self._frame_spec
            for state in states:  # another model may have come while the file was read
                state.check_fits(self._memories[state.camera].capacity, spec.fit)
            scaled = {}
            for state, scorer in zip(states, scorers, strict=True):
                memory = self._memories[state.camera]
                memory.restore(state, scorer)
                scaled[state.camera] = self._fit(memory)
                self._clearings.announce(reason, state.camera, what="restored")
        return scaled

    # -- frames ------------------------------------------------------------------------------------------------------

    def offer(self, stamp_ns: int | None, camera: str | None, clock: Clock | None = None) -> FrameSlot:
        """See ``DelayedBatchInferenceEngine.offer``."""
        name = camera if camera is not None else self._only_name()
        with self._lock:
            memory = self._memory(name)
            slot = memory.offer(next_stamp(memory) if stamp_ns is None else stamp_ns, clock)
            slot.fit = self._frame_spec.fit
            return slot

    def keep(self, slot: FrameSlot, frame: np.ndarray) -> FrameStatus:
        """See ``DelayedBatchInferenceEngine.keep``."""
        memory = self._memory(slot.camera)
        while True:
            spec = self._frame_spec
            try:
                image = fitted(frame, slot, spec) if slot.wanted else frame
            except FrameError as error:
                self.reject(slot, str(error))
                raise
            with self._lock:
                if spec is not self._frame_spec:  # another model came while the frame was being scaled
                    continue
                status = memory.keep(slot, image)
                if status.cleared:
                    self._clearings.announce(status.cleared, slot.camera)
            self._archives.store_one(slot.camera)
            return status

    def stamp_ns_of(self, timestamp: float, camera: str | None) -> int:
        """A frame's time in seconds as its stamp. Raises ``FrameError``, counted, for what is none."""
        try:
            return stamp_ns_of_seconds(timestamp)
        except FrameError as error:
            self.reject_unstamped(camera, str(error))
            raise

    def reject(self, slot: FrameSlot, reason: str) -> None:
        """Count an offered image that could not be used."""
        with self._lock:
            self._memory(slot.camera).reject(slot, reason)

    def reject_unstamped(self, camera: str | None, reason: str) -> None:
        """Count an image that could not even be offered."""
        with self._lock:
            self._memory(camera if camera is not None else self._only_name()).reject_unstamped(reason)

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
            statuses = self._memory(name).update_star_memory(fitted)
        self._archives.settle()
        return statuses

    def reweigh(self, camera: str, tubelet_id: int, importance: float) -> bool:
        """See ``SmartFrameManager.reweigh``."""
        with self._lock:
            return self._memory(camera).reweigh(tubelet_id, importance)

    def clear(self, reason: str, camera: str | None = None) -> None:
        """Forget the frames of one camera or of all."""
        with self._lock:
            for memory in self._memories.values() if camera is None else (self._memory(camera),):
                memory.clear(reason)
            self._clearings.announce(reason, camera)
        self._archives.settle()

    def close(self) -> None:
        """Forget the archives, and delete those on disk. Memory goes on without."""
        self._archives.close()

    def require(self, cameras: Sequence[str]) -> None:
        """Raise ``InvalidRequestError`` for an unknown name."""
        for camera in cameras:
            self._memory(camera)

    def take(self, cameras: Sequence[str] = (), start_ns: int = 0, end_ns: int = 0) -> TakenClips:
        """One clip per camera that has frames in the range (default: all cameras, all frames).

        A range also gets what the cameras' archives hold of it, up to the tubelets that star and window hold; it is
        decoded here. Raises ``InvalidRequestError`` for an unknown name.
        """
        self.require(cameras)
        names = [name for name in self._memories if not cameras or name in cameras]
        while True:
            with self._lock:
                found = {name: self._memories[name].clip(start_ns, end_ns) for name in names}
                epochs = {name: self._memories[name].epoch for name in names}
                held = sum(len(memory.clip()) for memory in self._memories.values())
            whole = sum(map(len, found.values())) == held
            if start_ns or end_ns:
                patch = self._frame_spec.temporal_patch_size
                joined = {
                    name: self._archives.joined(clip, name, start_ns, end_ns, patch) for name, clip in found.items()
                }
                if self.cleared_since(epochs):
                    continue  # what was archived may be another epoch's than the clip
                whole = whole and all(joined[name] is found[name] for name in names)
                found = joined
            clips = {name: clip for name, clip in found.items() if clip.tubelets}
            return TakenClips(tuple(clips.values()), {name: epochs[name] for name in clips}, whole)

    def cleared_since(self, epochs: Mapping[str, int]) -> list[str]:
        """The cameras of ``TakenClips.epochs`` whose memory was cleared since."""
        with self._lock:
            return [name for name, epoch in epochs.items() if self._memories[name].epoch != epoch]

    def held_tubelets(self) -> set[int]:
        """The ids of all tubelets that any memory would hand out, now or after its next slide, and its archive."""
        clips_now, clips_next = self.clips_ahead()
        held = {tubelet.id for clip in (*clips_now, *clips_next) for tubelet in clip.tubelets}
        return held | self.archived_tubelets()

    def archived_tubelets(self) -> set[int]:
        """The ids of all tubelets that an archive has handed out and still holds."""
        return self._archives.tubelet_ids()

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

    def snapshots(self) -> tuple[MemorySnapshot, ...]:
        """What each memory holds and why, all of one moment."""
        with self._lock:
            return tuple(memory.snapshot() for memory in self._memories.values())

    def status(self) -> tuple[MemoryStatus, ...]:
        """Fill and counters per camera."""
        with self._lock:
            states = [memory.status() for memory in self._memories.values()]
        return tuple(map(self._archives.told, states))

    def why_empty(self, cameras: Sequence[str]) -> str:
        """Why the memories of these cameras hold nothing, and what to do about it."""
        with self._lock:
            return self._clearings.why_empty({name: self._memory(name).status() for name in cameras})

    def _fit(self, memory: SmartFrameManager) -> int:
        """Scale what a memory holds to ``_frame_spec``; returns how many tubelets. Under the lock."""
        spec, pixels = self._frame_spec, self._star_max_pixels
        return memory.resize(spec.fit, functools.partial(spec.shrink, max_pixels=pixels) if pixels else None)

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
