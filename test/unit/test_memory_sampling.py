"""The fixed sampling grid: one frame per slot, true spacing, no drift."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.memory_frames import SECOND
from vstream_ros.memory.clip import Verdict
from vstream_ros.memory.sampling import DEFAULT_PERIOD_S, Sampler

START = 1_700_000_000 * SECOND


def feed(sampler: Sampler, stamps: list[int]) -> list[tuple[int, int]]:
    """(stamp, time) of the frames that are kept."""
    return [(stamp, sampler.keep(stamp)) for stamp in stamps if sampler.check(stamp) is Verdict.KEEP]


@pytest.mark.parametrize("jitter_ms", [0.0, 0.5, 10.0])
def test_a_jittery_camera_at_the_grid_rate_gives_exactly_even_slots(jitter_ms: float) -> None:
    rng = random.Random(1)
    stamps = [START + round(SECOND * (0.5 * i + rng.uniform(-jitter_ms, jitter_ms) / 1e3)) for i in range(7_200)]
    kept = feed(Sampler(2.0, 1.0), stamps)
    assert [stamp for stamp, _ in kept] == stamps
    assert {b - a for (_, a), (_, b) in itertools.pairwise(kept)} == {SECOND // 2}


def test_a_30_hz_camera_comes_out_at_exactly_2_hz_over_an_hour() -> None:
    stamps = [START + i * SECOND // 30 for i in range(30 * 3600)]
    kept = feed(Sampler(2.0, 1.0), stamps)
    assert [time - START for _, time in kept] == [i * SECOND // 2 for i in range(7_201)]
    assert all(-SECOND // 8 <= stamp - time < SECOND // 30 for stamp, time in kept[1:])


@pytest.mark.parametrize(("rate_hz", "exact_period_ns"), [(3.0, (10**9, 3)), (29.97002997002997, (1001 * 10**6, 30))])
def test_the_grid_does_not_drift_over_days(rate_hz: float, exact_period_ns: tuple[int, int]) -> None:
    sampler = Sampler(rate_hz, 1.0)
    sampler.keep(START)
    numerator, denominator = exact_period_ns
    slot = round(rate_hz * 3 * 86_400)
    time_ns = sampler.keep(START + slot * numerator // denominator)
    assert abs((time_ns - START) * denominator - slot * numerator) <= denominator  # within a nanosecond


@given(
    rate_hz=st.sampled_from([0.5, 1.0, 2.0, 3.0, 7.5, 29.97]),
    steps_ms=st.lists(st.integers(-900, 3_000), min_size=1, max_size=60),
    start=st.integers(-(2**62), 2**62),
)
def test_slots_are_never_used_twice_and_times_stay_near_their_stamps(
    rate_hz: float, steps_ms: list[int], start: int
) -> None:
    sampler = Sampler(rate_hz, 1.0)
    stamps = [start + 1_000_000 * offset for offset in itertools.accumulate(steps_ms, initial=0)]
    kept = []
    for stamp in stamps:
        verdict = sampler.check(stamp)
        assert verdict is sampler.check(stamp), "check must not change anything"
        if verdict is Verdict.KEEP:
            kept.append((stamp, sampler.keep(stamp)))
    period_ns = SECOND / rate_hz
    for (_, earlier), (_, later) in itertools.pairwise(kept):
        assert round((later - earlier) / period_ns) >= 1
        assert (later - earlier) / period_ns == pytest.approx(round((later - earlier) / period_ns), abs=1e-6)
    assert all(-0.2501 * period_ns <= stamp - time <= 0.7501 * period_ns for stamp, time in kept)


@given(stamps=st.lists(st.integers(-3, 3), min_size=1, max_size=12))
def test_without_a_rate_every_newer_frame_is_kept_with_its_own_stamp(stamps: list[int]) -> None:
    """Around zero and below it too: a stamp is only a number."""
    newest, expected = None, []
    for stamp in stamps:
        if newest is None or stamp > newest:
            newest = stamp
            expected.append((stamp, stamp))
    assert feed(Sampler(None, 1.0), stamps) == expected


@pytest.mark.parametrize("rate_hz", [None, 2.0])
def test_stamps_that_go_back(rate_hz: float | None) -> None:
    sampler = Sampler(rate_hz, 1.0)
    sampler.keep(START)
    assert sampler.check(START) is Verdict.BACKWARD
    assert sampler.check(START - 1) is Verdict.BACKWARD
    assert sampler.check(START - SECOND) is Verdict.BACKWARD
    assert sampler.check(START - SECOND - 1) is Verdict.JUMP


def test_between_slots_frames_are_skipped_until_a_quarter_before_the_next() -> None:
    sampler = Sampler(2.0, 1.0)
    sampler.keep(START)
    assert sampler.check(START + 374_999_999) is Verdict.SKIP
    assert sampler.check(START + 375_000_000) is Verdict.KEEP


def test_the_period_is_the_grids_or_pinned_to_the_first_spacing() -> None:
    assert Sampler(4.0, 1.0).period_s == 0.25
    sampler = Sampler(None, 1.0)
    assert sampler.period_s == DEFAULT_PERIOD_S
    for offset_ms in (0, 40, 1_000):
        sampler.keep(START + offset_ms * 1_000_000)
    assert sampler.period_s == 0.04
    sampler.reset()
    assert sampler.period_s == DEFAULT_PERIOD_S


def test_missing_frames_are_seen_only_on_a_grid() -> None:
    gridded, free = Sampler(2.0, 1.0), Sampler(None, 1.0)
    assert not gridded.frames_are_missing(START, START + 750_000_000)
    assert gridded.frames_are_missing(START, START + 750_000_001)
    assert not free.frames_are_missing(START, START + 3600 * SECOND)


@given(
    rate_hz=st.floats(0.001, 1000.0),
    start=st.integers(-(2**62), 2**62),
    steps=st.lists(st.integers(1, 10**12), min_size=1, max_size=20),
)
def test_whole_numbers_compute_what_fractions_would(rate_hz: float, start: int, steps: list[int]) -> None:
    period = SECOND / Fraction(rate_hz)
    sampler = Sampler(rate_hz, 1.0)
    stamp = start
    for step in [0, *steps]:
        stamp += step
        slot = math.floor((stamp - start) / period + Fraction(1, 4))
        assert sampler.keep(stamp) == start + round(slot * period)
        assert sampler.frames_are_missing(stamp - step, stamp) == (step > period * 3 / 2)
