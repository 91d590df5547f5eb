"""Two builds of this package side by side: seconds to the first token of each, the runs of both interleaved.

    git worktree add --detach /tmp/old COMMIT
    python -m benchmarks.builds /tmp/old [--new .] [--tubelets 40 80] [--rounds 5] [--out build/builds.json]

Each build runs in a process of its own, on one thread, with its own ``benchmarks.latency``; the two take turns,
question by question, so that a machine that changes its speed changes both. A ratio above 1: the new one is faster.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.latency import Contest, make_model

ASKS = {"cold": 1, "follow_up": 10, "appended": 4}
"""Questions of each build in a round."""


class Build:
    """One build in its own process: a scenario in, seconds out."""

    def __init__(self, tree: Path, tubelets: int) -> None:
        """``tree``: a working tree of the repository."""
        # This file, whatever the tree has of it, on the tree's package and benchmarks.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tree, tree / "test")))}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", str(tubelets)],
            cwd=tree, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, scenario: str) -> float:
        """Seconds to the first token of one question."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{scenario}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def serve(tubelets: int) -> None:
    """Answer scenarios from standard input: what a ``Build`` talks to."""
    torch.set_num_threads(1)
    contest = Contest(make_model(short=True))
    clip = contest.clip(tubelets)
    for line in sys.stdin:
        asked, scenario = clip, line.strip()
        if scenario == "cold":
            contest.answerer.drop_caches()
        else:
            contest.ours(clip)
        if scenario == "appended":
            contest.ours(dataclasses.replace(clip, tubelets=clip.tubelets[:-1]))
            asked = dataclasses.replace(clip, tubelets=(*clip.tubelets[:-1], contest.tubelet(tubelets - 1)))
        sys.stdout.write(f"{contest.ours(asked)[0]}\n")
        sys.stdout.flush()


def compare(old: Path, new: Path, tubelets: int, rounds: int) -> list[dict[str, Any]]:
    """One row per scenario."""
    builds = {"old": Build(old, tubelets), "new": Build(new, tubelets)}
    seconds: dict[str, dict[str, list[float]]] = {scenario: {"old": [], "new": []} for scenario in ASKS}
    for build in builds.values():
        build.ask("cold")  # warms up
    for number in track(range(rounds), f"{tubelets} tubelets"):
        order = ("old", "new") if number % 2 == 0 else ("new", "old")
        for scenario, count in ASKS.items():
            for _ in range(count):
                for name in order:
                    seconds[scenario][name].append(builds[name].ask(scenario))
    for build in builds.values():
        build.close()
    return [_row(scenario, tubelets, np.array(s["old"]), np.array(s["new"])) for scenario, s in seconds.items()]


def _row(scenario: str, tubelets: int, old: np.ndarray, new: np.ndarray) -> dict[str, Any]:
    """Medians, and the median of the pairs' ratios with its interval by bootstrap over the pairs."""
    ratios = old / new
    again = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.percentile(np.median(again, axis=1), [2.5, 97.5])
    return {
        "scenario": scenario,
        "tubelets": tubelets,
        "old_ttft_s": float(np.median(old)),
        "new_ttft_s": float(np.median(new)),
        "ratio": float(np.median(ratios)),
        "ci95": [float(low), float(high)],
        "n": len(ratios),
    }


def main() -> None:
    """Measure, print a table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("old", type=Path, nargs="?")
    parser.add_argument("--new", type=Path, default=Path())
    parser.add_argument("--tubelets", type=int, nargs="+", default=[40, 80])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("build/builds.json"))
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        serve(args.serve)
        return
    if args.old is None:
        parser.error("name the folder of the old build")
    old, new = args.old.resolve(), args.new.resolve()
    rows = [row for count in args.tubelets for row in compare(old, new, count, args.rounds)]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"rows": rows}, indent=2) + "\n")
    table = Table("scenario", "tubelets", "old", "new", "old / new", "n")
    for row in rows:
        ratio = f"{row['ratio']:.3f} ({row['ci95'][0]:.3f}-{row['ci95'][1]:.3f})"
        table.add_row(
            row["scenario"], str(row["tubelets"]), f"{row['old_ttft_s']:.4f}", f"{row['new_ttft_s']:.4f}", ratio,
            str(row["n"]),
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
