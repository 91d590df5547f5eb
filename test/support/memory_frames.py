"""Small synthetic frames for the memory's tests: seeded, so that every run sees the same pixels."""

from __future__ import annotations

import cv2
import numpy as np

SECOND = 1_000_000_000
HEIGHT, WIDTH = 48, 64


def flat(value: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A frame of one grey level."""
    return np.full((height, width, 3), value, np.uint8)


def scene(seed: int, shift: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A view of a world of coloured patches, one world per seed; ``shift`` pans by so many pixels."""
    patches = np.random.default_rng(seed).integers(0, 256, (6, 16, 3), dtype=np.uint8)
    world = cv2.resize(patches, (2 * width, height), interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(world[:, shift : shift + width])


def noisy(frame: np.ndarray, seed: int, sigma: float = 4.0) -> np.ndarray:
    """The frame as a real sensor would give it."""
    noise = np.random.default_rng(seed).normal(0.0, sigma, frame.shape)
    return np.clip(frame + noise, 0, 255).astype(np.uint8)
