"""When and why memories were cleared or restored."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from vstream_ros.engine.offered_frames import causes_of_emptiness
from vstream_ros.memory import MemoryStatus

logger = logging.getLogger(__name__)


class Clearings:
    """Of all cameras. Not thread-safe: ``CameraMemories`` guards it by its lock."""

    def __init__(self, cameras: Sequence[str], clock: Callable[[], float]) -> None:
        """``clock``: steady seconds."""
        self._cameras = tuple(cameras)
        self._clock = clock
        self.count = 0
        """Clearings and restores, of one camera or of all."""
        self.announcements: deque[str] = deque(maxlen=8)
        """Why, in a sentence each, newest last."""
        self._last: dict[str, tuple[float, str]] = {}
        """When and why each camera's memory was cleared last."""

    def announce(self, reason: str, camera: str | None = None, what: str = "cleared") -> None:
        """Note, and log, that the memory of one camera or of all was cleared, or restored."""
        for name in self._cameras if camera is None else (camera,):
            self._last[name] = (self._clock(), reason)
        text = reason if camera is None else f"camera {camera}: {reason}"
        self.count += 1
        self.announcements.append(text)
        logger.warning("memory %s (epoch %d): %s", what, self.count, text)

    def why_empty(self, states: Mapping[str, MemoryStatus]) -> str:
        """Why the memories with these states, by camera, hold nothing, and what to do about it."""
        return causes_of_emptiness(states, self._last, self._clock())
