"""Training of vstream-tiny: ``python -m training.train --out FOLDER``.

Two stages, each of which goes on where it was interrupted; a third run finds all done and writes the checkpoint again.
The state of the training stands in ``FOLDER/training``, the checkpoint in ``FOLDER``. CPU only, seeds fixed.

With ``--start-from CHECKPOINT`` the vision tower stays that checkpoint's, and its language model is trained further, by
a shorter plan: when what a memory keeps has changed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from training.feature_pool import FeaturePool
from training.tiny_model import load_weights, make_model, write_checkpoint
from training.train_language import LanguagePlan, measure_language, train_language
from training.train_vision import VisionPlan, train_vision

POOL_SEED, HELD_OUT_SEED = 7, 8
DENSE_SCENES, LONG_SCENES = 3000, 3000
HELD_OUT = 60
"""Scenes of each sort for the figures after training."""


def train(
    folder: Path,
    vision: VisionPlan,
    language: LanguagePlan,
    scenes: tuple[int, int],
    console: Console,
    *,
    start_from: Path | None = None,
    held_out: int = HELD_OUT,
    batches: int = 40,
    compiled: bool = False,
    threads: int = 1,
) -> None:
    """Both stages, and the checkpoint into ``folder``.

    Args:
        folder: of the checkpoint; the state of the training goes into its folder ``training``.
        vision: stage 1.
        language: stage 2.
        scenes: dense and long ones that stage 2's clips are made of.
        start_from: a checkpoint whose weights are trained further by stage 2 alone; ``vision`` is then not used.
        console: for progress and the last figures.
        held_out: scenes of each sort that the last figures are taken on.
        batches: of held-out clips for the last figures.
        compiled: stage 2 by torch.compile.
        threads: that stage 2 computes a step's batches in; stage 1 has a second process, which draws.
    """
    state = folder / "training"
    state.mkdir(parents=True, exist_ok=True)
    model, processor = make_model(vision.seed)
    figures: dict[str, dict[str, float]] = {}
    if start_from is not None:
        load_weights(model, start_from)
    with _progress(console) as progress:
        if start_from is None:
            figures["vision"] = _vision(model, state, vision, progress)
        pool = FeaturePool(model.model.visual, POOL_SEED)
        fresh = FeaturePool(model.model.visual, HELD_OUT_SEED)
        task = progress.add_task("encoding scenes", total=sum(scenes) + 2 * held_out, figures="")
        pool.load_or_grow(state / "pool.pt", *scenes, lambda: progress.advance(task))
        fresh.load_or_grow(state / "held_out.pt", held_out, held_out, lambda: progress.advance(task))
        progress.update(task, completed=sum(scenes) + 2 * held_out)
        task = progress.add_task("language model", total=language.steps, figures="")
        report = _reporter(progress, task, state / "language.log")
        train_language(model, processor, pool, state, language, report, compiled=compiled, threads=threads)
    write_checkpoint(model, processor, folder)
    figures["language"] = measure_language(model, processor, fresh, batches)
    (state / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    for stage, values in figures.items():
        console.print(stage, {name: round(value, 4) for name, value in values.items()})


def _vision(model: Any, state: Path, plan: VisionPlan, progress: Progress) -> dict[str, float]:
    task = progress.add_task("vision tower", total=plan.steps, figures="")
    return train_vision(model.model.visual, state, plan, _reporter(progress, task, state / "vision.log"))


def _reporter(progress: Progress, task: Any, log: Path) -> Callable[[int, dict[str, float]], None]:
    """Shows running means beside the bar, and writes a line of them to ``log`` every 25 steps."""
    means: dict[str, float] = {}

    def report(step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            means[name] = 0.95 * means.get(name, value) + 0.05 * value
        line = " ".join(f"{name} {value:.3f}" for name, value in means.items())
        progress.update(task, completed=step + 1, figures=line)
        if step % 25 == 0:
            with log.open("a") as file:
                file.write(f"step {step:5d}  {line}\n")

    return report


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[figures]}"), console=console)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of the module."""
    parser = argparse.ArgumentParser(description="Train vstream-tiny on the shapes world.")
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FOLDER", help="of the checkpoint; resumed where it exists")
    add("--start-from", type=Path, metavar="CHECKPOINT", help="train its language model further, and nothing else")
    add("--threads", type=int, default=LanguagePlan.batches, metavar="N", help="for the language (default %(default)s)")
    add("--vision-steps", type=int, default=VisionPlan.steps, metavar="N", help="(default %(default)s)")
    add("--language-steps", type=int, metavar="N", help="(default: the plan's)")
    add("--scenes", type=int, nargs=2, default=(DENSE_SCENES, LONG_SCENES), metavar=("DENSE", "LONG"))
    add(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="the language model's layers: takes a C++ compiler, and a third off the time of a step",
    )
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the products are small: a second thread within one would mostly wait for the first
    cv2.setNumThreads(1)
    np.seterr(all="raise", under="ignore")
    vision = dataclasses.replace(VisionPlan(), steps=args.vision_steps)
    language = LanguagePlan() if args.start_from is None else LanguagePlan.continued()
    language = dataclasses.replace(language, steps=args.language_steps or language.steps)
    scenes = (args.scenes[0], args.scenes[1])
    train(
        args.out, vision, language, scenes, Console(),
        start_from=args.start_from, compiled=args.compile, threads=args.threads,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
