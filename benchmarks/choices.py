"""What the probabilities of choices are worth: ``python -m benchmarks.choices``.

vstream-tiny answers questions about held-out scenes in free text and as choices (``choice_questions``). Two ways to
make a score of a choice are compared: the log-probability of its tokens and its end, and that divided by their number.
Into ``build/choices.json`` and ``build/choices.png``; each scene's answers are kept in ``build/choices``, so that a run
that was broken off goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.choice_plot import draw
from benchmarks.choice_questions import KINDS, MANY_TOKENS, ask_scene
from benchmarks.result_cache import ResultCache, code_of, weights_of
from support.intervals import bootstrap, wilson
from support.shapes_accuracy import HELD_OUT_SEED

FIRST_SEED = HELD_OUT_SEED + 500_000
"""No scene of ``benchmarks.eval`` is among them."""
CODE = (
    "vstream_ros/engine/choices.py", "vstream_ros/engine/choice_tree.py", "vstream_ros/memory", "vstream_ros/synthetic",
    "benchmarks/choice_questions.py",
)  # fmt: skip
BINS = 10
THRESHOLDS = (0.0, 0.5, 0.8, 0.9, 0.99)
CONFIDENT = 0.9
SCORES = ("sum", "mean")
"""Of all log-probabilities, and the same by token."""


def shares(record: dict[str, Any], score: str) -> np.ndarray:
    """(choices,) their probabilities by one of ``SCORES``."""
    logs = np.array(record["log_probabilities"])
    if score == "mean":
        logs = logs / np.array(record["lengths"])
    weights = np.exp(logs - logs.max())
    return weights / weights.sum()


def without_truth(records: Sequence[dict[str, Any]], score: str) -> dict[str, int]:
    """How often a winner is ``CONFIDENT`` where the right answer is not offered, and two others or more are."""
    most = []
    for record in records:
        kept = [k for k in range(len(record["lengths"])) if k != record["truth"]]
        if len(kept) > 1:
            others = {name: [record[name][k] for k in kept] for name in ("log_probabilities", "lengths")}
            most.append(shares(others, score).max())
    return {"n": len(most), "confident": sum(bool(p >= CONFIDENT) for p in most)}


def calibration(confidences: np.ndarray, right: np.ndarray) -> tuple[float, list[dict[str, float]]]:
    """The expected calibration error over ``BINS`` equal bins, and the bins that hold anything.

    Args:
        confidences: (n,) of the winners, in [0, 1].
        right: (n,) bool.
    """
    places = np.minimum((confidences * BINS).astype(int), BINS - 1)
    bins = []
    for place in np.unique(places):
        inside = places == place
        bins.append({
            "low": place / BINS, "n": int(inside.sum()), "right": int(right[inside].sum()),
            "confidence": float(confidences[inside].mean()), "accuracy": float(right[inside].mean()),
        })
    error = sum(b["n"] * abs(b["confidence"] - b["accuracy"]) for b in bins) / max(len(right), 1)
    return float(error), bins


def summary(scenes: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """All figures about these questions; ``scenes``: the answers about each one."""
    records = [record for scene in scenes for record in scene]
    in_free_text = [record["right_in_free_text"] for record in records]
    comparable = [r for r in records if r["free_text"] >= 0]
    report: dict[str, Any] = {
        "n": len(records),
        "scenes": sum(bool(scene) for scene in scenes),
        "free_text": _share(scenes, in_free_text),
        "free_text_is_a_choice": len(comparable),
    }
    for score in SCORES:
        table = [shares(record, score) for record in records]
        winners = [int(p.argmax()) for p in table]
        confidences = np.array([p.max() for p in table])
        right = np.array([w == r["truth"] for w, r in zip(winners, records, strict=True)])
        error, bins = calibration(confidences, right)
        report[score] = {
            **_share(scenes, right.tolist()),
            "confidence": float(confidences.mean()) if records else None,
            "ece": error,
            "bins": bins,
            "without_truth": without_truth(records, score),
            "winner_is_the_free_text": sum(
                w == r["free_text"] for w, r in zip(winners, records, strict=True) if r["free_text"] >= 0
            ),
            "from": [
                {"confidence": t, "n": int(k.sum()), "right": int(right[k].sum())}
                for t in THRESHOLDS for k in [confidences >= t]
            ],
        }
    return report


def _share(scenes: Sequence[Sequence[dict[str, Any]]], right: Sequence[bool]) -> dict[str, Any]:
    """How many are right, with an interval over scenes, as their questions are not independent; Wilson's where
    scenes can't tell: none, or all are right."""
    outcomes = iter(right)
    counts = [(sum(next(outcomes) for _ in scene), len(scene)) for scene in scenes]
    low, high = bootstrap(counts) if 0 < sum(right) < len(right) else wilson(int(sum(right)), len(right))
    return {"right": int(sum(right)), "accuracy": sum(right) / max(len(right), 1), "ci95": [low, high]}


