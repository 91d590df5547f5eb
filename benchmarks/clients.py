"""Many clients at once: is every question answered or told BUSY? ``python -m benchmarks.clients``

The installed node with a small random-weight model, and crowds of clients in processes of their own with rclpy's
default QoS. DDS hands every reply to every client, so the time that a crowd takes grows with its square. What a client
of depth 10 overwrites in its own queue by 1,000 calls in a row, no service ever sees: that row may not be 0.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from support.crowd import UNANSWERED, Crowd, call_all
from support.ros_client import DOMAIN, Planner, image, isolate_ros, wait_until, write_endless_checkpoint
from vstream_ros.demo.session import TOPIC, node_session
from vstream_ros.msg import CacheStatus

BEYOND_ITS_DEPTH = "1,000 calls of 1 client"
CROWDS = {
    "200 clients in 10 processes": Crowd(10, 20),
    "200 clients in 1 process": Crowd(1, 200),
    "500 clients in 10 processes": Crowd(10, 50),
    "500 clients in 1 process": Crowd(1, 500),
    BEYOND_ITS_DEPTH: Crowd(1, 1, 1000),
    "1,000 calls of 1 client, depth 1,000": Crowd(1, 1, 1000, depth=1000),
}
FRAMES = 8
SAME = Crowd(5, 10, max_new_tokens=64)
"""50 callers of the same question."""
SAME_QUESTION = "50 callers of one question"
WAYS = {
    "together, drafted": {"max_questions_per_client": 0},
    "together": {"max_questions_per_client": 0, "drafts": "off"},
    "one after another": {"max_questions_per_client": 0, "drafts": "off", "max_parallel_questions": 1},
}
"""How the node answers them: the parameters that differ."""


def main(argv: list[str] | None = None) -> int:
    """Run the crowds, print a table, write JSON. Returns 1 where a call was left without an answer."""
    parser = argparse.ArgumentParser(description="Ask the node from many clients at once.")
    parser.add_argument("--out", type=Path, default=Path("build/bench_clients.json"))
    parser.add_argument("--only", default="", help="crowds whose name holds this text")
    args = parser.parse_args(argv)
    isolate_ros()
    os.environ["VSTREAM_DOMAIN_ID"] = str(DOMAIN)  # the session would choose one of its own
    out = Console()
    rows: dict[str, Any] = {}
    sessions: list[tuple[dict[str, Any], dict[str, Crowd]]] = [({}, CROWDS)]
    sessions += [(changed, {f"{SAME_QUESTION}, {name}": SAME}) for name, changed in WAYS.items()]
    with tempfile.TemporaryDirectory() as folder:
        model = write_endless_checkpoint(Path(folder) / "model")
        for changed, crowds in sessions:
            if wanted := {name: crowd for name, crowd in crowds.items() if args.only in name}:
                parameters = {"device": "cpu", "torch_dtype": "float32", "local_files_only": True, **changed}
                with node_session(Path(folder), str(model), out, compressed=False, parameters=parameters):
                    show_frames()
                    for name, crowd in wanted.items():
                        with out.status(name):
                            codes, slowest_s = call_all(crowd)
                        rows[name] = {"calls": crowd.total, "codes": codes, "last_answer_s": slowest_s}
    table = Table("crowd", "calls", "answered", "BUSY", "other codes", "no answer", "last answer (s)")
    for name, row in rows.items():
        codes = row["codes"]
        others = ", ".join(f"{n} {code}" for code, n in codes.items() if code not in ("NONE", "BUSY", UNANSWERED))
        counts = (row["calls"], codes["NONE"], codes["BUSY"], others, codes[UNANSWERED])
        table.add_row(name, *map(str, counts), f"{row['last_answer_s']:.1f}")
    out.print(table)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(rows, indent=2) + "\n")
    return int(any(row["codes"][UNANSWERED] for name, row in rows.items() if name != BEYOND_ITS_DEPTH))


def show_frames() -> None:
    """Frames to ask about."""
    planner = Planner()
    try:
        heard = planner.hear(CacheStatus, "/vstream/cache_status")
        planner.publish(*map(image, range(FRAMES)), topic=TOPIC)
        wait_until(lambda: heard and heard[-1].cameras[0].frames_kept >= FRAMES, "the frames are kept")
    finally:
        planner.close()


if __name__ == "__main__":
    raise SystemExit(main())
