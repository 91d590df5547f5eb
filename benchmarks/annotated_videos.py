"""A published benchmark's questions about its videos, answered by any checkpoint from what each memory has kept."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from benchmarks.annotations import Item, read_annotations
from benchmarks.memory_answers import Asker, load
from benchmarks.memory_interface import TUBELET_FRAMES, Oracle, Strategy
from benchmarks.memory_recall import RATE_HZ
from benchmarks.memory_report import answer_rows
from benchmarks.memory_strategies import make_strategies
from vstream_ros.images import SizeRule
from vstream_ros.memory import MemoryConfig, Tubelet, Verdict
from vstream_ros.memory.sampling import Sampler
from vstream_ros.replay.sources import open_source

CHOICE_TOKENS, OPEN_TOKENS = 16, 64
NEED_THE_TRUTH = ("true_importance", "uniform")


def evaluate(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Score the strategies of the command line; the report as ``eval_memory`` writes it, with ``answers`` alone.

    Raises ``InvalidRequestError`` for annotations or videos that can't be read, ``ModelFailedError`` for a model.
    """
    items = read_annotations(args.annotations, args.videos)
    strategies = [name for name in args.strategies if name not in NEED_THE_TRUTH]
    device = "cpu" if args.device == "auto" and args.model == "vstream-tiny" else args.device
    asker = Asker(load(args.model, device, args.dtype), RATE_HZ)
    given: dict[str, list[dict[str, Any]]] = {name: [] for name in strategies}
    order = sorted(items, key=lambda item: (str(item.video), _asked_at(item)))
    with Progress(console=console) as progress:
        task = progress.add_task("asking", total=len(items))
        for video, asked in groupby(order, key=lambda item: item.video):
            memories = make_strategies(strategies, Oracle(0, lambda tubelet: 0.0), 0, MemoryConfig())
            for item in _moments(video, list(asked), memories, asker.frame_size):
                for name, memory in memories.items():
                    tokens = CHOICE_TOKENS if item.options else OPEN_TOKENS
                    text = asker.ask(name, memory.kept(), item.prompt, tokens)
                    given[name].append({
                        "id": item.id, "kind": item.task, "question": item.question, "answer": text,
                        "truth": item.answer, "right": item.right(text),
                    })
                progress.advance(task)
    kinds = list(dict.fromkeys(item.task for item in items))
    answers = [row for name in strategies for row in answer_rows(name, kinds, given[name])]
    settings = {"model": args.model, "annotations": str(args.annotations), "benchmark": items[0].benchmark}
    return {"rows": [], "events": [], "answers": answers, "ages": [], "settings": settings, "given": given}


def _asked_at(item: Item) -> float:
    return float("inf") if item.time_s is None else item.time_s


def _moments(video: Path, items: Sequence[Item], memories: dict[str, Strategy], size: SizeRule) -> Iterator[Item]:
    """Play a video to memories and stop where the next question is asked: at the first frame that comes after it."""
    sampler, left = Sampler(RATE_HZ, MemoryConfig().time_jump_threshold_s), list(items)
    pending: list[tuple[np.ndarray, int]] = []
    numbers = 0
    with open_source(video) as source:
        for frame in source:
            while left and frame.stamp_ns / 1e9 > _asked_at(left[0]):
                yield left.pop(0)
            if not left:
                return
            if sampler.check(frame.stamp_ns) is not Verdict.KEEP:
                continue
            pending.append((frame.rgb(size), sampler.keep(frame.stamp_ns)))
            if len(pending) == TUBELET_FRAMES:
                stamps_ns = tuple(stamp_ns for _, stamp_ns in pending)
                pixels = np.stack([image for image, _ in pending])
                for memory in memories.values():
                    memory.add(Tubelet(numbers, "camera", pixels, stamps_ns, stamps_ns[0], importance=0.0))
                pending, numbers = [], numbers + 1
    yield from left
