"""What one tubelet of a shapes-world scene shows: pixels and the truth, object by object."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vstream_ros.images import resize_rgb
from vstream_ros.synthetic.shapes_world import Scene, Visit

SEEN, GLIMPSED = 0.6, 0.15
"""Of an object: from the first part on it is certainly seen, up to the second it may be taken for nothing. What lies
between is never made a question of."""
STILL_BELOW, MOVING_FROM = 0.004, 0.05
"""Widths between the tubelet's frames; what lies between is never made a question of."""
PLACE_MARGIN = 0.035
"""Widths around the borders of the thirds in which a place is neither."""


@dataclass(frozen=True)
class Sighting:
    """One object in one tubelet. x and y in widths, in the image."""

    visit: Visit
    before: float
    """Visible part in the first frame, in [0, 1]."""
    after: float
    """Visible part in the second frame."""
    x: float
    y: float
    """Centre in the second frame; in the first where it has left by then."""
    motion: str | None
    """Direction between the frames, before the wall where the camera moves; ``nowhere`` where it stands, None where it
    can't be told."""

    @property
    def seen(self) -> bool:
        """Certainly seen in one of the frames."""
        return max(self.before, self.after) >= SEEN

    @property
    def glimpsed(self) -> bool:
        """Perhaps seen in one of the frames."""
        return max(self.before, self.after) >= GLIMPSED

    @property
    def here(self) -> bool:
        """Certainly there at the tubelet's end."""
        return self.after >= SEEN

    @property
    def place(self) -> str | None:
        """left, middle or right in the second frame; None at a border or where it is not whole enough."""
        if any(abs(self.x - border) < PLACE_MARGIN for border in (1 / 3, 2 / 3)):
            return None
        return "left" if self.x < 1 / 3 else "middle" if self.x < 2 / 3 else "right"


def sightings(scene: Scene, first_s: float, second_s: float) -> tuple[Sighting, ...]:
    """All objects of which a trace can be seen in a tubelet of two frames at these times; equal times: one frame."""
    found = []
    for visit in scene.visits:
        before, after = scene.visible(visit, first_s), scene.visible(visit, second_s)
        if max(before, after) <= 0.0:
            continue
        centre = scene.centre(visit, second_s if after > 0.0 else first_s)
        assert centre is not None
        found.append(Sighting(visit, before, after, *centre, _motion(visit, first_s, second_s)))
    return tuple(found)


def _motion(visit: Visit, first_s: float, second_s: float) -> str | None:
    one, other = visit.centre(first_s), visit.centre(second_s)
    if one is None or other is None:
        # Coming or going across the border: the rest of it shows which way.
        leg = visit.legs[0] if one is None else visit.legs[-1]
        return leg.direction
    dx, dy = other[0] - one[0], other[1] - one[1]
    if max(abs(dx), abs(dy)) <= STILL_BELOW:
        return "nowhere"
    if max(abs(dx), abs(dy)) < MOVING_FROM:
        return None
    if abs(dx) > abs(dy):
        return "right" if dx > 0 else "left"
    return "down" if dy > 0 else "up"


def camera_frame(scene: Scene, time_s: float, size: tuple[int, int], camera: tuple[int, int] | None) -> np.ndarray:
    """A frame of ``size`` (height, width) as the node would hand it to the model.

    ``camera``: size that the camera takes it at, scaled down by the node's own resize; None draws it small at once.
    """
    return scene.frame(time_s, size) if camera is None else resize_rgb(scene.frame(time_s, camera), size)
