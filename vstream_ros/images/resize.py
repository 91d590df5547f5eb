"""The one place where images are checked and resized."""

from __future__ import annotations

import cv2
import numpy as np

from vstream_ros.errors import FrameError

MAX_SIDE = 32_767
"""OpenCV's limit for the sides of an image it resamples."""


def check_image(image: np.ndarray) -> None:
    """Raise ``FrameError``, saying what is wrong, unless ``image`` is (H, W) or (H, W, 1 | 3 | 4) uint8, not empty."""
    if not isinstance(image, np.ndarray):
        raise FrameError(f"a frame must be a numpy array, got {type(image).__name__}")
    if image.dtype != np.uint8:
        raise FrameError(f"a frame must be uint8 (0 to 255), got {image.dtype}")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise FrameError(f"a frame must be (height, width) or (height, width, 1, 3 or 4 channels), got {image.shape}")
    if image.size == 0:
        raise FrameError(f"a frame must not be empty, got shape {image.shape}")


def check_rgb(image: np.ndarray) -> None:
    """Raise ``FrameError``, saying what is wrong, unless ``image`` is (H, W, 3) uint8, not empty."""
    check_image(image)
    if image.shape[2:] != (3,):
        raise FrameError(f"a frame must be RGB, (height, width, 3), got shape {image.shape}")


def owned_rgb(image: np.ndarray) -> np.ndarray:
    """A C-contiguous, read-only copy. Raises ``FrameError`` for anything but (H, W, 3) uint8."""
    check_rgb(image)
    pixels = np.array(image, order="C", copy=True, subok=False)
    pixels.setflags(write=False)
    return pixels


def resize_rgb(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale an image to ``size`` = (height, width), whatever its aspect ratio.

    ``image``: (H, W) or (H, W, C) uint8 with C = 1, 3 or 4 channels in any order; it is not changed. Returns the
    same kind of array, C-contiguous; where nothing is to be done it is the very same object. Raises ``FrameError``
    for anything else. Any thread.

    Shrinking halves, each pixel the mean of the ones it covers, as long as the result is no smaller than wanted,
    then takes one bilinear step: nearly as free of aliasing as area averaging of the whole, at a sixth of its cost
    (1.3 ms against 8.6 for 1080p to 448x252 on one core). Enlarging is bilinear.
    """
    check_image(image)
    height, width = size
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise FrameError(f"an image can't be resized to {width}x{height}: sides must be from 1 to {MAX_SIDE}")
    channels = image.shape[2:]
    image = np.ascontiguousarray(image)
    while image.shape[0] >= 2 * height or image.shape[1] >= 2 * width:
        image = _halve(image, rows=image.shape[0] >= 2 * height, columns=image.shape[1] >= 2 * width)
    if image.shape[:2] != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return image.reshape(height, width, *channels)  # OpenCV drops a single channel


def _halve(image: np.ndarray, *, rows: bool, columns: bool) -> np.ndarray:
    """Halve the rows, the columns or both; an odd last line is left out (all of them: less than a pixel of the result).

    At exactly one half, bilinear sampling falls between two pixels and is their mean: the same as area averaging,
    but quick in one direction too.
    """
    down, across = 1 + rows, 1 + columns
    height, width = image.shape[0] // down, image.shape[1] // across
    return cv2.resize(image[: height * down, : width * across], (width, height), interpolation=cv2.INTER_LINEAR)
