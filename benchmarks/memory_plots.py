"""The report of ``eval_memory`` as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

OURS = "#c0392b"
CEILING = "#7f8c8d"
RIVALS = "#5d7fa3"
LINES = ("#1f77b4", "#17becf", "#2ca02c", "#bcbd22", "#8c564b", "#9467bd", "#e377c2", "#ff9f1c")
"""Of rivals that are told apart: none is ours, none is the ceiling's."""


def draw(report: dict[str, Any], folder: Path) -> list[Path]:
    """Write PNGs of what the report has: recall, recall by age, events, answers. Returns their paths."""
    drawn = []
    for name, rows, picture in (
        ("recall", report["rows"], _recall),
        ("ages", report["ages"], _ages),
        ("events", report["events"], _events),
        ("answers", report["answers"], _answers),
    ):
        if rows:
            figure = picture(rows)
            FigureCanvasAgg(figure)
            drawn.append(folder / f"{name}.png")
            figure.savefig(drawn[-1], dpi=110)
    return drawn


def _recall(rows: list[dict[str, Any]]) -> Figure:
    """A panel for each cell: past and visits of each strategy with their intervals."""
    minutes, worlds = sorted({row["minutes"] for row in rows}), list(dict.fromkeys(row["world"] for row in rows))
    strategies = list(dict.fromkeys(row["strategy"] for row in rows))
    height = 1.1 + 0.36 * len(strategies)
    figure = Figure((3.4 * len(worlds) + 1.4, height * len(minutes)), layout="constrained")
    panels = figure.subplots(len(minutes), len(worlds), squeeze=False, sharex=True, sharey=True)
    for panel, (length, world) in zip(panels.flat, ((m, w) for m in minutes for w in worlds), strict=True):
        cell = {row["strategy"]: row for row in rows if (row["minutes"], row["world"]) == (length, world)}
        for k, name in enumerate(strategies):
            if name in cell:
                _bar(panel, k - 0.19, cell[name], "past", _colour(name), 1.0)
                _bar(panel, k + 0.19, cell[name], "visits", _colour(name), 0.5)
        panel.set_title(f"{length} min, {world}", fontsize=9)
        panel.set_xlim(0, 100)
        panel.grid(axis="x", alpha=0.3)
    for panel in panels[:, 0]:
        panel.set_yticks(range(len(strategies)), strategies, fontsize=8)
    panels[0, 0].set_ylim(len(strategies) - 0.5, -0.5)
    figure.suptitle("% right about the past (full), % of visits shown (pale); 95 % intervals", fontsize=9)
    return figure


def _bar(panel: Axes, place: float, row: dict[str, Any], what: str, colour: str, alpha: float) -> None:
    share, (low, high) = 100 * row[what], (100 * bound for bound in row["ci95"][what])
    errors = [[max(share - low, 0.0)], [max(high - share, 0.0)]]
    bar: dict[str, Any] = {"color": colour, "alpha": alpha, "error_kw": {"linewidth": 0.8, "ecolor": "#333333"}}
    panel.barh(place, share, height=0.36, xerr=errors, **bar)


def _colour(strategy: str) -> str:
    return {"ours": OURS, "true_importance": CEILING}.get(strategy, RIVALS)


def _ages(rows: list[dict[str, Any]]) -> Figure:
    """A panel for each length: visits shown by how long ago they were last seen, all worlds together."""
    minutes, ages = sorted({row["minutes"] for row in rows}), list(dict.fromkeys(row["age"] for row in rows))
    strategies = list(dict.fromkeys(row["strategy"] for row in rows))
    figure = Figure((4.2 * len(minutes) + 1.6, 3.6), layout="constrained")
    panels = figure.subplots(1, len(minutes), squeeze=False, sharey=True)[0]
    for panel, length in zip(panels, minutes, strict=True):
        for k, name in enumerate(strategies):
            shares = []
            for age in ages:
                cells = [r for r in rows if (r["minutes"], r["strategy"], r["age"]) == (length, name, age)]
                n = sum(cell["n"]["visits"] for cell in cells)
                shares.append(100 * sum(c["visits"] * c["n"]["visits"] for c in cells) / n if n else np.nan)
            thick = name in ("ours", "true_importance")
            style = {"color": _colour(name)} if thick else {"linestyle": "--", "color": LINES[k % len(LINES)]}
            panel.plot(ages, shares, marker="o", label=name, linewidth=2.2 if thick else 1.0, **style)
        panel.set_title(f"{length} min", fontsize=9)
        panel.set_ylim(-3, 103)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("% of visits shown")
    figure.supxlabel("last seen", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return figure


def _events(rows: list[dict[str, Any]]) -> Figure:
    """Left how many of the events are kept, right the false cuts."""
    names = [f"{row['stream']}, {row['hz']} Hz" for row in rows]
    figure = Figure((9.0, 1.2 + 0.32 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    bars = left.barh(names, [100 * row["kept"] / row["of"] for row in rows], color=OURS)
    left.bar_label(bars, [f"{row['kept']} of {row['of']}" for row in rows], padding=3, fontsize=8)
    left.set_xlim(0, 115)
    left.set_xlabel("% of events kept to the end")
    bars = right.barh(names, [row["false_cuts_per_1000"] for row in rows], color=RIVALS)
    right.bar_label(bars, fmt="{:g}", padding=3, fontsize=8)
    right.margins(x=0.15)
    right.set_xlabel("false cuts in 1,000 frames")
    left.invert_yaxis()
    return figure


def _answers(rows: list[dict[str, Any]]) -> Figure:
    """Right answers by kind, the strategies side by side."""
    kinds, strategies = (list(dict.fromkeys(row[key] for row in rows)) for key in ("kind", "strategy"))
    figure = Figure((max(6.0, 1.3 * len(kinds)), 3.8), layout="constrained")
    panel = figure.subplots()
    width = 0.8 / len(strategies)
    for k, name in enumerate(strategies):
        cells = [next((r for r in rows if (r["kind"], r["strategy"]) == (kind, name)), None) for kind in kinds]
        shares = np.array([100 * c["right"] / c["n"] if c and c["n"] else 0.0 for c in cells])
        bounds = 100 * np.array([c["ci95"] if c and c["n"] else (0.0, 0.0) for c in cells])
        errors = np.maximum([shares - bounds[:, 0], bounds[:, 1] - shares], 0.0)
        places = np.arange(len(kinds)) + (k - (len(strategies) - 1) / 2) * width
        colour = OURS if name == "ours" else (RIVALS, "#a9bfd6")[k % 2]
        panel.bar(places, shares, width, yerr=errors, label=name, color=colour, error_kw={"linewidth": 0.8})
    panel.set_xticks(range(len(kinds)), kinds)
    panel.set_ylim(0, 103)
    panel.set_ylabel("% right by everything shown")
    panel.legend(fontsize=8)
    return figure
