"""What one camera's memory holds, as data that can leave it and come into another one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vstream_ros.errors import FrameError, MemoryFileError
from vstream_ros.memory.held_frames import HeldState
from vstream_ros.memory.importance import Embed, FrameScorer
from vstream_ros.memory.memory_config import MemoryConfig
from vstream_ros.memory.sampling import Grid
from vstream_ros.memory.slot import Size

REVIEWED_FRAMES = 32
"""So many of the newest frames tell a scorer what the camera usually sees: some multiples of its time constants at
2 Hz."""


@dataclass(frozen=True, eq=False)
class SavedState:
    """One camera's memory at a moment. Nobody changes it; the frames are shared with the memory, not copied."""

    camera: str
    temporal_patch_size: int
    sample_rate_hz: float | None
    source_size: Size | None
    """Of the camera's own images, as far as anybody said it."""
    grid: Grid | None
    """None where nothing is held."""
    held: HeldState
    """The ids of its tubelets mean nothing elsewhere."""

    @property
    def tubelet_count(self) -> int:
        """Complete and sealed ones."""
        return len(self.held.star) + len(self.held.stream)

    @property
    def frame_size(self) -> Size | None:
        """(height, width) of the frames; None where there are none."""
        tubelets = self.held.star + self.held.stream
        frames = [t.frames[0] for t in tubelets[-1:]] + [f.pixels for f in self.held.pending[-1:]]
        return (frames[-1].shape[0], frames[-1].shape[1]) if frames else None

    @property
    def stamps_ns(self) -> list[int]:
        """Of all real frames, tubelet by tubelet."""
        stamps = [stamp for tubelet in self.held.star + self.held.stream for stamp in tubelet.stamps_ns]
        return stamps + [frame.stamp_ns for frame in self.held.pending]

    def check_fits(self, capacity: Capacity, fit: Callable[[int, int], Size]) -> None:
        """Raise ``MemoryFileError`` where a memory can't take this over. ``fit``: as ``SmartFrameManager.resize`` takes
        it."""
        held = self.held
        capacity.check(
            self.camera, temporal_patch_size=self.temporal_patch_size, star=len(held.star), stream=len(held.stream)
        )
        try:
            for size in (self.source_size, self.frame_size):
                if size is not None:
                    fit(*size)
        except FrameError as error:
            raise MemoryFileError(f"camera {self.camera}: no model takes its frames: {error}") from error


@dataclass(frozen=True)
class Capacity:
    """What a memory can take over."""

    temporal_patch_size: int
    star: int
    """Tubelets; at most."""
    stream: int
    """Likewise, just before the window slides."""

    @classmethod
    def of(cls, config: MemoryConfig, temporal_patch_size: int) -> Capacity:
        """Of a memory with this configuration."""
        window = config.stream_window_size // temporal_patch_size
        star = config.star_memory_size // temporal_patch_size
        return cls(temporal_patch_size, star, window + config.stream_slide - 1)

    def check(self, camera: str, *, temporal_patch_size: int, star: int, stream: int) -> None:
        """Raise ``MemoryFileError`` where a memory with so many tubelets doesn't fit."""
        if temporal_patch_size != self.temporal_patch_size:
            raise MemoryFileError(
                f"camera {camera}: the saved tubelets have {temporal_patch_size} frames, this model's have "
                f"{self.temporal_patch_size}, and frames are never regrouped; load a model of the same family first"
            )
        for count, most, parameter in (
            (star, self.star, "star_memory_size"),
            (stream, self.stream, "stream_window_size or stream_slide"),
        ):
            if count > most:
                raise MemoryFileError(
                    f"camera {camera}: {count} saved tubelets don't fit, this memory takes {most} of that kind; raise "
                    f"{parameter} to what it was when the memory was saved"
                )


def reviewing_scorer(snapshot: SavedState, config: MemoryConfig, embed: Embed | None) -> FrameScorer:
    """A scorer that has seen the newest frames of a snapshot, so that the next frame is judged as if the camera had
    gone on. Tens of milliseconds; touches nothing else."""
    scorer = FrameScorer(config, embed)
    seen = [(f.stamp_ns, f.pixels) for f in snapshot.held.pending]
    seen += [pair for t in snapshot.held.stream for pair in zip(t.stamps_ns, t.frames, strict=False)]
    for stamp_ns, pixels in sorted(seen, key=lambda pair: pair[0])[-REVIEWED_FRAMES:]:
        scorer.score(pixels, stamp_ns)
    return scorer
