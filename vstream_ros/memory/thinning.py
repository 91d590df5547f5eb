"""Which of thousands of tubelets to forget next, by the value that star goes by."""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Iterable, Sequence

from vstream_ros.memory.clip import Tubelet
from vstream_ros.memory.store import GAP_POWER, isolation_ns, retention

SPARE_HEAP = 64
"""Outdated entries that are always allowed in the heap, so that a short one isn't rebuilt at every change."""


class Thinning:
    """Tubelets by their first stamp, each worth retention x isolation^0.5. Not thread-safe.

    A change revalues the neighbours alone and leaves their old values in a heap, which is rebuilt when half of it is
    outdated: O(log n) a change, amortised, and moving 8 bytes a tubelet in a sorted list (10 us at 20,000).
    """

    def __init__(self, members: Iterable[tuple[int, int, float]] = ()) -> None:
        """``members``: first stamp, time (both ns) and retention of each; O(n log n)."""
        self._retentions: dict[int, float] = {}
        self._times: dict[int, int] = {}
        for stamp_ns, time_ns, kept_for in members:
            self._times[stamp_ns], self._retentions[stamp_ns] = time_ns, kept_for
        self._stamps = sorted(self._times)
        self._worth = {stamp_ns: self._value(index) for index, stamp_ns in enumerate(self._stamps)}
        self._heap = [(worth, stamp_ns) for stamp_ns, worth in self._worth.items()]
        heapq.heapify(self._heap)

    def __len__(self) -> int:
        return len(self._stamps)

    def __contains__(self, stamp_ns: int) -> bool:
        return stamp_ns in self._times

    @property
    def stamps_ns(self) -> Sequence[int]:
        """First stamps, rising; to look at only."""
        return self._stamps

    def add(self, stamp_ns: int, time_ns: int, kept_for: float) -> None:
        """One more, of any age; its stamp is not there yet. ``kept_for``: see ``store.retention``."""
        self._times[stamp_ns], self._retentions[stamp_ns] = time_ns, kept_for
        index = bisect.bisect(self._stamps, stamp_ns)
        self._stamps.insert(index, stamp_ns)
        self._revalue(range(index - 1, index + 2))

    def remove(self, stamp_ns: int) -> None:
        """One that is there leaves."""
        index = bisect.bisect_left(self._stamps, stamp_ns)
        del self._stamps[index], self._times[stamp_ns], self._retentions[stamp_ns], self._worth[stamp_ns]
        self._revalue(range(index - 1, index + 1))

    def least(self) -> int:
        """First stamp of the one that is worth least. Raises ``IndexError`` where there is none."""
        while True:
            worth, stamp_ns = self._heap[0]
            if self._worth.get(stamp_ns) == worth:
                return stamp_ns
            heapq.heappop(self._heap)

    def check_integrity(self) -> None:
        """Raise AssertionError where an invariant is broken. For tests: O(n)."""
        assert self._stamps == sorted(self._times), "not in time order"
        assert self._times.keys() == self._retentions.keys() == self._worth.keys(), "somebody is half there"
        assert all(self._worth[s] == self._value(i) for i, s in enumerate(self._stamps)), "an old value"
        assert len(self._heap) <= 2 * len(self._stamps) + SPARE_HEAP, "the heap grows"
        assert {(w, s) for s, w in self._worth.items()} <= set(self._heap), "a value is not in the heap"

    def _revalue(self, indices: range) -> None:
        for index in indices:
            if 0 <= index < len(self._stamps):
                stamp_ns = self._stamps[index]
                self._worth[stamp_ns] = self._value(index)
                heapq.heappush(self._heap, (self._worth[stamp_ns], stamp_ns))
        if len(self._heap) > 2 * len(self._stamps) + SPARE_HEAP:
            self._heap = [(worth, stamp_ns) for stamp_ns, worth in self._worth.items()]
            heapq.heapify(self._heap)

    def _value(self, index: int) -> float:
        """At an end the one gap counts for both sides: an end must neither stay for ever nor go first."""
        stamp_ns, last = self._stamps[index], len(self._stamps) - 1
        time_ns = self._times[stamp_ns]
        gaps = [abs(self._times[self._stamps[i]] - time_ns) for i in (index - 1, index + 1) if 0 <= i <= last] or [1]
        return self._retentions[stamp_ns] * max(isolation_ns(gaps[0], gaps[-1]), 1.0) ** GAP_POWER


def most_valuable(tubelets: Sequence[Tubelet], beside: Sequence[Tubelet], count: int) -> list[Tubelet]:
    """Those ``count`` of ``tubelets`` that thinning leaves, in the order given, where ``beside`` stay in any case.

    No two tubelets, of both together, have the same first stamp. O(n log n).
    """
    stay = [(tubelet.stamps_ns[0], tubelet.time_ns, math.inf) for tubelet in beside]
    may_go = [(tubelet.stamps_ns[0], tubelet.time_ns, retention(tubelet)) for tubelet in tubelets]
    thinning = Thinning(stay + may_go)
    for _ in range(len(tubelets) - max(count, 0)):
        thinning.remove(thinning.least())
    return [tubelet for tubelet in tubelets if tubelet.stamps_ns[0] in thinning]
