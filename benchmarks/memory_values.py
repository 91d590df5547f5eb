"""How star memory forgets, as a plot: ``python -m benchmarks.memory_values [--out docs/forgetting.png]``.

A ten-minute scene of the shapes world at 2 Hz goes through the memory as it is by default. After every slide of the
window each star tubelet has a value, importance x (seconds that it stands alone)^0.5; its line ends where it is
forgotten. Lines have the colour of the object that the tubelet shows, grey ones show nothing; below is what happened.
No model, no torch.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.memory_recall import FRAME_SIZE, make_scene, tubelets_of
from vstream_ros.demo.picture import draw_story
from vstream_ros.memory import NANOSECONDS, MemoryConfig, MemorySnapshot, SmartFrameManager
from vstream_ros.synthetic.shapes_world import COLOURS, Scene
from vstream_ros.synthetic.sightings import sightings

SEED, MINUTES = 3, 10.0
EMPTY = "#b0b0b0"

Lines = dict[int, list[tuple[float, float]]]
"""By tubelet id: seconds of the scene, and the value then."""


def play(scene: Scene) -> tuple[Lines, dict[int, float], MemorySnapshot]:
    """Each star tubelet's value after every slide, when it was taken, and what is held in the end."""
    memory = SmartFrameManager(MemoryConfig())
    lines: Lines = defaultdict(list)
    taken: dict[int, float] = {}
    before: tuple[float, ...] = ()
    held_then: set[int] = set()
    for tubelet in tubelets_of(scene, None, FRAME_SIZE):
        for frame, stamp_ns in zip(tubelet.frames, tubelet.stamps_ns, strict=True):
            memory.add_frame(frame, stamp_ns)
        shot = memory.snapshot()
        over = tubelet.stamps_ns[-1] / NANOSECONDS >= 60.0 * MINUTES - 1.0
        if shot.values == before and not over:
            continue
        before, now_s = shot.values, tubelet.stamps_ns[-1] / NANOSECONDS
        for gone in held_then - {t.id for t in shot.star}:
            lines[gone].append((now_s, lines[gone][-1][1]))
        held_then = {t.id for t in shot.star[1:]}
        for held, value in zip(shot.star, shot.values, strict=True):
            taken[held.id] = held.stamps_ns[0] / NANOSECONDS
            if math.isfinite(value):
                lines[held.id].append((now_s, value))
    return lines, taken, memory.snapshot()


def draw(scene: Scene, path: Path) -> None:
    """Write the plot, a PNG."""
    lines, taken, last = play(scene)
    figure = Figure((11.0, 3.6 + 0.26 * len(scene.visits)), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 0.26 * (len(scene.visits) + 2)])
    _draw_values(panels[0], scene, lines, taken, {t.id for t in last.star})
    draw_story(
        panels[1], scene, *([t.stamps_ns[0] / NANOSECONDS for t in part] for part in (last.star, last.stream))
    )  # fmt: skip
    panels[0].set_xlim(panels[1].get_xlim())
    figure.savefig(path, dpi=90)


def _draw_values(panel: Axes, scene: Scene, lines: Lines, taken: dict[int, float], kept: set[int]) -> None:
    for number, line in lines.items():
        seen = [s for s in sightings(scene, taken[number], taken[number] + 0.5) if s.glimpsed]
        colour: Any = [part / 255 for part in COLOURS[seen[0].visit.colour]] if seen else EMPTY
        panel.plot(*zip(*line, strict=True), color=colour, linewidth=1.6, drawstyle="steps-post")
        if number not in kept:
            panel.plot(*line[-1], "x", color=colour, markersize=6)
    panel.set_yscale("log")
    panel.set_ylabel("value of a star tubelet")
    panel.set_facecolor("#f4f4f4")
    panel.grid(alpha=0.4)
    panel.set_title(
        "What a tubelet in star memory is worth: importance × √(seconds it stands alone); × where it is forgotten; "
        "grey: it shows nothing", fontsize=10,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/forgetting.png"), help="(default docs/forgetting.png)")
    draw(make_scene("plain", MINUTES, SEED), parser.parse_args().out)


if __name__ == "__main__":
    main()
