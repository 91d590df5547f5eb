"""Which frames of a camera are kept, judged by their header stamps alone."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from vstream_ros.memory.clip import NANOSECONDS, Verdict

DEFAULT_PERIOD_S = 0.5
"""Taken for the spacing of frames that are kept as they come, until a second frame shows what it is."""


@dataclass(frozen=True)
class Grid:
    """Where a sampler's grid stands; its slot follows from that."""

    origin_ns: int
    newest_ns: int
    """The newest stamp: its frame may be forgotten already, where a key frame stands among those of a tubelet."""
    kept_ns: int | None = None
    """Stamp of the last frame that the grid wanted; None: only frames off the grid were taken."""
    spacing_ns: int | None = None
    """The first spacing seen, > 0."""


class Sampler:
    """Keeps the first frame of each slot of a fixed time grid, or every frame where no rate is set.

    The grid starts at the first frame: slot k stands at ``origin + k * period``, and a frame belongs to slot
    ``floor((stamp - origin) / period + 1/4)``: a slot opens a quarter of a period before its time, so that a
    jittering camera does not fall out of it. The arithmetic is on integers: after a year the grid stands where it
    stood in the first second. (Sampling by "last kept frame + period" loses up to one frame's spacing each time: a
    30 Hz camera sampled at 2 Hz comes out at 1.8 to 1.9 Hz, and temporal ids go wrong.)

    Not thread-safe; every method is O(1).
    """

    def __init__(self, rate_hz: float | None, jump_threshold_s: float) -> None:
        """``rate_hz``: frames per second to keep, None: every frame. The values come from a validated config."""
        self._period_ns: Fraction | None = None if rate_hz is None else NANOSECONDS / Fraction(rate_hz)
        # Its numerator and denominator: a Fraction's own arithmetic takes microseconds, for each frame of a camera.
        self._period = (0, 1) if self._period_ns is None else self._period_ns.as_integer_ratio()
        self._jump_threshold_ns = round(jump_threshold_s * NANOSECONDS)
        self.reset()

    def reset(self) -> None:
        """Forget the grid's origin, the newest stamp and the measured spacing."""
        self._origin_ns: int | None = None
        self._newest_ns = 0
        self._slot = 0
        self._kept_ns: int | None = None
        self._spacing_ns: int | None = None

    @property
    def grid(self) -> Grid | None:
        """For ``go_on_from``; None where there is no frame yet."""
        if self._origin_ns is None:
            return None
        return Grid(self._origin_ns, self._newest_ns, self._kept_ns, self._spacing_ns)

    def go_on_from(self, grid: Grid | None) -> None:
        """Stand where another sampler's grid stood."""
        self.reset()
        if grid is not None:
            self._origin_ns, self._kept_ns, self._spacing_ns = grid.origin_ns, grid.kept_ns, grid.spacing_ns
            self._newest_ns, self._slot = grid.newest_ns, self._slot_at(grid.newest_ns)

    @property
    def period_s(self) -> float:
        """Nominal seconds between kept frames: the grid's, or the first spacing seen (pinned until ``reset``)."""
        if self._period_ns is not None:
            return float(self._period_ns / NANOSECONDS)
        return DEFAULT_PERIOD_S if self._spacing_ns is None else self._spacing_ns / NANOSECONDS

    @property
    def newest_ns(self) -> int | None:
        """The newest stamp; None where there is none yet."""
        return None if self._origin_ns is None else self._newest_ns

    def check(self, stamp_ns: int) -> Verdict:
        """The verdict on a frame with this stamp (nanoseconds, any integer). Changes nothing."""
        if self._origin_ns is None:
            return Verdict.KEEP
        age_ns = self._newest_ns - stamp_ns
        if age_ns > self._jump_threshold_ns:
            return Verdict.JUMP
        if age_ns >= 0:
            return Verdict.BACKWARD
        return Verdict.SKIP if self._slot_at(stamp_ns) == self._slot else Verdict.KEEP

    def keep(self, stamp_ns: int) -> int:
        """Take a frame that ``check`` said to keep; returns its time in nanoseconds: its slot's, or its own stamp."""
        if self._spacing_ns is None and self._kept_ns is not None:
            self._spacing_ns = stamp_ns - self._kept_ns
        self._kept_ns = stamp_ns
        self.keep_off_grid(stamp_ns)
        if self._period_ns is None or self._origin_ns is None:
            return stamp_ns
        numerator, denominator = self._period
        return self._origin_ns + _rounded(self._slot * numerator, denominator)

    def keep_off_grid(self, stamp_ns: int) -> None:
        """Take a frame that is stored whatever the grid says; its spacing counts for nothing."""
        if self._origin_ns is None:
            self._origin_ns = stamp_ns
        elif stamp_ns <= self._newest_ns:
            return
        self._newest_ns = stamp_ns
        self._slot = self._slot_at(stamp_ns)

    def frames_are_missing(self, earlier_ns: int, later_ns: int) -> bool:
        """Whether two stamps of frames kept one after the other are more than 1.5 periods apart.

        Never where every frame is kept: no spacing is promised there.
        """
        numerator, denominator = self._period
        return self._period_ns is not None and 2 * (later_ns - earlier_ns) * denominator > 3 * numerator

    def _slot_at(self, stamp_ns: int) -> int:
        """The grid slot of a stamp; without a grid every stamp is a slot of its own."""
        if self._period_ns is None or self._origin_ns is None:
            return stamp_ns
        numerator, denominator = self._period
        return (4 * (stamp_ns - self._origin_ns) * denominator + numerator) // (4 * numerator)


def _rounded(numerator: int, denominator: int) -> int:
    """The whole number next to a fraction; from a half to the even one, as ``round`` has it."""
    whole, rest = divmod(numerator, denominator)
    return whole + (2 * rest > denominator or (2 * rest == denominator and whole % 2))
