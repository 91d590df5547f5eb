"""What star forgets: importance x isolation^0.5 over hours, as a robot's day would have it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.memory_frames import SECOND
from vstream_ros.memory.clip import Tubelet
from vstream_ros.memory.store import EMPTY, StarStream, isolation_ns, retention, values

PIXELS = np.zeros((2, 2, 2, 3), np.uint8)
HOUR = 3_600


def tubelet(second: int, importance: float = 0.0, *, scene_change: bool = False, key: bool = False) -> Tubelet:
    stamps = (second * SECOND, second * SECOND + SECOND // 2)
    return Tubelet(second, "camera", PIXELS, stamps, stamps[0], importance, scene_change, key)


def lived(seconds: int, importance: Callable[[int], float], *, star: int = 15, **special: Tubelet) -> StarStream:
    """A store of the default sizes after so many tubelets, one a second; ``special`` stand for the same seconds'."""
    store = StarStream(star=star, window=5, slide=8)
    instead = {t.time_ns // SECOND: t for t in special.values()}
    for second in range(seconds):
        store.append(instead.get(second) or tubelet(second, importance(second)))
    store.check_integrity()
    return store


def seconds(store: StarStream) -> list[int]:
    return [t.time_ns // SECOND for t in store.star]


def longest_gap(store: StarStream) -> int:
    times = [*seconds(store), store.stream[0].time_ns // SECOND]
    return max(after - before for before, after in itertools.pairwise(times))


def test_retention_is_importance_with_a_floor_and_a_cut_or_a_key_counts_as_a_vivid_object_more() -> None:
    assert retention(tubelet(0, 0.3)) == 0.3
    assert retention(tubelet(0, 0.0)) == EMPTY > 0.0
    assert retention(tubelet(0, 0.1, scene_change=True)) == retention(tubelet(0, 0.1, key=True)) == 1.1
    assert retention(tubelet(0, 1.7, scene_change=True)) == 2.7
    assert retention(tubelet(0, 0.1, scene_change=True, key=True)) == 1.1


@given(st.integers(0, 10**15), st.integers(0, 10**15))
def test_isolation_is_symmetric_and_the_shorter_gap_decides(before: int, after: int) -> None:
    alone = isolation_ns(before, after)
    assert alone == isolation_ns(after, before)
    assert min(before, after) / 2 <= alone * 1.000001
    assert alone <= min(before, after)


def test_values_are_importance_times_the_root_of_isolation() -> None:
    star = [tubelet(0, 0.1), tubelet(10, 0.2), tubelet(40, 0.3), tubelet(60, 0.0)]
    alone = [10 * 30 / 40, 30 * 20 / 50, 20 / 2]  # behind the last one as much as before it
    expected = [r * (a * SECOND) ** 0.5 for r, a in zip((0.2, 0.3, EMPTY), alone, strict=True)]
    assert values(star, 61 * SECOND)[0] == float("inf")
    assert values(star, 61 * SECOND)[1:] == pytest.approx(expected)


def test_one_of_a_pair_leaves_before_what_is_duller_and_stands_alone() -> None:
    store = StarStream(star=6, window=1, slide=7)
    for second, importance in ((0, 0.1), (60, 0.2), (120, 0.5), (121, 0.5), (180, 0.2), (240, 0.2), (299, 0.2)):
        store.append(tubelet(second, importance))
    store.append(tubelet(300))
    assert len(set(seconds(store)) & {120, 121}) == 1
    assert {0, 60, 180, 240} <= set(seconds(store))


def test_a_long_event_keeps_one_tubelet_and_not_all() -> None:
    """Two minutes of the same, in an hour with an event every four minutes."""
    store = lived(HOUR, lambda s: 0.3 if s % 240 == 17 else 0.5 if 1_750 <= s < 1_870 else 0.001)
    during = [s for s in seconds(store) if 1_750 <= s < 1_870]
    assert 1 <= len(during) <= 3
    assert sum(s % 240 == 17 for s in seconds(store)) >= 11


@settings(max_examples=30, deadline=None)
@given(
    at=st.integers(1, 2_000),
    kind=st.sampled_from(["scene_change", "key"]),
    quiet=st.floats(0.0, EMPTY),
    star=st.integers(3, 15),
)
def test_a_cut_or_a_key_frame_outlives_any_quiet_minute_beside_it(at: int, kind: str, quiet: float, star: int) -> None:
    special = tubelet(at, quiet, **{kind: True})  # type: ignore[arg-type]
    store = lived(HOUR, lambda _: quiet, star=star, special=special)
    assert at in seconds(store)


def test_all_of_five_cuts_are_there_after_an_hour_of_quiet() -> None:
    rng = random.Random(1)
    cuts = {f"cut{k}": tubelet(2 + 2 * k, 0.3, scene_change=True) for k in range(5)}
    store = lived(HOUR, lambda s: 0.2 * rng.random() if s < 12 else EMPTY * rng.random(), **cuts)
    assert {2, 4, 6, 8, 10} <= set(seconds(store))


@pytest.mark.parametrize("hours", [1, 4])
def test_a_brief_event_survives_hours_of_little_motion(hours: int) -> None:
    rng = random.Random(2)
    store = lived(hours * HOUR, lambda s: 0.12 if s == 300 else 0.006 * rng.random())
    assert 300 in seconds(store)


STREAMS: dict[str, Callable[[random.Random], Callable[[int], float]]] = {
    "nothing": lambda rng: lambda _: 0.0,
    "noise": lambda rng: lambda _: EMPTY * rng.random(),
    "equal": lambda rng: lambda _: 0.2,
    "busy": lambda rng: lambda _: 0.3 + 0.4 * rng.random(),
    "an event every 20 s": lambda rng: lambda s: 0.1 if s % 20 in (3, 4) else 0.001 * rng.random(),
    "events of any size": lambda rng: lambda s: 0.08 + 0.1 * rng.random() if s % 60 == 3 else 0.001 * rng.random(),
}


@pytest.mark.parametrize("minutes", [10, 60, 240])
@pytest.mark.parametrize("stream", STREAMS)
def test_star_spreads_over_the_whole_time_and_never_freezes(stream: str, minutes: int) -> None:
    """Fourteen gaps: evenly spread each were 0.07 of the time."""
    store = lived(60 * minutes, STREAMS[stream](random.Random(3)))
    assert longest_gap(store) <= 0.2 * 60 * minutes
    if "event" in stream:
        kept = sum(t.importance >= 0.08 for t in store.star)
        assert kept >= min(14, minutes), "a quiet one but the first, where there were events enough"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.0, 3.0), min_size=60, max_size=120), st.integers(2, 6), st.integers(1, 4))
def test_the_least_valuable_leaves_and_never_the_first(importances: list[float], star: int, slide: int) -> None:
    """Each slide of one leaves the very star that the values say."""
    store = StarStream(star=star, window=2, slide=slide)
    for second, importance in enumerate(importances):
        candidates, rest = store.star + store.stream[:slide], store.stream[slide:]
        slides = len(store.stream) + 1 == 2 + slide
        store.append(tubelet(second, importance))
        assert store.star[0].id == 0 if store.star else second < 2 + slide
        if not slides:
            continue
        while len(candidates) > star:
            worth = values(candidates, (rest or store.stream)[0].time_ns)
            del candidates[worth.index(min(worth))]
        assert seconds(store) == [t.time_ns // SECOND for t in candidates]
