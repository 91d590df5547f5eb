"""The shapes world: camera-like scenes of coloured shapes whose whole story is known.

``Scene(seed, duration_s)`` plans who comes when, from where and how fast; ``scene.frame(time_s, size)`` draws it as a
camera would see it; ``scene.events`` is the log of what happened. Everything follows from the seed: the same seed
gives the same bytes, whichever frames are drawn and in whatever order.

Lengths are in units of the image's width, so that a scene is the same at every size; the image is 4:3 unless
``aspect`` says otherwise. Times are in seconds since the scene's first frame.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from vstream_ros.synthetic.conditions import CameraPath, Conditions

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 35),
    "green": (35, 175, 50),
    "blue": (40, 70, 220),
    "yellow": (230, 215, 40),
    "purple": (170, 50, 190),
    "cyan": (50, 205, 215),
}
"""RGB under neutral light."""
SHAPES = ("circle", "square", "triangle", "cross")
DIRECTIONS: dict[str, tuple[float, float]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
}
"""Unit vectors, x to the right and y downwards. An object that enters from the left moves right."""
PLACES = ("left", "middle", "right")
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}

MIN_SPEED, MAX_SPEED = 0.17, 0.25
"""Widths per second: between two frames at 2 Hz an object moves by 8.5 % to 12.5 % of the width. Slower motion than
8 % a tubelet was not learnt by a small vision tower."""
MAX_TOGETHER = 3
MAX_VISITS = 6
"""In one scene, unless it is told otherwise; each is another combination of colour and shape, so that a name means one
object."""
COUNTABLE = 10
"""Objects that the questions have a number for."""
MOST_VISITS = 200
"""In a scene whose names return."""
LONGEST_S = 7200.0
PAN_MARGIN = 0.4
"""Widths outside of the image at which visits begin and end where the camera pans: it may turn towards them."""


@dataclass(frozen=True)
class Leg:
    """One piece of a path: from ``start_s`` to ``end_s`` along a straight line at constant speed."""

    start_s: float
    end_s: float
    x: float
    y: float
    """Centre at ``start_s``."""
    direction: str | None
    """None: standing still."""
    speed: float

    def at(self, time_s: float) -> tuple[float, float]:
        """Centre (x, y) at a time, also beyond the leg's ends."""
        if self.direction is None:
            return self.x, self.y
        dx, dy = DIRECTIONS[self.direction]
        way = self.speed * (time_s - self.start_s)
        return self.x + dx * way, self.y + dy * way


@dataclass(frozen=True)
class Visit:
    """One object from the moment it touches the image to the moment it has left it."""

    index: int
    """In the order of arrival."""
    colour: str
    shape: str
    diameter: float
    angle: float
    """Radians; a tilt, constant during the visit."""
    legs: tuple[Leg, ...]
    """One after another without gaps: it comes, may stand, goes."""

    @property
    def name(self) -> str:
        """Such as ``red circle``; unique in its scene, unless names return."""
        return f"{self.colour} {self.shape}"

    @property
    def start_s(self) -> float:
        return self.legs[0].start_s

    @property
    def end_s(self) -> float:
        return self.legs[-1].end_s

    def centre(self, time_s: float) -> tuple[float, float] | None:
        """Centre (x, y) in the world at a time, in widths; None before it comes and after it has gone.

        In the image too, where the camera stands.
        """
        if not self.start_s <= time_s < self.end_s:
            return None
        leg = next(leg for leg in self.legs if time_s < leg.end_s)
        return leg.at(time_s)

    def visible(self, time_s: float, height: float, corner: tuple[float, float] = (0.0, 0.0)) -> float:
        """Part of its bounding square that is inside the image, in [0, 1].

        ``height``: of the image, in widths. ``corner``: where its top left corner is in the world.
        """
        centre = self.centre(time_s)
        if centre is None:
            return 0.0
        half = self.diameter / 2
        parts = []
        for position, edge, size in zip(centre, corner, (1.0, height), strict=True):
            inside = min(position - edge + half, size) - max(position - edge - half, 0.0)
            parts.append(max(inside, 0.0) / self.diameter)
        return parts[0] * parts[1]


