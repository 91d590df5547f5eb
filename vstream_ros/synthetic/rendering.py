"""Drawing of the shapes world: what a camera makes of a scene at one moment."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import cv2
import numpy as np

from vstream_ros.synthetic.shapes_world import COLOURS, Visit

if TYPE_CHECKING:
    from vstream_ros.synthetic.shapes_world import Scene

_SUBPIXEL_BITS = 4
_BACKGROUND_PERIOD_S = 20.0
_LIGHT_KNOTS_S = 6.0
WALL_LEVELS = (70, 150)
"""Grey levels of the walls of all scenes."""


def render(scene: Scene, time_s: float, size: tuple[int, int]) -> np.ndarray:
    """Draw ``scene`` at ``time_s``.

    Args:
        scene: what is where.
        time_s: seconds since the scene's beginning.
        size: (height, width) in pixels; an aspect ratio other than the scene's stretches the image.

    Returns:
        (height, width, 3) uint8 RGB. Depends on the arguments alone.
    """
    conditions = scene.conditions
    image = _background(scene.seed, time_s, size, conditions.texture)
    if conditions.moves:
        image = _moved(image, scene.camera.corner(time_s), scene.height)
    for visit in scene.visits:
        centre = scene.centre(visit, time_s)
        if centre is not None:
            _draw(image, visit, centre, scene.height, _dulled(COLOURS[visit.colour], scene.seed, conditions.contrast))
    return _camera(image, scene.seed, time_s)


def silhouette(scene: Scene, visit: Visit, time_s: float, size: tuple[int, int]) -> np.ndarray:
    """(height, width) bool: the pixels that a visit's object covers by more than half. For tests on pixels."""
    canvas = np.zeros((*size, 3), dtype=np.uint8)
    centre = scene.centre(visit, time_s)
    if centre is not None:
        _draw(canvas, visit, centre, scene.height, (255, 255, 255))
    return canvas[..., 0] > 127


def _draw(
    image: np.ndarray,
    visit: Visit,
    centre: tuple[float, float],
    scene_height: float,
    rgb: tuple[int, int, int],
) -> None:
    rows, columns = image.shape[:2]
    scale = np.array([columns, rows / scene_height])
    points = (np.asarray(centre) + _outline(visit)) * scale
    # OpenCV counts from the pixels' centres.
    fixed = np.round((points - 0.5) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    cv2.fillPoly(image, [fixed[:, None]], rgb, cv2.LINE_AA, _SUBPIXEL_BITS)


def _outline(visit: Visit) -> np.ndarray:
    """(n, 2) corners around the centre, in widths. All shapes have about the same area and fit their diameter."""
    radius = visit.diameter / 2
    if visit.shape == "circle":
        angles = np.linspace(0.0, 2 * math.pi, 40, endpoint=False)
        points = 0.94 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    elif visit.shape == "square":
        points = 0.80 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=float)
    elif visit.shape == "triangle":
        points = np.array([[0.0, -0.95], [0.95, 0.75], [-0.95, 0.75]])
    else:
        arm, tip = 0.30, 0.97
        quarter = [(arm, -tip), (arm, -arm), (tip, -arm), (tip, arm), (arm, arm), (arm, tip)]
        points = np.array(quarter + [(-x, -y) for x, y in quarter])
    cos, sin = math.cos(visit.angle), math.sin(visit.angle)
    return radius * points @ np.array([[cos, sin], [-sin, cos]])


def _moved(image: np.ndarray, corner: tuple[float, float], scene_height: float) -> np.ndarray:
    """What a camera sees of the wall whose corner is elsewhere; beyond its edges the wall goes on as in a mirror."""
    rows, columns = image.shape[:2]
    shift = np.array([[1.0, 0.0, corner[0] * columns], [0.0, 1.0, corner[1] / scene_height * rows]])
    return cv2.warpAffine(
        image, shift, (columns, rows), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT
    )


def _dulled(rgb: tuple[int, int, int], seed: int, contrast: float) -> tuple[int, int, int]:
    """A colour on its way to the grey of the wall."""
    if contrast == 1.0:
        return rgb
    grey = np.random.default_rng([seed, 2]).uniform(*WALL_LEVELS)
    red, green, blue = (round(grey + contrast * (channel - grey)) for channel in rgb)
    return red, green, blue


