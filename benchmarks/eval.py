"""How often vstream-tiny is right about scenes that it was never trained on: ``python -m benchmarks.eval``.

What is asked and counted stands in ``support.shapes_accuracy``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from support.shapes_accuracy import HELD_OUT_SEED, evaluate, show


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of the module."""
    parser = argparse.ArgumentParser(description="Accuracy of vstream-tiny on held-out scenes.")
    add = parser.add_argument
    add("--n", type=int, default=500, metavar="N", help="questions of each kind (default %(default)s)")
    add("--model", default="vstream-tiny", help="or a checkpoint folder (default %(default)s)")
    add("--seed", type=int, default=HELD_OUT_SEED, metavar="N", help="of the first scene (default %(default)s)")
    add("--recall-n", type=int, default=200, metavar="N", help="of memory recall (default %(default)s)")
    add("--processes", type=int, default=2, metavar="N", help="of one thread each; 0: this one (default %(default)s)")
    add("--out", type=Path, default=Path("build/eval.json"), metavar="FILE", help="(default %(default)s)")
    args = parser.parse_args(arguments)
    console = Console()
    report = evaluate(
        args.model, args.n, args.seed, console, recall_per_kind=args.recall_n, processes=args.processes
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    show(report, console)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
