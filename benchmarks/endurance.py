"""Does anything grow? Ten thousand tubelets through the whole engine, with questions and background work.

    python -m benchmarks.endurance [--tubelets 10000]

The engine with its default memory, background "full" and small byte bounds (so that they are reached early) watches an
endless stream of different frames; after each tubelet the background work is awaited, every 20th is asked about. The
process's resident memory at the end is compared with that after a fifth of the stream, and the processor time that a
tubelet costs in the last quarter with the first one's. Exits 1 where one of them grew.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from support.frames import random_frame
from support.machine import machine
from support.streams import random_question
from vstream_ros.engine import DelayedBatchInferenceEngine, Question
from vstream_ros.synthetic.random_model import random_model

SIDE = 56
PERIOD_S = 0.5
QUESTION_EVERY = 20
RANGE_EVERY = 100
RSS_LIMIT = 1.05
"""Resident memory at the end over that after a fifth of the stream."""
COST_LIMIT = 1.15
"""Median cost of a tubelet in the last quarter over the first quarter's."""


def make_engine() -> DelayedBatchInferenceEngine:
    """The smallest random model behind an engine whose byte bounds a few hundred tubelets reach."""
    model, processor = random_model("qwen2_5_vl")
    return DelayedBatchInferenceEngine(
        model,
        processor,
        "cpu",
        background_encoding="full",
        features_max_bytes=100_000,
        forks_max_bytes=2_000_000,
        max_new_tokens=4,
        scene_threshold=1.0,  # random frames would all be scene cuts, which close a tubelet after its first frame
    )


class Idle:
    """Tells when the background work has caught up, without polling: that would cost more than the work."""

    def __init__(self, engine: DelayedBatchInferenceEngine) -> None:
        self._thread = engine._thread
        self._background = self._thread._background
        self._done = threading.Event()
        self._thread._background = self._watched

    def _watched(self) -> float | None:
        pause_s = self._background()
        if pause_s is None:
            self._done.set()
        return pause_s

    def wait(self, timeout_s: float = 60.0) -> None:
        """Return when there is nothing left to do; raises ``TimeoutError``."""
        self._done.clear()
        self._thread.poke()
        if not self._done.wait(timeout_s):
            raise TimeoutError(f"the background work did not catch up within {timeout_s} s")


def resident_bytes() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def run(tubelets: int) -> dict[str, Any]:
    """Stream, ask, measure; see the module."""
    rng = np.random.default_rng(0)
    every = max(1, tubelets // 100)
    rss: dict[int, int] = {}
    costs: list[float] = []
    with make_engine() as engine:
        idle = Idle(engine)
        for index in track(range(tubelets), "tubelets"):
            started = time.process_time()
            for frame in (2 * index, 2 * index + 1):
                engine.add_frame(random_frame(rng, SIDE, SIDE), frame * PERIOD_S)
            idle.wait()
            if index % QUESTION_EVERY == 0:
                engine.ask(random_question(rng))
            if index % RANGE_EVERY == 0:
                engine.ask(Question("then?", start_ns=max(1, engine.status().cameras[0].newest_stamp_ns - 3 * 10**9)))
            costs.append(time.process_time() - started)
            if (index + 1) % every == 0:
                rss[index + 1] = resident_bytes()
        status = engine.status()
    quarter = tubelets // 4
    first, last = (float(np.median(part)) for part in (costs[:quarter], costs[-quarter:]))
    warm = max(count for count in rss if count <= max(every, tubelets // 5))
    return {
        "machine": machine(),
        "tubelets": tubelets,
        "answers": status.answers,
        "failures": status.failures,
        "rss_bytes": rss,
        "rss_warm_at": warm,
        "rss_ratio": rss[max(rss)] / rss[warm],
        "cost_first_quarter_s": first,
        "cost_last_quarter_s": last,
        "cost_ratio": last / first,
        "cost_by_tenth_s": [float(np.median(part)) for part in np.array_split(costs, 10)],
    }


def show(console: Console, result: dict[str, Any]) -> None:
    """Resident memory and cost as a table."""
    rss, warm = result["rss_bytes"], result["rss_warm_at"]
    table = Table("", "before", "at the end", "ratio", "limit", title=f"{result['tubelets']} tubelets")
    memory = (f"{rss[warm] / 1e6:.1f} MB after {warm}", f"{rss[max(rss)] / 1e6:.1f} MB")
    table.add_row("resident memory", *memory, f"{result['rss_ratio']:.3f}", f"{RSS_LIMIT}")
    cost = [f"{1e3 * result[f'cost_{part}_quarter_s']:.2f} ms ({part} quarter)" for part in ("first", "last")]
    table.add_row("processor time per tubelet", *cost, f"{result['cost_ratio']:.3f}", f"{COST_LIMIT}")
    console.print(table)
    console.print(f"{result['answers']} answers, {result['failures']} failures")


def main() -> None:
    """Run, print, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tubelets", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path("build/endurance.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    result = run(args.tubelets)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    show(console, result)
    console.print(f"written to {args.out}")
    sys.exit(result["rss_ratio"] > RSS_LIMIT or result["cost_ratio"] > COST_LIMIT or bool(result["failures"]))


if __name__ == "__main__":
    main()
