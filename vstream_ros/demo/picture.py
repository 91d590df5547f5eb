"""A picture of what memory held at one moment: a contact sheet above the scene's whole story."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vstream_ros.memory import contact_sheet as sheets
from vstream_ros.synthetic.shapes_world import COLOURS, Scene

STAR, STREAM = (tuple(part / 255 for part in colour) for colour in (sheets.STAR, sheets.STREAM))
DPI = 100
ARROWS = {"left": "←", "right": "→", "up": "↑", "down": "↓"}
SHORTEST_ARROW = 0.009
"""Part of the scene that a motion must last to have room for its arrow."""


def draw_memory(
    path: Path, scene: Scene, sheet: np.ndarray, star_s: Sequence[float], stream_s: Sequence[float]
) -> None:
    """Write a PNG: the sheet, (height, width, 3) uint8 RGB, above the story, which is as wide.

    ``star_s``, ``stream_s``: when the frames in star and stream memory were taken, in seconds of the scene.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.image import imsave

    figure = Figure(figsize=(sheet.shape[1] / DPI, 1.0 + 0.32 * (len(scene.visits) + 2)), layout="constrained", dpi=DPI)
    canvas = FigureCanvasAgg(figure)
    draw_story(figure.subplots(), scene, star_s, stream_s)
    canvas.draw()
    story = np.asarray(canvas.buffer_rgba())[..., :3]
    imsave(path, np.concatenate([sheet, story]), format="png")


def draw_story(axes: Any, scene: Scene, star_s: Sequence[float], stream_s: Sequence[float]) -> None:
    """The visits as bars, paler where the object stands, and where on this axis the held frames lie."""
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
    for label, times_s, marker, size, colour in (
        ("star memory ★", star_s, "*", 13, STAR), ("stream memory ●", stream_s, "o", 6, STREAM)
    ):
        axes.plot(times_s, [len(names)] * len(times_s), marker, color=colour, markersize=size, linestyle="none")
        for time_s in times_s:
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
