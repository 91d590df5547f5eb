"""What one camera's memory holds at a moment, and why it holds it."""

from __future__ import annotations

from dataclasses import dataclass

from vstream_ros.memory.clip import Tubelet
from vstream_ros.memory.store import EMPTY


@dataclass(frozen=True, eq=False)
class MemorySnapshot:
    """Immutable; what the memory does afterwards changes nothing of it."""

    camera: str
    star: tuple[Tubelet, ...]
    """In time order; stands before stream."""
    values: tuple[float, ...]
    """What each star tubelet is worth: its importance x (seconds that it stands alone)^0.5. The one with the least is
    forgotten first; the first tubelet's is infinite."""
    stream: tuple[Tubelet, ...]
    """In time order; a frame that is no tubelet yet is the last, as a provisional tubelet."""
    second_per_grid: float
    """Nominal seconds from one tubelet to the next."""

    @property
    def tubelets(self) -> tuple[Tubelet, ...]:
        """All of them, in time order."""
        return self.star + self.stream

    def reason(self, index: int) -> str:
        """Why the tubelet at ``index`` of ``tubelets`` is held, in a few words.

        Of star: ``first``, ``key frame``, ``scene change``, ``motion`` for what showed something, ``spread`` for what
        showed nothing and stands for its time. Of stream: ``recent``, and what it is besides.
        """
        tubelet = self.tubelets[index]
        marks = [word for word, is_so in (("key frame", tubelet.key), ("scene change", tubelet.scene_change)) if is_so]
        if index >= len(self.star):
            return ", ".join(["recent", *marks[:1]])
        if index == 0:
            return "first"
        return marks[0] if marks else "motion" if tubelet.importance > EMPTY else "spread"