def measure(args: argparse.Namespace, console: Console) -> list[list[dict[str, Any]]]:
    """The answers about each scene, of as many scenes as it takes to ask ``args.n`` questions of every kind."""
    cache, code = ResultCache(args.cache), f"{code_of(CODE)} {weights_of(args.model)}"
    scenes: list[list[dict[str, Any]]] = []
    counts = dict.fromkeys(KINDS, 0)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("asking", total=args.n * len(KINDS))
        while min(counts.values()) < args.n:
            seed = args.seed + len(scenes)
            found = cache.get(str(seed), args.model, code)
            if found is None:
                found = ask_scene(args.model, seed)
                cache.put(str(seed), {args.model: found}, {args.model: code})
            scenes.append(found)
            for record in found:
                counts[record["kind"]] += 1
            progress.update(task, completed=sum(min(count, args.n) for count in counts.values()))
    return scenes


def show(report: dict[str, Any], console: Console) -> None:
    """Print the report as tables."""
    table = Table("kind", "n", "free text", "sum", "ECE", "mean", "ECE", title="right, in %", box=box.SIMPLE)
    for kind, row in report["kinds"].items():
        cells = [f"{100 * row[k]['accuracy']:.1f} ({_span(row[k]['ci95'])})" for k in ("free_text", *SCORES)]
        table.add_row(
            kind, str(row["n"]), cells[0],
            cells[1], f"{row['sum']['ece']:.3f}", cells[2].split()[0], f"{row['mean']['ece']:.3f}",
        )
    console.print(table)
    for kind, row in report["kinds"].items():
        agreed = ", ".join(f"{s} {row[s]['winner_is_the_free_text']}" for s in SCORES)
        console.print(f"{kind}: the free text is a choice {row['free_text_is_a_choice']} times, and wins by {agreed}")
    for row in report["kinds"]["all"]["sum"]["from"]:
        console.print(f"confidence from {row['confidence']}: {row['n']} answers, {row['right']} right")
    missing = report["kinds"]["all"]["sum"]["without_truth"]
    console.print(f"truth not offered: {missing['n']} answers, {missing['confident']} of them from {CONFIDENT} on")


def _span(interval: Sequence[float]) -> str:
    return "–".join(f"{100 * end:.1f}".removesuffix(".0") for end in interval)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of the module."""
    parser = argparse.ArgumentParser(description="Accuracy and calibration of choices, by two ways to score them.")
    add = parser.add_argument
    add("--n", type=int, default=500, metavar="N", help="questions of each kind, at least (default %(default)s)")
    add("--model", default="vstream-tiny", help="or a checkpoint folder (default %(default)s)")
    add("--seed", type=int, default=FIRST_SEED, metavar="N", help="of the first scene (default %(default)s)")
    add("--out", type=Path, default=Path("build/choices.json"), metavar="FILE", help="(default %(default)s)")
    add("--cache", type=Path, default=Path("build/choices"), metavar="FOLDER", help="(default %(default)s)")
    args = parser.parse_args(arguments)
    console = Console()
    scenes = measure(args, console)
    groups = {kind: (kind,) for kind in KINDS} | {
        "one token": tuple(k for k in KINDS if k not in MANY_TOKENS), "many tokens": MANY_TOKENS, "all": KINDS,
    }
    report = {
        "model": args.model, "seed": args.seed, "scenes": len(scenes),
        "kinds": {
            name: summary([[r for r in scene if r["kind"] in kinds] for scene in scenes])
            for name, kinds in groups.items()
        },
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    draw(report["kinds"], args.out.with_suffix(".png"))
    show(report, console)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
