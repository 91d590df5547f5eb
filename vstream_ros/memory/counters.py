"""What one camera's memory counts for as long as it lives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vstream_ros.text import clipped

MAX_CLEAR_REASONS = 16
"""Different reasons that are counted apart; a memory that runs for ever must not collect texts."""
OTHER_REASONS = "other"


@dataclass
class FrameCounters:
    """Frames by what became of them, and clears by their reason. Not thread-safe."""

    offered: int = 0
    kept: int = 0
    rejected: int = 0
    last_rejection: str = ""
    clears: dict[str, int] = field(default_factory=dict)

    def reject(self, reason: str, frames: int = 1) -> None:
        """Count frames that were dropped for a fault."""
        self.rejected += frames
        self.last_rejection = clipped(reason)

    def withdraw(self, frames: int, reason: str) -> None:
        """Count frames that were kept as rejected after all."""
        self.kept -= frames
        self.reject(reason, frames)

    def clear(self, reason: str) -> None:
        """Count a clear."""
        key = reason if reason in self.clears or len(self.clears) < MAX_CLEAR_REASONS else OTHER_REASONS
        self.clears[key] = self.clears.get(key, 0) + 1

    @property
    def all_clears(self) -> int:
        return sum(self.clears.values())

    @property
    def summary(self) -> dict[str, Any]:
        """For ``MemoryStatus``."""
        return {
            "frames_offered": self.offered,
            "frames_kept": self.kept,
            "frames_rejected": self.rejected,
            "clears": dict(self.clears),
            "last_rejection": self.last_rejection,
        }

    def check_integrity(self) -> None:
        """Raise AssertionError where the counts contradict each other."""
        assert self.kept + self.rejected <= self.offered, "a frame was counted twice"
