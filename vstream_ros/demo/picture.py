"""A picture of what memory held at one moment: a contact sheet above the scene's whole story."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vstream_ros.synthetic.shapes_world import COLOURS, Scene

STAR, STREAM = "#D55E00", "#0072B2"
"""Vermillion and blue of Okabe and Ito: told apart with every kind of colour vision, and by their marks."""
PAIRS_A_ROW = 7
WIDTH, DPI = 16.0, 100


@dataclass(frozen=True)
class Held:
    """One frame in memory."""

    time_s: float
    pixels: np.ndarray
    """(height, width, 3) uint8 RGB."""
    star: bool
    """Else stream."""


def draw_memory(path: Path, scene: Scene, held: Sequence[Held]) -> None:
    """Write a PNG, 1600 pixels wide. ``held``: whole tubelets of two frames, in time order."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pairs = list(zip(held[::2], held[1::2], strict=True))
    rows = -(-len(pairs) // PAIRS_A_ROW)
    story = 1.0 + 0.3 * (len(scene.visits) + 2)
    sheet = 1.22 * rows
    figure = Figure(figsize=(WIDTH, 0.8 + sheet + story), layout="constrained", dpi=DPI)
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.05, h_pad=0.05, hspace=0.0, wspace=0.02)  # type: ignore[union-attr]
    star = sum(one.star for one, _ in pairs)
    figure.suptitle(
        f"What memory held at {scene.duration_s:g} s: {star} tubelets of star (★, long-term) and {len(pairs) - star} of "
        "stream (●, the most recent), two frames each",
        fontsize=15,
    )
    grid = figure.add_gridspec(rows + 1, PAIRS_A_ROW, height_ratios=[sheet / rows] * rows + [story])
    for k, pair in enumerate(pairs):
        _draw_pair(figure.add_subplot(grid[k // PAIRS_A_ROW, k % PAIRS_A_ROW]), *pair)
    _draw_story(figure.add_subplot(grid[rows, :]), scene, pairs)
    figure.savefig(path, format="png")


def _draw_pair(axes: Any, one: Held, two: Held) -> None:
    colour, mark = (STAR, "★") if one.star else (STREAM, "●")
    axes.imshow(np.concatenate([one.pixels, two.pixels], axis=1))
    axes.set_title(f"{mark} {one.time_s:.1f} and {two.time_s:.1f} s", fontsize=11, color=colour, pad=4)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=3, linestyle="-" if one.star else (0, (4, 1)))


def _draw_story(axes: Any, scene: Scene, pairs: Sequence[tuple[Held, Held]]) -> None:
    """The visits as bars, paler where the object stands, and where on this axis the held tubelets lie."""
    for row, visit in enumerate(scene.visits):
        colour = np.array(COLOURS[visit.colour]) / 255
        for leg in visit.legs:
            begin_s, end_s = max(leg.start_s, 0.0), min(leg.end_s, scene.duration_s)
            if begin_s < end_s:
                pale = 1.0 if leg.direction else 0.45
                face = 1 - pale * (1 - colour)
                axes.barh(row, end_s - begin_s, left=begin_s, height=0.7, color=face, edgecolor="#333333", linewidth=0.8)
                if leg.direction:
                    arrow = {"left": "←", "right": "→", "up": "↑", "down": "↓"}[leg.direction]
                    axes.text((begin_s + end_s) / 2, row, arrow, ha="center", va="center", fontsize=10)
    names = [visit.name for visit in scene.visits]
    for row, (label, star) in enumerate((("star memory ★", True), ("stream memory ●", False)), start=len(names)):
        times = [(a.time_s + b.time_s) / 2 for a, b in pairs if a.star is star]
        marker, colour = ("*", STAR) if star else ("o", STREAM)
        axes.plot(times, [row] * len(times), marker, color=colour, markersize=13 if star else 7, linestyle="none")
        for time_s in times:
            axes.axvline(time_s, color=colour, linewidth=0.8, alpha=0.35, zorder=0)
        names.append(label)
    axes.axhline(len(scene.visits) - 0.5, color="#333333", linewidth=0.8)
    axes.set_yticks(range(len(names)), names, fontsize=12)
    axes.get_yticklabels()[-2].set_color(STAR)
    axes.get_yticklabels()[-1].set_color(STREAM)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(-1.0, scene.duration_s + 1.0)
    axes.set_xlabel(
        "seconds of the scene; above: which object was there, by the event log (arrow: it moves, pale: it stands)", fontsize=12
    )
    axes.tick_params(axis="x", labelsize=11)
    axes.spines[["top", "right"]].set_visible(False)
