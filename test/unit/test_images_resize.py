"""The one resize function: every shape, no aliasing, honest errors."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vstream_ros.errors import FrameError
from vstream_ros.images import resize_rgb


@given(
    source=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    target=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    channels=st.sampled_from([(), (1,), (3,), (4,)]),
)
def test_any_size_and_number_of_channels(
    source: tuple[int, int], target: tuple[int, int], channels: tuple[int, ...]
) -> None:
    """A flat image stays flat, channel by channel: nothing is mixed, shifted in or left black."""
    levels = np.arange(10, 10 + 40 * (channels or (1,))[0], 40, dtype=np.uint8)
    image = np.broadcast_to(levels, (*source, len(levels))).reshape(*source, *channels)
    result = resize_rgb(image, target)
    assert result.shape == (*target, *channels)
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous
    assert (result.reshape(-1, len(levels)) == levels).all()


@pytest.mark.parametrize("size", [(1080, 1920), (1079, 1919), (1920, 1080), (480, 640), (300, 2000)])
def test_shrinking_is_free_of_aliasing(size: tuple[int, int]) -> None:
    """Each pixel is the mean of the 16 it covers: noise falls to a quarter. Plain bilinear sampling leaves a half."""
    noise = np.random.default_rng(2).integers(0, 256, (*size, 3), dtype=np.uint8)
    small = resize_rgb(noise, (size[0] // 4, size[1] // 4))
    assert small.std() < 0.3 * noise.std()


@pytest.mark.parametrize("size", [(1080, 1920), (1079, 1919), (480, 640)])
def test_a_picture_is_where_area_averaging_puts_it(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    picture = cv2.resize(
        rng.integers(0, 256, (9, 16, 3), dtype=np.uint8), (size[1], size[0]), interpolation=cv2.INTER_CUBIC
    )
    ours = resize_rgb(picture, (252, 448)).astype(int)
    exact = cv2.resize(picture, (448, 252), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(ours - exact).max() <= 10
    assert np.abs(ours - exact).mean() <= 2.0


def test_nothing_to_do_is_done_without_a_copy_and_the_input_is_never_changed() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    assert np.shares_memory(resize_rgb(image, (40, 60)), image)
    before = image.copy()
    resize_rgb(image, (10, 10))
    assert (image == before).all()
    assert resize_rgb(image[::2, ::-1], (20, 60)).flags.c_contiguous


@pytest.mark.parametrize(
    ("image", "size", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), (2, 2), "uint8"),
        (np.zeros((4, 4, 2), np.uint8), (2, 2), "channels"),
        (np.zeros((4,), np.uint8), (2, 2), "height"),
        (np.zeros((0, 4, 3), np.uint8), (2, 2), "empty"),
        ([[1, 2], [3, 4]], (2, 2), "numpy array, got list"),
        (np.zeros((4, 4, 3), np.uint8), (0, 2), "2x0"),
        (np.zeros((4, 4, 3), np.uint8), (2, 40_000), "40000x2"),
    ],
)
def test_what_is_no_image_is_refused_with_a_reason(image: np.ndarray, size: tuple[int, int], words: str) -> None:
    with pytest.raises(FrameError, match=words):
        resize_rgb(image, size)
