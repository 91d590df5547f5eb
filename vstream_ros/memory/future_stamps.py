"""A stamp far ahead of all others: a mistake, or time that goes on?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vstream_ros.memory.clip import NANOSECONDS, Verdict
from vstream_ros.memory.held_frames import HeldState
from vstream_ros.memory.importance import FrameScorer
from vstream_ros.memory.sampling import Sampler

Clock = Callable[[], int]
"""Nanoseconds of the clock that stamps come from; 0 while it stands still. Asked only where it matters."""

CONFIRMING_FRAMES = 3
"""So many frames in a row with such stamps are no mistake any more."""


class FutureStamps:
    """Refuses stamps that are ahead of a running clock, until they go on steadily. Not thread-safe; O(1).

    A camera may pause for minutes: being ahead of the newest frame alone is no fault. A clock that runs tells the
    two apart at once. Where there is none (a recording), such a frame is kept on trial, see ``Trial``.
    """

    def __init__(self, tolerance_s: float) -> None:
        self._tolerance_ns = round(tolerance_s * NANOSECONDS)
        self.reason = f"stamped more than {tolerance_s:g} s in the future; check the camera's clock"
        self._in_a_row = 0
        self._last_ns = 0
        self._last_ahead_ns = 0

    def is_far_ahead(self, stamp_ns: int, newest_ns: int | None) -> bool:
        """Whether a stamp is ahead of the newest one by more than the tolerance."""
        return newest_ns is not None and stamp_ns - newest_ns > self._tolerance_ns

    def refuses(self, stamp_ns: int, newest_ns: int | None, clock: Clock | None) -> bool:
        """Whether to refuse a frame: far ahead of the newest one and of the clock, and not yet for the third time.

        Stamps go on steadily where they rise and stay as far ahead of the clock as they were, whatever the camera's
        rate.
        """
        now_ns = clock() if clock is not None and self.is_far_ahead(stamp_ns, newest_ns) else 0
        if not now_ns or stamp_ns - now_ns <= self._tolerance_ns:
            self._in_a_row = 0
            return False
        ahead_ns = stamp_ns - now_ns
        goes_on = stamp_ns > self._last_ns and abs(ahead_ns - self._last_ahead_ns) <= self._tolerance_ns
        self._in_a_row = self._in_a_row + 1 if goes_on else 1
        self._last_ns, self._last_ahead_ns = stamp_ns, ahead_ns
        return self._in_a_row < CONFIRMING_FRAMES


@dataclass
class Trial:
    """How a memory was before it kept a frame that is far ahead of all others.

    When the next frame goes on where the others were, all is put back: the false one must not make the true ones look
    like a jump back in time, which clears.
    """

    held: HeldState
    sampler: Sampler
    scorer: FrameScorer
    frames_kept: int
    frames_left: int = CONFIRMING_FRAMES - 1
    """Frames that still have to go on from the one on trial until it is believed."""

    def is_refuted_by(self, stamp_ns: int, sampler: Sampler) -> bool:
        """Whether a frame that is offered goes on where the others were. ``sampler``: as it is now. Where the frame
        goes on from the one on trial, ``frames_left`` counts it; at 0 that one is believed."""
        if sampler.check(stamp_ns) is not Verdict.JUMP:
            self.frames_left -= 1
            return False
        return self.sampler.check(stamp_ns) is not Verdict.JUMP
