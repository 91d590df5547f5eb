"""A stamp far in the future is a mistake, or time that goes on: neither costs what the memory holds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.memory_frames import SECOND, flat, scene
from vstream_ros.errors import ConfigError
from vstream_ros.memory import SmartFrameManager, Verdict

PERIOD = SECOND // 2
DAY = 86_400 * SECOND
START = 1_700_000_000 * SECOND


def filled(frames: int = 21, **overrides: object) -> SmartFrameManager:
    memory = SmartFrameManager(**{"sample_rate_hz": 2.0, **overrides})  # type: ignore[arg-type]
    for slot in range(frames):
        assert memory.add_frame(scene(1, slot), START + slot * PERIOD).kept
    return memory


def stamps(memory: SmartFrameManager) -> list[int]:
    return [stamp for tubelet in memory.clip().tubelets for stamp in tubelet.stamps_ns]


def offered(memory: SmartFrameManager, stamp_ns: int, now_ns: int | None) -> Verdict:
    """Offer a frame and keep it where it is wanted; the verdict on its stamp."""
    slot = memory.offer(stamp_ns, None if now_ns is None else lambda: now_ns)
    if slot.wanted:
        memory.keep(slot, scene(2))
    return slot.verdict


@pytest.mark.parametrize("ahead", [61 * SECOND, DAY, 40 * 365 * DAY])
@pytest.mark.parametrize("frames", [1, 20, 21])
def test_one_stamp_far_ahead_costs_nothing_but_itself(ahead: int, frames: int) -> None:
    """Without a clock nobody can tell: it is kept on trial, and dropped when the next frame goes on as before."""
    memory = filled(frames)
    before = stamps(memory)
    false_ns = before[-1] + ahead
    assert memory.add_frame(scene(9), false_ns).kept
    assert stamps(memory) == [*before, false_ns]
    good_ns = START + frames * PERIOD
    slot = memory.offer(good_ns)
    assert "60 s in the future" in slot.withdrawn
    assert memory.keep(slot, scene(1, frames)).cleared == ""
    assert stamps(memory) == [*before, good_ns]
    state = memory.status()
    assert (state.frames_offered, state.frames_kept, state.frames_rejected) == (frames + 2, frames + 1, 1)
    assert state.clears == {}
    assert "60 s in the future" in state.last_rejection
    memory.check_integrity()


def test_a_frame_between_slots_gives_the_false_one_away_too() -> None:
    memory = filled()
    before = stamps(memory)
    memory.add_frame(scene(9), START + DAY)
    assert memory.offer(before[-1] + 33_000_000).verdict is Verdict.SKIP
    assert stamps(memory) == before


def test_false_stamps_again_and_again_never_clear() -> None:
    memory = filled()
    for slot in range(21, 200):
        memory.add_frame(scene(9), START + DAY + slot * PERIOD)
        assert memory.add_frame(scene(1), START + slot * PERIOD).kept
        memory.check_integrity()
    state = memory.status()
    assert (state.clears, state.frames_rejected) == ({}, 179)
    assert state.newest_stamp_ns == START + 199 * PERIOD


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(1, 1_200), st.integers(0, 3)), min_size=1, max_size=60),
    false_at=st.sets(st.integers(0, 60), max_size=6),
    rate_hz=st.sampled_from([None, 2.0]),
    window=st.sampled_from([2, 4]),
    slide=st.integers(1, 3),
    patch=st.sampled_from([1, 2, 3]),
)
def test_a_memory_that_saw_false_stamps_is_the_one_that_did_not(
    steps: list[tuple[int, int]], false_at: set[int], rate_hz: float | None, window: int, slide: int, patch: int
) -> None:
    sizes = {"star_memory_size": 4, "stream_window_size": max(window, 4), "stream_slide": slide}
    clean, troubled = (
        SmartFrameManager(sample_rate_hz=rate_hz, temporal_patch_size=patch, **sizes) for _ in range(2)  # type: ignore[arg-type]
    )
    stamp = START
    for index, (step_ms, seed) in enumerate(steps):
        stamp += step_ms * 1_000_000
        for memory in (clean, troubled):
            memory.add_frame(scene(seed), stamp)
        if index in false_at:
            troubled.add_frame(scene(7), stamp + DAY)
    for memory in (clean, troubled):
        memory.add_frame(scene(0), stamp + 1)
        memory.check_integrity()
    held = [
        [(t.stamps_ns, t.time_ns, t.importance, t.scene_change) for t in memory.clip().tubelets]
        for memory in (clean, troubled)
    ]
    assert held[0] == held[1]
    assert clean.period_s == troubled.period_s
    assert clean.status().frames_kept == troubled.status().frames_kept


def test_time_that_goes_on_elsewhere_is_believed_after_three_frames() -> None:
    """A pause of an hour: nothing is lost, and a later step back is a jump as any other."""
    memory = filled()
    before = stamps(memory)
    for slot in range(3):
        assert memory.add_frame(scene(1), START + 3600 * SECOND + slot * PERIOD).kept
    assert len(stamps(memory)) == len(before) + 3
    assert memory.add_frame(scene(1), before[-1] + PERIOD).cleared
    assert memory.status().clears == {"time jump": 1}


# ---- with a clock ----


def test_a_stamp_ahead_of_the_clock_is_refused_before_it_is_converted() -> None:
    memory = filled()
    before, now_ns = stamps(memory), START + 11 * SECOND
    slot = memory.offer(START + DAY, lambda: now_ns)
    assert slot.verdict is Verdict.FUTURE
    assert "60 s in the future" in slot.reason
    assert not slot.wanted
    assert offered(memory, before[-1] + PERIOD, now_ns) is Verdict.KEEP
    assert stamps(memory) == [*before, before[-1] + PERIOD]
    state = memory.status()
    assert (state.frames_offered, state.frames_kept, state.frames_rejected, state.clears) == (23, 22, 1, {})


def test_a_pause_is_no_fault_where_the_clock_agrees() -> None:
    memory = filled()
    assert offered(memory, START + 3600 * SECOND, START + 3599 * SECOND) is Verdict.KEEP


def test_ahead_of_the_clock_alone_is_no_fault() -> None:
    """A bag that is played beside the wall clock, a camera whose clock is wrong from the start."""
    memory = SmartFrameManager(sample_rate_hz=2.0)
    for slot in range(4):
        assert offered(memory, START + DAY + slot * PERIOD, START) is Verdict.KEEP
    assert offered(memory, START + DAY + 4 * PERIOD, 0) is Verdict.KEEP  # a ROS clock that stands still says nothing


@pytest.mark.parametrize("step_s", [0.04, 0.5, 300.0])
def test_a_clock_that_was_set_is_followed_at_the_third_frame(step_s: float) -> None:
    memory = filled()
    step = round(step_s * SECOND)
    verdicts = [
        offered(memory, START + DAY + k * step, START + 11 * SECOND + k * step) for k in range(5)
    ]
    assert verdicts[:3] == [Verdict.FUTURE, Verdict.FUTURE, Verdict.KEEP]
    assert set(verdicts[3:]) <= {Verdict.KEEP, Verdict.SKIP}
    assert memory.status().clears == {}


def test_false_stamps_that_agree_with_none_are_never_believed() -> None:
    memory = filled()
    now_ns = START + 11 * SECOND
    for k in range(20):
        assert offered(memory, START + (k % 5 + 1) * DAY, now_ns) is Verdict.FUTURE
        now_ns += PERIOD
    for _ in range(10):  # two false ones between good ones
        assert offered(memory, START + DAY, now_ns) is Verdict.FUTURE
        assert offered(memory, START + DAY + 1, now_ns) is Verdict.FUTURE
        assert offered(memory, now_ns, now_ns) is not Verdict.FUTURE
        now_ns += PERIOD
    assert memory.status().clears == {}


def test_the_tolerance_is_a_parameter() -> None:
    memory = filled(future_stamp_tolerance_s=5.0)
    assert offered(memory, START + 17 * SECOND, START + 10 * SECOND) is Verdict.FUTURE
    assert offered(memory, START + 14 * SECOND, START + 10 * SECOND) is Verdict.KEEP
    with pytest.raises(ConfigError, match=r"future_stamp_tolerance_s .*got 0\.0"):
        SmartFrameManager(future_stamp_tolerance_s=0.0)


def test_key_frames_from_the_future_are_on_trial_too() -> None:
    memory = filled()
    before = stamps(memory)
    memory.update_star_memory([(flat(), START + DAY)])
    memory.add_frame(scene(1), before[-1] + PERIOD)
    assert stamps(memory) == [*before, before[-1] + PERIOD]
    assert memory.status().clears == {}
