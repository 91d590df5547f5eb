"""What can still be answered from what a memory has kept of a shapes-world scene. No model, no torch.

A scene is played at 2 frames a second through several strategies at once. At its end questions are built from
everything that was shown, and answered, without a model, from what the kept tubelets show. An answer is right where it
equals the truth:

- past: one question of each of ``PAST_KINDS`` that the scene supports;
- visits: for each object that was certainly seen, whether a kept tubelet shows it;
- now: what is there at the end;
- empty star: how many of the star tubelets, the first one excepted, show nothing.

Where names return (the busy world), a question is asked only if its answer is the same whether an object that comes
again is the old one or another one like it (``shapes_questions.readings``); visits are told apart in any case.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.memory_interface import Kept, Oracle
from benchmarks.memory_strategies import make_strategies
from vstream_ros.memory import NANOSECONDS, MemoryConfig, Tubelet
from vstream_ros.synthetic.conditions import Conditions
from vstream_ros.synthetic.shapes_questions import Facts, View, answer, readings, subject_of
from vstream_ros.synthetic.shapes_world import MAX_VISITS, Scene, all_names
from vstream_ros.synthetic.sightings import camera_frame, sightings

RATE_HZ = 2.0
FRAME_SIZE = (84, 112)
"""(height, width): what vstream-tiny sees of a 640x480 camera."""
CAMERA, CAMERA_SHARE = (480, 640), 0.05
"""Of the scenes are drawn at that size and scaled down by the node's own resize; it is 25 times the work."""
PAST_KINDS = ("first", "last", "ever", "before", "after", "total", "describe")
ANSWER_KINDS = ("now", "first", "last", "before", "after", "total", "describe")
"""What a model is asked."""
WORLDS = ("plain", "busy", "moving", "textured")
SHAKES = (3 / 224, 10 / 224)
"""Widths."""


def make_scene(world: str, minutes: float, seed: int) -> Scene:
    """A scene of one of ``WORLDS``; raises ``ValueError`` for another.

    plain: at most 6 visits, as vstream-tiny knows it. busy: 20 or 50 visits. moving: the camera pans, or shakes by up
    to 3 or 10 of 224 pixels. textured: dull small objects before a textured wall.
    """
    rng = np.random.default_rng([seed, 400])
    conditions, visits = Conditions(), MAX_VISITS
    if world == "busy":
        visits = 20 if minutes <= 2 else int(rng.choice([20, 50]))
    elif world == "moving":
        how = int(rng.integers(2 * len(SHAKES)))
        texture, reach = float(rng.uniform(0.0, 12.0)), float(rng.uniform(0.5, 1.5))
        pans = how < len(SHAKES)
        conditions = Conditions(texture, pan=reach if pans else 0.0, shake=0.0 if pans else SHAKES[how - len(SHAKES)])
    elif world == "textured":
        texture, contrast = float(rng.uniform(8.0, 20.0)), float(rng.uniform(0.4, 0.7))
        conditions = Conditions(texture=texture, contrast=contrast, diameters=(0.10, 0.15))
    elif world != "plain":
        raise ValueError(f"world must be one of {WORLDS}, got {world!r}")
    return Scene(seed, 60.0 * minutes, visits=visits, names_return=world == "busy", conditions=conditions)


@dataclass(frozen=True)
class Score:
    """What one strategy has kept of one scene. Plain values: it goes to JSON and back."""

    past: list[tuple[str, bool, float | None]]
    """Kind, right, and the age of the oldest object that question or truth names: seconds since it was last seen."""
    visits: list[tuple[bool, float]]
    """Shown by what was kept, and age."""
    now: bool | None
    """None where what is there can't be said in one way."""
    empty: int
    star: int
    """Star tubelets, the first one excepted; ``empty`` of them show nothing."""


