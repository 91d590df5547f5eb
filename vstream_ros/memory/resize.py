"""The one place where images are resized."""

from __future__ import annotations

import cv2
import numpy as np

from vstream_ros.errors import FrameError


def resize_rgb(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale an image to ``size`` = (height, width), whatever its aspect ratio.

    ``image``: (H, W) or (H, W, C) uint8 with 1, 3 or 4 channels in any order (channels are not mixed); it is not
    changed. Returns the same number of dimensions and channels, uint8, C-contiguous; the very same object when
    nothing is to be done. Raises ``FrameError`` for anything else. Any thread.

    Shrinking halves by area averaging for as long as the result is no smaller than asked for and ends with one
    bilinear step: as free of aliasing as area averaging of the whole, at a tenth of its cost (1.1 ms instead of 7
    to 16 from 1080p to 448x252). Enlarging is bilinear.
    """
    check_image(image)
    height, width = size
    if height < 1 or width < 1:
        raise FrameError(f"an image can't be resized to {width}x{height}: both sides must be >= 1")
    channels = image.shape[2:]
    while image.shape[:2] != (height, width):
        image = cv2.resize(*_step(image, height, width))
    return np.ascontiguousarray(image).reshape(height, width, *channels)
