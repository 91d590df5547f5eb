"""Star and stream: sliding in blocks, promotion, and what is forgotten."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import weakref

import numpy as np
import pytest

from support.memory_frames import SECOND
from vstream_ros.memory.clip import Tubelet
from vstream_ros.memory.store import StarStream

PIXELS = np.zeros((2, 2, 2, 3), np.uint8)


def tubelet(index: int, importance: float = 0.5, scene_change: bool = False) -> Tubelet:
    stamps = (index * SECOND, index * SECOND + SECOND // 2)
    return Tubelet(index, "camera", PIXELS, stamps, stamps[0], importance, scene_change)


def run(count: int, importance: dict[int, float] | float = 0.5, *, star: int, window: int, slide: int) -> StarStream:
    store = StarStream(star=star, window=window, slide=slide)
    for i in range(count):
        store.append(tubelet(i, importance if isinstance(importance, float) else importance.get(i, 0.01)))
        store.check_integrity()
    return store


def ids(tubelets: list[Tubelet]) -> list[int]:
    return [t.id for t in tubelets]


@pytest.mark.parametrize(("star", "window", "slide"), [(10, 10, 8), (3, 2, 1), (2, 5, 7), (1, 1, 1), (4, 3, 20)])
def test_the_window_grows_and_slides_in_blocks(star: int, window: int, slide: int) -> None:
    store = StarStream(star=star, window=window, slide=slide)
    for i in range(120):
        store.append(tubelet(i))
        length = i + 1 if i + 1 < window + slide else window + (i + 1 - window) % slide
        assert ids(store.stream) == list(range(i + 1 - length, i + 1))
        assert len(store.star) == min(star, i + 1 - length)
        store.check_integrity()


def test_between_slides_the_sequence_only_grows_at_its_end() -> None:
    rng = random.Random(2)
    store, before, broken = StarStream(star=10, window=10, slide=8), [], 0
    for i in range(600):
        store.append(tubelet(i, rng.random(), rng.random() < 0.05))
        now = ids(store.star + store.stream)
        broken += now[: len(before)] != before
        before = now
    slides = (600 - 10) // 8
    assert broken <= slides, "something else than a slide changed what was there"
    assert 1.0 - broken / 600 >= 0.87  # the design's 88 % of syncs that append only


def test_everything_is_there_until_the_first_slide() -> None:
    store = run(17, star=10, window=10, slide=8)
    assert ids(store.star + store.stream) == list(range(17))
    assert store.star == []


def test_the_first_tubelet_stays_for_ever_however_dull() -> None:
    dull_first = {0: 0.0} | dict.fromkeys(range(1, 500), 1.0)
    for star in (1, 2, 10):
        assert run(500, dull_first, star=star, window=3, slide=2).star[0].id == 0


def test_the_least_important_leaves_where_gaps_are_equal() -> None:
    store = run(10, dict.fromkeys((0, 1, 2, 4, 5), 0.9) | {3: 0.1}, star=5, window=4, slide=6)
    assert ids(store.star) == [0, 1, 2, 4, 5]


def test_a_tubelet_with_close_neighbours_leaves_before_a_lonely_one() -> None:
    """All equally important: the gap in time decides, and the newest of star counts a pause behind it."""
    store = StarStream(star=4, window=1, slide=5)
    for second in (0, 10, 20, 21, 22, 40):
        store.append(tubelet(second))
    assert [t.time_ns // SECOND for t in store.star] == [0, 10, 20, 22]


def test_near_duplicates_leave_before_a_duller_lonely_tubelet() -> None:
    store = StarStream(star=4, window=1, slide=5)
    for second, importance in ((0, 0.1), (10, 0.3), (20, 0.5), (21, 0.6), (22, 0.5), (40, 0.1)):
        store.append(tubelet(second, importance))
    assert [t.time_ns // SECOND for t in store.star] == [0, 10, 20, 22]


def test_the_window_behind_it_does_not_make_the_newest_of_star_a_near_duplicate() -> None:
    store = StarStream(star=3, window=2, slide=4)
    for second in (0, 10, 20, 30, 31, 90):
        store.append(tubelet(second))
    assert [t.time_ns // SECOND for t in store.star] == [0, 20, 30]  # 31 will be compared with 30 when it leaves


def test_the_newest_of_star_is_as_close_to_what_is_before_it_as_any_other() -> None:
    store = StarStream(star=3, window=2, slide=4)
    for second in (0, 10, 20, 29, 31, 90):
        store.append(tubelet(second))
    assert [t.time_ns // SECOND for t in store.star] == [0, 10, 20]  # 29 has 9 s before it


def test_a_pause_before_the_window_makes_the_newest_of_star_stand_alone() -> None:
    store = StarStream(star=3, window=2, slide=4)
    for second in (0, 10, 20, 29, 60, 90):
        store.append(tubelet(second))
    assert [t.time_ns // SECOND for t in store.star] == [0, 10, 29]


def test_a_scene_change_counts_as_the_most_important_frame() -> None:
    store = StarStream(star=2, window=1, slide=1)
    cut_at = 7
    for i in range(60):
        store.append(tubelet(i, 0.3, scene_change=i == cut_at))
        if cut_at + 1 <= i < cut_at + 10:
            assert ids(store.star) == [0, cut_at]


def test_a_key_tubelet_that_leaves_the_window_is_promoted_before_the_least_valuable_rule_sees_it() -> None:
    store = StarStream(star=3, window=2, slide=4)
    for second in (0, 10, 20, 30, 31, 90):
        store.append(dataclasses.replace(tubelet(second, 0.9), key=second == 30))
    assert [t.time_ns // SECOND for t in store.star] == [0, 20, 30]  # 30 would leave 11 s, 10 leaves 20 s


def test_inserted_tubelets_take_their_place_and_do_not_leave_at_once() -> None:
    store = StarStream(star=3, window=2, slide=4)
    for second in (0, 10, 20, 30, 40, 90):
        store.append(tubelet(second, 1.0))
    store.insert([dataclasses.replace(tubelet(21), key=True), dataclasses.replace(tubelet(60), key=True)])
    store.check_integrity()
    assert [t.time_ns // SECOND for t in store.star] == [0, 21, 30]  # 20 is 21's near-duplicate
    assert [t.time_ns // SECOND for t in store.stream] == [40, 60, 90]
    store.insert([tubelet(k) for k in range(91, 100)])  # more than a slide at once
    store.check_integrity()
    assert ids(store.stream)[-1] == 99


def test_black_frames_still_cover_the_past() -> None:
    """Importance 0 everywhere: the gap alone decides, instead of the order."""
    store = run(400, 0.0, star=10, window=4, slide=4)
    assert longest_gap(store) <= 4 * 400 / 10


def test_hours_of_the_same_cover_the_whole_past_and_do_not_freeze() -> None:
    """By importance alone ten lucky tubelets would stay for ever, wherever they lie."""
    rng = random.Random(3)
    store = StarStream(star=10, window=10, slide=8)
    hours = 4 * 3600
    for i in range(hours):
        store.append(tubelet(i, 0.3 + 0.4 * rng.random()))
    assert longest_gap(store) <= 0.25 * hours
    assert store.star[-1].time_ns >= 0.75 * hours * SECOND


def longest_gap(store: StarStream) -> float:
    times = [t.time_ns / SECOND for t in store.star + store.stream]
    return max(b - a for a, b in itertools.pairwise(times))


def test_what_is_forgotten_is_freed() -> None:
    store = StarStream(star=3, window=2, slide=2)
    alive = weakref.WeakSet[Tubelet]()
    for i in range(100):
        newest = tubelet(i)
        alive.add(newest)
        store.append(newest)
        assert len(alive) == len(store.star) + len(store.stream) <= 3 + 2 + 2 - 1
    del newest
    store.clear()
    assert len(alive) == 0
    assert store.star + store.stream == []


def test_the_cost_of_a_slide_is_bounded() -> None:
    """No list grows with the number of tubelets ever seen."""
    store = run(2_000, star=5, window=5, slide=3)
    assert len(store.star) + len(store.stream) <= 5 + 5 + 3 - 1
    assert math.isfinite(longest_gap(store))


def test_another_importance_decides_what_the_next_slide_forgets() -> None:
    store = run(10, star=3, window=3, slide=2)  # one more than the next slide needs to be told
    store.append(tubelet(10))
    before = ids(store.after_slide() or [])
    told = next(t for t in store.star[1:] if t.id in before)
    assert store.reweigh(told.id, 0.0)
    assert told.id in ids(store.star)  # nothing leaves before the slide
    after = ids(store.after_slide() or [])
    assert told.id not in after
    slid = ids(store.stream)[:2]
    k = 11
    while ids(store.stream)[:2] == slid:
        store.append(tubelet(k))
        k += 1
    assert ids(store.star) == after[: len(store.star)]


def test_a_tubelet_is_reweighed_once_and_stays_itself() -> None:
    store = run(3, star=2, window=3, slide=2)
    before = store.stream[1]
    assert store.reweigh(1, 0.75)
    after = store.stream[1]
    changed = {"importance": 0.75, "reweighed": True}
    assert vars(after) == vars(before) | changed
    assert after.frames is before.frames
    assert (before.importance, before.reweighed) == (0.5, False)  # what was handed out stays as it was
    assert not store.reweigh(1, 0.1)
    assert store.stream[1] is after
    assert not store.reweigh(99, 0.1)
    store.check_integrity()


def test_star_covers_all_the_time_seen_however_alike_it_was() -> None:
    """An hour of which every second is worth the same: the past thins out, and goes on to the end."""
    store = run(3600, 0.2, star=15, window=5, slide=8)
    times = [*ids(store.star), 3600]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert max(gaps) <= 2 * 3600 / 14
    assert sum(time > 1800 for time in times) >= 5


def test_a_scene_change_outlives_the_motion_just_before_it() -> None:
    """A picture that is full of motion is worth more than 1."""
    store = StarStream(star=6, window=2, slide=4)
    for i in range(60):
        busy = i < 20
        store.append(tubelet(i, 1.2 if busy else 0.01, scene_change=i == 15))
    assert 15 in ids(store.star)
