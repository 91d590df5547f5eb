"""update_star_memory: frames that a caller says must be remembered, at their place in time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.memory_frames import SECOND, flat, lively, noisy, scene
from vstream_ros.errors import FrameError
from vstream_ros.memory import SmartFrameManager, Tubelet, Verdict
from vstream_ros.memory.store import EMPTY, retention

PERIOD = SECOND // 2


def filled(slots: int, **overrides: object) -> SmartFrameManager:
    memory = SmartFrameManager(**{"sample_rate_hz": 2.0, "stream_slide": 2, **overrides})  # type: ignore[arg-type]
    for slot in range(slots):
        grow(memory, slot)
    return memory


def grow(memory: SmartFrameManager, slot: int) -> None:
    """An important frame: in a memory of dull ones, whatever is handed over would stay anyway."""
    assert memory.add_frame(lively(slot), slot * PERIOD).importance > 0.3 or slot == 0


def update(memory: SmartFrameManager, *stamps: int) -> None:
    for status in memory.update_star_memory((noisy(scene(3), 0), stamp) for stamp in stamps):
        assert status.verdict is Verdict.KEEP
    memory.check_integrity()


def keys(memory: SmartFrameManager) -> list[tuple[int, ...]]:
    return [tubelet.stamps_ns for tubelet in memory.clip().tubelets if tubelet.key]


def ids(memory: SmartFrameManager) -> list[int]:
    return [tubelet.id for tubelet in memory.clip().tubelets]


def test_newer_frames_are_appended_past_the_sampling_grid() -> None:
    memory = filled(4)
    before = ids(memory)
    stamps = (4 * PERIOD + 1, 4 * PERIOD + 2, 4 * PERIOD + 3)  # one slot would keep one of them
    update(memory, *stamps)
    assert ids(memory)[:2] == before
    assert keys(memory) == [stamps[:2], stamps[2:]]  # a lonely last one is sealed
    assert [retention(tubelet) for tubelet in memory.clip().tubelets[2:]] == [1.0 + EMPTY] * 2
    assert memory.status().newest_stamp_ns == stamps[2]
    assert not memory.add_frame(flat(), stamps[2] + 1).kept  # that slot has its frame
    assert memory.add_frame(flat(), 5 * PERIOD).kept
    memory.check_integrity()


def test_a_pending_frame_is_closed_before_newer_ones_and_left_alone_by_older_ones() -> None:
    memory = filled(5)
    update(memory, PERIOD + 7)
    grow(memory, 5)
    assert memory.clip().tubelets[-1].stamps_ns == (4 * PERIOD, 5 * PERIOD)
    grow(memory, 6)
    update(memory, 6 * PERIOD + 7)
    assert [tubelet.stamps_ns for tubelet in memory.clip().tubelets[-2:]] == [(6 * PERIOD,), (6 * PERIOD + 7,)]


def test_older_frames_take_their_place_in_the_window() -> None:
    memory = filled(8)
    before = ids(memory)
    update(memory, 4 * PERIOD - 9, 4 * PERIOD - 8)
    after = ids(memory)
    assert (after[:2], after[3:]) == (before[:2], before[2:])
    assert keys(memory) == [(4 * PERIOD - 9, 4 * PERIOD - 8)]


@pytest.mark.parametrize(("camera_late", "handed_over"), [(0.4, 4.2), (0.4, 6.2), (-0.2, 5.9)])
def test_a_tubelets_time_never_runs_backwards_beside_snapped_neighbours(
    camera_late: float, handed_over: float
) -> None:
    """Camera frames have the time of their slot, frames that are handed over their own. All in slots."""
    memory = filled(4)
    for slot in (4, 5, 6):
        memory.add_frame(scene(3, slot), round((slot + camera_late) * PERIOD))
    update(memory, round(handed_over * PERIOD))
    times = [tubelet.time_ns for tubelet in memory.clip().tubelets]
    assert times == sorted(times)


def test_frames_older_than_the_window_go_to_star_and_the_least_valuable_leaves() -> None:
    memory = filled(80, star_memory_size=6, stream_window_size=4)
    before = [tubelet.stamps_ns for tubelet in memory.clip().tubelets]
    stamp = before[1][0] + 3  # close to a neighbour: without a pardon it would be the first to go
    update(memory, stamp)
    after = [tubelet.stamps_ns for tubelet in memory.clip().tubelets]
    assert (stamp,) in after
    assert after[0] == before[0]
    assert len(after) == len(before)
    assert after[3:] == before[3:]  # the window


def test_a_frame_older_than_the_first_becomes_the_first() -> None:
    memory = filled(80, star_memory_size=6, stream_window_size=4)
    update(memory, -SECOND)
    assert memory.clip().tubelets[0].stamps_ns == (-SECOND,)


def test_a_key_tubelet_is_promoted_when_it_leaves_the_window() -> None:
    memory = filled(40, star_memory_size=4, stream_window_size=4)
    stamp = 39 * PERIOD + 1  # right behind a frame that is kept: the gap that it would leave is the smallest
    update(memory, stamp)
    slot = 40
    while (stamp,) in (tubelet.stamps_ns for tubelet in memory.clip().tubelets[2:]):
        grow(memory, slot)
        slot += 1
    assert keys(memory) == [(stamp,)]


def test_a_frame_that_is_held_makes_its_tubelet_a_key_tubelet_and_is_not_stored_twice() -> None:
    memory = filled(6)
    before, kept = ids(memory), memory.status().frames_kept
    update(memory, 2 * PERIOD, 3 * PERIOD, 3 * PERIOD + 5)
    assert keys(memory) == [(2 * PERIOD, 3 * PERIOD), (3 * PERIOD + 5,)]
    assert [i for i in ids(memory) if i in before] == before
    assert memory.status().frames_kept == kept + 1


def test_cuts_gaps_and_held_tubelets_part_the_frames() -> None:
    memory = filled(2)
    far = 100 * SECOND
    frames = [
        *((flat(9), far + k * PERIOD) for k in range(2)),
        (flat(9), far + 9 * SECOND),
        (flat(9), far + 10 * SECOND),  # half a second would be near
        (scene(1), far + 10 * SECOND + PERIOD),
    ]
    memory.update_star_memory(frames)
    assert [len(stamps) for stamps in keys(memory)] == [2, 1, 1, 1]
    between = filled(4)
    update(between, 2 * PERIOD - 5, 2 * PERIOD + 5)
    assert keys(between) == [(2 * PERIOD - 5,), (2 * PERIOD + 5,)]


def test_an_empty_memory_and_an_empty_update() -> None:
    memory = SmartFrameManager(sample_rate_hz=2.0)
    assert memory.update_star_memory([]) == []
    assert memory.status().frames_offered == 0
    update(memory, SECOND, SECOND + 5)
    assert keys(memory) == [(SECOND, SECOND + 5)]
    assert memory.add_frame(flat(), SECOND + PERIOD).kept  # the grid starts at the first frame
    memory.check_integrity()


def test_the_spacing_of_important_frames_does_not_become_the_period() -> None:
    memory = SmartFrameManager()
    memory.add_frame(flat(), 0)
    update(memory, 7)
    memory.add_frame(flat(), 2 * SECOND)
    assert memory.period_s == 2.0


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        ([(flat(), SECOND), (flat(), SECOND)], "stamps must rise"),
        ([(flat(), SECOND), (flat(), 0)], "stamps must rise"),
        ([(flat(), SECOND), (flat(height=50), 2 * SECOND)], "the frame is 64x50, the memory's are 64x48"),
        ([(flat()[:, :, 0], SECOND)], "must be RGB"),
    ],
)
def test_a_bad_update_changes_nothing(frames: list[tuple[np.ndarray, int]], says: str) -> None:
    memory = filled(3)
    clip, status = memory.clip(), memory.status()
    with pytest.raises(FrameError, match=says):
        memory.update_star_memory(frames)
    assert memory.clip() is clip
    assert memory.status().frames_kept == status.frames_kept
    assert memory.status().frames_rejected == status.frames_rejected + 1


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_updates_leave_a_sound_memory(data: st.DataObject) -> None:
    """Whatever is handed over, the frames are there right after it, in order and within the bounds."""
    memory = SmartFrameManager(
        star_memory_size=data.draw(st.sampled_from([2, 4])),
        stream_window_size=data.draw(st.sampled_from([2, 6])),
        stream_slide=data.draw(st.integers(1, 4)),
        sample_rate_hz=data.draw(st.sampled_from([None, 2.0])),
    )
    newest = 0
    for _ in range(data.draw(st.integers(1, 30))):
        if data.draw(st.booleans()):
            newest += data.draw(st.integers(1, SECOND))
            memory.add_frame(scene(newest % 7), newest)
        else:
            around = st.integers(newest - 9 * SECOND, newest + SECOND)
            stamps = sorted(data.draw(st.sets(around, min_size=1, max_size=2)))
            memory.update_star_memory((scene(stamp % 5), stamp) for stamp in stamps)
            newest = max(newest, stamps[-1])
        memory.check_integrity()
        times = [tubelet.time_ns for tubelet in memory.clip().tubelets]
        assert times == sorted(times)


def test_a_key_tubelet_keeps_its_mark_and_pixels_until_it_is_forgotten() -> None:
    memory = filled(4)
    update(memory, 2 * PERIOD + 5)
    found: list[Tubelet] = [tubelet for tubelet in memory.clip().tubelets if tubelet.key]
    for slot in range(5, 30):
        grow(memory, slot)
    assert [t for t in memory.clip().tubelets if t.key] == found
