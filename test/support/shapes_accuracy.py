"""How often a model is right about scenes of the shapes world that it was never trained on.

Scenes of 2 s to 10 min go through the project's own memory at 2 frames a second, some of them camera-sized and through
the node's own resize. At several moments of each, questions of every kind are answered by plain native inference and
by the engine (delayed encoding, cache reuse). An answer counts as right if it is what the frames shown to the model
support; recall counts what it should have been by everything that was ever shown to the memory.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from support.intervals import wilson
from training.parallel import in_processes
from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.engine.answers import Question
from vstream_ros.engine.engine_config import EngineConfig
from vstream_ros.engine.segments import clip_segments
from vstream_ros.memory import NANOSECONDS, Clip, MemoryConfig, SmartFrameManager, Tubelet
from vstream_ros.models.base import GenerationOptions
from vstream_ros.models.loader import load_model
from vstream_ros.models.qwen.video_model import QwenVideoModel
from vstream_ros.synthetic.shapes_questions import KINDS, ONE_WORD, QA, View, ask, right
from vstream_ros.synthetic.shapes_world import Scene
from vstream_ros.synthetic.sightings import camera_frame, sightings

HELD_OUT_SEED = 9_000_000_000
"""Far from every seed of the training."""
RATE_HZ = 2.0
CAMERA = (480, 640)
CAMERA_SHARE = 0.1
"""Of the scenes are drawn at ``CAMERA`` and scaled down; it is 20 times the work."""
RECALL_KINDS = ("first", "ever", "before", "after", "total", "describe")
MAX_NEW_TOKENS = 120


@dataclass
class KindScore:
    """How many answers to one kind of question are right, and how many are native's."""

    kind: str
    n: int = 0
    right: int = 0
    engine_equals_native: int = 0
    wrong: list[dict[str, str]] = field(default_factory=list)
    """The first few wrong answers."""

    def add(self, qa: QA, text: str, equal: bool) -> None:
        """Count one answer."""
        self.n += 1
        self.engine_equals_native += equal
        if right(text, qa.answer):
            self.right += 1
        elif len(self.wrong) < 5:
            self.wrong.append({"question": qa.question, "answer": text, "truth": qa.answer})

    def summary(self) -> dict[str, Any]:
        """As it stands in the report; ``accuracy`` is None where nothing was asked."""
        low, high = wilson(self.right, self.n)
        accuracy = self.right / self.n if self.n else None
        return {**asdict(self), "accuracy": accuracy, "ci95": [round(low, 4), round(high, 4)]}


def clip_views(scene: Scene, tubelets: Sequence[Tubelet], start_ns: int = 0) -> list[View]:
    """What each tubelet of a memory's clip shows. ``start_ns``: stamp of the scene's second 0."""
    times = [[(stamp - start_ns) / NANOSECONDS for stamp in tubelet.stamps_ns] for tubelet in tubelets]
    return [sightings(scene, pair[0], pair[-1]) for pair in times]


@dataclass(frozen=True)
class Moment:
    """A scene's memory at one moment."""

    clip: Clip
    views: list[View]
    shown: list[View]
    """Of everything that was ever given to the memory."""
    answerer: ClipAnswerer


def moments(seed: int, model: QwenVideoModel) -> Iterator[Moment]:
    """Play one scene through a memory, and stop at about four random moments of it."""
    rng = np.random.default_rng([seed, 300])
    scene = Scene(seed, float(np.exp(rng.uniform(math.log(2.0), math.log(600.0)))))
    camera = CAMERA if rng.random() < CAMERA_SHARE else None
    memory = SmartFrameManager(MemoryConfig(sample_rate_hz=RATE_HZ, include_pending=False))
    answerer = ClipAnswerer(model, EngineConfig(), ["camera"])
    size = model.frame_spec.fit(*CAMERA)
    stamps = scene.stamps_s(RATE_HZ)
    stops = {len(stamps) - 1, *(int(k) for k in rng.integers(3, max(len(stamps), 4), 3))}
    for k, time_s in enumerate(stamps):
        memory.add_frame(camera_frame(scene, time_s, size, camera), round(time_s * NANOSECONDS))
        if k in stops and k >= 3:
            clip = memory.clip()
            pairs = zip(stamps[: k + 1 : 2], stamps[1 : k + 1 : 2], strict=False)
            shown = [sightings(scene, *pair) for pair in pairs]
            yield Moment(clip, clip_views(scene, clip.tubelets), shown, answerer)


