"""A brief event in half an hour of nothing, seen under conditions that make a memory err. No model, no torch.

A room without people; at minute 5 something small and coloured crosses it within 1.5 s; at minute 30 it is asked
whether our memory still holds a tubelet of that. There is no cut in any of the streams: each scene change is a false
one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from vstream_ros.memory import NANOSECONDS, MemoryConfig, SmartFrameManager
from vstream_ros.synthetic.conditions import CameraPath, Conditions
from vstream_ros.synthetic.shapes_world import COLOURS

STREAMS = ("still", "flicker", "shake3", "shake10", "pan", "exposure", "day_night")
"""All with sensor noise. flicker: a gain of ±30 % per frame. shake3, shake10: each frame is displaced by up to 3 or 10
pixels. pan: the camera rests, drifts and sweeps. exposure: the gain steps every 20 to 60 s. day_night: down to an
eighth of the light at half time, and back."""
SIZE = (126, 224)
"""(height, width) in pixels."""
MARGIN = 12
"""Pixels of the room around the image, for the shake."""
DURATION_S, EVENT_AT_S, EVENT_S = 1800.0, 300.0, 1.5
PAN = 1.0
"""Widths to either side."""


@dataclass(frozen=True)
class Outcome:
    """What one stream has come to. Plain values: it goes to JSON and back."""

    kept: bool
    false_cuts: int
    frames: int


class EventStream:
    """One stream; everything follows from the seed, frame by frame, in whatever order they are drawn."""

    def __init__(self, kind: str, seed: int, rate_hz: float, duration_s: float = DURATION_S) -> None:
        """``kind``: one of ``STREAMS``. ``duration_s``: more than the event needs, ``EVENT_AT_S + EVENT_S``."""
        if kind not in STREAMS:
            raise ValueError(f"kind must be one of {STREAMS}, got {kind!r}")
        if duration_s < EVENT_AT_S + EVENT_S:
            raise ValueError(f"duration_s must be >= {EVENT_AT_S + EVENT_S}, got {duration_s}")
        self.kind = kind
        self.seed = seed
        self.rate_hz = rate_hz
        self.duration_s = duration_s
        rng = np.random.default_rng([seed, 600])
        self._shake = {"shake3": 3, "shake10": 10}.get(kind, 0)
        self._path = CameraPath(seed, duration_s, Conditions(pan=PAN)) if kind == "pan" else None
        self._room = _room(rng, 1.0 + 2.0 * PAN * (kind == "pan"))
        self._noise = rng.uniform(2.0, 7.0) * rng.standard_normal((3 * SIZE[0], 3 * SIZE[1], 3)).astype(np.float32)
        self._colour = list(COLOURS.values())[int(rng.integers(len(COLOURS)))]
        self._radius = float(rng.uniform(0.05, 0.07)) * SIZE[1]
        # From one side to the other, or back, and somewhat up or down.
        ends = np.array([[0.2, rng.uniform(0.25, 0.75)], [0.8, rng.uniform(0.25, 0.75)]]) * SIZE[::-1]
        self._way = ends if rng.random() < 0.5 else ends[::-1]
        steps = rng.uniform(20.0, 60.0, int(duration_s / 20.0) + 1)
        self._steps_s = np.cumsum(steps)
        self._gains = np.exp(rng.uniform(np.log(0.5), np.log(1.6), len(steps) + 1))

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        """Time in seconds and (height, width, 3) uint8 RGB, frame by frame."""
        for k in range(int(self.duration_s * self.rate_hz + 1e-9)):
            yield k / self.rate_hz, self.frame(k / self.rate_hz)

    @staticmethod
    def shows_event(time_s: float) -> bool:
        """Whether the frame of that time shows the event."""
        return EVENT_AT_S <= time_s < EVENT_AT_S + EVENT_S

    def frame(self, time_s: float) -> np.ndarray:
        """(height, width, 3) uint8 RGB."""
        rng = np.random.default_rng([self.seed, 601, round(time_s * 1e4)])
        left, top = self._corner(time_s, rng)
        view = self._room[top : top + SIZE[0], left : left + SIZE[1]]
        if self.shows_event(time_s):
            view = view.copy()
            centre = self._way[0] + (self._way[1] - self._way[0]) * (time_s - EVENT_AT_S) / EVENT_S
            x, y = centre + np.array([MARGIN - left, MARGIN - top]) * (self._path is None)
            cv2.circle(view, (round(x), round(y)), round(self._radius), self._colour, -1, cv2.LINE_AA)
        down, across = rng.integers(0, 2 * np.array(SIZE))
        noise = self._noise[down : down + SIZE[0], across : across + SIZE[1]]
        lit = view.astype(np.float32) * self._light(time_s, rng) + noise
        return np.clip(lit + 0.5, 0, 255).astype(np.uint8)

    def _corner(self, time_s: float, rng: np.random.Generator) -> tuple[int, int]:
        """(left, top) of the part of the room that the frame shows."""
        if self._path is not None:
            x, y = self._path.aim(time_s)
            return round((x + PAN) * SIZE[1]) + MARGIN, round(y / PAN * MARGIN) + MARGIN
        dx, dy = rng.integers(-self._shake, self._shake + 1, 2)
        return MARGIN + int(dx), MARGIN + int(dy)

    def _light(self, time_s: float, rng: np.random.Generator) -> np.ndarray:
        """(3,) float32 gains of the channels."""
        gain = 1.0
        if self.kind == "flicker":
            gain = rng.uniform(0.7, 1.3)
        elif self.kind == "exposure":
            gain = self._gains[int(np.searchsorted(self._steps_s, time_s, side="right"))]
        elif self.kind == "day_night":
            gain = 0.5625 + 0.4375 * np.cos(2 * np.pi * time_s / self.duration_s)
        night = 1.0 - gain if self.kind == "day_night" else 0.0
        return (gain * np.array([1.0 - 0.25 * night, 1.0 - 0.1 * night, 1.0 + 0.1 * night])).astype(np.float32)


def _room(rng: np.random.Generator, widths: float) -> np.ndarray:
    """A dull picture, (height + 2 margins, widths * width + 2 margins, 3) uint8: wall, furniture, some pattern."""
    height, width = SIZE[0] + 2 * MARGIN, round(SIZE[1] * widths) + 2 * MARGIN
    base = rng.uniform(80.0, 140.0) + rng.uniform(-10.0, 10.0, 3)
    cells = rng.standard_normal((4, round(6 * widths), 1)) + 0.3 * rng.standard_normal((4, round(6 * widths), 3))
    room = base + 15.0 * cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(round(14 * widths)):
        corner = rng.integers(0, [width, height])
        other = corner + rng.integers(8, 60, 2)
        shade = base + rng.uniform(-50.0, 50.0) + rng.uniform(-12.0, 12.0, 3)
        cv2.rectangle(room, tuple(map(int, corner)), tuple(map(int, other)), tuple(map(float, shade)), -1)
    # From a plain wall to shelves full of things, as large as makes a shaken picture another one.
    cell = int(rng.integers(6, 17))
    pattern = rng.uniform(0.0, 45.0) * rng.standard_normal((height // cell, width // cell))
    room += cv2.resize(pattern, (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
    return np.clip(cv2.GaussianBlur(room, (0, 0), 0.8), 15.0, 200.0).astype(np.uint8)


def watch(kind: str, seed: int, rate_hz: float, duration_s: float = DURATION_S) -> Outcome:
    """Show a stream to our memory as it is by default, every frame of it."""
    stream = EventStream(kind, seed, rate_hz, duration_s)
    memory = SmartFrameManager(MemoryConfig())
    cuts = frames = 0
    for time_s, frame in stream:
        cuts += memory.add_frame(frame, round(time_s * NANOSECONDS)).scene_change
        frames += 1
    stamps = [stamp for tubelet in memory.clip().tubelets for stamp in tubelet.stamps_ns]
    return Outcome(any(stream.shows_event(stamp / NANOSECONDS) for stamp in stamps), cuts, frames)
