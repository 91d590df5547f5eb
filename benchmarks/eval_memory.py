"""What memory keeps decides what can be answered: ``python -m benchmarks.eval_memory``.

Three measures, into ``build/eval_memory.json`` with tables and plots: model-free recall of shapes-world scenes by our
memory and its rivals (``memory_recall``), a brief event under adverse conditions (``memory_streams``), and what
vstream-tiny answers from what was kept (``memory_answers``). Each scene's result is kept in ``build/eval_memory``: a
run that was broken off goes on, and after a change of our memory only what depends on it is measured again.

With ``--annotations`` the same strategies and any checkpoint are scored on a published benchmark's videos instead
(``annotated_videos``).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.memory_recall import ANSWER_KINDS, WORLDS, recall
from benchmarks.memory_report import age_rows, answer_rows, event_row, recall_row, show
from benchmarks.memory_strategies import STRATEGIES, WITH_A_MODEL
from benchmarks.memory_streams import DURATION_S, EVENT_AT_S, STREAMS, watch
from benchmarks.result_cache import ResultCache, code_of, weights_of
from training.parallel import in_processes
from vstream_ros.errors import VStreamError

FIRST_SEEDS = {"held-out": 9_800_000_000, "tuning": 8_000_000_000}
"""Far from the training's, and from each other. What is tuned on the one is reported on the other."""
SCENES = {2: 100, 10: 60, 60: 30}
"""Of each world, by minutes."""
QUICK_SCENES = {2: 4, 10: 1, 60: 0}
EVENTS, ANSWER_SCENES = 20, 60
RATES_HZ = (2.0, 10.0)
ANSWER_STRATEGIES = ("ours", "last_n", "last_4")

_WORLD_CODE = ("vstream_ros/synthetic", "vstream_ros/images", "vstream_ros/memory/memory_config.py")
_RECALL_CODE = (*_WORLD_CODE, *(
    f"benchmarks/memory_{part}.py" for part in ("interface", "recall", "rivals", "strategies")
))


