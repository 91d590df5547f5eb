"""What makes a scene of the shapes world hard to watch, and where a moving camera looks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Conditions:
    """The default is the world that vstream-tiny was trained on. Lengths are in widths of the image.

    Raises ``ValueError`` where a value is out of its range.
    """

    texture: float = 0.0
    """Deviation of a fine pattern on the wall that stays as it is, in grey levels, in [0, 60]."""
    contrast: float = 1.0
    """Of the objects against the wall, in [0.05, 1]; 1: their full colour, 0 would be the wall's grey."""
    diameters: tuple[float, float] = (0.20, 0.26)
    """Of the smallest and the largest object, in [0.05, 0.4]."""
    pan: float = 0.0
    """How far a panning camera looks to either side, in [0, 3]; 0: it stands."""
    shake: float = 0.0
    """By how much each frame is displaced at most, in each direction, in [0, 0.1]."""

    def __post_init__(self) -> None:
        _within("texture", self.texture, 0.0, 60.0)
        _within("contrast", self.contrast, 0.05, 1.0)
        _within("pan", self.pan, 0.0, 3.0)
        _within("shake", self.shake, 0.0, 0.1)
        smallest, largest = self.diameters
        _within("diameters", smallest, 0.05, largest)
        _within("diameters", largest, smallest, 0.4)

    @property
    def moves(self) -> bool:
        """Whether the camera moves at all."""
        return self.pan > 0.0 or self.shake > 0.0


class CameraPath:
    """Where the image's top left corner is in the world, at any time; (0, 0) where the camera stands.

    A panning camera rests, drifts slowly, rests again, sweeps to another place, and so on. Everything follows from the
    seed.
    """

    def __init__(self, seed: int, duration_s: float, conditions: Conditions) -> None:
        self.conditions = conditions
        self._seed = seed
        self._knots = self._plan(duration_s) if conditions.pan else np.zeros((1, 3))
        """(n, 3): time, x, y."""

    def aim(self, time_s: float) -> tuple[float, float]:
        """The corner without the shake; before the beginning and after the end as there."""
        if not self.conditions.pan:
            return 0.0, 0.0
        times, xs, ys = self._knots.T
        return float(np.interp(time_s, times, xs)), float(np.interp(time_s, times, ys))

    def corner(self, time_s: float) -> tuple[float, float]:
        """Of the frame that is taken at ``time_s``."""
        x, y = self.aim(time_s)
        if self.conditions.shake:
            rng = np.random.default_rng([self._seed, 11, round((time_s + 1e4) * 1e4)])
            dx, dy = rng.uniform(-self.conditions.shake, self.conditions.shake, 2)
            x, y = x + float(dx), y + float(dy)
        return x, y

    def _plan(self, duration_s: float) -> np.ndarray:
        rng = np.random.default_rng([self._seed, 9])
        reach = np.array([self.conditions.pan, 0.2 * self.conditions.pan])
        time_s, place = 0.0, np.zeros(2)
        knots = [(time_s, *place)]
        while time_s < duration_s:
            time_s += float(rng.uniform(4.0, 30.0))
            knots.append((time_s, *place))
            target = rng.uniform(-reach, reach)
            way = float(np.hypot(*(target - place)))
            if rng.random() < 0.5:
                seconds = way / float(rng.uniform(0.25, 0.6))
            else:
                # A drift does not go all the way.
                seconds = float(rng.uniform(10.0, 40.0))
                target = place + (target - place) * min(1.0, seconds * float(rng.uniform(0.005, 0.03)) / way)
            time_s, place = time_s + seconds, target
            knots.append((time_s, *place))
        return np.array(knots)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], got {value}")
