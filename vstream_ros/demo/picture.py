"""A picture of what memory held at one moment: a contact sheet above the scene's whole story."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vstream_ros.synthetic.shapes_world import COLOURS, Scene

STAR, STREAM = "#D55E00", "#0072B2"
"""Vermillion and blue of Okabe and Ito: told apart with every kind of colour vision, and by their marks."""
PAIRS_A_ROW = 8
WIDTH, DPI = 16.0, 100
ARROWS = {"left": "←", "right": "→", "up": "↑", "down": "↓"}
SHORTEST_ARROW = 0.009
"""Part of the scene that a motion must last to have room for its arrow."""


@dataclass(frozen=True)
class Held:
    """One frame in memory."""

    time_s: float
    pixels: np.ndarray
    """(height, width, 3) uint8 RGB."""
    star: bool
    """Else stream."""


def draw_memory(path: Path, scene: Scene, held: Sequence[Held]) -> None:
    """Write a PNG, 1600 pixels wide. ``held``: whole tubelets of two frames, in time order, at least one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pairs = list(zip(held[::2], held[1::2], strict=True))
    rows = -(-len(pairs) // PAIRS_A_ROW)
    heights = [1.15 * rows, 1.0 + 0.32 * (len(scene.visits) + 2)]
    figure = Figure(figsize=(WIDTH, 0.6 + sum(heights)), layout="constrained", dpi=DPI)
    FigureCanvasAgg(figure)
    star = sum(one.star for one, _ in pairs)
    figure.suptitle(
        f"What memory held at {scene.duration_s:g} s, in tubelets of two frames: {star} in star memory (★, long-term), "
        f"{len(pairs) - star} in stream memory (●, the most recent)",
        fontsize=15,
    )
    parts: Any = figure.subfigures(2, 1, height_ratios=heights)
    sheet, story = parts
    cells = sheet.subplots(rows, PAIRS_A_ROW, squeeze=False).flat
    for pair, axes in zip(pairs, cells, strict=False):
        _draw_pair(axes, *pair)
    for axes in cells:  # those that are left
        axes.set_axis_off()
    _draw_story(story.subplots(), scene, pairs)
    figure.savefig(path, format="png")


def _draw_pair(axes: Any, one: Held, two: Held) -> None:
    colour, mark = (STAR, "★") if one.star else (STREAM, "●")
    axes.imshow(np.concatenate([one.pixels, two.pixels], axis=1))
    axes.set_title(f"{mark} {one.time_s:.1f} and {two.time_s:.1f} s", fontsize=12, color=colour, pad=4)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=3, linestyle="-" if one.star else (0, (4, 1)))


def _draw_story(axes: Any, scene: Scene, pairs: Sequence[tuple[Held, Held]]) -> None:
    """The visits as bars, paler where the object stands, and where on this axis the held tubelets lie."""
    for row, visit in enumerate(scene.visits):
        rgb = np.array(COLOURS[visit.colour]) / 255
        for direction, legs in itertools.groupby(visit.legs, lambda leg: leg.direction):
            motion = list(legs)
            begin_s, end_s = max(motion[0].start_s, 0.0), min(motion[-1].end_s, scene.duration_s)
            if begin_s >= end_s:
                continue
            face = rgb if direction else 1 - 0.45 * (1 - rgb)
            axes.barh(row, end_s - begin_s, left=begin_s, height=0.7, color=face, edgecolor="#333333", linewidth=0.8)
            if direction and end_s - begin_s > SHORTEST_ARROW * scene.duration_s:
                ink = "black" if rgb @ (0.30, 0.59, 0.11) > 0.45 else "white"
                middle_s = (begin_s + end_s) / 2
                axes.text(middle_s, row, ARROWS[direction], ha="center", va="center", fontsize=11, color=ink)
    names = [visit.name for visit in scene.visits]
    for row, (label, star) in enumerate((("star memory ★", True), ("stream memory ●", False)), start=len(names)):
        times = [(a.time_s + b.time_s) / 2 for a, b in pairs if a.star is star]
        marker, colour = ("*", STAR) if star else ("o", STREAM)
        axes.plot(times, [row] * len(times), marker, color=colour, markersize=13 if star else 6, linestyle="none")
        for time_s in times:
            axes.axvline(time_s, color=colour, linewidth=0.8, alpha=0.35, zorder=0)
        names.append(label)
    axes.axhline(len(scene.visits) - 0.5, color="#333333", linewidth=0.8)
    axes.set_yticks(range(len(names)), names, fontsize=12)
    axes.get_yticklabels()[-2].set_color(STAR)
    axes.get_yticklabels()[-1].set_color(STREAM)
    axes.set_ylim(len(names) - 0.4, -0.6)
    margin_s = 0.01 * scene.duration_s  # half a star's width
    axes.set_xlim(-margin_s, scene.duration_s + margin_s)
    axes.set_xlabel(
        "seconds of the scene; above: which object was there, by the event log (arrow: it moves, pale: it stands)",
        fontsize=12,
    )
    axes.tick_params(axis="x", labelsize=11)
    axes.spines[["top", "right"]].set_visible(False)
