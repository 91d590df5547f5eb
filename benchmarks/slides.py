"""How much of the KV cache a new tubelet costs, by how far the stream window slides at a time. A simulation.

    python -m benchmarks.slides

Memory as it is (10 star and 10 window tubelets), one tubelet a second, a question after each: the tubelets behind the
longest common prefix of the clip before and the clip now are prefilled. Once more with importances that are measured
again some tubelets later, as ``selection_method: semantic`` does it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from vstream_ros.memory import MemoryConfig
from vstream_ros.memory.clip import NANOSECONDS, Tubelet
from vstream_ros.memory.store import StarStream

SLIDES = (1, 4, 8, 16)
LATE = (1, 4, 12)
"""Tubelets until an importance is measured again, at the default slide. Work ahead that keeps up: 1."""
DURATIONS_S = {"10 min": 600, "4 h": 14_400}
PIXELS = np.zeros((2, 1, 1, 3), dtype=np.uint8)


def simulate(slide: int, seconds: int, seed: int = 0, late: int = 0) -> dict[str, float]:
    """Tubelets prefilled per new one, and the share of new tubelets that were only appended.

    ``late``: tubelets until each gets another importance, which has nothing to do with its first; 0: never.
    """
    rng, later = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    store = StarStream(star=10, window=10, slide=slide)
    before: list[int] = []
    prefilled, ahead = [], []
    for second in range(seconds):
        promised = store.after_slide()
        importance = float(rng.beta(2, 5))
        store.append(Tubelet(second, "camera", PIXELS, (second,), second * NANOSECONDS, importance))
        if late:
            store.reweigh(second - late, float(later.beta(2, 5)))
        now = [tubelet.id for tubelet in store.star + store.stream]
        prefilled.append(len(now) - _common(before, now))
        # What the timeline that is built ahead leaves to do: it holds what the next slide was known to leave.
        built = max(_common(before, now), _common([t.id for t in promised or ()], now))
        ahead.append(len(now) - built)
        before = now
    counts = np.array(prefilled)
    return {
        "slide": slide,
        "late": late,
        "prefilled_per_new": float(counts.mean()),
        "prefilled_p95": float(np.percentile(counts, 95)),
        "appended_only": float((counts == 1).mean()),
        "built_ahead_max": float(max(ahead)),
    }


def _common(one: list[int], other: list[int]) -> int:
    differs = (k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differs, min(len(one), len(other)))


def main() -> None:
    """Simulate, print a table, write ``build/bench_slides.json``."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/bench_slides.json"))
    args = parser.parse_args()
    table = Table(
        "stream", "slide", "measured again after", "prefilled per new tubelet", "p95", "appended only",
        "left if built ahead, at most",
    )
    rows = []
    for name, seconds in DURATIONS_S.items():
        cases = [(slide, 0) for slide in SLIDES] + [(MemoryConfig().stream_slide, late) for late in LATE]
        for slide, late in track(cases, name):
            row = simulate(slide, seconds, late=late)
            rows.append({"stream": name, **row})
            table.add_row(
                name,
                str(slide),
                str(late or "never"),
                f"{row['prefilled_per_new']:.2f}",
                f"{row['prefilled_p95']:.0f}",
                f"{100 * row['appended_only']:.0f} %",
                f"{row['built_ahead_max']:.0f}",
            )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"rows": rows}, indent=2) + "\n")
    Console().print(table)


if __name__ == "__main__":
    main()
