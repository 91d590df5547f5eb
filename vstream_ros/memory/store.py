"""Where tubelets live: the stream window of the most recent ones, and star, the long-term memory behind it."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Container, Iterable
from dataclasses import replace

from vstream_ros.memory.clip import Tubelet

GAP_POWER = 0.5
"""Of the time that a tubelet stands alone, in its value. Measured: 0.3 keeps too much of one busy minute, 1 too much
emptiness."""
EMPTY = 0.005
"""What a tubelet counts that shows nothing: an event of an object that fills a hundredth of the picture is worth ten
times as much, in a picture without noise."""


class StarStream:
    """At most ``star`` + ``window`` + ``slide`` - 1 tubelets in time order, star before stream. Not thread-safe.

    The window grows to ``window + slide - 1`` tubelets; the next one makes the oldest ``slide`` leave together, and
    only then does star change. In between, the sequence star + stream grows at its end alone, which is what keeps a
    KV cache over it valid (with slide 8, 88 % of the additions append; with slide 1, hardly any would).
    """

    def __init__(self, *, star: int, window: int, slide: int) -> None:
        """All in tubelets, all >= 1."""
        self._star_capacity = star
        self._window = window
        self._slide = slide
        self.star: list[Tubelet] = []
        self.stream: list[Tubelet] = []

    def append(self, tubelet: Tubelet) -> None:
        """Store the newest tubelet; O(slide * (star + slide)) at a slide, else O(1)."""
        self.stream.append(tubelet)
        if len(self.stream) < self._window + self._slide:
            return
        self.star, self.stream = self._slid()

    def insert(self, tubelets: list[Tubelet]) -> None:
        """Store tubelets of any age, each at its place by stamp; no one of them makes another leave star if it can be
        helped.

        One that is older than the window goes to star, where the least valuable makes room (never the first); any
        other goes into the window, which then slides as it always does. O(tubelets * held).
        """
        for tubelet in tubelets:
            held = self.star + self.stream
            index = bisect.bisect([t.stamps_ns[0] for t in held], tubelet.stamps_ns[0])
            # A neighbour's time is snapped to the grid, where a later stamp can have an earlier time: not behind it.
            time_ns = max(tubelet.time_ns, held[index - 1].time_ns) if index else tubelet.time_ns
            time_ns = min(time_ns, held[index].time_ns) if index < len(held) else time_ns
            placed = replace(tubelet, time_ns=time_ns)
            if self.star and tubelet.stamps_ns[0] < self.stream[0].stamps_ns[0]:
                self.star.insert(index, placed)
            else:
                self.stream.insert(index - len(self.star), placed)
        spared = {tubelet.id for tubelet in tubelets}
        self.star = self._fitted(self.star, self.stream, spared)
        while len(self.stream) >= self._window + self._slide:
            self.star, self.stream = self._slid(spared)

    def mark_key(self, tubelet_id: int) -> None:
        """Make a tubelet that is held a key tubelet; its identity stays."""
        for tubelets in (self.star, self.stream):
            tubelets[:] = [replace(t, key=True) if t.id == tubelet_id else t for t in tubelets]

    def after_slide(self) -> list[Tubelet] | None:
        """Star and stream as they will stand after the next slide, up to today's newest tubelet.

        What leaves and what is promoted is settled as soon as the window holds more than one slide's tubelets; None
        before that. What arrives until then is appended and changes nothing of it.
        """
        if len(self.stream) <= self._slide:
            return None
        star, stream = self._slid()
        return star + stream

    def _slid(self, spared: Iterable[int] = ()) -> tuple[list[Tubelet], list[Tubelet]]:
        leaving, stream = self.stream[: self._slide], self.stream[self._slide :]
        promoted = {tubelet.id for tubelet in leaving if tubelet.key}
        return self._fitted(self.star + leaving, stream, promoted.union(spared)), stream

    def _fitted(self, star: list[Tubelet], stream: list[Tubelet], spared: set[int]) -> list[Tubelet]:
        """``star`` without its least valuable tubelets, as many as are too many. ``spared``: ids that leave last."""
        star = list(star)
        while len(star) > self._star_capacity:
            del star[_least_valuable(star, stream[0].time_ns, spared)]
        return star

    def clear(self) -> None:
        """Forget every tubelet."""
        self.star, self.stream = [], []

    def check_integrity(self) -> None:
        """Raise AssertionError where an invariant is broken."""
        assert len(self.star) <= self._star_capacity, "star is over its capacity"
        assert len(self.stream) < self._window + self._slide, "the stream window did not slide"
        if self.star:
            assert len(self.stream) >= self._window, "the stream window gave away more than a slide"
        held = self.star + self.stream
        assert len({tubelet.id for tubelet in held}) == len(held), "a tubelet is held twice"
        assert all(
            a.time_ns <= b.time_ns and a.stamps_ns[0] < b.stamps_ns[0] for a, b in itertools.pairwise(held)
        ), "not in time order"


def retention(tubelet: Tubelet) -> float:
    """What a tubelet's importance counts in star: a scene change, or a key frame that was handed over, is worth as
    much as a vivid object that appears; emptiness a little, so that what is empty is still spread over the time."""
    return max(tubelet.importance, 1.0 if tubelet.scene_change or tubelet.key else EMPTY)


def isolation_ns(before_ns: int, after_ns: int) -> float:
    """How alone a tubelet stands, from the gaps to the tubelets before and after it: half their harmonic mean.

    The shorter gap decides: of two that show the same event, seconds apart, neither is alone, however long nothing
    happened around them. (The sum of both gaps would keep such pairs and forget what stands single.)
    """
    return before_ns * after_ns / max(before_ns + after_ns, 1)


def values(star: list[Tubelet], next_ns: int) -> list[float]:
    """What each star tubelet is worth; the one with the least is forgotten. ``next_ns``: time of the tubelet after the
    last one. The first is beyond price.

    The last counts as if the next one came no sooner after it than the one before it. (The window is always seconds
    behind: measured up to it no newcomer would stand alone, and star would freeze once its own gaps are longer.)
    """
    gaps = [after.time_ns - before.time_ns for before, after in itertools.pairwise(star)]
    last = max([next_ns - star[-1].time_ns, *gaps[-1:]])
    alone = [isolation_ns(*pair) for pair in itertools.pairwise([*gaps, last])]
    worth = (retention(tubelet) * gap**GAP_POWER for tubelet, gap in zip(star[1:], alone, strict=True))
    return [math.inf, *worth]


def _least_valuable(star: list[Tubelet], next_ns: int, spared: Container[int] = ()) -> int:
    """Index of the star tubelet to forget: the smallest importance x isolation^0.5, never the first.

    Importance alone would freeze star: after an hour nothing beats what is in it. With the gaps in time,
    near-duplicates go first and the past stays covered, the sparser the less happened. ``spared``: ids that go only
    where there is nothing else.
    """
    worth = values(star, next_ns)
    return min(range(1, len(star)), key=lambda index: (star[index].id in spared, worth[index]))
