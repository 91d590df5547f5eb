"""How far the whole picture has moved: pan, shake and sway of the camera, estimated on thumbnails and taken out."""

from __future__ import annotations

import functools

import cv2
import numpy as np

MAX_SHIFT = 0.22
"""Of a thumbnail's side. A larger shift leaves too little in common to be told from another scene."""
MARGIN = 4
"""Pixels at the borders that no comparison looks at."""
REFINEMENTS = 3
CLIPPED = 0.1
"""Differences count up to here: a moving object must not decide where the background is."""
WORTH = 0.8
"""A shift is believed where it leaves less than this part of the difference."""
SMALLEST = 0.05
"""Pixels. Less is not worth the blur of an interpolation."""

Shift = tuple[float, float]
"""(x, y) in pixels: what is at ``p`` in the reference is at ``p + shift`` in the current picture."""


def global_shift(reference: np.ndarray, current: np.ndarray) -> tuple[Shift | None, float]:
    """The translation that brings ``current`` onto ``reference``: phase correlation, then Gauss-Newton on the pixels.

    Args:
        reference, current: (rows, columns) float32 grey thumbnails around 1 in value; not changed.

    Returns:
        the shift, None where the pictures are best compared as they are; and the mean clipped difference that is left.
    """
    rows, columns = reference.shape
    unmoved = _difference(reference, current, (0.0, 0.0))
    # Copies: OpenCV multiplies its arguments by the window in place where their size suits its DFT.
    shift, _ = cv2.phaseCorrelate(reference.copy(), current.copy(), _window(rows, columns))
    if not _within(shift, rows, columns):
        return None, unmoved
    shift = _refined(reference, current, shift)
    if max(map(abs, shift)) < SMALLEST or not _within(shift, rows, columns):
        return None, unmoved
    left = _difference(reference, moved_onto(reference, current, shift), shift)
    return (shift, left) if left < WORTH * _difference(reference, current, shift) else (None, unmoved)


def moved_onto(reference: np.ndarray, picture: np.ndarray, shift: Shift) -> np.ndarray:
    """``picture``, moved back by ``shift``; what it does not show is taken from ``reference``. Both of one shape and
    dtype; a new array."""
    matrix = np.array([[1.0, 0.0, -shift[0]], [0.0, 1.0, -shift[1]]], dtype=np.float32)
    size = picture.shape[1::-1]
    result = reference.copy()
    return cv2.warpAffine(picture, matrix, size, result, cv2.INTER_LINEAR, cv2.BORDER_TRANSPARENT)


def far(shift: Shift, shape: tuple[int, int]) -> bool:
    """Whether a camera that turns on will soon show too little of a reference; ``shape``: (rows, columns)."""
    return not _within((2.0 * shift[0], 2.0 * shift[1]), *shape)


@functools.lru_cache(maxsize=1)
def _window(rows: int, columns: int) -> np.ndarray:
    return cv2.createHanningWindow((columns, rows), cv2.CV_32F)


def _within(shift: Shift, rows: int, columns: int) -> bool:
    return abs(shift[0]) <= MAX_SHIFT * columns and abs(shift[1]) <= MAX_SHIFT * rows


def _common(shift: Shift, rows: int, columns: int) -> tuple[slice, slice]:
    """The part that both pictures show."""
    (x, y), m = shift, MARGIN
    return (
        slice(m + int(max(0.0, -y)), rows - m - int(max(0.0, y))),
        slice(m + int(max(0.0, -x)), columns - m - int(max(0.0, x))),
    )


def _difference(reference: np.ndarray, current: np.ndarray, shift: Shift) -> float:
    part = _common(shift, *reference.shape)
    return float(np.minimum(cv2.absdiff(reference[part], current[part]), CLIPPED).mean())


def _refined(reference: np.ndarray, current: np.ndarray, shift: Shift) -> Shift:
    """Gauss-Newton steps on the squared difference, without what differs most: phase correlation is a quarter of a
    pixel off, which every edge of the picture would show."""
    across = cv2.Sobel(reference, cv2.CV_32F, 1, 0, scale=1 / 8)
    down = cv2.Sobel(reference, cv2.CV_32F, 0, 1, scale=1 / 8)
    x, y = shift
    for _ in range(REFINEMENTS):
        part = _common((x, y), *reference.shape)
        error = moved_onto(reference, current, (x, y))[part] - reference[part]
        magnitude = np.abs(error)
        weight = magnitude < max(3.0 * float(magnitude.mean()), 0.02)
        gx, gy = across[part] * weight, down[part] * weight
        xx, xy, yy = float(np.vdot(gx, gx)), float(np.vdot(gx, gy)), float(np.vdot(gy, gy))
        ex, ey = float(np.vdot(gx, error)), float(np.vdot(gy, error))
        determinant = xx * yy - xy * xy
        if determinant < 1e-6:
            break
        step_x = min(max((xy * ey - yy * ex) / determinant, -1.0), 1.0)
        step_y = min(max((xy * ex - xx * ey) / determinant, -1.0), 1.0)
        x, y = x + step_x, y + step_y
        if not _within((x, y), *reference.shape) or abs(step_x) + abs(step_y) < 0.02:
            break
    return x, y