@functools.lru_cache(maxsize=8)
def _pattern(seed: int, deviation: float, size: tuple[int, int]) -> np.ndarray:
    """(height, width, 1) float32: what is fine on a textured wall, as of bricks, leaves or a carpet."""
    rng = np.random.default_rng([seed, 10])
    layers = [
        cv2.resize(rng.standard_normal(cells).astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
        for cells in ((24, 32), (48, 64))
    ]
    return deviation * sum(layers)[..., None]


@functools.lru_cache(maxsize=64)
def _wall(seed: int, step: int, size: tuple[int, int], texture: float) -> np.ndarray:
    """(height, width, 3) float32: the background as it is at the beginning of one period."""
    base = np.random.default_rng([seed, 2])
    level, contrast = base.uniform(*WALL_LEVELS), base.uniform(8, 28)
    tint = base.uniform(-12, 12, 3)
    # A pattern that stays, so that most of the texture does not move.
    still = 0.5 * contrast * base.standard_normal((7, 9, 1)) * np.ones(3)
    rng = np.random.default_rng([seed, 3, step])
    changing = level + tint + contrast * (rng.standard_normal((4, 5, 1)) + 0.25 * rng.standard_normal((4, 5, 3)))
    layers = [cv2.resize(g.astype(np.float32), size[::-1], interpolation=cv2.INTER_CUBIC) for g in (still, changing)]
    wall = layers[0] + layers[1]
    return np.clip(wall + _pattern(seed, texture, size) if texture else wall, 20, 210)


def _background(seed: int, time_s: float, size: tuple[int, int], texture: float) -> np.ndarray:
    """A dull, uneven wall that slowly changes."""
    step, part = divmod(time_s / _BACKGROUND_PERIOD_S, 1.0)
    part = part * part * (3 - 2 * part)
    before, after = _wall(seed, int(step), size, texture), _wall(seed, int(step) + 1, size, texture)
    return cv2.addWeighted(before, 1 - part, after, part, 0.0).astype(np.uint8)


@functools.lru_cache(maxsize=64)
def _lamp(seed: int, step: int) -> tuple[np.ndarray, bool]:
    """(3,) gains at the beginning of one interval, and whether the light is switched in it, not dimmed."""
    rng = np.random.default_rng([seed, 5, step])
    return rng.uniform(0.75, 1.2) * rng.uniform(0.95, 1.05, 3), bool(rng.random() < 0.125)


def _light(seed: int, time_s: float) -> np.ndarray:
    """(3,) gains of the colour channels: brightness and white balance drift and sometimes jump."""
    step, part = divmod(time_s / _LIGHT_KNOTS_S, 1.0)
    before, switched = _lamp(seed, int(step))
    after, _ = _lamp(seed, int(step) + 1)
    if switched:
        part = float(part > 0.5)
    return (1 - part) * before + part * after


@functools.lru_cache(maxsize=64)
def _sensor(seed: int) -> float:
    """Standard deviation of the sensor's noise, in grey levels."""
    return float(np.random.default_rng([seed, 7]).uniform(2.0, 7.0))


def _camera(image: np.ndarray, seed: int, time_s: float) -> np.ndarray:
    """Light, sensor noise and clipping."""
    # The sum of two bytes: nearly normal, with a deviation of 104.5, and several times cheaper than a normal draw.
    rng = np.random.Generator(np.random.SFC64([seed, 8, round((time_s + 1e4) * 1e4)]))
    draws = np.frombuffer(rng.bytes(2 * image.size), dtype=np.uint8).reshape(2, *image.shape)
    noise = cv2.addWeighted(draws[0], _sensor(seed) / 104.5, draws[1], _sensor(seed) / 104.5, 0.0, dtype=cv2.CV_32F)
    offset = 0.5 - 255.0 * _sensor(seed) / 104.5
    lit = image.astype(np.float32) * _light(seed, time_s).astype(np.float32)
    lit += noise
    lit += np.float32(offset)
    return np.clip(lit, 0, 255, out=lit).astype(np.uint8)
