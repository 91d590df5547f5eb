"""The demo on the shapes world: a scene of three minutes whose story is known, so that every answer can be checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vstream_ros.demo.picture import draw_memory
from vstream_ros.demo.scene import happened, record_scene, scene_time_s, shown_views, supported
from vstream_ros.demo.session import TOPIC, Session, node_session, stamps_ns
from vstream_ros.errors import NotReadyError
from vstream_ros.replay.ask import Reply
from vstream_ros.replay.terminal import literal, printable
from vstream_ros.synthetic.shapes_questions import PHRASINGS, right
from vstream_ros.synthetic.shapes_world import Scene

SEED = 8_000_000_001
"""Far from every seed of the training."""
DURATION_S = 180.0
REPLAY_RATE = 9.0
"""Scene seconds per second: 36 images a second."""
LONGEST_CELL = 60
"""Characters of an answer that has its place in the table."""
QUESTIONS: dict[float, tuple[tuple[str, str], ...]] = {
    78.0: (
        ("now", ""), ("colour", "triangle"), ("direction", "green triangle"), ("first", ""),
        ("before", "green triangle"), ("describe", ""),
    ),
    113.0: (
        ("now", ""), ("count", ""), ("where", "cyan triangle"), ("direction", "cyan triangle"), ("last", ""),
        ("total", ""),
    ),
    DURATION_S: (
        ("now", ""), ("where", "green square"), ("shape", "green"), ("direction", "green square"), ("first", ""),
        ("last", ""), ("ever", "cyan triangle"), ("ever", "purple cross"), ("before", "blue square"),
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
    """By the frames that the model was shown; None where that is open."""
    happened: str | None = None
    """By the event log; None where it has no answer."""
    stamps_ns: tuple[int, ...] = ()
    """Of the frames that the model was shown, two a tubelet; empty where that is open."""


def show_shapes(
    workdir: Path, model: str, question: str | None, print_status: Callable[[Any, Console], None], out: Console
) -> list[Reply]:
    """Record, replay, ask and print. Returns the replies, those of the end first. Raises ``VStreamError``.

    ``question``: one of the user's own, asked at the end. ``print_status`` takes the session's client.
    """
    scene = Scene(SEED, DURATION_S)
    out.print(f"The camera sees {DURATION_S:g} s of coloured shapes (seed {SEED}); recorded once", highlight=False)
    bags = record_scene(scene, list(QUESTIONS), workdir, TOPIC, out, compressed=True)
    checked: list[Checked] = []
    with node_session(workdir, model, out, compressed=True, parameters={"local_files_only": True}) as session:
        for (at_s, questions), bag in zip(QUESTIONS.items(), bags, strict=True):
            play_whole(session, bag, REPLAY_RATE, out)
            out.print(f"Replayed to {clock(at_s)}, no frame lost; {len(questions)} questions", highlight=False)
            checked += [_ask(session, scene, at_s, *asked, out) for asked in questions]
        if question:
            checked.append(Checked(DURATION_S, session.ask(question, out)[0]))
        _ask_again(session, [row.reply for row in checked if row.at_s == DURATION_S], out)
        session.client.wait_for_fresh_status()
        print_status(session.client, out)
        assert session.client.cache is not None
        star_frames = session.client.cache.cameras[0].star_frames
        sheet = session.client.memory_sheet()
    print_answers(checked, out)
    seen = [row.stamps_ns for row in checked if row.at_s == DURATION_S and row.stamps_ns]
    if seen:
        path = workdir / "memory.png"
        times_s = [scene_time_s(stamp) for stamp in seen[0]]  # star stands before stream
        draw_memory(path, scene, sheet, times_s[:star_frames], times_s[star_frames:])
        out.print(f"What star and stream memory held at the end: {literal(path)}", highlight=False, soft_wrap=True)
    return [row.reply for row in sorted(checked, key=lambda row: -row.at_s)]


def play_whole(session: Session, bag: Path, rate: float, out: Console) -> None:
    """Replay a bag; raises ``NotReadyError`` where the node did not receive all of it."""
    received, expected = session.play(bag, rate, out)
    if received != expected:
        raise NotReadyError(
            f"the node received {received} of the {expected} frames of {bag}: the machine is too busy, run it again"
        )


def _ask(session: Session, scene: Scene, at_s: float, kind: str, subject: str, out: Console) -> Checked:
    reply, response = session.ask(PHRASINGS[kind][0].format(subject), out)
    if reply.error_code:
        return Checked(at_s, reply)
    stamps = tuple(stamps_ns(response))
    try:
        shown = supported(kind, subject, shown_views(scene, stamps, response.metrics.tubelets))
    except ValueError:  # a change of light was taken for a cut, which left tubelets of one frame
        shown, stamps = None, ()
    return Checked(at_s, reply, shown, happened(kind, subject, scene, at_s), stamps)


def _ask_again(session: Session, replies: Sequence[Reply], out: Console) -> None:
    """The last questions once more, all at once: they share each pass of the model, and the answers are known."""
    one_by_one_s = sum(reply.metrics["round_trip"] for reply in replies)
    answers, together_s = session.ask_together([reply.question for reply in replies], out)
    same = sum(answer == reply.answer for answer, reply in zip(answers, replies, strict=True))
    out.print(
        f"The last {len(replies)} questions took {one_by_one_s:.2f} s one after another; once more, all at once, "
        f"{together_s:.2f} s: {same} of {len(replies)} answers are the same",
        highlight=False,
    )


def print_answers(checked: Sequence[Checked], out: Console) -> None:
    """Print every answer beside its truths: the short ones as a table, the long ones below it, and the count."""
    table = Table(title="The answers, beside the truth", title_justify="left")
    for title in ("at", "question", "answer", "shown frames say", "event log says"):
        table.add_column(title, overflow="fold", vertical="middle")
    short = [row for row in checked if len(row.reply.answer) <= LONGEST_CELL]
    for k, row in enumerate(short):
        table.add_row(
            clock(row.at_s), escape(row.reply.question), _answer(row), _mark(row, row.supported),
            _mark(row, row.happened), end_section=k + 1 < len(short) and short[k + 1].at_s != row.at_s,
        )
    out.print(table)
    for row in checked:
        if row not in short:
            out.print(f"{clock(row.at_s)} [bold]{escape(row.reply.question)}[/bold]", highlight=False)
            out.print(f"  answer: {_answer(row)}", highlight=False)
            out.print(f"  shown frames say: {_mark(row, row.supported)}", highlight=False)
            out.print(f"  event log says: {_mark(row, row.happened)}", highlight=False)
    out.print(summary(checked), highlight=False)


def _answer(row: Checked) -> str:
    return escape(row.reply.error_code or printable(row.reply.answer))


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
        f"{shown} of {of_shown} answers are what the frames shown to the model support; {log} of {of_log} are what "
        "happened, forgotten frames included (–: no single right answer is known)."
    )


def clock(time_s: float) -> str:
    """``1:52``"""
    return f"{int(time_s) // 60}:{int(time_s) % 60:02d}"
