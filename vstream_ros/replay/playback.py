"""The parts of replaying a bag that need no ROS: reading ahead, and keeping time."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from vstream_ros.memory.clip import NANOSECONDS
from vstream_ros.replay.bags import BagFrame, BagSource

READ_AHEAD_BYTES = 128 << 20


@dataclass(frozen=True)
class ScheduledFrame:
    """A frame and when it is due."""

    frame: BagFrame
    due_ns: int
    """Bag time since the first frame of the first pass."""
    pass_index: int
    """How often the bag has been played before this frame."""


class Prefetcher:
    """Reads a bag in a thread of its own, a bounded number of bytes ahead, so that a slow disk does not cost pace.

    Iterate it once, in one thread, then call ``close``.
    """

    def __init__(self, source: BagSource, *, loop: bool = False, max_bytes: int = READ_AHEAD_BYTES) -> None:
        self._source = source
        self._loop = loop
        self._max_bytes = max_bytes
        self._queue: deque[ScheduledFrame] = deque()
        self._bytes = 0
        self._done = False
        self._closed = False
        self._error: Exception | None = None
        self._changed = threading.Condition()
        self.skipped = 0
        """Damaged messages passed over so far, all passes together."""
        self._thread = threading.Thread(target=self._read, name="bag-reader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[ScheduledFrame]:
        """Yield frames in order; raises what the reading raised (``InvalidRequestError``) once all before is out."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._done or self._closed)
                if self._closed:
                    return
                if not self._queue:
                    if self._error is not None:
                        raise self._error
                    return
                item = self._queue.popleft()
                self._bytes -= len(item.frame.cdr)
                self._changed.notify_all()
            yield item

    def close(self) -> None:
        """Stop reading and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _read(self) -> None:
        error: Exception | None = None
        try:
            self._read_passes()
        except Exception as caught:  # noqa: BLE001 - the thread's boundary: the iterating thread raises it
            error = caught
        with self._changed:
            self._error, self._done = error, True
            self._changed.notify_all()

    def _read_passes(self) -> None:
        start_ns = 0
        pass_index = 0
        while True:
            first_ns: int | None = None
            due_ns = start_ns
            count = 0
            try:
                for frame in self._source:
                    assert isinstance(frame, BagFrame)
                    first_ns = frame.receive_ns if first_ns is None else first_ns
                    due_ns = start_ns + frame.receive_ns - first_ns
                    count += 1
                    if not self._put(ScheduledFrame(frame, due_ns, pass_index)):
                        return
            finally:
                self.skipped += self._source.skipped
            if not self._loop:
                return
            # The gap between two passes is the mean spacing within one; a bag of one frame repeats it every second.
            start_ns = due_ns + ((due_ns - start_ns) // (count - 1) if count > 1 else NANOSECONDS)
            pass_index += 1

    def _put(self, item: ScheduledFrame) -> bool:
        """Append when there is room; False when closed. A frame larger than the bound still gets through, alone."""
        size = len(item.frame.cdr)
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or not self._queue or self._bytes + size <= self._max_bytes
            )
            if self._closed:
                return False
            self._queue.append(item)
            self._bytes += size
            self._changed.notify_all()
            return True


class Pacer:
    """Maps bag time to the steady clock: absolute deadlines, so that lateness never adds up."""

    def __init__(self, rate: float, stop: threading.Event) -> None:
        """``rate``: bag seconds per second. ``stop``: ends every wait."""
        self._rate = rate
        self._stop = stop
        self._start: float | None = None

    def start(self) -> None:
        """Bag time 0 is now."""
        self._start = time.monotonic()

    def elapsed_ns(self) -> int:
        """Return the bag time since ``start`` (0 before)."""
        if self._start is None:
            return 0
        return int((time.monotonic() - self._start) * self._rate * NANOSECONDS)

    def wait_until(self, due_ns: int) -> bool:
        """Sleep until bag time ``due_ns``; return False when stopped before."""
        assert self._start is not None
        remaining = self._start + due_ns / NANOSECONDS / self._rate - time.monotonic()
        return not (self._stop.wait(remaining) if remaining > 0.0 else self._stop.is_set())