def tubelets_of(scene: Scene, camera: tuple[int, int] | None, size: tuple[int, int]) -> Iterator[Tubelet]:
    """A scene's tubelets at ``RATE_HZ``, frames of ``size`` = (height, width)."""
    stamps = scene.stamps_s(RATE_HZ)
    for k, pair in enumerate(zip(stamps[::2], stamps[1::2], strict=False)):
        frames = np.stack([camera_frame(scene, time_s, size, camera) for time_s in pair])
        stamps_ns = tuple(round(time_s * NANOSECONDS) for time_s in pair)
        yield Tubelet(k, "camera", frames, stamps_ns, stamps_ns[0], importance=0.0)


def view_of(scene: Scene, tubelet: Tubelet) -> View:
    """What a tubelet of a scene whose second 0 is stamp 0 shows."""
    return sightings(scene, tubelet.stamps_ns[0] / NANOSECONDS, tubelet.stamps_ns[-1] / NANOSECONDS)


def true_importance(view: View) -> float:
    """By what is seen: the objects that move count twice, since how they came is asked, too."""
    return 0.02 + sum((1.0 + (s.motion not in (None, "nowhere"))) * s.seen * max(s.before, s.after) for s in view)


def play(
    scene: Scene, strategies: Sequence[str], config: MemoryConfig, *, camera: tuple[int, int] | None = None,
    size: tuple[int, int] = FRAME_SIZE,
) -> tuple[list[View], dict[str, Kept]]:
    """Show a scene to strategies: what each of its tubelets shows, and what each strategy has kept at the end."""
    views: list[View] = []
    oracle = Oracle(len(scene.stamps_s(RATE_HZ)) // 2, lambda tubelet: true_importance(views[tubelet.id]))
    memories = make_strategies(strategies, oracle, scene.seed, config)
    for tubelet in tubelets_of(scene, camera, size):
        views.append(view_of(scene, tubelet))
        for memory in memories.values():
            memory.add(tubelet)
    return views, {name: memory.kept() for name, memory in memories.items()}


def score(kept: Sequence[View], star: Sequence[View], shown: Sequence[View], seed: int) -> Score:
    """Compare what kept tubelets show with what all of them have shown.

    ``kept`` may be empty: then nothing of what was there is known. ``star``: the views of the star tubelets among
    them. ``seed``: of the choice of questions; what is asked does not depend on what was kept.
    """
    truth, given = readings(shown), readings(kept or [()])
    last_seen = {s.visit.index: k for k, view in enumerate(shown) for s in view if s.seen}
    names = {s.visit.index: s.visit.name for view in shown for s in view}
    ages = {index: len(shown) - 1.0 - k for index, k in last_seen.items()}  # a tubelet takes a second
    past = []
    for number, kind in enumerate(PAST_KINDS):
        asked = subject_of(kind, truth, np.random.default_rng([seed, 500, number]))
        if asked is None:
            continue
        subject, right = asked
        about = {name for name in all_names() if name in f"{subject}, {right}"}
        old = [age for index, age in ages.items() if kind in ("total", "describe") or names[index] in about]
        past.append((kind, answer(kind, subject, given) == right, max(old, default=None)))
    held = {s.visit.index for view in kept for s in view if s.seen}
    visits = [(index in held, age) for index, age in ages.items()]
    now = answer("now", "", truth)
    empty = sum(not any(s.glimpsed for s in view) for view in star[1:])
    return Score(past, visits, None if now is None else _now(given) == now, empty, max(len(star) - 1, 0))


def _now(facts: Sequence[Facts]) -> str | None:
    return answer("now", "", facts)


def recall(world: str, minutes: float, seed: int, strategies: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Play one scene and score each strategy: by name, the fields of ``Score``."""
    camera = CAMERA if np.random.default_rng([seed, 401]).random() < CAMERA_SHARE else None
    scene = make_scene(world, minutes, seed)
    shown, kept = play(scene, strategies, MemoryConfig(), camera=camera)
    scores = {}
    for name, held in kept.items():
        views = [view_of(scene, tubelet) for tubelet in held.tubelets]
        scores[name] = asdict(score(views, views[: len(held.star)], shown, seed))
    return scores
