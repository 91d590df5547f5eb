"""From the scores of single scenes to the report: shares with intervals, and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from support.intervals import bootstrap, wilson

AGES: tuple[tuple[str, float], ...] = (("<30 s", 30.0), ("to 5 min", 300.0), ("over", math.inf))
"""Names and upper limits, in seconds."""
Scores = Sequence[dict[str, Any]]
"""Of one strategy: the fields of ``memory_recall.Score``, scene by scene."""


def recall_row(strategy: str, world: str, minutes: int, scores: Scores) -> dict[str, Any]:
    """One row of the report. A share of nothing is 0: a strategy without star tubelets has no empty ones."""
    past = [_count(right for _, right, _ in score["past"]) for score in scores]
    visits = [_count(shown for shown, _ in score["visits"]) for score in scores]
    now = [_count([score["now"]]) for score in scores if score["now"] is not None]
    star = [(score["empty"], score["star"]) for score in scores]
    return {
        "strategy": strategy, "minutes": minutes, "world": world,
        "past": _share(past), "visits": _share(visits), "now": _share(now), "empty_star": _share(star),
        "ci95": {"past": _rounded(bootstrap(past)), "visits": _rounded(bootstrap(visits))},
        "n": {"past": sum(n for _, n in past), "visits": sum(n for _, n in visits)},
        "scenes": len(scores),
    }


def age_rows(strategy: str, world: str, minutes: int, scores: Scores) -> list[dict[str, Any]]:
    """The same by age: how long ago that which is asked about was last seen. Ages that no question has are left out."""
    rows = []
    for name, low, high in zip(*_limits(), strict=True):
        past = [_count(r for _, r, age in s["past"] if age is not None and low <= age < high) for s in scores]
        visits = [_count(shown for shown, age in s["visits"] if low <= age < high) for s in scores]
        n = {"past": sum(n for _, n in past), "visits": sum(n for _, n in visits)}
        if any(n.values()):
            rows.append({
                "strategy": strategy, "minutes": minutes, "world": world, "age": name,
                "past": _share(past), "visits": _share(visits),
                "ci95": {"past": _rounded(bootstrap(past)), "visits": _rounded(bootstrap(visits))}, "n": n,
            })
    return rows


def event_row(stream: str, rate_hz: float, outcomes: Scores) -> dict[str, Any]:
    """One row of the report; ``outcomes``: the fields of ``memory_streams.Outcome``."""
    frames = sum(outcome["frames"] for outcome in outcomes)
    cuts = sum(outcome["false_cuts"] for outcome in outcomes)
    return {
        "stream": stream, "hz": int(rate_hz) if rate_hz == int(rate_hz) else rate_hz,
        "kept": sum(outcome["kept"] for outcome in outcomes), "of": len(outcomes),
        "false_cuts_per_1000": round(1000 * cuts / frames, 3) if frames else 0.0,
    }


def answer_rows(strategy: str, kinds: Sequence[str], given: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each kind; ``given``: answers with ``kind`` and ``right``."""
    rows = []
    for kind in kinds:
        marks = [answer["right"] for answer in given if answer["kind"] == kind]
        interval = _rounded(wilson(sum(marks), len(marks)))
        rows.append({"strategy": strategy, "kind": kind, "n": len(marks), "right": sum(marks), "ci95": interval})
    return rows


def show(report: dict[str, Any], console: Console) -> None:
    """Print the report as tables."""
    for minutes, world in dict.fromkeys((row["minutes"], row["world"]) for row in report["rows"]):
        rows = [row for row in report["rows"] if (row["minutes"], row["world"]) == (minutes, world)]
        title = f"{minutes} min, {world}, %"
        columns = (Column(name, no_wrap=True) for name in ("strategy", "past", "visits", "now", "empty star"))
        table = Table(*columns, title=title)
        for row in rows:
            past, visits = (f"{_percent(row[what])} ({_interval(row['ci95'][what])})" for what in ("past", "visits"))
            table.add_row(row["strategy"], past, visits, _percent(row["now"]), _percent(row["empty_star"]))
        console.print(table)
        n = rows[0]["n"]
        console.print(f"{rows[0]['scenes']} scenes, {n['past']} questions about the past, {n['visits']} visits")
    if report["events"]:
        table = Table("stream", "Hz", "kept", "false cuts in 1,000 frames", title="a brief event, kept to the end")
        for row in report["events"]:
            table.add_row(
                row["stream"], str(row["hz"]), f"{row['kept']} of {row['of']}", f"{row['false_cuts_per_1000']:g}"
            )
        console.print(table)
    if report["answers"]:
        strategies = list(dict.fromkeys(row["strategy"] for row in report["answers"]))
        title = f"answers of {report['settings']['model']}, % right by everything shown"
        table = Table("kind", "n", *strategies, title=title)
        for kind in dict.fromkeys(row["kind"] for row in report["answers"]):
            cells = [row for row in report["answers"] if row["kind"] == kind]
            shares = [_percent(r["right"] / r["n"] if r["n"] else 0.0) + f" ({_interval(r['ci95'])})" for r in cells]
            table.add_row(kind, str(cells[0]["n"]), *shares)
        console.print(table)


def _limits() -> tuple[list[str], list[float], list[float]]:
    names, highs = [name for name, _ in AGES], [high for _, high in AGES]
    return names, [0.0, *highs[:-1]], highs


def _count(marks: Any) -> tuple[int, int]:
    listed = list(marks)
    return sum(listed), len(listed)


def _share(counts: Sequence[tuple[int, int]]) -> float:
    asked = sum(n for _, n in counts)
    return round(sum(right for right, _ in counts) / asked, 4) if asked else 0.0


def _rounded(bounds: tuple[float, float]) -> list[float]:
    return [round(bound, 4) for bound in bounds]


def _percent(share: float) -> str:
    return f"{100 * share:.0f}"


def _interval(bounds: Sequence[float]) -> str:
    return f"{100 * bounds[0]:.0f}–{100 * bounds[1]:.0f}"
