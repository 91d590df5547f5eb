"""How often a choice is right beside how probable it was said to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from support.intervals import wilson

COLOURS = {"sum": "#c0392b", "mean": "#5d7fa3"}
LABELS = {"sum": "with the end, summed (what the node does)", "mean": "the same by token"}
PANELS = {"one token": "choices of one token", "many tokens": "choices of unequal length"}


def draw(groups: dict[str, Any], path: Path) -> None:
    """Write a reliability diagram of each group of ``PANELS``; ``groups``: their summaries."""
    figure = Figure((8.6, 5.2), layout="constrained")
    panels = figure.subplots(2, len(PANELS), sharex=True, squeeze=False, height_ratios=(3, 1))
    for column, (name, title) in enumerate(PANELS.items()):
        _reliability(panels[0, column], groups[name])
        errors = " / ".join(f"{groups[name][score]['ece']:.3f}" for score in COLOURS)
        panels[0, column].set_title(f"{title}, n = {groups[name]['n']}, ECE {errors}", fontsize=9)
        _counts(panels[1, column], groups[name])
    panels[0, 0].set_ylabel("right")
    panels[1, 0].set_ylabel("answers")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), fontsize=8, loc="outside upper center", ncols=2)
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def _reliability(panel: Axes, group: dict[str, Any]) -> None:
    panel.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
    for score, colour in COLOURS.items():
        bins = group[score]["bins"]
        intervals = [wilson(b["right"], b["n"]) for b in bins]
        panel.errorbar(
            [b["confidence"] for b in bins], [b["accuracy"] for b in bins],
            yerr=[
                [max(b["accuracy"] - low, 0.0) for b, (low, _) in zip(bins, intervals, strict=True)],
                [max(high - b["accuracy"], 0.0) for b, (_, high) in zip(bins, intervals, strict=True)],
            ],
            color=colour, marker="o", markersize=4, linewidth=1, elinewidth=0.8,
            label=LABELS[score],
        )
    panel.set_xlim(0, 1)
    panel.set_ylim(0, 1.02)
    panel.grid(alpha=0.3)


def _counts(panel: Axes, group: dict[str, Any]) -> None:
    width = 0.04
    for offset, (score, colour) in enumerate(COLOURS.items()):
        bins = group[score]["bins"]
        panel.bar(
            [b["low"] + 0.05 + (offset - 0.5) * width for b in bins], [b["n"] for b in bins], width, color=colour
        )
    panel.set_yscale("log")
    panel.set_xlabel("probability of the winner")
    panel.grid(axis="y", alpha=0.3)
