"""Whether the node says what offline inference says, through all of ROS.

Scenes of the shapes world at 640x480 are recorded as raw images and replayed reliably to the installed node, a process
of its own with ``vstream-tiny``. Questions of every kind go through its service. The same bag is read into an engine in
this process, without ROS, which must hold the same frames and give the same text.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from support.shapes_accuracy import RATE_HZ, clip_views
from vstream_ros.demo.scene import START_NS, record_scene
from vstream_ros.demo.session import TOPIC, Session, node_session, stamps_ns
from vstream_ros.demo.shapes import play_whole
from vstream_ros.engine import DelayedBatchInferenceEngine
from vstream_ros.engine.answers import Question
from vstream_ros.engine.engine_config import EngineConfig
from vstream_ros.memory import MemoryConfig
from vstream_ros.replay.ask import feed
from vstream_ros.replay.sources import open_source
from vstream_ros.synthetic.shapes_questions import KINDS, QA, View, ask, readings, right
from vstream_ros.synthetic.shapes_world import Scene

SEED = 9_500_000_000
"""Far from every seed of the training, and from those of ``shapes_accuracy``."""
CAMERA = "front"
REPLAY_RATE = 6.0
A_SCENE = 3
"""Different questions of a kind about one scene at most."""
PARAMETERS: dict[str, Any] = {"device": "cpu", "torch_dtype": "float32", "local_files_only": True}


@dataclass
class KindAgreement:
    """How many answers to one kind of question are the offline engine's, and how many are right."""

    kind: str
    n: int = 0
    equal: int = 0
    """The node's text is the offline engine's."""
    right: int = 0
    """... and what the shown frames support."""
    different: list[dict[str, str]] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """As it stands in the report."""
        return {**asdict(self), "accuracy": self.right / self.n if self.n else None}


def make_engine(model: str) -> DelayedBatchInferenceEngine:
    """An engine with the node's parameters and without the node."""
    memory = {CAMERA: MemoryConfig(sample_rate_hz=RATE_HZ, include_pending=False)}
    engine = DelayedBatchInferenceEngine(model, config=EngineConfig(**PARAMETERS), memory=memory)
    engine.load().result()
    return engine


def scenes(seed: int) -> Iterator[tuple[Scene, float]]:
    """Scenes and when to stop them, after 10 s to 3 min, while something is there: some kinds ask about now."""
    while True:
        seed += 1
        rng = np.random.default_rng([seed, 400])
        scene = Scene(seed, float(np.exp(rng.uniform(np.log(12.0), np.log(180.0)))))
        ends = [v.start_s + float(rng.uniform(0.2, 0.9)) * (v.end_s - v.start_s) for v in scene.visits]
        ends = [float(end_s // 1.0) for end_s in ends if 10.0 <= end_s <= scene.duration_s]
        if ends:
            yield scene, ends[-1]


def questions(views: Sequence[View], wanted: Counter[str], rng: np.random.Generator) -> list[QA]:
    """Up to ``A_SCENE`` different questions of every kind that is still wanted, in random order."""
    facts = readings(views)
    asked: dict[str, QA] = {}
    for kind in KINDS:
        drawn = (ask(kind, views, rng, facts) for _ in range(3 * A_SCENE))
        different = {qa.question: qa for qa in drawn if qa is not None}
        asked.update(list(different.items())[: min(A_SCENE, max(wanted[kind], 0))])
    order = list(asked.values())
    rng.shuffle(order)
    return order


def ask_both(
    session: Session, engine: DelayedBatchInferenceEngine, scene: Scene, qas: Sequence[QA], out: Console
) -> Iterator[tuple[QA, str, str]]:
    """Ask the node and the engine. Yields the question, the node's text and the engine's.

    Raises ``RuntimeError`` where the node has no answer, or they did not look at the same frames.
    """
    for qa in qas:
        reply, response = session.ask(qa.question, out)
        if reply.error_code:
            raise RuntimeError(f"{qa.question} {reply.error_code}: {reply.message}")
        offline = engine.submit(Question(qa.question)).future.result()
        if tuple(stamps_ns(response)) != offline.frame_stamps_ns:
            raise RuntimeError(f"scene {scene.seed}: the node was shown other frames than the engine")
        yield qa, reply.answer, offline.text


def evaluate(model: str, per_kind: int, seed: int, workdir: Path, out: Console) -> dict[str, Any]:
    """Replay scenes and ask until every kind has ``per_kind`` answers."""
    tallies = {kind: KindAgreement(kind) for kind in KINDS}
    wanted = Counter(dict.fromkeys(KINDS, per_kind))
    count = frames = 0
    with (
        make_engine(model) as engine,
        node_session(workdir, model, out, compressed=False, parameters=PARAMETERS) as session,
        Progress(console=out) as progress,
    ):
        task = progress.add_task("asking", total=wanted.total())
        for scene, end_s in scenes(seed):
            session.client.clear_memory()
            engine.clear()
            rng = np.random.default_rng([scene.seed, 401])
            quiet = Console(quiet=True)
            (bag,) = record_scene(scene, [end_s], workdir, TOPIC, quiet, compressed=False)
            play_whole(session, bag, REPLAY_RATE, quiet)
            with open_source(bag) as source:
                frames += feed(engine, source, {TOPIC: CAMERA}).read
            shutil.rmtree(bag.parent)  # raw images: a scene takes up to half a gigabyte
            (clip,) = engine.clips()
            qas = questions(clip_views(scene, clip.tubelets, START_NS), wanted, rng)
            for qa, node_text, engine_text in ask_both(session, engine, scene, qas, quiet):
                tally = tallies[qa.kind]
                tally.n += 1
                wanted[qa.kind] -= 1
                tally.equal += node_text == engine_text
                tally.right += right(node_text, qa.answer)
                if node_text != engine_text:
                    tally.different.append({"question": qa.question, "node": node_text, "offline": engine_text})
                progress.advance(task)
            count += 1
            if not any(wanted[kind] > 0 for kind in KINDS):
                break
    kinds = [tally.summary() for tally in tallies.values()]
    return {"model": model, "seed": seed, "scenes": count, "frames": frames, "kinds": kinds}


def show(report: dict[str, Any], out: Console) -> None:
    """Print the report as a table."""
    title = f"{report['model']}: {report['scenes']} scenes, {report['frames']} images of 640x480, none lost"
    table = Table("kind", "n", "node = offline", "right", title=title)
    for row in report["kinds"]:
        accuracy = f"{100 * (row['accuracy'] or 0.0):.0f} %"
        table.add_row(row["kind"], str(row["n"]), f"{row['equal']} of {row['n']}", accuracy)
    out.print(table)
    for row in report["kinds"]:
        for case in row["different"]:
            out.print(f"{row['kind']}: {case}", style="red", markup=False)
