"""Where tubelets live: the stream window of the most recent ones, and star, the long-term memory behind it."""

from __future__ import annotations

import itertools

from vstream_ros.memory.types import Tubelet


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

    def after_slide(self) -> list[Tubelet] | None:
        """Star and stream as they will stand after the next slide, up to today's newest tubelet.

        What leaves and what is promoted is settled as soon as the window holds more than one slide's tubelets; None
        before that. What arrives until then is appended and changes nothing of it.
        """
        if len(self.stream) <= self._slide:
            return None
        star, stream = self._slid()
        return star + stream

    def _slid(self) -> tuple[list[Tubelet], list[Tubelet]]:
        star, stream = self.star + self.stream[: self._slide], self.stream[self._slide :]
        while len(star) > self._star_capacity:
            del star[_least_valuable(star, stream[0].time_ns)]
        return star, stream

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
        assert all(a.time_ns < b.time_ns and a.id < b.id for a, b in itertools.pairwise(held)), "not in time order"


def retention(tubelet: Tubelet) -> float:
    """What a tubelet's importance counts in star: a scene change is worth as much as any frame can be."""
    return 1.0 if tubelet.scene_change else tubelet.importance


def _least_valuable(star: list[Tubelet], next_ns: int) -> int:
    """Index of the star tubelet to forget: the smallest importance x (gap it would leave), never the first.

    Importance alone would freeze star: after an hour nothing beats what is in it. With the gap in time between the
    neighbours, near-duplicates go first and the past stays covered, the sparser the less happened. Where all is black
    (importance 0) the gap decides alone. ``next_ns``: time of the tubelet after the last one.
    """
    times = [tubelet.time_ns for tubelet in star] + [next_ns]

    def value(index: int) -> tuple[float, int]:
        gap_ns = times[index + 1] - times[index - 1]
        return retention(star[index]) * gap_ns, gap_ns

    return min(range(1, len(star)), key=value)
