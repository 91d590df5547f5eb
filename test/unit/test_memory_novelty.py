"""How new features are to a camera (places apart, what is usual forgotten slowly), and what a memory does with it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from support.memory_frames import SECOND, scene
from vstream_ros.memory import SmartFrameManager
from vstream_ros.memory.novelty import STRONGEST, USUAL_S, NoveltyMeter

PLACES, LENGTH = 12, 16


def usual_features(rng: np.random.Generator, noise: float = 0.01) -> np.ndarray:
    """Every place looks another way; the same from call to call but for noise."""
    scene = np.random.default_rng(7).normal(size=(PLACES, LENGTH))
    return scene + rng.normal(scale=noise, size=scene.shape)


def settled(rng: np.random.Generator, seconds: int = 60) -> NoveltyMeter:
    meter = NoveltyMeter()
    for second in range(seconds):
        meter.observe(usual_features(rng), float(second))
    return meter


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def test_an_object_at_two_of_twelve_places_is_new_and_what_is_usual_is_not(rng: np.random.Generator) -> None:
    meter = settled(rng)
    seen = usual_features(rng)
    seen[:STRONGEST] = rng.normal(size=(STRONGEST, LENGTH))
    assert meter.compare(seen) > 0.3
    assert meter.compare(usual_features(rng)) < 0.001


def test_the_same_object_at_another_place_is_new_again(rng: np.random.Generator) -> None:
    """One vector pooled over the places would be the same."""
    meter = settled(rng)
    thing = rng.normal(size=LENGTH)
    for second in range(60, 180):
        there = usual_features(rng)
        there[:STRONGEST] = thing
        stood = meter.observe(there, float(second))
    moved = usual_features(rng)
    moved[-STRONGEST:] = thing
    assert stood < 0.05
    assert meter.compare(moved) > 0.3


def test_the_length_of_features_does_not_count(rng: np.random.Generator) -> None:
    meter = settled(rng)
    assert meter.compare(40.0 * usual_features(rng)) < 0.001


@pytest.mark.parametrize("period_s", [0.1, 1.0, 10.0])
def test_what_stays_is_usual_after_the_same_time_at_any_rate(rng: np.random.Generator, period_s: float) -> None:
    meter = NoveltyMeter()
    for k in range(round(5 * USUAL_S / period_s)):
        meter.observe(usual_features(rng), k * period_s)
    start_s, other = 5 * USUAL_S, usual_features(rng)
    other[:STRONGEST] *= -1.0
    assert meter.compare(other) == pytest.approx(2.0, abs=0.01)
    for k in range(round(USUAL_S / period_s)):
        meter.observe(other, start_s + k * period_s)
    assert meter.compare(other) < 0.1
    assert meter.compare(usual_features(rng)) > 1.5


def test_comparing_learns_nothing(rng: np.random.Generator) -> None:
    meter, other = settled(rng), rng.normal(size=(PLACES, LENGTH))
    before = meter.compare(other)
    assert before is not None
    assert {meter.compare(other) for _ in range(50)} == {before}


def test_the_first_features_and_those_of_another_shape_have_nothing_to_be_compared_with(
    rng: np.random.Generator,
) -> None:
    meter = NoveltyMeter()
    assert meter.compare(usual_features(rng)) is None
    assert meter.observe(usual_features(rng), 5.0) is None
    assert meter.observe(usual_features(rng), 6.0) is not None
    larger = rng.normal(size=(2 * PLACES, LENGTH))
    assert meter.compare(larger) is None
    assert meter.observe(larger, 7.0) is None
    assert meter.observe(larger, 8.0) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_judged_and_not_learnt(rng: np.random.Generator, broken: float) -> None:
    meter, seen = settled(rng), usual_features(rng)
    before = meter.compare(seen)
    damaged = usual_features(rng)
    damaged[3, 4] = broken
    assert meter.observe(damaged, 61.0) is None
    assert meter.compare(damaged) is None
    assert meter.compare(seen) == before


def test_features_of_zeros_are_new_and_do_no_harm(rng: np.random.Generator) -> None:
    meter = settled(rng)
    assert meter.observe(np.zeros((PLACES, LENGTH)), 60.0) == pytest.approx(1.0)
    assert meter.compare(usual_features(rng)) < 0.05
    assert NoveltyMeter().observe(np.zeros((0, LENGTH)), 0.0) is None


def test_half_precision_is_measured_as_float32(rng: np.random.Generator) -> None:
    meter = settled(rng)
    seen = usual_features(rng)
    assert meter.compare(seen.astype(np.float16)) == pytest.approx(meter.compare(seen), abs=1e-3)
    assert meter.compare(np.full((PLACES, LENGTH), 65000.0, np.float16)) is not None  # its length is beyond float16


# -- what a memory does with it ---------------------------------------------------------------------------------------


def filled() -> SmartFrameManager:
    memory = SmartFrameManager(star_memory_size=4, stream_window_size=4, stream_slide=2)
    for k in range(12):
        memory.add_frame(scene(1), k * SECOND // 2)
    return memory


def test_a_memory_hands_out_the_new_importance_under_the_same_ids() -> None:
    memory = filled()
    before = memory.clip()
    told = before.tubelets[2]
    assert memory.reweigh(told.id, 0.9)
    after = memory.clip()
    assert [t.id for t in after.tubelets] == [t.id for t in before.tubelets]
    assert [t.importance for t in after.tubelets if t.reweighed] == [0.9]
    assert before.tubelets[2] is told
    assert not memory.reweigh(told.id, 0.1)
    assert not memory.reweigh(10**6, 0.1)
    memory.check_integrity()


@pytest.mark.parametrize("wrong", [-0.1, math.nan, math.inf])
def test_what_is_no_importance_is_refused(wrong: float) -> None:
    memory = filled()
    with pytest.raises(ValueError, match="importance must be >= 0"):
        memory.reweigh(memory.clip().tubelets[0].id, wrong)
    memory.check_integrity()


def test_frames_that_were_offered_before_are_judged_as_they_were() -> None:
    """A jump back that an offer saw still clears: reweighing changes nothing that stamps are judged by."""
    memory = filled()
    slot = memory.offer(0)
    memory.reweigh(memory.clip().tubelets[2].id, 0.9)
    assert memory.keep(slot, scene(1)).cleared
    assert memory.clip().frame_count == 1


def test_a_new_size_keeps_the_new_importance() -> None:
    memory = filled()
    memory.reweigh(memory.clip().tubelets[2].id, 0.9)
    assert memory.resize(lambda height, width: (height // 2, width // 2))
    assert [t.importance for t in memory.clip().tubelets if t.reweighed] == [0.9]
