"""Whether the node says what offline inference says, through all of ROS: ``python -m benchmarks.node_eval``.

What is asked and compared stands in ``support.node_agreement``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
from rich.console import Console

from support.node_agreement import SEED, evaluate, show


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of the module. Returns 1 where an answer differs."""
    parser = argparse.ArgumentParser(description="The node's answers against offline inference.")
    add = parser.add_argument
    add("--n", type=int, default=20, metavar="N", help="questions of each kind (default %(default)s)")
    add("--model", default="vstream-tiny", help="or a checkpoint folder (default %(default)s)")
    add("--seed", type=int, default=SEED, metavar="N", help="of the first scene (default %(default)s)")
    add("--out", type=Path, default=Path("build/eval_node.json"), metavar="FILE", help="(default %(default)s)")
    args = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    out = Console()
    with tempfile.TemporaryDirectory(prefix="vstream-eval-") as workdir:
        report = evaluate(args.model, args.n, args.seed, Path(workdir), out)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    show(report, out)
    return int(any(row["equal"] < row["n"] for row in report["kinds"]))


if __name__ == "__main__":
    raise SystemExit(main())
