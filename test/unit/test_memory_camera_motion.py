"""The camera's motion: shifts of known size, objects that must not distort them, pictures without any."""

from __future__ import annotations

import numpy as np
import pytest

from support.memory_frames import CAMERA, flat, lit, noisy, view, with_ball, world
from vstream_ros.images.resize import resize_rgb
from vstream_ros.memory.activity import THUMBNAIL
from vstream_ros.memory.camera_motion import CLIPPED, MAX_SHIFT, Shift, far, global_shift, moved_onto

ROWS, COLUMNS = THUMBNAIL
SCALE = (COLUMNS / CAMERA[1], ROWS / CAMERA[0])
"""Thumbnail pixels to a camera's."""
WORLDS = [world(seed) for seed in range(3)]


def thumbnail(frame: np.ndarray) -> np.ndarray:
    grey = resize_rgb(frame, THUMBNAIL).astype(np.float32).mean(axis=2)
    return grey / np.median(grey)


def turns(part: float) -> list[tuple[float, float]]:
    """How far the camera turns, in its own pixels, up to ``part`` of a side."""
    most = (part * CAMERA[1], part * CAMERA[0])
    fractions = np.random.default_rng(4).uniform(-1.0, 1.0, (12, 2))
    return [(3.0, 0.0), (0.0, -2.0), *((float(x) * most[0], float(y) * most[1]) for x, y in fractions)]


def expected(turn: tuple[float, float]) -> Shift:
    """The world moves against the camera."""
    return -turn[0] * SCALE[0], -turn[1] * SCALE[1]


@pytest.mark.parametrize("seed", range(3))
def test_a_shift_is_found_within_a_fifth_of_a_thumbnail_pixel(seed: int) -> None:
    reference = thumbnail(noisy(view(WORLDS[seed], 500.0), 1))
    for turn in turns(0.18):
        shift, left = global_shift(reference, thumbnail(noisy(view(WORLDS[seed], 500.0 + turn[0], 70.0 + turn[1]), 2)))
        assert shift == pytest.approx(expected(turn), abs=0.2), turn
        assert left < CLIPPED


@pytest.mark.parametrize("seed", range(3))
def test_a_moving_object_does_not_distort_it(seed: int) -> None:
    """It fills 4 % of the picture and moves the other way."""
    reference = thumbnail(noisy(with_ball(view(WORLDS[seed], 500.0), 200, 120, 38), 1))
    for turn in turns(0.14):
        picture = with_ball(view(WORLDS[seed], 500.0 + turn[0], 70.0 + turn[1]), 200 + turn[0], 120 + turn[1], 38)
        shift, _ = global_shift(reference, thumbnail(noisy(picture, 2)))
        assert shift == pytest.approx(expected(turn), abs=0.2), turn


def test_exposure_does_not_distort_it() -> None:
    reference = thumbnail(noisy(view(WORLDS[0], 500.0), 1))
    for gain in (0.7, 1.3):
        shift, _ = global_shift(reference, thumbnail(lit(noisy(view(WORLDS[0], 530.0), 2), gain)))
        assert shift == pytest.approx(expected((30.0, 0.0)), abs=0.2)


def test_unrelated_pictures_have_no_shift() -> None:
    views = [thumbnail(noisy(view(w, x), 1)) for w in WORLDS for x in (0.0, 560.0, 1_120.0)]
    for i, reference in enumerate(views):
        for current in views[i + 1 :]:
            shift, left = global_shift(reference, current)
            assert shift is None
            assert left > 0.02


def test_a_camera_that_stands_has_no_shift() -> None:
    for seed, w in enumerate(WORLDS):
        reference, current = (thumbnail(noisy(view(w, 500.0), seed + k)) for k in (0, 10))
        shift, left = global_shift(reference, current)
        assert shift is None
        assert left == pytest.approx(float(np.minimum(abs(current - reference), CLIPPED).mean()), rel=0.2)
        assert global_shift(reference, reference) == (None, 0.0)
        assert global_shift(reference, thumbnail(noisy(with_ball(view(w, 500.0), 200, 120, 38), 3)))[0] is None


@pytest.mark.parametrize("picture", [flat(0), flat(255), flat(9)], ids=["black", "white", "grey"])
def test_pictures_without_texture_have_no_shift(picture: np.ndarray) -> None:
    plain = np.full(THUMBNAIL, float(picture[0, 0, 0]) / 9.0, np.float32)
    assert global_shift(plain, plain.copy()) == (None, 0.0)
    assert global_shift(plain, thumbnail(view(WORLDS[0], 0.0)))[0] is None
    assert global_shift(thumbnail(view(WORLDS[0], 0.0)), plain)[0] is None


def test_a_turn_that_leaves_too_little_in_common_is_not_followed() -> None:
    reference = thumbnail(view(WORLDS[0], 500.0))
    too_far = (MAX_SHIFT + 0.05) * CAMERA[1]
    assert global_shift(reference, thumbnail(view(WORLDS[0], 500.0 + too_far)))[0] is None
    half = MAX_SHIFT / 2
    assert not far((half * COLUMNS - 0.1, half * ROWS - 0.1), THUMBNAIL)
    assert far((half * COLUMNS + 0.1, 0.0), THUMBNAIL)
    assert far((0.0, -half * ROWS - 0.1), THUMBNAIL)


def test_arguments_are_not_changed() -> None:
    """OpenCV's phase correlation works in place where it finds the size convenient."""
    reference, current = thumbnail(view(WORLDS[0], 500.0)), thumbnail(view(WORLDS[0], 530.0))
    copies = reference.copy(), current.copy()
    global_shift(reference, current)
    assert (reference == copies[0]).all()
    assert (current == copies[1]).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_moved_onto_brings_back_what_is_seen_and_takes_the_rest_from_the_reference(dtype: type) -> None:
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 256, (ROWS, COLUMNS, 3)).astype(dtype)
    picture = np.zeros_like(reference)
    picture[3:, :-5] = reference[:-3, 5:]  # what was at (x, y) is at (x - 5, y + 3)
    moved = moved_onto(reference, picture, (-5.0, 3.0))
    assert (moved == reference).all()
    assert moved.dtype == dtype
    blank = moved_onto(reference, np.zeros_like(reference), (-5.0, 3.0))
    assert (blank[:, :5] == reference[:, :5]).all(), "left of what it shows"
    assert (blank[-3:] == reference[-3:]).all(), "below what it shows"
    assert not blank[:-3, 5:].any()
