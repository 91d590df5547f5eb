"""Scenes of the shapes world as recordings, and what is true of them at one moment."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from vstream_ros.images import SizeRule, resize_rgb
from vstream_ros.memory.clip import NANOSECONDS
from vstream_ros.replay.frames import Frame, Source
from vstream_ros.replay.record import RecordOptions, record
from vstream_ros.replay.terminal import frame_progress
from vstream_ros.synthetic.shapes_questions import Facts, View, answer, readings
from vstream_ros.synthetic.shapes_world import Scene, Visit
from vstream_ros.synthetic.sightings import sightings

CAMERA = (480, 640)
"""(height, width) of the recorded images."""
RATE_HZ = 4.0
"""Of the camera: twice what the node samples."""
START_NS = RecordOptions.start_ns
"""Stamp of a scene's second 0."""


class SceneFrame(Frame):
    """A scene at one moment; drawn when asked for."""

    topic = "scene"

    def __init__(self, scene: Scene, time_s: float) -> None:
        self._scene = scene
        self._time_s = time_s
        self.stamp_ns = self.receive_ns = round(time_s * NANOSECONDS)

    def rgb(self, size: SizeRule = None) -> np.ndarray:
        """The camera's image; ``size`` as in ``Frame``."""
        image = self._scene.frame(self._time_s, CAMERA)
        wanted = size(*CAMERA) if callable(size) else size
        return image if wanted is None else resize_rgb(image, wanted)


class SceneSource(Source):
    """What a camera of ``RATE_HZ`` takes of a scene from ``begin_s`` up to, not including, ``end_s``."""

    topics = (SceneFrame.topic,)

    def __init__(self, scene: Scene, begin_s: float, end_s: float) -> None:
        self.path = Path(f"scene-{scene.seed}")
        self._scene = scene
        self._times_s = [t for t in scene.stamps_s(RATE_HZ) if begin_s <= t < end_s]
        self.frame_count = len(self._times_s)

    def __iter__(self) -> Iterator[Frame]:
        return (SceneFrame(self._scene, time_s) for time_s in self._times_s)

    def close(self) -> None:
        """Nothing to release."""


def record_scene(
    scene: Scene, ends_s: Sequence[float], folder: Path, topic: str, out: Console, *, compressed: bool
) -> list[Path]:
    """Record a scene into bags under ``folder``, one from each of ``ends_s`` to the next; the first starts at 0.

    Bags that are there from an earlier run, with the same settings and the same way of drawing, are taken as they are.
    """
    key = hashlib.sha256(repr((scene.seed, scene.duration_s, CAMERA, RATE_HZ, topic, compressed)).encode())
    key.update(scene.frame(scene.duration_s / 2, CAMERA).tobytes())
    options = RecordOptions(topic=topic + ("/compressed" if compressed else ""), compressed=compressed)
    bags = []
    with frame_progress(out) as progress:
        for begin_s, end_s in zip([0.0, *ends_s], ends_s, strict=False):
            bag = folder / f"scene-{key.hexdigest()[:12]}" / f"{begin_s:g}-{end_s:g}s"
            bags.append(bag)
            if bag.exists():  # a recording gets its name only when it is whole
                continue
            source = SceneSource(scene, begin_s, end_s)
            task = progress.add_task(f"drawing and recording {begin_s:g} to {end_s:g} s", total=source.frame_count)
            record(source, bag, options, on_progress=lambda *_, task=task: progress.advance(task))
    return bags


def scene_time_s(stamp_ns: int) -> float:
    """Seconds of the scene at a header stamp of its recording."""
    return (stamp_ns - START_NS) / NANOSECONDS


def shown_views(scene: Scene, stamps_ns: Sequence[int], tubelets: int) -> list[View]:
    """What the tubelets of an answer show. ``stamps_ns``: its frame stamps, in order.

    Raises ``ValueError`` where a tubelet holds a single frame: which one it is the stamps do not say.
    """
    if len(stamps_ns) != 2 * tubelets:
        raise ValueError(f"{tubelets} tubelets of {len(stamps_ns)} frames are not all pairs")
    times = [scene_time_s(stamp) for stamp in stamps_ns]
    return [sightings(scene, *pair) for pair in zip(times[::2], times[1::2], strict=True)]


def supported(kind: str, subject: str, views: Sequence[View]) -> str | None:
    """The answer that the shown frames support; None where they leave it open."""
    return answer(kind, subject, readings(views))


def happened(kind: str, subject: str, scene: Scene, until_s: float) -> str | None:
    """The answer by the scene's own plan up to a moment, whatever of it was shown; None where there is none."""
    return answer(kind, subject, [_all_facts(scene, until_s)])


def _all_facts(scene: Scene, until_s: float) -> Facts:
    came = sorted((v for v in scene.visits if v.start_s < until_s), key=lambda v: (max(v.start_s, 0.0), v.start_s))
    now = tuple(s for s in sightings(scene, until_s - 0.5, until_s) if s.here)
    return Facts(tuple(came), {visit.name: _first_motion(visit) for visit in came}, now)


def _first_motion(visit: Visit) -> str:
    begin_s = max(visit.start_s, 0.0)
    leg = next(leg for leg in visit.legs if begin_s < leg.end_s)
    return leg.direction or "nowhere"
