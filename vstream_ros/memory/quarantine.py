"""Keeps out a camera that changes its size or its clock again and again: each change would clear its memory."""

from __future__ import annotations

from collections import deque

from vstream_ros.memory.clip import NANOSECONDS, Verdict
from vstream_ros.memory.sampling import Sampler

MAX_CLEARS = 4
WINDOW_S = 10.0
"""A camera may clear its memory so often within so many seconds; the next time it is quarantined instead. (A bag that
starts over every three seconds stays below.)"""
HOLD_S, MAX_HOLD_S = 5.0, 300.0
"""For how long it must then be steady: twice as long each time."""
FORGIVEN_AFTER_S = 60.0
"""A quarantine that begins so long after the last one ended is as short as the first."""
MAX_STEP_S = 1.0
"""What one frame adds to the camera's time at most."""
REASON = (
    "quarantined: the camera changed its size or its clock again and again; check its driver, and that one camera "
    "alone publishes on its topic"
)


class Quarantine:
    """Counts the clears that one camera causes, and looks at its frames while it is kept out. Not thread-safe; O(1).

    Time is the camera's own, the sum of its stamps' steps forward, each of a second at most: so it is the same live
    and in a replay at any speed, and a clock that flips does not make it run.
    """

    def __init__(self, sample_rate_hz: float | None, time_jump_threshold_s: float) -> None:
        self.active = False
        self._sampler = Sampler(sample_rate_hz, time_jump_threshold_s)
        """Of the frames that are looked at meanwhile: no more than would be kept otherwise."""
        self._now_ns = 0
        self._last_stamp_ns: int | None = None
        self._clears_ns: deque[int] = deque(maxlen=MAX_CLEARS)
        self._hold_ns = 0
        self._ended_ns = 0
        self._steady_since_ns = 0
        self._shape: tuple[int, ...] | None = None

    def advance(self, stamp_ns: int) -> None:
        """Let the camera's time go on, at every frame that is offered."""
        if self._last_stamp_ns is not None:
            self._now_ns += min(max(stamp_ns - self._last_stamp_ns, 0), round(MAX_STEP_S * NANOSECONDS))
        self._last_stamp_ns = stamp_ns

    def allows_clear(self) -> bool:
        """Whether the camera may clear its memory once more; where not, its quarantine begins."""
        clears = self._clears_ns
        if len(clears) < MAX_CLEARS or self._now_ns - clears[0] > WINDOW_S * NANOSECONDS:
            clears.append(self._now_ns)
            return True
        clears.clear()
        forgiven = self._now_ns - self._ended_ns > FORGIVEN_AFTER_S * NANOSECONDS
        hold_s = HOLD_S if forgiven or not self._hold_ns else min(2 * self._hold_ns / NANOSECONDS, MAX_HOLD_S)
        self._hold_ns = round(hold_s * NANOSECONDS)
        self.active = True
        self._start_over()
        return False

    def check(self, stamp_ns: int) -> Verdict:
        """In quarantine: whether a frame is worth a look (KEEP). A step back in time is one more change."""
        verdict = self._sampler.check(stamp_ns)
        if verdict is not Verdict.JUMP:
            return verdict
        self._start_over()
        return Verdict.QUARANTINED

    def ends_with(self, stamp_ns: int, shape: tuple[int, ...]) -> bool:
        """In quarantine: look at a frame; whether the camera has now been steady for long enough, and is let in."""
        if shape != self._shape:
            self._start_over()
            self._shape = shape
        self._sampler.keep(stamp_ns)
        if self._now_ns - self._steady_since_ns < self._hold_ns:
            return False
        self.active = False
        self._ended_ns = self._now_ns
        return True

    def _start_over(self) -> None:
        self._steady_since_ns = self._now_ns
        self._shape = None
        self._sampler.reset()
