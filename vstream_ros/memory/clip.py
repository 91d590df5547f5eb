"""What memory is made of: tubelets, clips, and the verdict on one frame. Plain data, numpy only."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import numpy as np

NANOSECONDS = 1_000_000_000


class Verdict(enum.Enum):
    """What the memory says of a frame's stamp, before anyone pays for its conversion."""

    KEEP = "kept"
    SKIP = "between two sampling slots"  # normal: the camera is faster than the sampling grid
    JUMP = "a jump back in time"  # adding it clears this camera's memory first
    BACKWARD = "not newer than the newest frame"  # this one and the rest: dropped and counted
    FUTURE = "far in the future"
    QUARANTINED = "quarantined"
    OVERTAKEN = "the memory was cleared while the image was being converted"

    @property
    def wanted(self) -> bool:
        """The frame is to be converted and stored."""
        return self in (Verdict.KEEP, Verdict.JUMP)

    @property
    def rejected(self) -> bool:
        """The frame is dropped for a fault. Being between two slots is none."""
        return not self.wanted and self is not Verdict.SKIP


@dataclass(frozen=True, eq=False)
class Tubelet:
    """``temporal_patch_size`` consecutive frames of one camera, the unit that is stored, encoded and evicted.

    Identity is ``id``: it comes from a counter that is never reused, so equal ids mean equal pixels.
    """

    id: int
    camera: str
    frames: np.ndarray
    """(temporal_patch_size, height, width, 3) uint8, RGB, read-only. A sealed tubelet repeats its last frame."""
    stamps_ns: tuple[int, ...]
    """Header stamps of the real frames, in order: shorter than ``frames`` where frames were repeated."""
    time_ns: int
    """Stamp of the first frame, snapped to its slot on the sampling grid."""
    importance: float
    """0.7 · motion + 0.3 · complexity by default, >= 0; the maximum over its frames."""
    scene_change: bool = False
    key: bool = False
    """Handed over as important by a caller (``update_star_memory``), not found so by its pixels."""
    reweighed: bool = False
    """``importance`` was measured again by more than pixels (``SmartFrameManager.reweigh``); that happens once."""
    provisional: bool = False
    """Padded from a pending odd frame: valid in this clip only, must never enter a cache."""

    @property
    def nbytes(self) -> int:
        return int(self.frames.nbytes)

    def is_within(self, start_ns: int, end_ns: int) -> bool:
        """Whether a real frame's stamp is in the range, inclusive; 0: unbounded."""
        return any((start_ns == 0 or start_ns <= s) and (end_ns == 0 or s <= end_ns) for s in self.stamps_ns)


@dataclass(frozen=True, eq=False)
class Clip:
    """What one camera's memory hands to the engine: immutable, without duplicates, in time order."""

    tubelets: tuple[Tubelet, ...]
    """All of one frame size, or the first ones, star's, of a smaller one."""
    second_per_grid: float
    """Nominal seconds from one tubelet to the next (temporal_patch_size x sampling period); pinned, not measured."""

    def __len__(self) -> int:
        return len(self.tubelets)

    @property
    def frame_count(self) -> int:
        """Number of real frames (repetitions not counted)."""
        return sum(len(t.stamps_ns) for t in self.tubelets)


@dataclass(frozen=True)
class FrameStatus:
    """What became of one frame, and how full the memory is."""

    verdict: Verdict
    stamp_ns: int
    camera: str
    reason: str = ""
    """Why the frame was not kept ("" if it was)."""
    importance: float = 0.0
    scene_change: bool = False
    cleared: str = ""
    """Why the camera's memory was cleared before this frame was stored ("" if it was not)."""
    star_frames: int = 0
    star_capacity: int = 0
    stream_frames: int = 0
    """Pending frames included."""
    stream_capacity: int = 0
    """The most frames the stream can hold, just before it slides; a slide leaves ``stream_window_size``."""

    @property
    def kept(self) -> bool:
        return self.verdict.wanted

    def __str__(self) -> str:
        parts = [f"{self.camera} t={self.stamp_ns / NANOSECONDS:.3f} s: {self.verdict.value}"]
        if self.cleared:
            parts.append(f"memory cleared: {self.cleared}")
        if self.kept:
            parts.append(f"importance {self.importance:.3f}" + (", scene change" if self.scene_change else ""))
        parts.append(
            f"star {self.star_frames}/{self.star_capacity}, stream {self.stream_frames}/{self.stream_capacity}"
        )
        return "; ".join(parts)


@dataclass(frozen=True)
class MemoryStatus:
    """Counters and fill of one camera's memory (frames; stamps in nanoseconds, 0 when empty)."""

    camera: str
    frames_offered: int
    frames_kept: int
    frames_rejected: int
    """Dropped for a fault: backward stamps and unusable images. Frames between slots are not faults."""
    star_frames: int
    star_capacity: int
    stream_frames: int
    """Pending frames included."""
    stream_capacity: int
    """The most frames the stream can hold, just before it slides; a slide leaves ``stream_window_size``."""
    tubelets: int
    """Complete and sealed ones: those that may be cached."""
    nbytes: int
    """Bytes of all stored frames, pending ones and repetitions included."""
    oldest_stamp_ns: int
    newest_stamp_ns: int
    clears: dict[str, int] = field(default_factory=dict)
    """How often the memory was cleared, by reason."""
    last_rejection: str = ""
    """Why the last frame was rejected ("" if none was)."""
    epoch: int = 0
    """How often what this memory holds was cleared or scaled: questions and caches of an earlier epoch are void."""
    quarantine: str = ""
    """Why the camera is kept out at the moment ("" if it is not)."""
    archive_frames: int = 0
    """Frames that left and are archived."""
    archive_bytes: int = 0
    """What counts against ``archive_max_bytes``."""
    archive_ram_bytes: int = 0
    """What the archive takes of RAM, tubelets that were decoded for the last question included."""
    archive_error: str = ""
    """Why frames could not be archived lately ("" where they can)."""
