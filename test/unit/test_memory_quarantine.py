"""A camera that changes its size or its clock again and again is kept out until it is steady."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from support.memory_frames import SECOND, scene
from vstream_ros.memory import SmartFrameManager, Verdict

START = 1_700_000_000 * SECOND
FRAME = SECOND // 30
SMALL, LARGE = scene(1, 0, 24, 32), scene(1)


def feed(memory: SmartFrameManager, frames: Iterable[tuple[np.ndarray, int]]) -> list[Verdict]:
    verdicts = []
    for frame, stamp_ns in frames:
        verdicts.append(memory.add_frame(frame, stamp_ns).verdict)
    memory.check_integrity()
    return verdicts


def two_sizes(seconds: float, start_ns: int = START) -> list[tuple[np.ndarray, int]]:
    return [((SMALL, LARGE)[k % 2], start_ns + k * FRAME) for k in range(round(seconds * 30))]


def steady(seconds: float, start_ns: int, frame: np.ndarray = LARGE) -> list[tuple[np.ndarray, int]]:
    return [(frame, start_ns + k * FRAME) for k in range(round(seconds * 30))]


def clears(memory: SmartFrameManager) -> int:
    return sum(memory.status().clears.values())


@pytest.mark.parametrize("rate_hz", [None, 2.0])
def test_two_sizes_at_30_hz_clear_a_few_times_and_are_then_rejected(rate_hz: float | None) -> None:
    memory = SmartFrameManager(sample_rate_hz=rate_hz)
    feed(memory, steady(20, START - 20 * SECOND))
    feed(memory, two_sizes(60))
    assert clears(memory) == 4
    state = memory.status()
    assert state.frames_rejected > 60
    assert "quarantine" in state.quarantine
    assert state.last_rejection == state.quarantine
    held = memory.clip()
    feed(memory, two_sizes(60, START + 60 * SECOND))
    assert memory.clip() is held, "what is held stays as it is"


@pytest.mark.parametrize("rate_hz", [None, 2.0])
def test_two_clocks_clear_a_few_times_and_are_then_rejected(rate_hz: float | None) -> None:
    memory = SmartFrameManager(sample_rate_hz=rate_hz)
    feed(memory, [(LARGE, START + k * FRAME - k % 2 * 30 * SECOND) for k in range(600)])
    assert clears(memory) <= 4
    assert memory.status().quarantine


def test_it_ends_when_the_camera_is_steady_and_lasts_longer_the_next_time() -> None:
    memory = SmartFrameManager(sample_rate_hz=2.0)
    now, waits = START, []
    for _ in range(4):
        feed(memory, two_sizes(20, now))
        now += 20 * SECOND
        assert memory.status().quarantine
        began = now
        while memory.status().quarantine:
            feed(memory, steady(0.5, now))
            now += SECOND // 2
        waits.append((now - began) / SECOND)
    assert waits == pytest.approx([5.0, 10.0, 20.0, 40.0], abs=1.5)
    assert clears(memory) <= 4 * 5
    feed(memory, steady(10, now))
    assert memory.status().newest_stamp_ns > now + 9 * SECOND


def test_a_long_good_time_makes_the_next_quarantine_short_again() -> None:
    memory = SmartFrameManager(sample_rate_hz=2.0)
    feed(memory, two_sizes(20))
    feed(memory, steady(400, START + 20 * SECOND))
    assert not memory.status().quarantine
    now = START + 420 * SECOND
    feed(memory, two_sizes(20, now))
    assert memory.status().quarantine
    feed(memory, steady(7, now + 20 * SECOND))
    assert not memory.status().quarantine


def test_a_steady_half_does_not_let_the_other_in() -> None:
    """Steady for four seconds, then one frame of another size, for ever: it never gets out."""
    memory = SmartFrameManager(sample_rate_hz=2.0)
    feed(memory, two_sizes(20))
    before, now = clears(memory), START + 20 * SECOND
    for _ in range(20):
        feed(memory, steady(4, now))
        feed(memory, steady(0.6, now + 4 * SECOND, SMALL))
        now += 5 * SECOND
    assert clears(memory) == before
    assert memory.status().quarantine


def test_it_goes_on_with_what_the_camera_is_now() -> None:
    memory = SmartFrameManager(sample_rate_hz=2.0)
    feed(memory, two_sizes(20))
    verdicts = feed(memory, steady(10, START - 500 * SECOND, SMALL))  # another size, another time
    assert not memory.status().quarantine
    assert Verdict.JUMP in verdicts
    assert memory.clip().tubelets[0].frames.shape[1:] == SMALL.shape
    assert memory.status().newest_stamp_ns > START - 492 * SECOND


def test_a_bag_that_starts_over_every_three_seconds_is_no_trouble() -> None:
    memory = SmartFrameManager(sample_rate_hz=2.0)
    for _ in range(50):
        feed(memory, steady(3, START))
    assert clears(memory) == 49
    assert memory.status().quarantine == ""


def test_a_clear_from_outside_ends_it_for_nothing_is_left_to_protect() -> None:
    memory = SmartFrameManager(sample_rate_hz=2.0)
    feed(memory, two_sizes(20))
    memory.clear("requested")
    assert memory.status().quarantine == ""
    assert memory.add_frame(LARGE, START + 30 * SECOND).kept
    feed(memory, two_sizes(20, START + 31 * SECOND))
    assert clears(memory) == 4 + 1 + 4


def test_in_quarantine_no_more_images_are_converted_than_before() -> None:
    memory = SmartFrameManager(sample_rate_hz=2.0)
    feed(memory, two_sizes(20))
    wanted = 0
    for frame, stamp_ns in two_sizes(10, START + 20 * SECOND):
        slot = memory.offer(stamp_ns)
        wanted += slot.wanted
        if slot.wanted:
            assert memory.keep(slot, frame).verdict is Verdict.QUARANTINED
    assert 18 <= wanted <= 22
