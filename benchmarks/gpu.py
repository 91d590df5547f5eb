"""Native and ours on a GPU, with models of true dimensions and random weights. No ROS, no checkpoint, no network.

    python -m benchmarks.gpu [--seconds 420] [--check] [--models Qwen2.5-VL-3B] [--out build/bench_gpu.json]

from the repository's root with ``PYTHONPATH=.:test``; ``make bench-gpu`` does it with ``PYTHON``'s own torch and
transformers. Seconds to the first token (cold, work ahead done, follow-up, one tubelet appended), tokens a second
beside what the device's memory allows, the vision encoder, peak memory, equality, where the time goes, and how long a
clip fits into a robot's memory. The file is written after each part, parts that no longer fit into ``--seconds`` are
left out, and one that fails is reported while the next goes on. ``--dry-run``: tiny models on the CPU, seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import gpu_parts as parts
from benchmarks.gpu_check import run_checks
from benchmarks.gpu_models import GEOMETRIES, MAX_PIXELS, Geometry, make_model, tiny
from benchmarks.latency import Contest
from vstream_ros.engine.device_memory import release_unused_memory
from vstream_ros.engine.recovery import first_line, forget_frames
from vstream_ros.models.frame_spec import FrameSpec

FRAME = (252, 448)
"""Height and width in pixels before a model's own rule: 144 tokens a tubelet for Qwen2.5-VL, 112 for Qwen3-VL."""
console = Console()


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    tubelets: tuple[int, ...] = (20, 40, 80)
    repeats: int = 3
    decoded: int = 64
    equal_tubelets: int = 20
    longest: int = 640
    room_bytes: int = 4 << 30
    """Beside the weights: about what a 16 GB Orin has left for a 4B model."""
    frame: tuple[int, int] = FRAME


DRY = Plan(tubelets=(2, 3), repeats=1, decoded=8, equal_tubelets=3, longest=2, frame=(56, 84))


