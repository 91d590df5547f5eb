"""Answers and their metrics as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from vstream_ros.replay.ask import Reply

LATENCIES = (
    ("queue_latency", "waited in the queue"),
    ("encoding_latency", "encoding the frames"),
    ("first_token_latency", "question to first token"),
    ("generation_latency", "generating"),
    ("total_latency", "question to answer"),
)


def seconds(value: float) -> str:
    """Return a latency in the unit that keeps it readable."""
    return f"{value * 1e3:.1f} ms" if value < 1.0 else f"{value:.2f} s"


def mebibytes(value: int) -> str:
    """Return bytes in MiB."""
    return f"{value / 2**20:,.1f} MiB"


def printable(text: str) -> str:
    """Return ``text`` with its control characters spelled out: a model's words must not drive a terminal or a page."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def one_line(error: Exception) -> str:
    """Return an error's message as one printable line: it may name files and topics that a stranger has named."""
    return printable(" ".join(str(error).split()))


def literal(text: object) -> str:
    """Return a name for a place where rich reads markup: "[red].mkv" is the name of a file."""
    return escape(printable(str(text)))


def metrics_table(metrics: Sequence[Mapping[str, Any]], title: str = "Metrics") -> Table:
    """Return a table with one column per answer. ``metrics``: the fields of ``msg/AnswerMetrics`` by name."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for number in range(1, len(metrics) + 1):
        table.add_column(f"answer {number}", justify="right")
    for name, label in LATENCIES:
        # Nothing encoded is another statement than encoded in no time.
        cells = (m.get(name, 0.0) for m in metrics)
        table.add_row(label, *(seconds(c) if c or name != "encoding_latency" else "nothing to encode" for c in cells))
    table.add_row("cache hit", *("yes" if m["cache_hit"] else "no" for m in metrics))
    table.add_row("frames (tubelets)", *(f"{m['frames']} ({m['tubelets']})" for m in metrics))
    table.add_row("tubelets reused", *(f"{m['tubelets_reused']} of {m['tubelets']}" for m in metrics))
    table.add_row("prompt tokens reused", *(f"{m['prompt_tokens_reused']} of {m['prompt_tokens']}" for m in metrics))
    table.add_row("new tokens", *(str(m["new_tokens"]) for m in metrics))
    table.add_row("passes of the model for them", *(str(m["passes"]) for m in metrics))
    table.add_row("drafted tokens right", *(f"{m['draft_tokens_right']} of {m['draft_tokens']}" for m in metrics))
    return table


def print_reply(console: Console, number: int, reply: Reply) -> None:
    """Print a question and what came of it. An answer's control characters are shown, never sent to the terminal."""
    console.print(f"[bold]Question {number}:[/bold] {escape(reply.question)}", highlight=False, soft_wrap=True)
    shown = printable(reply.answer)
    if shown or not reply.error_code:
        console.print(f"[bold]Answer {number}:[/bold]   {escape(shown) or '(empty)'}", highlight=False, soft_wrap=True)
    for choice, probability in sorted(reply.probabilities.items(), key=lambda item: -item[1]):
        console.print(f"  {probability:6.1%}  {escape(printable(choice))}", highlight=False, soft_wrap=True)
    if reply.error_code:
        message = f"[bold red]{reply.error_code}:[/bold red] {escape(reply.message)}"
        console.print(message, highlight=False, soft_wrap=True)


def frame_progress(console: Console) -> Progress:
    """Return a progress bar that counts frames and leaves nothing behind; none where nobody watches."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