class Evaluation:
    """Measures what is not in the cache yet, with a progress bar; ``args`` as ``main`` parses them."""

    def __init__(self, args: argparse.Namespace, console: Console) -> None:
        self._args = args
        self._console = console
        self._cache = ResultCache(args.cache)
        self._seed = FIRST_SEEDS[args.seeds]

    def report(self) -> dict[str, Any]:
        """All measures that were asked for."""
        args = self._args
        rows, ages = self._recall()
        settings = {name: getattr(args, name) for name in ("seeds", "quick", "model", "strategies")}
        return {
            "rows": rows, "events": self._events(), "answers": self._answers(), "ages": ages,
            "settings": settings | {"first_seed": self._seed},
        }

    def _recall(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        codes = {name: code_of(_RECALL_CODE) for name in self._args.strategies}
        if "ours" in codes:
            codes["ours"] = code_of((*_RECALL_CODE, "vstream_ros/memory"))
        for name in codes.keys() & WITH_A_MODEL.keys():
            codes[name] = code_of((*_RECALL_CODE, "vstream_ros", "benchmarks/memory_semantic.py"))
        rows: list[dict[str, Any]] = []
        ages: list[dict[str, Any]] = []
        for minutes in self._args.minutes:
            for world in self._args.worlds:
                first = self._seed + 1_000_000 * (1 + WORLDS.index(world)) + 10_000 * minutes
                scenes = [first + k for k in range(self._scenes(minutes))]
                names = [f"recall/{world}_{minutes}_{scene}" for scene in scenes]
                self._measure(
                    f"{minutes} min, {world}", names, codes, recall, [(world, minutes, scene) for scene in scenes]
                )
                if scenes:
                    by_strategy = {s: [self._cache.get(name, s, codes[s]) for name in names] for s in codes}
                    rows += [recall_row(s, world, minutes, scores) for s, scores in by_strategy.items()]
                    ages += [row for s, scores in by_strategy.items() for row in age_rows(s, world, minutes, scores)]
        return rows, ages

    def _scenes(self, minutes: int) -> int:
        if self._args.scenes is not None:
            return int(self._args.scenes)
        return (QUICK_SCENES if self._args.quick else SCENES)[minutes]

    def _events(self) -> list[dict[str, Any]]:
        runs = self._args.events
        if runs == 0:
            return []
        duration_s = EVENT_AT_S + 120.0 if self._args.quick else DURATION_S
        codes = {"ours": code_of((*_WORLD_CODE, "vstream_ros/memory", "benchmarks/memory_streams.py"))}
        rows = []
        for stream in self._args.streams:
            for rate_hz in self._args.hz:
                first = self._seed + 100_000_000 + 1000 * STREAMS.index(stream)
                calls = [(stream, first + k, rate_hz, duration_s) for k in range(runs)]
                names = [f"events/{stream}_{rate_hz:g}_{duration_s:.0f}_{seed}" for _, seed, *_ in calls]
                self._measure(f"{stream}, {rate_hz:g} Hz", names, codes, _watched, calls)
                outcomes = [self._cache.get(name, "ours", codes["ours"]) for name in names]
                rows.append(event_row(stream, rate_hz, outcomes))
        return rows

    def _answers(self) -> list[dict[str, Any]]:
        if self._args.answers == 0:
            return []
        strategies = [name for name in ANSWER_STRATEGIES if name in self._args.strategies]
        model = self._args.model
        code = code_of((*_RECALL_CODE, "vstream_ros", "benchmarks/memory_answers.py"))
        codes = dict.fromkeys(strategies, code + weights_of(model))
        scenes = [self._seed + 200_000_000 + k for k in range(self._args.answers)]
        names = [f"answers/{model.strip('/').replace('/', '_')}_{scene}" for scene in scenes]
        self._measure(f"answers of {model}", names, codes, _answered, [(model, scene) for scene in scenes])
        rows = []
        for strategy in strategies:
            given = [answer for name in names for answer in self._cache.get(name, strategy, codes[strategy]) or ()]
            rows += answer_rows(strategy, ANSWER_KINDS, given)
        return rows

    def _measure(
        self, what: str, names: Sequence[str], codes: dict[str, str], function: Callable[..., dict[str, Any]],
        calls: Sequence[tuple[Any, ...]],
    ) -> None:
        """Call ``function(*call, entries)`` for the entries of each name that are missing, and keep what it returns."""
        missing = {
            (name, call): [entry for entry, code in codes.items() if self._cache.get(name, entry, code) is None]
            for name, call in zip(names, calls, strict=True)
        }
        todo = [(name, (*call, entries)) for (name, call), entries in missing.items() if entries]
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(what, total=len(names), completed=len(names) - len(todo))
            results = in_processes(function, (call for _, call in todo), min(self._args.processes, len(todo)))
            for (name, _), result in zip(todo, results, strict=True):
                self._cache.put(name, result, codes)
                progress.advance(task)


def _watched(stream: str, seed: int, rate_hz: float, duration_s: float, entries: Sequence[str]) -> dict[str, Any]:
    return dict.fromkeys(entries, asdict(watch(stream, seed, rate_hz, duration_s)))


def _answered(model: str, seed: int, entries: Sequence[str]) -> dict[str, Any]:
    from benchmarks.memory_answers import answers  # the only part that needs torch

    return answers(model, seed, entries)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with the defaults that depend on ``--quick`` filled in."""
    parser = argparse.ArgumentParser(description="What memory keeps, and what can be answered from it.")
    add = parser.add_argument
    add("--quick", action="store_true", help="a few short scenes and streams, in about a minute")
    add("--minutes", type=int, nargs="+", choices=sorted(SCENES), default=sorted(SCENES), help="lengths of scenes")
    add("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS))
    add("--strategies", nargs="+", choices=[*STRATEGIES, *WITH_A_MODEL], default=list(STRATEGIES))
    add("--scenes", type=int, metavar="N", help="of each world and length (default 100, 60 and 30 by length)")
    add("--streams", nargs="+", choices=STREAMS, default=list(STREAMS))
    add("--hz", type=float, nargs="+", metavar="RATE", help="of the streams with an event (default 2 and 10)")
    add("--events", type=int, metavar="N", help=f"runs of each stream (default {EVENTS}; 0: none)")
    add("--answers", type=int, metavar="N", help=f"scenes to ask the model about (default {ANSWER_SCENES}; 0: none)")
    add("--model", default="vstream-tiny", help="or a checkpoint folder (default %(default)s)")
    add("--seeds", choices=list(FIRST_SEEDS), default="held-out", help="figures come from held-out scenes only")
    add("--processes", type=int, default=2, metavar="N", help="of one thread each; 0: this one (default %(default)s)")
    add("--cache", type=Path, default=Path("build/eval_memory"), metavar="DIR", help="(default %(default)s)")
    add("--out", type=Path, metavar="FILE", help="(default build/eval_memory.json; build/eval_videos.json)")
    videos = parser.add_argument_group("a published benchmark instead", "OVO-Bench, StreamingBench or VStream-QA")
    videos.add_argument("--annotations", type=Path, metavar="FILE", help="its JSON file")
    videos.add_argument("--videos", type=Path, metavar="FOLDER", help="where its videos are")
    videos.add_argument("--device", default="auto", help="for --annotations (default %(default)s)")
    videos.add_argument("--dtype", default="auto", help="for --annotations (default %(default)s)")
    args = parser.parse_args(arguments)
    if (args.annotations is None) != (args.videos is None):
        parser.error("--annotations and --videos go together")
    args.events = (1 if args.quick else EVENTS) if args.events is None else args.events
    args.answers = (1 if args.quick else ANSWER_SCENES) if args.answers is None else args.answers
    args.hz = args.hz or (RATES_HZ[:1] if args.quick else RATES_HZ)
    args.out = args.out or Path("build", "eval_memory.json" if args.annotations is None else "eval_videos.json")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of the module."""
    args, console = parse(arguments), Console()
    try:
        if args.annotations is None:
            report = Evaluation(args, console).report()
        else:
            from benchmarks.annotated_videos import evaluate

            report = evaluate(args, console)
    except VStreamError as error:
        console.print(f"[red]{error}")
        return 1
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    show(report, console)
    for path in _plots(report, args):
        console.print(f"drawn: {path}")
    return 0


def _plots(report: dict[str, Any], args: argparse.Namespace) -> Iterator[Path]:
    from benchmarks.memory_plots import draw

    folder = args.out.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    yield from draw(report, folder)


if __name__ == "__main__":
    raise SystemExit(main())