def answer_both(moment: Moment, question: str) -> tuple[str, bool]:
    """The native answer, and whether the engine's has the same tokens."""
    answerer = moment.answerer
    model = answerer.model
    assert isinstance(model, QwenVideoModel)
    segments = clip_segments([moment.clip], answerer.cameras, answerer.config.camera_block_s)
    tokens = model.native_generate(segments, question, GenerationOptions(MAX_NEW_TOKENS), true_time=True)
    engine = answerer.answer([moment.clip], Question(question, max_new_tokens=MAX_NEW_TOKENS))
    return model.decode_text(tokens), list(engine.token_ids) == tokens


@dataclass(frozen=True)
class Asked:
    """One question that was asked, and what came of it."""

    table: str
    """``kinds`` or ``recall``"""
    qa: QA
    text: str
    engine_equals_native: bool


@functools.cache
def load(name: str) -> QwenVideoModel:
    """The model under test, once in each process, on one thread."""
    torch.set_num_threads(1)
    config = EngineConfig()
    return load_model(
        name, device="cpu", torch_dtype="float32", local_files_only=True,
        min_pixels=config.min_pixels, max_pixels=config.max_pixels,
    )


def ask_about(model: str, seed: int, wanted: dict[str, list[str]]) -> list[Asked]:
    """Play one scene and ask one question of each wanted kind at each of its moments.

    ``wanted``: kinds by table. What is asked of a kind does not depend on the other kinds.
    """
    asked = []
    for number, moment in enumerate(moments(seed, load(model))):
        for table, views in (("kinds", moment.views), ("recall", moment.shown)):
            for kind in wanted[table]:
                rng = np.random.default_rng([seed, number, KINDS.index(kind), table == "recall"])
                qa = ask(kind, views, rng)
                if qa is not None:
                    asked.append(Asked(table, qa, *answer_both(moment, qa.question)))
    return asked


def evaluate(
    model: str, per_kind: int, seed: int, console: Console, *, recall_per_kind: int | None = None, processes: int = 2
) -> dict[str, Any]:
    """Ask until every kind has ``per_kind`` answers, of recall ``recall_per_kind`` (default: as many)."""
    tables = {
        "kinds": {kind: KindScore(kind) for kind in KINDS},
        "recall": {kind: KindScore(kind) for kind in RECALL_KINDS},
    }
    goals = {"kinds": per_kind, "recall": per_kind if recall_per_kind is None else recall_per_kind}

    def wanted() -> dict[str, list[str]]:
        return {t: [k for k, tally in tallies.items() if tally.n < goals[t]] for t, tallies in tables.items()}

    def scenes() -> Iterator[tuple[str, int, dict[str, list[str]]]]:
        for scene in itertools.count(seed):
            if not any((missing := wanted()).values()):
                return
            yield model, scene, missing

    with Progress(console=console) as progress:
        task = progress.add_task("asking", total=sum(goals[t] * len(tallies) for t, tallies in tables.items()))
        played = 0
        for asked in in_processes(ask_about, scenes(), processes):
            played += 1
            for one in asked:
                tally = tables[one.table][one.qa.kind]
                if tally.n < goals[one.table]:
                    tally.add(one.qa, one.text, one.engine_equals_native)
                    progress.advance(task)
    report: dict[str, Any] = {"model": model, "seed": seed, "scenes": played}
    return report | {t: [tally.summary() for tally in tallies.values()] for t, tallies in tables.items()}


def show(report: dict[str, Any], console: Console) -> None:
    """Print the report as tables."""
    for title, rows in (("what the clip supports", report["kinds"]), ("memory recall", report["recall"])):
        table = Table("kind", "n", "right", "95 %", "engine = native", title=title)
        for row in rows:
            low, high = row["ci95"]
            star = " *" if row["kind"] in ONE_WORD else ""
            table.add_row(
                row["kind"] + star, str(row["n"]), f"{100 * (row['accuracy'] or 0.0):.1f} %",
                f"{100 * low:.1f} to {100 * high:.1f}", f"{row['engine_equals_native']} of {row['n']}",
            )
        console.print(table)
    console.print("* one word")
