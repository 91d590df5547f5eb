"""What happens in a picture, however small: local change against a moment ago and against what is usually there."""

from __future__ import annotations

import copy
from collections import deque
from dataclasses import dataclass

import cv2
import numpy as np

from vstream_ros.memory.camera_motion import CLIPPED, Shift, far, global_shift, moved_onto

THUMBNAIL = (48, 64)
"""(rows, columns): fine enough for the camera's motion to be estimated to a tenth of a camera pixel."""
CELLS = 12
"""A side of the grid of cells in which change is measured: a cell averages the sensor's noise away."""
STRONGEST = 6
"""Cells whose mean is the activity: a small object fills some of 144, and a mean over all would not see it."""
MOMENT_S = 0.5
"""Change is measured against the picture this long ago (or the last one, where pictures are rarer), so that an object
moves as far at 25 Hz as at 2."""
MOST_RECENT = 64
"""Pictures of that moment at most, however close their stamps: above 128 Hz the moment is shorter."""
BACKGROUND_S = 5.0
"""Time constant with which the background follows the picture ..."""
BACKGROUND_STEP = 0.04
"""... by at most this much a second, of the picture's median: what stands still for half a minute is background."""
USUAL_S = 10.0
"""Time constant of what a cell usually does ..."""
USUAL_STEP = 0.004
"""... by at most this much a second: an event does not raise it, leaves in the wind do."""
USUAL_FACTOR = 2.0
"""What a cell does up to this multiple of its usual is nothing."""
EVERYWHERE_FACTOR = 4.0
"""What half of all cells do, up to this multiple, is no object either: the camera has turned too far to tell how."""
DARKEST = 4.0
"""Grey level below which a channel's median is not divided by."""
BRIGHTEST = 4.0
"""Multiple of the median beyond which a pixel counts no further."""
STILL = 1.3
"""The camera's motion is estimated where the picture differs from the background by more than this multiple of what
usually remains."""
LEFT_RATE = 0.1
"""Part by which that is brought up to date with each picture."""


@dataclass(frozen=True)
class Activity:
    """What one picture shows that was not there before."""

    value: float = 0.0
    """Mean over the strongest cells, of the picture's median; >= 0, not bounded. 0.01 is little, 0.3 a vivid object."""
    shift: Shift | None = None
    """How far the camera has turned from where the background was seen, in the thumbnail's pixels."""
    anchored: bool = False
    """From now on shifts count from this picture: the camera has turned far."""


class ActivityMeter:
    """Follows one camera. Light, gain and white balance cancel: every channel is divided by its median. Not
    thread-safe; bounded in memory."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """The next picture is the first."""
        self._background: np.ndarray | None = None
        self._usual = np.full((CELLS, CELLS), 0.01, dtype=np.float32)
        self._left = 0.0
        """Difference to the background that usually remains once the camera's motion is out."""
        self._recent: deque[tuple[float, np.ndarray]] = deque(maxlen=MOST_RECENT)
        """(seconds, cells), of the last ``MOMENT_S``."""

    def copy(self) -> ActivityMeter:
        """A meter that goes on from here by itself."""
        other = copy.copy(self)
        other._recent = self._recent.copy()
        return other

    def observe(self, small: np.ndarray, time_s: float) -> Activity:
        """``small``: (48, 64, 3) uint8 RGB; ``time_s`` rises. The first picture shows nothing new."""
        picture = _gain_free(small)
        if self._background is None:
            self._background = picture
            self._recent.append((time_s, _cells(picture)))
            return Activity()
        shift, seen = self._camera_shift(picture), picture
        if shift is not None:
            picture = moved_onto(self._background, picture, shift)
        cells = _cells(picture)
        elapsed_s = min(max(time_s - self._recent[-1][0], 1e-3), 2.0)
        while len(self._recent) > 1 and time_s - self._recent[1][0] >= MOMENT_S - 1e-3:
            self._recent.popleft()
        motion = np.abs(cells - self._recent[0][1]).mean(axis=2)
        novelty = np.abs(cells - _cells(self._background)).mean(axis=2)
        # Both: what left the place where it had long been is no object, nor is what an object uncovers.
        active = np.minimum(motion, novelty)
        unusual = np.maximum(active - USUAL_FACTOR * self._usual, 0.0).ravel()
        everywhere = EVERYWHERE_FACTOR * float(np.median(unusual))
        value = max(float(np.partition(unusual, -STRONGEST)[-STRONGEST:].mean()) - everywhere, 0.0)
        step = (active - self._usual) * min(elapsed_s / USUAL_S, 1.0)
        self._usual = self._usual + _limited(step, USUAL_STEP * elapsed_s)
        step = (picture - self._background) * min(elapsed_s / BACKGROUND_S, 1.0)
        self._background = self._background + _limited(step, BACKGROUND_STEP * elapsed_s)
        if shift is None or not far(shift, THUMBNAIL):
            self._recent.append((time_s, cells))
            return Activity(value, shift)
        # The background itself, moved along, would be off by each shift's error, and blurred a little more each time.
        self._background = seen
        self._recent.clear()
        self._recent.append((time_s, _cells(seen)))
        return Activity(value, shift, anchored=True)

    def start_anew(self, small: np.ndarray) -> None:
        """Another scene: what was usual before counts no more. ``small``: the picture that began it."""
        last_s = self._recent[-1][0]
        self.reset()
        self._background = _gain_free(small)
        self._recent.append((last_s, _cells(self._background)))

    def _camera_shift(self, picture: np.ndarray) -> Shift | None:
        """How far the camera has turned; None where it stands, or nobody can tell."""
        assert self._background is not None
        reference, grey = _grey(self._background), _grey(picture)
        unmoved = float(np.minimum(cv2.absdiff(reference, grey), CLIPPED).mean())
        if unmoved <= STILL * self._left:
            self._left += LEFT_RATE * (unmoved - self._left)
            return None
        shift, left = global_shift(reference, grey)
        # An event must not make what remains look large.
        self._left = left if self._left == 0.0 else self._left + LEFT_RATE * (min(left, 2.0 * self._left) - self._left)
        return shift


def _gain_free(small: np.ndarray) -> np.ndarray:
    picture = small.astype(np.float32)
    picture /= np.maximum(np.median(small.reshape(-1, 3), axis=0), DARKEST).astype(np.float32)
    return np.minimum(picture, BRIGHTEST, out=picture)


def _grey(picture: np.ndarray) -> np.ndarray:
    return cv2.transform(picture, np.full((1, 3), 1 / 3, dtype=np.float32))


def _cells(picture: np.ndarray) -> np.ndarray:
    return cv2.resize(picture, (CELLS, CELLS), interpolation=cv2.INTER_AREA)


def _limited(step: np.ndarray, most: float) -> np.ndarray:
    return np.clip(step, -most, most, out=step)
