"""How a player loses no image: it stays only a few of them ahead of the node that it plays to. No ROS."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

WINDOW = 8
"""Images of a topic on their way to the node. Its subscription keeps ten and drops the oldest of more."""
STALL_TIMEOUT_S = 10.0
"""An image that the node has not taken within this is lost: its camera was switched off, or it started anew."""


@dataclass
class _Topic:
    sent: int
    taken: int
    """Of ``sent``, as far as is known."""
    counter: int
    """The node's own, which may have begun long before."""


class FlowControl:
    """Counts the images of each topic that were sent and not yet taken. ``told`` is called in another thread."""

    def __init__(self, stop: threading.Event, window: int = WINDOW, stall_timeout_s: float = STALL_TIMEOUT_S) -> None:
        """``stop``: ends every wait."""
        self._stop = stop
        self._window = window
        self._stall_timeout_s = stall_timeout_s
        self._changed = threading.Condition()
        self._topics: dict[str, _Topic] = {}
        """Guarded by ``_changed``, as ``lost`` is."""
        self.lost = 0
        """Images that were sent and, as it seems, never taken."""

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics whose subscriber reports what it takes; the others are not controlled."""
        with self._changed:
            return tuple(self._topics)

    def told(self, received: Mapping[str, int]) -> None:
        """The node has taken so many images of each topic, since it started."""
        with self._changed:
            for name, counter in received.items():
                topic = self._topics.setdefault(name, _Topic(sent=0, taken=0, counter=counter))
                # Less than before: the node started anew. More than was sent: another publisher.
                topic.taken = min(topic.sent, topic.taken + max(0, counter - topic.counter))
                topic.counter = counter
            self._changed.notify_all()

    def send(self, name: str) -> None:
        """Wait until another image of this topic may go out, and count it as sent."""
        with self._changed:
            topic = self._topics.get(name)
            if topic is not None:
                self._wait_until_at_most(topic, self._window - 1)
                topic.sent += 1

    def drain(self) -> None:
        """Wait until everything is taken."""
        with self._changed:
            for topic in self._topics.values():
                self._wait_until_at_most(topic, 0)

    def _wait_until_at_most(self, topic: _Topic, under_way: int) -> None:
        taken, since = topic.taken, time.monotonic()
        while topic.sent - topic.taken > under_way and not self._stop.is_set():
            self._changed.wait(0.05)
            if topic.taken != taken:
                taken, since = topic.taken, time.monotonic()
            elif time.monotonic() - since >= self._stall_timeout_s:
                self.lost += topic.sent - topic.taken
                topic.taken = topic.sent
