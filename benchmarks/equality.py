"""Is a cached answer the native one? Randomised streams, compared on tokens and on logits, with negative controls.

    python -m benchmarks.equality [--streams 200] [--text-positions checkpoint transformers]

Every family sees that many streams by each of the rules for text behind a video; Qwen3-VL, which has one rule only,
sees them once. In half of the streams star has smaller frames than the window, and in half memory goes through a file
now and then. As many streams ask one to eight questions together, at different moments, greedy and sampled, with drafts
that are right, wrong and half right, and cancel some. The controls damage the cache, the file, or what a row sees, on
purpose and must be seen.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from support.batch_streams import run_batches
from support.controls import CONTROL_THRESHOLD
from support.equality import LOGIT_TOLERANCE
from support.streams import CONTROL_NAMES, StreamKind, run_stream
from vstream_ros.models.base import TEXT_POSITIONS
from vstream_ros.models.loader import wrap_model
from vstream_ros.models.qwen.video_model import QwenVideoModel
from vstream_ros.synthetic.random_model import FAMILIES, random_model


def kind_of(seed: int) -> StreamKind:
    """What the stream of a seed does: every combination of what may be, in twelve seeds, cameras in a third of them."""
    return StreamKind(cameras=1 + seed % 3 // 2, mixed_sizes=seed % 4 >= 2, restores=seed % 2 == 1)


def run_streams(model: QwenVideoModel, text_positions: str, streams: int) -> dict[str, Any]:
    """One row of the report."""
    seeds = track(range(streams), f"{model.name}, {text_positions}")
    results = [run_stream(model, seed, text_positions=text_positions, kind=kind_of(seed)) for seed in seeds]
    comparisons = [c for result in results for c in result.comparisons]
    return {
        "family": model.name,
        "text_positions": text_positions,
        "streams": len(results),
        "answers": len(comparisons),
        "of_two_sizes": sum(result.of_two_sizes for result in results),
        "restores": sum(result.restores for result in results),
        "failures": sum(not c.equal for c in comparisons),
        "largest_logit_difference": max(c.logit_difference for c in comparisons),
        "smallest_control_difference": {name: min(r.controls[name] for r in results) for name in CONTROL_NAMES},
    }


def run_batch_streams(model: QwenVideoModel, text_positions: str, streams: int) -> dict[str, Any]:
    """One row of the report about questions that are answered together."""
    seeds = track(range(streams), f"{model.name}, {text_positions}, questions together")
    results = [run_batches(model, seed, text_positions=text_positions) for seed in seeds]
    comparisons = [c for result in results for c in result.comparisons]
    return {
        "family": model.name,
        "text_positions": text_positions,
        "streams": len(results),
        "answers": len(comparisons),
        "sampled": sum(result.sampled for result in results),
        "chosen": sum(result.chosen for result in results),
        "cancelled": sum(result.cancelled for result in results),
        "draft_tokens_right": sum(result.drafted for result in results),
        "draft_tokens_wrong": sum(result.wrong_drafts for result in results),
        "failures": sum(not c.equal for c in comparisons),
        "largest_logit_difference": max(c.logit_difference for c in comparisons),
        "smallest_control_difference": {"seen sibling": min(result.sibling_difference for result in results)},
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    """One column per family and rule."""
    table = Table("", *(f"{row['family']}\n{row['text_positions']}" for row in rows))
    for key, value in rows[0].items():
        if isinstance(value, int):
            table.add_row(key.replace("_", " "), *(str(row[key]) for row in rows))
    table.add_row("largest logit difference", *(f"{row['largest_logit_difference']:.1e}" for row in rows))
    for name in rows[0]["smallest_control_difference"]:
        table.add_row(f"smallest with {name}", *(f"{row['smallest_control_difference'][name]:.3f}" for row in rows))
    return table


def main() -> None:
    """Many streams of every family; writes ``build/bench_equality.json`` and exits 1 where one is not native."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--streams", type=int, default=200, help="per family and rule")
    parser.add_argument("--text-positions", nargs="+", choices=TEXT_POSITIONS, default=TEXT_POSITIONS, help="the rules")
    parser.add_argument("--out", type=Path, default=Path("build/bench_equality.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("vstream_ros").setLevel(logging.ERROR)  # clearings and restores are announced
    console = Console()
    rows: list[dict[str, Any]] = []
    batch_rows: list[dict[str, Any]] = []
    for family in FAMILIES:
        made, processor = random_model(family)
        model = wrap_model(made, processor, name=family, min_pixels=56 * 56, max_pixels=224 * 224)
        rules = args.text_positions[:1] if family == "qwen3_vl" else args.text_positions
        rows += [run_streams(model, rule, args.streams) for rule in rules]
        batch_rows += [run_batch_streams(model, rule, args.streams) for rule in rules]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    report = {"tolerance": LOGIT_TOLERANCE, "rows": rows, "batch_rows": batch_rows}
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    for table in (rows, batch_rows):
        console.print(_table(table))
    console.print(f"written to {args.out}")
    unseen = any(min(r["smallest_control_difference"].values()) <= CONTROL_THRESHOLD for r in (*rows, *batch_rows))
    sys.exit(unseen or any(r["failures"] for r in (*rows, *batch_rows)))


if __name__ == "__main__":
    main()
