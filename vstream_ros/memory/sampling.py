"""Which frames of a camera are kept, judged by their header stamps alone."""

from __future__ import annotations

from fractions import Fraction

from vstream_ros.memory.types import NANOSECONDS, Verdict

DEFAULT_PERIOD_S = 0.5
"""Taken for the spacing of frames that are kept as they come, until a second frame shows what it is."""
MAX_RATE_DENOMINATOR = 1_000_000
"""Exact for every rate that is written by hand, and finds 30000/1001 behind 29.97002997."""
EARLY = Fraction(1, 4)
"""A slot opens a quarter of a period before its time, so that a jittering camera never falls out of its slot."""


class Sampler:
    """Keeps the first frame of each slot of a fixed time grid, or every frame where no rate is set.

    The grid starts at the first frame kept: slot k is ``origin + k * period``, and a frame belongs to slot
    ``floor((stamp - origin) / period + 1/4)``. All arithmetic is on integers and fractions: after a year the grid
    stands where it stood in the first second. (Sampling by "last kept frame + period" loses up to a frame's
    spacing each time: a 30 Hz camera sampled at 2 Hz comes out at 1.8 to 1.9 Hz, and temporal ids go wrong.)

    Not thread-safe; every method is O(1).
    """

    def __init__(self, rate_hz: float | None, jump_threshold_s: float) -> None:
        """``rate_hz``: frames per second to keep, None keeps every frame. Raises nothing: the config is validated."""
        self._period = None if rate_hz is None else NANOSECONDS / Fraction(rate_hz).limit_denominator(
            MAX_RATE_DENOMINATOR
        )
        self._jump_threshold_ns = round(jump_threshold_s * NANOSECONDS)
        self.reset()

    def reset(self) -> None:
        """Forget the grid's origin, the newest stamp and the measured period."""
        self._origin_ns: int | None = None
        self._newest_ns = 0
        self._slot = 0
        self._spacing_ns: int | None = None

    @property
    def period_s(self) -> float:
        """Nominal seconds between kept frames: the grid's, or the first spacing seen (pinned until ``reset``)."""
        if self._period is not None:
            return float(self._period / NANOSECONDS)
        return DEFAULT_PERIOD_S if self._spacing_ns is None else self._spacing_ns / NANOSECONDS

    def check(self, stamp_ns: int) -> Verdict:
        """The verdict on a frame with this stamp (nanoseconds, any integer). Changes nothing."""
        if self._origin_ns is None:
            return Verdict.KEEP
        age_ns = self._newest_ns - stamp_ns
        if age_ns > self._jump_threshold_ns:
            return Verdict.JUMP
        if age_ns >= 0:
            return Verdict.BACKWARD
        if self._period is not None and self._slot_of(stamp_ns) <= self._slot:
            return Verdict.SKIP
        return Verdict.KEEP

    def keep(self, stamp_ns: int) -> int:
        """Take a frame that ``check`` said to keep; returns its time in nanoseconds: its slot's, or its stamp."""
        if self._origin_ns is None:
            self._origin_ns = stamp_ns
        elif self._spacing_ns is None:
            self._spacing_ns = stamp_ns - self._newest_ns
        self._newest_ns = stamp_ns
        if self._period is None:
            return stamp_ns
        self._slot = self._slot_of(stamp_ns)
        return self._origin_ns + round(self._slot * self._period)

    def parted(self, earlier_ns: int, later_ns: int) -> bool:
        """Whether a gap between two frames' stamps shows that frames are missing: more than 1.5 periods.

        Never where every frame is kept: there no spacing is promised.
        """
        return self._period is not None and later_ns - earlier_ns > self._period * 3 / 2

    def _slot_of(self, stamp_ns: int) -> int:
        assert self._period is not None and self._origin_ns is not None
        return (stamp_ns - self._origin_ns) // self._period if False else int(
            ((stamp_ns - self._origin_ns) / self._period + EARLY) // 1
        )
