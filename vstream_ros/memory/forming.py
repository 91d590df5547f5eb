"""Frames become tubelets here, once and for ever."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from vstream_ros.images.resize import owned_rgb, resize_rgb
from vstream_ros.memory.clip import Tubelet
from vstream_ros.memory.slot import Size


@dataclass(frozen=True, eq=False)
class ScoredFrame:
    """One kept frame on its way into a tubelet."""

    pixels: np.ndarray
    """(height, width, 3) uint8 RGB, read-only, owned by the memory."""
    stamp_ns: int
    time_ns: int
    """The stamp, snapped to the sampling grid."""
    importance: float
    scene_change: bool


class TubeletFormer:
    """Collects consecutive frames until they are a tubelet. Not thread-safe.

    A tubelet never holds a cut or a gap: ``seal`` closes an unfinished one by repeating its last frame.
    """

    def __init__(self, camera: str, temporal_patch_size: int, ids: Iterator[int]) -> None:
        self._camera = camera
        self._size = temporal_patch_size
        self._ids = ids
        self.pending: list[ScoredFrame] = []
        """Frames that are no tubelet yet, at most ``temporal_patch_size - 1``."""

    def add(self, frame: ScoredFrame) -> Tubelet | None:
        """Take the next frame; returns the tubelet that it completes."""
        self.pending.append(frame)
        return self.seal() if len(self.pending) == self._size else None

    def seal(self) -> Tubelet | None:
        """Close the unfinished tubelet; None where no frame is pending."""
        frames, self.pending = self.pending, []
        return self._tubelet(frames) if frames else None

    def provisional(self) -> Tubelet | None:
        """The unfinished tubelet padded as ``seal`` would, under an id of its own, while its frames stay pending."""
        return self._tubelet(self.pending, provisional=True) if self.pending else None

    def key_tubelet(self, frames: list[ScoredFrame]) -> Tubelet:
        """A key tubelet of these frames (1 to ``temporal_patch_size``); the pending ones are left alone."""
        return self._tubelet(frames, key=True)

    def resize_pending(self, size: Size) -> None:
        """Scale the frames that are no tubelet yet."""
        self.pending = [replace(f, pixels=owned_rgb(resize_rgb(f.pixels, size))) for f in self.pending]

    def resized(self, tubelet: Tubelet, size: Size) -> Tubelet:
        """The tubelet with its frames scaled to ``size``: other pixels, so under an id of its own."""
        pixels = np.stack([resize_rgb(frame, size) for frame in tubelet.frames])
        pixels.setflags(write=False)
        return replace(tubelet, id=next(self._ids), frames=pixels)

    def adopted(self, tubelet: Tubelet) -> Tubelet:
        """A tubelet of another memory as one of this camera, under an id of its own."""
        return replace(tubelet, id=next(self._ids), camera=self._camera)

    def clear(self) -> None:
        """Forget the pending frames."""
        self.pending = []

    def _tubelet(self, frames: list[ScoredFrame], *, provisional: bool = False, key: bool = False) -> Tubelet:
        padding = self._size - len(frames)
        pixels = np.stack([frame.pixels for frame in frames] + [frames[-1].pixels] * padding)
        pixels.setflags(write=False)
        return Tubelet(
            id=next(self._ids),
            camera=self._camera,
            frames=pixels,
            stamps_ns=tuple(frame.stamp_ns for frame in frames),
            time_ns=frames[0].time_ns,
            importance=max(frame.importance for frame in frames),
            scene_change=any(frame.scene_change for frame in frames),
            key=key,
            provisional=provisional,
        )
