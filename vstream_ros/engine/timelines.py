"""All KV caches of one model: the current one, the one that is built ahead of the next slide, and forks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Sequence
from operator import itemgetter

from vstream_ros.engine.timeline import Timeline
from vstream_ros.models.base import Prompt


class Timelines:
    """Chooses the KV cache that a prompt shares most with. Owned by the model's thread.

    ``current`` follows all of memory. ``ahead`` follows what memory will be after its next slide: it shares
    ``current``'s prefix and takes over when the slide comes. Forks answer about parts of memory (a time range, some
    cameras) and never crop the others; the least recently used go first when there are more than ``max_forks``, or
    when their storage exceeds ``max_bytes``. So everything here is O(``max_forks``).
    """

    def __init__(self, new_timeline: Callable[[], Timeline], max_bytes: int, max_forks: int) -> None:
        self._max_bytes = max_bytes
        self._max_forks = max_forks
        self.current = new_timeline()
        self.ahead: Timeline | None = None
        self._forks: OrderedDict[Hashable, Timeline] = OrderedDict()

    def __iter__(self) -> Iterator[Timeline]:
        yield self.current
        if self.ahead is not None:
            yield self.ahead
        yield from self._forks.values()

    @property
    def nbytes(self) -> int:
        """Bytes of all storages, shared ones counted once."""
        return sum(_storages(self).values())

    @property
    def extra_bytes(self) -> int:
        """Bytes that are not ``current``'s: what ``max_bytes`` bounds."""
        return self.nbytes - self.current.nbytes

    def for_memory(self, prompt: Prompt, busy: Sequence[Timeline] = ()) -> Timeline:
        """The timeline for a prompt over all of memory; the one built ahead takes over where it shares more.

        ``busy``: timelines on which questions about other prompts are being answered. They are left to those, and what
        they share with this one is forked.
        """
        if self.ahead is not None and self.ahead.common_prefix(prompt) > self.current.common_prefix(prompt):
            self.current, self.ahead = self.ahead, None
        if self.current in busy:
            self.current = self.current.fork(self.current.common_prefix(prompt))
        return self.current

    def for_part(self, key: Hashable, prompt: Prompt, busy: Sequence[Timeline] = ()) -> Timeline:
        """A fork for a prompt over a part of memory; ``key``: which part, so that the next question finds it; ``busy``
        as in ``for_memory``."""
        fork = self._forks.pop(key, None)
        if fork is not None and fork in busy:
            fork = None
        shared = [(timeline.common_prefix(prompt), timeline) for timeline in self]
        length, best = max(shared, key=itemgetter(0))
        if fork is None or length > fork.common_prefix(prompt):
            fork = best.fork(length)
        self._forks[key] = fork
        while len(self._forks) > self._max_forks:
            self._forks.popitem(last=False)  # where none may be kept, this one lives as long as its question
        return fork

    def for_next(self, prompt: Prompt) -> Timeline:
        """The timeline that is built ahead, for what memory will be after its next slide."""
        shared = self.current.common_prefix(prompt)
        if self.ahead is None or self.ahead.common_prefix(prompt) < shared:
            self.ahead = self.current.fork(shared)
        return self.ahead

    def shrink(self) -> None:
        """Drop forks, the least recently used first, then ``ahead``, until ``extra_bytes`` is within its bound."""
        while self.extra_bytes > self._max_bytes and (self._forks or self.ahead is not None):
            if self._forks:
                self._forks.popitem(last=False)
            else:
                self.ahead = None

    def keep_only(self, tubelet_ids: Container[int]) -> None:
        """Let go of what was computed from other tubelets than these, or behind one of them."""
        self.current.keep_only(tubelet_ids)
        if self.ahead is not None and not self.ahead.keep_only(tubelet_ids):
            self.ahead = None
        for key in [key for key, fork in self._forks.items() if not fork.keep_only(tubelet_ids)]:
            del self._forks[key]

    def reset(self) -> None:
        """Forget everything and free the caches."""
        self.current.reset()
        self.ahead = None
        self._forks.clear()

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` where bookkeeping and caches disagree, or the bound is broken (for tests)."""
        for timeline in self:
            timeline.check_integrity()
        assert self.extra_bytes <= self._max_bytes
        assert len(self._forks) <= self._max_forks


def _storages(timelines: Iterable[Timeline]) -> dict[int, int]:
    """Bytes by address of every storage."""
    sizes: dict[int, int] = {}
    for timeline in timelines:
        sizes.update(timeline.storages())
    return sizes
