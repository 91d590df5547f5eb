"""Images that were published and never came: counted from what came, and from what the middleware tells."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

MAX_PUBLISHERS = 16
"""Publishers of one topic whose sequence numbers are remembered."""


class LossCounter:
    """Counts the images that one subscription misses. Everything here runs in the executor's one thread.

    Each image bears its number in its publisher's sequence (Fast DDS, from Iron on): a gap is a loss, be it on the
    network or in our own full queue. Where there are no numbers, ``StampGaps`` estimates. The middleware's
    message-lost events know of the network alone, but also when nothing comes through at all, so the larger of both
    counts. What a publisher sent before its first image that arrived, or while nobody was subscribed, is no loss.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._settled = 0
        self._missing = 0
        """From gaps, since the last ``_settle``."""
        self._told = 0
        """From events, since the last ``_settle``."""
        self._sequences: dict[bytes, int] = {}
        """The newest number by publisher."""
        self._stamps = StampGaps()
        self._last_at: float | None = None

    @property
    def seconds_since(self) -> float | None:
        """Seconds since a loss was noticed, None where there was none."""
        return None if self._last_at is None else self._clock() - self._last_at

    @property
    def total(self) -> int:
        """Images lost so far; never falls."""
        return self._settled + max(self._missing, self._told)

    def restart(self) -> None:
        """The subscription is a new one: what comes next has no predecessor."""
        self._settle()
        self._sequences.clear()
        self._stamps = StampGaps()

    def tell(self, images: int) -> None:
        """The middleware reports a loss."""
        self._told += images
        self._last_at = self._clock()

    def arrive(self, publisher: bytes, sequence: int) -> None:
        """An image came; ``publisher`` is b"" where rclpy does not tell publishers apart (before Kilted)."""
        last = self._sequences.get(publisher)
        if last is None or (sequence < last and not publisher):  # the latter: it was started anew
            self._settle()
            if len(self._sequences) >= MAX_PUBLISHERS:
                self._sequences.clear()
        elif sequence > last:
            self._miss(sequence - last - 1)
        else:
            return
        self._sequences[publisher] = sequence

    def arrive_unnumbered(self, stamp_ns: int) -> None:
        """An image came whose place in its publisher's sequence is unknown; ``stamp_ns``: its header's, 0: none."""
        if stamp_ns:
            self._miss(self._stamps.missing_before(stamp_ns))

    def _miss(self, images: int) -> None:
        if images:
            self._missing += images
            self._last_at = self._clock()

    def _settle(self) -> None:
        """Events and gaps from here on are about other images than those before."""
        self._settled, self._missing, self._told = self.total, 0, 0


class StampGaps:
    """Estimates from a camera's stamps how many images are missing between two.

    The period is the median of the last differences, and counts as known while four in five of them are within a
    quarter of it; then a gap of k periods is k - 1 missing images. Limits: a camera that itself skips exposures looks
    like a loss; one of variable rate, and one that loses more than about a fifth, is never counted; a gap of more than
    ``PAUSE_PERIODS`` is taken for a pause of the camera.
    """

    WINDOW = 31
    KNOWN_AFTER = 15
    PAUSE_PERIODS = 30

    def __init__(self) -> None:
        self._last_ns = 0
        self._differences: deque[int] = deque(maxlen=self.WINDOW)

    def missing_before(self, stamp_ns: int) -> int:
        """Images missing between the one before and this one; 0 where it can't be told."""
        last_ns, self._last_ns = self._last_ns, stamp_ns
        difference = stamp_ns - last_ns
        if not last_ns or difference <= 0:
            return 0
        period = self._period_ns()
        self._differences.append(difference)
        missing = round(difference / period) - 1 if period else 0
        return missing if 0 < missing < self.PAUSE_PERIODS else 0

    def _period_ns(self) -> int:
        """The steady period, 0 where there is none."""
        differences = sorted(self._differences)
        if len(differences) < self.KNOWN_AFTER:
            return 0
        median = differences[len(differences) // 2]
        steady = sum(4 * abs(difference - median) <= median for difference in differences)
        return median if 5 * steady >= 4 * len(differences) else 0
