"""Stamps: what goes back, jumps, repeats, overtakes or is none; and clips by time range."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from support.managers import PERIOD, START, add, manager, stamps
from support.memory_frames import SECOND, flat
from vstream_ros.errors import FrameError
from vstream_ros.memory import SmartFrameManager, Verdict

# --- the clip ---------------------------------------------------------------------------------------------------------


def test_the_clip_is_cached_until_something_changes() -> None:
    memory = manager()
    add(memory, 3)
    clip = memory.clip()
    assert memory.clip() is clip
    memory.add_frame(flat(), START + 2 * PERIOD + 1)  # between two slots
    assert memory.clip() is clip
    assert memory.clip(0, START + 2 * PERIOD).tubelets[-1] is clip.tubelets[-1], "one pending frame, one id"
    add(memory, 1, 3)
    assert memory.clip() is not clip
    assert len(clip) == 2, "a clip that was handed out does not change"
    memory.clear("requested")
    assert memory.clip().tubelets == ()


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, 0, [(0, 1), (2, 3), (4, 5), (6,)]),
        (2, 0, [(2, 3), (4, 5), (6,)]),
        (3, 4, [(2, 3), (4, 5)]),
        (0, 2, [(0, 1), (2, 3)]),
        (6, 6, [(6,)]),
        (7, 0, []),
        (5, 3, []),
    ],
)
def test_a_time_range_is_inclusive_and_takes_whole_tubelets(
    start: int, end: int, expected: list[tuple[int, ...]]
) -> None:
    memory = manager()
    add(memory, 7)
    bounds = [START + slot * PERIOD if slot else 0 for slot in (start, end)]
    clip = memory.clip(*bounds)
    assert stamps(clip) == expected
    assert clip.second_per_grid == 1.0


def test_a_time_range_looks_at_stamps_and_not_at_slots_or_repetitions() -> None:
    memory = manager()
    memory.add_frame(flat(), START)
    memory.add_frame(flat(), START + 3 * PERIOD - 1_000_000)  # slot 3, a millisecond early
    assert stamps(memory.clip(START + 1, START + 3 * PERIOD - 1_000_001)) == []
    assert len(memory.clip(START + 3 * PERIOD - 1_000_000, 0)) == 1


def test_second_per_grid_is_pinned_and_not_measured() -> None:
    memory = manager(sample_rate_hz=None)
    spacing = []
    for stamp in (0, 40_000_000, 500_000_000, 2 * SECOND):
        memory.add_frame(flat(), stamp)
        spacing.append(memory.clip().second_per_grid)
    assert spacing == [1.0, 0.08, 0.08, 0.08]
    assert memory.period_s == 0.04
    memory.clear("requested")
    assert memory.period_s == 0.5


# --- stamps that misbehave --------------------------------------------------------------------------------------------


def test_small_steps_back_are_dropped_and_counted_and_never_clear() -> None:
    """As in a real video that gives every second frame the stamp of one long gone, up to 0.1 s back."""
    memory = SmartFrameManager()
    offsets_ms = [0, 101, 67, 134, 34]  # the first five stamps of that video
    for group, offset in itertools.product(range(100), offsets_ms):
        memory.add_frame(flat(), START + (group * 134 + offset) * 1_000_000)
        memory.check_integrity()
    state = memory.status()
    assert state.clears == {}
    assert state.frames_offered == 500
    assert state.frames_rejected == 500 - state.frames_kept > 231
    assert state.last_rejection == Verdict.BACKWARD.value


def test_a_jump_back_clears_once_says_why_and_starts_anew() -> None:
    memory = manager()
    add(memory, 21, first=100)
    status = memory.add_frame(flat(1), START)
    assert status.verdict is Verdict.JUMP
    assert status.kept
    assert "60.000 s" in status.cleared
    assert (status.importance, status.scene_change) == (0.0, False), "nothing is left to compare with"
    assert stamps(memory.clip()) == [(0,)]
    assert [s.cleared for s in add(memory, 10, first=1, value=1)] == [""] * 10
    assert [t.time_ns for t in memory.clip().tubelets[:2]] == [START, START + 2 * PERIOD]
    assert memory.status().clears == {"time jump": 1}
    memory.check_integrity()


def test_frames_that_share_one_stamp_keep_only_the_first() -> None:
    memory = SmartFrameManager()
    statuses = [memory.add_frame(flat(), 0) for _ in range(5)]
    assert [s.verdict for s in statuses] == [Verdict.KEEP] + [Verdict.BACKWARD] * 4
    assert "not newer" in str(statuses[1])
    assert memory.status().frames_rejected == 4


def test_stamps_may_be_negative_or_of_any_integer_type() -> None:
    memory = SmartFrameManager()
    for stamp in np.arange(-4, 4, dtype=np.int64):
        assert memory.add_frame(flat(), stamp).verdict is Verdict.KEEP
    assert [t.stamps_ns for t in memory.clip().tubelets] == [(-4, -3), (-2, -1), (0, 1), (2, 3)]


@pytest.mark.parametrize(
    "stamp",
    [4.5, float("nan"), float("inf"), True, np.True_, None, "7", 2**63, -(2**63), 10**5000],
    ids=lambda stamp: type(stamp).__name__,
)
def test_what_is_no_stamp_is_refused_and_counted(stamp: Any) -> None:
    memory = SmartFrameManager()
    with pytest.raises(FrameError, match="stamp"):
        memory.add_frame(flat(), stamp)
    with pytest.raises(FrameError, match="stamp"):
        memory.update_star_memory([(flat(), stamp)])
    state = memory.status()
    assert (state.frames_offered, state.frames_kept, state.frames_rejected) == (2, 0, 2)
    assert "stamp" in state.last_rejection
    assert memory.add_frame(flat(), 7).kept


def test_a_frame_is_counted_once_whatever_becomes_of_it() -> None:
    memory = manager()
    assert memory.offer(START + 7).verdict is Verdict.KEEP  # never heard of again
    kept = memory.offer(START)
    assert (kept.verdict, kept.reason) == (Verdict.KEEP, "")
    assert memory.keep(kept, flat()).kept
    assert memory.offer(START + 1).verdict is Verdict.SKIP
    memory.add_frame(flat(), START + PERIOD)
    backward = memory.offer(START)
    assert (backward.verdict, backward.reason) == (Verdict.BACKWARD, Verdict.BACKWARD.value)
    assert memory.keep(backward, flat()).verdict is Verdict.BACKWARD  # it need not be kept, and that changes nothing
    memory.reject(backward, "nobody counts this")
    unreadable = memory.offer(START + 2 * PERIOD)
    assert unreadable.wanted
    memory.reject(unreadable, "image of an unknown encoding")
    memory.reject_unstamped("no stamp")
    state = memory.status()
    assert (state.frames_offered, state.frames_kept, state.frames_rejected) == (7, 2, 3)
    assert state.last_rejection == "no stamp"


def test_what_came_between_offer_and_keep_is_looked_at_again() -> None:
    memory = manager()
    late, twice = memory.offer(START), memory.offer(START)
    assert memory.keep(memory.offer(START + PERIOD), flat()).kept
    assert memory.keep(late, flat()).verdict is Verdict.BACKWARD
    assert memory.status().frames_rejected == 1
    assert memory.keep(memory.offer(START + 60 * SECOND), flat()).kept
    assert memory.keep(twice, flat()).verdict is Verdict.BACKWARD, "it saw no jump, so it may not clear"
    ahead, same = memory.offer(START + 62 * SECOND), memory.offer(START + 62 * SECOND + 1)
    assert (memory.keep(ahead, flat()).kept, memory.keep(same, flat()).verdict) == (True, Verdict.SKIP)
    before = memory.offer(START + 63 * SECOND)
    memory.clear("requested")
    assert memory.keep(before, flat()).verdict is Verdict.OVERTAKEN
    assert memory.clip().tubelets == ()
    state = memory.status()
    assert (state.frames_offered, state.frames_kept, state.frames_rejected) == (7, 3, 3)
    assert memory.keep(memory.offer(START), flat()).kept
    memory.check_integrity()


def test_a_slot_tells_the_size_and_remembers_the_images_own() -> None:
    slot = manager().offer(START)
    assert slot.frame_size(480, 640) == (480, 640)
    slot.fit = lambda height, width: (height // 2, width // 2)
    assert slot.frame_size(480, 640) == (240, 320)
    assert (slot.source_size, slot.decoded_size) == ((480, 640), (240, 320))
