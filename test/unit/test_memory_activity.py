"""What happens in a picture: small objects, light, leaves in the wind, and a camera that moves."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.memory_frames import CAMERA, SECOND, flat, lit, noisy, scene, view, with_ball, world
from vstream_ros.memory import MemoryConfig
from vstream_ros.memory.importance import FrameScorer

ROOM = view(world(1), 400.0)
EVENT_S = (30.0, 31.5)


def importance(frames: list[np.ndarray], hz: float = 2.0) -> np.ndarray:
    scorer = FrameScorer(MemoryConfig())
    scores = [scorer.score(frame, round(i * SECOND / hz)) for i, frame in enumerate(frames)]
    assert not any(score.scene_change for score in scores)
    return np.array([score.importance for score in scores])


def with_event(frames: list[np.ndarray], hz: float = 2.0) -> list[np.ndarray]:
    """A ball crosses the picture for a second and a half."""
    times = [i / hz for i in range(len(frames))]
    return [
        with_ball(frame, 100.0 + 60.0 * (t - EVENT_S[0]), 120.0) if EVENT_S[0] <= t < EVENT_S[1] else frame
        for t, frame in zip(times, frames, strict=True)
    ]


def stands_out(frames: list[np.ndarray], factor: float, hz: float = 2.0, *, usually: float = 0.0) -> None:
    """The event's best frame is worth ``factor`` times any other's, and ``usually`` times 98 of 100 others'.

    Others: all but the event's own and those of the second after it.
    """
    found = importance(frames, hz)
    during, after = int(EVENT_S[0] * hz), int((EVENT_S[1] + 1.0) * hz)
    assert during < len(found)
    rest = np.concatenate([found[:during], found[after:]])
    assert found[during:after].max() >= factor * rest.max(), (found[during:after], rest.max())
    assert found[during:after].max() >= usually * np.quantile(rest, 0.98)


NOISE = np.random.default_rng(9).normal(0.0, 4.0, (16, *CAMERA, 3)).round().astype(np.int16)


def sensed(frames: list[np.ndarray]) -> list[np.ndarray]:
    """As a real sensor gives them; no noise comes back within half a second."""
    return [np.clip(frame + NOISE[i % len(NOISE)], 0, 255).astype(np.uint8) for i, frame in enumerate(frames)]


def test_a_small_object_stands_out_of_a_noisy_still_scene() -> None:
    stands_out(sensed(with_event([ROOM] * 120)), 10.0)
    assert importance(sensed(with_event([ROOM] * 120)))[60] > 0.03


@pytest.mark.parametrize("hz", [2.0, 10.0])
def test_flicker_and_exposure_cancel(hz: float) -> None:
    rng = np.random.default_rng(2)
    count = round(40 * hz)
    flicker = [lit(frame, rng.uniform(0.7, 1.3)) for frame in with_event([ROOM] * count, hz)]
    stands_out(sensed(flicker), 10.0, hz)
    drifting = [lit(frame, 1.0 + 0.3 * np.sin(i / 9)) for i, frame in enumerate(with_event([ROOM] * count, hz))]
    stands_out(sensed(drifting), 10.0, hz)


def test_white_balance_cancels() -> None:
    rng = np.random.default_rng(3)
    balanced = [lit(frame, tuple(rng.uniform(0.9, 1.1, 3))) for frame in with_event([ROOM] * 100)]
    stands_out(sensed(balanced), 10.0)


@pytest.mark.parametrize("frame", [flat(grey, *CAMERA) for grey in (0, 2, 255)], ids=["black", "nearly", "white"])
def test_pictures_that_show_nothing_are_worth_nothing(frame: np.ndarray) -> None:
    assert importance([frame] * 20).max() == 0.0
    dark_noise = importance([noisy(frame, seed, 1.0) for seed in range(60)])
    assert dark_noise.max() < 0.03
    assert dark_noise[20:].max() < 0.01, "it has become usual"


def test_what_leaves_uncovers_nothing() -> None:
    """A visitor of two seconds: its coming counts, the place that it leaves does not, neither then nor later."""
    found = importance(sensed([with_ball(ROOM, 200, 120) if 20 <= i < 24 else ROOM for i in range(80)]))
    assert found[20] > 0.03
    assert np.delete(found, 20).max() < found[20] / 10


def test_what_stays_is_worth_its_coming_and_its_going_alone() -> None:
    found = importance(sensed([with_ball(ROOM, 200, 120) if i >= 20 else ROOM for i in range(160)]))
    assert found[20] > 0.03
    assert np.delete(found, 20).max() < found[20] / 10
    found = importance(sensed([with_ball(ROOM, 200, 120) if i < 120 else ROOM for i in range(160)]))
    assert np.delete(found, 120).max() < found[120] / 10, "no ghost of what had long been there"


def windy(i: int) -> np.ndarray:
    """Leaves in a corner: 4 % of the picture changes all the time."""
    frame = ROOM.copy()
    leaves = np.random.default_rng(i).integers(30, 190, (5, 8, 3)).repeat(10, 0).repeat(10, 1)
    frame[30:80, 330:410] = leaves
    return frame


def test_leaves_in_the_wind_become_usual_and_hide_nothing_else() -> None:
    frames = sensed([windy(i) for i in range(240)])
    found = importance(frames)
    assert found[:10].mean() > 0.02
    assert found[120:].mean() < found[:10].mean() / 20
    ball = sensed([with_ball(windy(i), 100 + 30 * (i - 180), 180) for i in range(180, 183)])
    crossing = importance(frames[:180] + ball)
    assert crossing[180:].min() > 5 * found[120:].max()


def shaken(count: int, amplitude: float, seed: int = 0) -> list[np.ndarray]:
    """``amplitude``: pixels of 224."""
    reach = amplitude * CAMERA[1] / 224
    big = world(1)
    return [view(big, 400.0 + x, 70.0 + y) for x, y in np.random.default_rng(seed).uniform(-reach, reach, (count, 2))]


@pytest.mark.parametrize("hz", [2.0, 10.0])
@pytest.mark.parametrize(("amplitude", "factor", "usually"), [(3.0, 3.0, 6.0), (10.0, 1.5, 4.0)])
def test_an_event_stands_out_of_a_shaking_picture(amplitude: float, factor: float, usually: float, hz: float) -> None:
    """No frame of it is a scene change either, see ``importance``."""
    stands_out(sensed(with_event(shaken(round(40 * hz), amplitude), hz)), factor, hz, usually=usually)


@pytest.mark.parametrize("speed", [1.0, 4.0, 10.0])
def test_a_pan_is_followed_over_many_new_anchors_and_an_object_in_it_stands_out(speed: float) -> None:
    """``speed``: pixels of 448 a frame. The reference is anchored anew every 50 pixels."""
    big = world(2, width=450 + round(110 * speed))
    frames = [view(big, speed * i) for i in range(110)]
    panning = importance(sensed(frames))
    assert panning[1:].max() < 0.025
    stands_out(sensed(with_event(frames)), 2.5)


def test_one_event_is_worth_the_same_at_any_rate() -> None:
    best, mean = {}, {}
    for hz in (2.0, 10.0, 25.0):
        found = importance(sensed(with_event([ROOM] * round(34 * hz), hz)), hz)
        best[hz] = found.max()
        mean[hz] = found[int(EVENT_S[0] * hz) : int(EVENT_S[1] * hz)].mean()
        assert EVENT_S[0] <= found.argmax() / hz < EVENT_S[1]
        assert found[: int(29 * hz)].max() < best[hz] / 10
    assert max(best.values()) < 1.2 * min(best.values()), best
    assert max(mean.values()) < 1.5 * min(mean.values()), "also while it moves by a pixel a frame"


FRAMES = [noisy(frame, k) for k, frame in enumerate((
    scene(1), scene(1), scene(1, 4), scene(1, 9), lit(scene(1), 0.8), scene(2), flat(90),
    with_ball(scene(1), 30, 20, 6), with_ball(scene(1, 4), 40, 30, 6),
))]  # fmt: skip
PICKS = st.lists(st.integers(0, len(FRAMES) - 1), max_size=12)


@settings(max_examples=60, deadline=None)
@given(PICKS, PICKS, PICKS)
def test_a_copy_goes_on_by_itself(before: list[int], one: list[int], other: list[int]) -> None:
    """Each scores as one that saw its frames alone."""

    def run(scorer: FrameScorer, picks: list[int], start: int) -> list[object]:
        return [scorer.score(FRAMES[pick], (start + i) * SECOND // 2) for i, pick in enumerate(picks)]

    forked = FrameScorer(MemoryConfig())
    run(forked, before, 0)
    copy = forked.copy()
    turns = [run(forked, one[:6], len(before)), run(copy, other, len(before))]
    turns[0] += run(forked, one[6:], len(before) + len(one[:6]))
    for found, picks in zip(turns, (one, other), strict=True):
        assert found == run(FrameScorer(MemoryConfig()), before + picks, 0)[len(before) :]


@pytest.mark.parametrize("step_ns", [1, 1_000_000, SECOND // 25, 3_600 * SECOND])
def test_what_a_scorer_remembers_does_not_grow(step_ns: int) -> None:
    """However close or far its stamps are."""
    scorer, sizes = FrameScorer(MemoryConfig()), []
    for i in range(3_000):
        scorer.score(FRAMES[i // 40 % len(FRAMES)], i * step_ns)
        if i % 500 == 499:
            sizes.append(len(pickle.dumps(scorer)))
    assert max(sizes) < 400_000
    assert sizes[-1] <= 1.5 * max(sizes[:2])