class Report:
    """What was measured so far, on disk after each part."""

    def __init__(self, path: Path, seconds: float, machine: dict[str, Any]) -> None:
        self.path = path
        self.data: dict[str, Any] = {"machine": machine, "models": {}, "checks": []}
        self._deadline = time.monotonic() + seconds

    @property
    def seconds_left(self) -> float:
        return self._deadline - time.monotonic()

    def write(self) -> None:
        """The whole report, so that no moment leaves half a file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        half = self.path.with_suffix(".part")
        half.write_text(json.dumps(self.data, indent=1) + "\n")
        os.replace(half, self.path)

    def add_check(self, check: dict[str, Any]) -> None:
        """One of ``run_checks``."""
        self.data["checks"].append(check)
        self.write()
        what = "passed" if check["passed"] else "FAILED"
        console.print(f"{what}: {check['check']} ({check['seconds']:.1f} s): {check['detail']}", markup=False)

    def add_part(self, model: str, name: str, measure: Callable[[], Any], until: float) -> None:
        """Measure unless ``time.monotonic()`` is past ``until``; a failure is part of the report."""
        part: dict[str, Any] = {}
        started = time.monotonic()
        if started >= until:
            part["skipped"] = "no time left"
        else:
            try:
                part["result"] = measure()
            except Exception as error:  # noqa: BLE001  (the next part goes on)
                part["error"] = first_line(error)
                part["traceback"] = forget_frames(error)
            release_unused_memory()
        part["seconds"] = time.monotonic() - started
        self.data["models"].setdefault(model, {})[name] = part
        self.write()
        outcome = part.get("skipped") or part.get("error") or "done"
        console.print(f"{model}, {name}: {outcome} ({part['seconds']:.1f} s)", markup=False, highlight=False)


def describe(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    cuda = device.type == "cuda"
    properties = torch.cuda.get_device_properties(device) if cuda else None
    return {
        "device": properties.name if properties else "CPU",
        "memory_bytes": properties.total_memory if properties else 0,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "copy_bytes_per_s": parts.copy_rate(device),
    }


def model_parts(
    contest: Contest, plan: Plan, copy_rate: float, until: float
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is measured of one model, the most telling first."""
    *shorter, longest = plan.tubelets
    middle = shorter[-1] if shorter else longest
    yield "vision", partial(parts.vision, contest, 2 * plan.repeats)
    for count in shorter:
        yield f"first_token_{count}", partial(parts.first_tokens, contest, count, plan.repeats)
    yield "decoding", partial(parts.decoding, contest, middle, plan.decoded, copy_rate)
    yield "equality", partial(parts.equality, contest, plan.equal_tubelets, plan.decoded // 2)
    yield "profiles", partial(parts.profiles, contest, middle, 8)
    yield "peak_memory", partial(parts.peak_memory, contest, longest)
    yield f"first_token_{longest}", partial(parts.first_tokens, contest, longest, plan.repeats)
    yield (
        "longest_clip",
        partial(
            parts.longest_clips, contest, middle, plan.longest, plan.room_bytes, lambda: time.monotonic() >= until
        ),
    )


def measure_model(geometry: Geometry, device: torch.device, plan: Plan, report: Report, seconds: float) -> None:
    """All parts of one model, in ``seconds``."""
    until = time.monotonic() + seconds
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = make_model(geometry, device, dtype)
    size = FrameSpec(factor=model.frame_spec.factor, min_pixels=56 * 56, max_pixels=MAX_PIXELS).fit(*plan.frame)
    contest = Contest(model, size)
    started = time.monotonic()
    model.prepare(max(plan.tubelets) * model.max_tokens_per_tubelet + 2 * plan.decoded)
    prepared_s = time.monotonic() - started
    contest.native(contest.clip(2))
    contest.ours(contest.clip(2))
    report.data["models"][geometry.name] = {
        "weights": {"bytes": model.weight_bytes, "dtype": str(dtype), "frame": list(size)},
        "graphs": {"rows": model.captured_rows, "arena_bytes": model.arena_bytes, "seconds": prepared_s},
    }
    for name, measure in model_parts(contest, plan, report.data["machine"]["copy_bytes_per_s"], until):
        report.add_part(geometry.name, name, measure, until)


def show(data: dict[str, Any]) -> None:
    """The report as tables."""
    console.print(data["machine"])
    for model, measured in data["models"].items():
        table = Table(title=f"{model}: seconds to the first token", title_justify="left", box=box.SIMPLE)
        for column in ("scenario", "tubelets", "native", "ours", "p95", "native / ours", "same answer"):
            table.add_column(column, justify="left" if column == "scenario" else "right")
        for name, part in measured.items():
            for row in part.get("result", ()) if name.startswith("first_token") else ():
                seconds = (f"{row[key]:.4f}" for key in ("native_ttft_s", "ours_ttft_s", "ours_p95_s"))
                ratio = f"{row['ratio']:.1f} ({row['ratio_min']:.1f}-{row['ratio_max']:.1f})"
                same = "yes" if row["answers_equal"] else "no"
                table.add_row(row["scenario"], str(row["tubelets"]), *seconds, ratio, same)
        console.print(table)
        for name, part in measured.items():
            if not name.startswith("first_token"):
                # A failure's traceback is in the file.
                told = {key: value for key, value in part.items() if key != "traceback"}
                console.print(f"{name}: {_rounded(told)}", markup=False, highlight=False)
    if checks := data["checks"]:
        console.print(f"checks passed: {sum(c['passed'] for c in checks)} of {len(checks)}")


def _rounded(value: Any) -> Any:
    """Floats to four digits, for reading."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main(arguments: list[str] | None = None) -> None:
    """Measure, write the file, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = [geometry.name for geometry in GEOMETRIES]
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    parser.add_argument("--seconds", type=float, default=1200.0, help="begin no part after that")
    parser.add_argument("--check", action="store_true", help="first check that the engine works on this device")
    parser.add_argument("--only-check", action="store_true", help="check, and measure nothing")
    parser.add_argument("--dry-run", action="store_true", help="tiny models on the CPU")
    parser.add_argument("--out", type=Path, default=Path("build/bench_gpu.json"))
    args = parser.parse_args(arguments)
    if not args.dry_run and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --dry-run does without")
    device = torch.device("cpu" if args.dry_run else "cuda:0")
    if args.dry_run:
        torch.set_num_threads(1)
    # Native's convolution would round to TF32 even in a float32 model.
    torch.backends.cudnn.allow_tf32 = False
    report = Report(args.out, args.seconds, describe(device))
    report.write()
    if args.check or args.only_check:
        run_checks(device, dry_run=args.dry_run, report=report.add_check)
        release_unused_memory()
    wanted = [] if args.only_check else [geometry for geometry in GEOMETRIES if geometry.name in args.models]
    for index, geometry in enumerate(wanted):
        share = max(0.0, report.seconds_left) / (len(wanted) - index)
        if args.dry_run:
            measure_model(tiny(geometry), device, DRY, report, share)
        else:
            measure_model(geometry, device, Plan(), report, share)
        release_unused_memory()
    show(report.data)
    console.print(f"written to {args.out}")


if __name__ == "__main__":
    main()