@dataclass(frozen=True)
class Event:
    """One line of a scene's log. Of a moving camera's scene it tells where an object's path begins and ends."""

    time_s: float
    what: str
    """``enter`` (first touches the image), ``stop``, ``go`` (moves on) or ``leave`` (nothing of it is left)."""
    visit: int
    colour: str
    shape: str
    direction: str
    """Of the motion that begins or ends here."""
    place: str
    """left, middle or right: the third of the image that the centre is in (the nearest one while it is outside)."""


def place_of(x: float) -> str:
    """The third of the image that an x coordinate in widths lies in."""
    return PLACES[min(max(int(x * 3), 0), 2)]


class Scene:
    """A planned scene: who comes when. Immutable once made; drawing is in ``rendering``."""

    def __init__(
        self,
        seed: int,
        duration_s: float,
        *,
        aspect: float = 4 / 3,
        gap_s: float | None = None,
        lead_s: float = 0.0,
        visits: int = MAX_VISITS,
        names_return: bool = False,
        conditions: Conditions | None = None,
    ) -> None:
        """Plan the visits of ``duration_s`` seconds (2 to 7200).

        ``aspect``: width over height. ``gap_s``: mean seconds between arrivals; by default so that about as many
        visits fit as the scene may have. ``lead_s``: nothing enters before. ``visits``: the most there are, at most
        ``COUNTABLE``. ``names_return``: there may be as many as ``MOST_VISITS``, and when every name has been there
        they come again; two of a name are never there together. ``conditions``: what makes it hard to watch.
        """
        if not 2.0 <= duration_s <= LONGEST_S:
            raise ValueError(f"duration_s must be in [2, {LONGEST_S:.0f}], got {duration_s}")
        if not 0.5 <= aspect <= 4.0:
            raise ValueError(f"aspect must be in [0.5, 4], got {aspect}")
        most = MOST_VISITS if names_return else COUNTABLE
        if not 1 <= visits <= most:
            raise ValueError(f"visits must be in [1, {most}], got {visits}")
        self.seed = seed
        self.duration_s = duration_s
        self.height = 1.0 / aspect
        """Of the image, in widths."""
        self.conditions = conditions or Conditions()
        self.camera = CameraPath(seed, duration_s, self.conditions)
        rng = np.random.default_rng([seed, 1])
        if gap_s is None:
            gap_s = max(duration_s / visits, float(rng.uniform(2.0, 7.0)))
        self.gap_s = gap_s
        self.visits = self._plan(rng, gap_s, lead_s, visits)
        self.events = tuple(sorted(self._log(), key=lambda event: (event.time_s, event.visit)))

    def frame(self, time_s: float, size: tuple[int, int]) -> np.ndarray:
        """The camera's image at ``time_s``: (height, width, 3) uint8 RGB of ``size`` = (height, width) pixels."""
        from vstream_ros.synthetic.rendering import render

        return render(self, time_s, size)

    def visible(self, visit: Visit, time_s: float) -> float:
        """Part of a visit's object that the frame of that time shows, in [0, 1]."""
        return visit.visible(time_s, self.height, self.camera.corner(time_s))

    def centre(self, visit: Visit, time_s: float) -> tuple[float, float] | None:
        """Where a visit's centre is in the frame of that time, in widths; None before it comes and after it is gone."""
        place = visit.centre(time_s)
        if place is None:
            return None
        x, y = self.camera.corner(time_s)
        return place[0] - x, place[1] - y

    def stamps_s(self, rate_hz: float) -> list[float]:
        """Times of the frames that a camera of this rate takes of the scene."""
        return [k / rate_hz for k in range(int(self.duration_s * rate_hz + 1e-9))]

    def _plan(self, rng: np.random.Generator, gap_s: float, lead_s: float, most: int) -> tuple[Visit, ...]:
        names = [(colour, shape) for colour in COLOURS for shape in SHAPES]
        rng.shuffle(names)
        visits: list[Visit] = []
        # Scenes may begin with objects that are there already.
        time_s = lead_s + float(rng.uniform(-6.0, 1.5)) if lead_s == 0.0 else lead_s
        while time_s < self.duration_s - 1.0 and len(visits) < most:
            if len(visits) == len(names):
                names += rng.permutation(names[: len(all_names())]).tolist()
            for _ in range(12):
                colour, shape = names[len(visits)]
                visit = self._visit(rng, len(visits), colour, shape, time_s)
                if visit.end_s > 1.0 and self._fits(visit, visits) and self._shows(visit):
                    visits.append(visit)
                    break
            time_s += float(rng.gamma(2.0, gap_s / 2.0)) + 0.3
        return tuple(visits)

    def _visit(self, rng: np.random.Generator, index: int, colour: str, shape: str, start_s: float) -> Visit:
        """One random visit that begins at ``start_s``."""
        diameter = float(rng.uniform(*self.conditions.diameters))
        speed = float(rng.uniform(MIN_SPEED, MAX_SPEED))
        direction = str(rng.choice(list(DIRECTIONS)))
        size = {"left": 1.0, "right": 1.0, "up": self.height, "down": self.height}[direction]
        across = self.height if direction in ("left", "right") else 1.0
        half = diameter / 2
        lateral = float(rng.uniform(half + 0.02, across - half - 0.02))
        outside = half + self.conditions.shake + (PAN_MARGIN if self.conditions.pan else 0.0)
        begin, sign = (-outside, 1.0) if direction in ("right", "down") else (size + outside, -1.0)
        x, y = self.camera.aim(start_s)

        def point(along: float) -> tuple[float, float]:
            return (x + along, y + lateral) if direction in ("left", "right") else (x + lateral, y + along)

        # The turning point keeps the whole object inside the image.
        turn = float(rng.uniform(half + 0.02, size - half - 0.02))
        turns_back = rng.random() < 0.3
        pause_s = float(rng.uniform(1.5, 8.0)) if turns_back or rng.random() < 0.6 else 0.0
        arrive_s = start_s + abs(turn - begin) / speed
        go_s = arrive_s + pause_s
        leaving = OPPOSITE[direction] if turns_back else direction
        end = begin if turns_back else (size + outside if sign > 0 else -outside)
        legs = [Leg(start_s, arrive_s, *point(begin), direction, speed)]
        if pause_s:
            legs.append(Leg(arrive_s, go_s, *point(turn), None, 0.0))
        legs.append(Leg(go_s, go_s + abs(end - turn) / speed, *point(turn), leaving, speed))
        tilt = 0.0 if shape == "circle" else float(rng.uniform(-0.2, 0.2))
        return Visit(index, colour, shape, diameter, tilt, tuple(legs))

    def _fits(self, visit: Visit, others: list[Visit]) -> bool:
        """Whether a visit never touches another one and never makes a crowd."""
        others = [other for other in others if other.end_s > visit.start_s]
        for time_s in np.arange(visit.start_s, visit.end_s, 0.2):
            here = visit.centre(float(time_s))
            together = 1
            for other in others:
                if other.name == visit.name:
                    return False
                there = other.centre(float(time_s))
                if here is None or there is None:
                    continue
                together += 1
                room = (visit.diameter + other.diameter) / 2 * 1.2 + 0.02
                if max(abs(here[0] - there[0]), abs(here[1] - there[1])) < room:
                    return False
            if together > MAX_TOGETHER:
                return False
        return True

    def _shows(self, visit: Visit) -> bool:
        """Whether a visit comes into the image from outside, is seen whole, and leaves it, while the camera pans."""
        if not self.conditions.pan:
            return True

        def visible(time_s: float) -> float:
            return visit.visible(time_s, self.height, self.camera.aim(time_s))

        edges = [time_s for time_s in (visit.start_s, visit.end_s - 1e-6) if 0.0 <= time_s < self.duration_s]
        times = np.arange(visit.start_s, visit.end_s, 0.2)
        return not any(visible(t) for t in edges) and max(visible(float(t)) for t in times) > 0.99

    def _log(self) -> list[Event]:
        events = []
        for visit in self.visits:
            for number, leg in enumerate(visit.legs):
                if leg.direction is None:
                    continue
                first, last = number == 0, number == len(visit.legs) - 1
                ends = ((leg.start_s, "enter" if first else "go"), (leg.end_s, "leave" if last else "stop"))
                for time_s, what in ends:
                    passes_on = not last and visit.legs[number + 1].direction is not None
                    came_moving = not first and visit.legs[number - 1].direction is not None
                    if (what == "stop" and passes_on) or (what == "go" and came_moving):
                        continue
                    x, _ = leg.at(time_s)
                    event = Event(time_s, what, visit.index, visit.colour, visit.shape, leg.direction, place_of(x))
                    if 0.0 <= time_s < self.duration_s:
                        events.append(event)
        return events


@functools.lru_cache(maxsize=1)
def all_names() -> tuple[str, ...]:
    """Every combination of colour and shape."""
    return tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
