"""Pictures for the tests of image decoding."""

from __future__ import annotations

import cv2
import numpy as np

HEIGHT, WIDTH = 48, 64


def picture(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Smooth, with different gradients in each channel: swapped channels, rows or columns show."""
    y, x = np.mgrid[0:height, 0:width]
    red, green, blue = 40 + 180 * x / width, 30 + 160 * y / height, 220 - 150 * (x + y) / (height + width)
    return np.stack([red, green, blue], axis=2).astype(np.uint8)


def grey(rgb: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)


def wide(image: np.ndarray, bits: int = 16) -> np.ndarray:
    """The picture in 16 bits, filled up to ``bits`` of them, the brightest pixel at the top."""
    return (image.astype(np.uint16) << (bits - 8)) + np.uint16((1 << (bits - 8)) - 1)
