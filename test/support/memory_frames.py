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


def lively(index: int) -> np.ndarray:
    """Frame ``index`` of a scene in which something jumps about all the time: each but the first is important."""
    return cv2.circle(scene(3), (17 * index % 50 + 7, 11 * index % 34 + 7), 8, (255 * (index % 2),) * 3, -1)


CAMERA = (252, 448)
"""(height, width) at a model's resolution, for what needs sub-pixel motion."""


def world(seed: int, height: int = 400, width: int = 1_600) -> np.ndarray:
    """A picture larger than a camera's, coloured and textured as nature is: its spectrum falls as 1 / frequency."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1.0
    grey, *tints = (
        np.fft.irfft2(np.exp(2j * np.pi * rng.random(frequency.shape)) / frequency, s=(height, width)) for _ in range(4)
    )
    picture = np.stack([grey + 0.5 * tint for tint in tints], axis=2)
    return np.clip(110.0 + 40.0 * picture / picture.std(), 20, 190).astype(np.uint8)


def view(world: np.ndarray, x: float, y: float = 70.0) -> np.ndarray:
    """What a camera of size ``CAMERA`` sees of a world, its corner at (x, y), also between pixels."""
    matrix = np.array([[1.0, 0.0, -x], [0.0, 1.0, -y]], dtype=np.float32)
    return cv2.warpAffine(world, matrix, CAMERA[::-1], flags=cv2.INTER_LINEAR)


def with_ball(frame: np.ndarray, x: float, y: float, radius: int = 13) -> np.ndarray:
    """The frame with a red ball in it; with the usual radius it fills 0.5 % of a camera's picture."""
    return cv2.circle(frame.copy(), (round(x), round(y)), radius, (230, 40, 40), -1, cv2.LINE_AA)


def lit(frame: np.ndarray, gain: float | tuple[float, float, float]) -> np.ndarray:
    """The frame under another light, exposure or white balance (a gain for each channel)."""
    return np.clip(np.rint(frame * np.asarray(gain)), 0, 255).astype(np.uint8)
