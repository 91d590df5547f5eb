"""The demo on the shapes world: a scene of three minutes whose story is known, so that every answer can be checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vstream_ros.demo.picture import Held, draw_memory
from vstream_ros.demo.scene import happened, record_scene, scene_time_s, shown_views, supported
from vstream_ros.demo.session import TOPIC, Session, node_session, stamps_ns
from vstream_ros.errors import NotReadyError
from vstream_ros.replay.ask import Reply
from vstream_ros.replay.report import printable
from vstream_ros.replay.sources import open_source
from vstream_ros.synthetic.questions import PHRASINGS, right
from vstream_ros.synthetic.shapes_world import Scene

SEED = 8_000_000_001
"""Far from every seed of the training."""
DURATION_S = 180.0
REPLAY_RATE = 9.0
"""Scene seconds per second: 36 images a second."""
QUESTIONS: dict[float, tuple[tuple[str, str], ...]] = {
    54.0: (
        ("now", ""), ("colour", "triangle"), ("direction", "green triangle"), ("first", ""), ("before", "green triangle"),
    ),
    113.0: (
        ("now", ""), ("count", ""), ("where", "green square"), ("direction", "yellow cross"), ("last", ""), ("total", ""),
    ),
    DURATION_S: (
        ("now", ""), ("where", "blue circle"), ("shape", "blue"), ("direction", "blue circle"), ("first", ""),
        ("last", ""), ("ever", "cyan triangle"), ("ever", "purple cross"), ("before", "blue circle"),
        ("after", "green triangle"), ("count", ""), ("total", ""), ("describe", ""),
    ),
}
"""When the replay stops for questions, in seconds of the scene: what kind, about what."""


@dataclass(frozen=True)
class Checked:
    """One answer beside what it should be."""

    at_s: float
    reply: Reply
    supported: str | None = None
    """By the frames that the model was shown; None where they leave it open."""
    happened: str | None = None
    """By the event log; None where it has no answer."""


def show_shapes(
    workdir: Path, model: str, question: str | None, print_status: Callable[[Any, Console], None], out: Console
) -> list[Reply]:
    """Record, replay, ask and print. Returns the replies, those of the end first. Raises ``VStreamError``."""
    scene = Scene(SEED, DURATION_S)
    out.print(f"A scene of coloured shapes, {DURATION_S:g} s, seed {SEED}; its camera is recorded into bags", highlight=False)
    bags = record_scene(scene, list(QUESTIONS), workdir, TOPIC, out, compressed=True)
    checked: list[Checked] = []
    with node_session(workdir, model, out, compressed=True, parameters={"local_files_only": True}) as session:
        for (at_s, questions), bag in zip(QUESTIONS.items(), bags, strict=True):
            received, expected = session.play(bag, REPLAY_RATE, out)
            if received != expected:
                raise NotReadyError(
                    f"the node received {received} of the {expected} frames of {bag}: the machine is too busy; run it again"
                )
            moment = "the end" if at_s == DURATION_S else "mid-replay"
            out.print(
                f"Replayed to {clock(at_s)}, all {expected} frames received; at {moment}, {len(questions)} questions",
                highlight=False,
            )
            checked += [_ask(session, scene, at_s, *asked, out) for asked in questions]
        if question:
            checked.append(Checked(DURATION_S, session.ask(question, out)[0]))
        held = _held(session, bags, out)
        print_status(session.client, out)
    path = workdir / "memory.png"
    draw_memory(path, scene, held)
    out.print(answers_table(checked))
    out.print(summary(checked), highlight=False)
    out.print(f"What star and stream memory held at the end: {path}", highlight=False, soft_wrap=True)
    return [c.reply for c in sorted(checked, key=lambda c: -c.at_s)]


def _ask(session: Session, scene: Scene, at_s: float, kind: str, subject: str, out: Console) -> Checked:
    reply, response = session.ask(PHRASINGS[kind][0].format(subject), out)
    if reply.error_code:
        return Checked(at_s, reply)
    views = shown_views(scene, stamps_ns(response), response.metrics.tubelets)
    return Checked(at_s, reply, supported(kind, subject, views), happened(kind, subject, scene, at_s))


def _held(session: Session, bags: Sequence[Path], out: Console) -> list[Held]:
    """The frames in memory with their pixels, read again from the bags; star stands before stream."""
    _, response = session.ask("What is there now?", out)
    session.client.wait_for_fresh_status()
    assert session.client.cache is not None
    star = session.client.cache.cameras[0].star_frames
    wanted = stamps_ns(response)
    pixels = {}
    for bag in bags:
        with open_source(bag) as source:
            pixels.update({f.stamp_ns: f.rgb((96, 128)) for f in source if f.stamp_ns in wanted})
    return [Held(scene_time_s(stamp), pixels[stamp], k < star) for k, stamp in enumerate(wanted)]


def answers_table(checked: Sequence[Checked]) -> Table:
    """One row per answer; a truth is spelled out where the answer is another."""
    table = Table(title="The answers, beside the truth", title_justify="left")
    for title in ("at", "question", "answer", "shown frames say", "event log says"):
        table.add_column(title, overflow="fold", vertical="middle")
    for k, row in enumerate(checked):
        answer = row.reply.error_code or printable(row.reply.answer)
        table.add_row(
            clock(row.at_s), escape(row.reply.question), escape(answer), _mark(row, row.supported),
            _mark(row, row.happened), end_section=k + 1 < len(checked) and checked[k + 1].at_s != row.at_s,
        )
    table.caption = "– : more than one answer can be defended"
    return table


def _mark(row: Checked, truth: str | None) -> str:
    if truth is None:
        return "–"
    return "[green]✓[/green]" if right(row.reply.answer, truth) else f"[red]✗[/red] {escape(truth)}"


def summary(checked: Sequence[Checked]) -> str:
    """How many answers are right by either truth."""
    parts = []
    for name in ("supported", "happened"):
        known = [(row.reply.answer, truth) for row in checked if (truth := getattr(row, name)) is not None]
        parts.append((sum(right(*pair) for pair in known), len(known)))
    (shown, of_shown), (log, of_log) = parts
    return (
        f"✓ {shown} of {of_shown} answers are what the frames shown to the model support; "
        f"{log} of {of_log} are what happened, forgotten frames included."
    )


def clock(time_s: float) -> str:
    """``1:52``"""
    return f"{int(time_s) // 60}:{int(time_s) % 60:02d}"
