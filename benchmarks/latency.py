"""Time to the first token and peak memory, native inference against ours, on the same weights, frames and question.

    python -m benchmarks.latency [--tubelets 10 20 40 80] [--repeats 5] [--out build/bench.json]

Native is one call of the processor and ``generate(max_new_tokens=1)``. Runs of both are interleaved and the ratios are
taken within one repetition, so that a machine that changes its speed changes both. One thread. The file is written
after each part; about 25 minutes on an idle machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.decoding import decoding_rows
from support.frames import random_frame
from support.machine import machine
from support.shapes_accuracy import load
from training.tiny_config import FRAME_SIZE
from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.engine.answers import Question
from vstream_ros.engine.engine_config import EngineConfig
from vstream_ros.engine.segments import clip_segments
from vstream_ros.memory import Clip, MemoryConfig, SmartFrameManager
from vstream_ros.memory.clip import NANOSECONDS, Tubelet
from vstream_ros.models.base import GenerationOptions
from vstream_ros.models.loader import wrap_model
from vstream_ros.models.qwen.video_model import QwenVideoModel
from vstream_ros.synthetic.random_model import random_model

SIDE = 224
"""Pixels; 64 tokens a tubelet."""
QUESTION = "Describe what is happening in this video."
WORDS = ("Describe", " what", " is", " happening", " in", " this", " video", "assistant")
"""As single tokens they give the question the length that it has with Qwen's own tokenizer."""
SIZES = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "layers": 8,
    "heads": 8,
    "kv_heads": 2,
    "vocab_size": 4096,
    "vision_hidden_size": 256,
    "vision_depth": 6,
    "vision_heads": 4,
}
STREAM_MEMORY = MemoryConfig(scene_threshold=1.0, include_pending=False)
SCENARIOS = ("cold", "background_first", "follow_up", "appended")
BACKGROUND = {"background_first": "full", "vision_first": "vision"}
"""Scenarios with all work ahead done, and the ``background_encoding`` that does it; every other one has none."""
ASKS = {"follow_up": 5, "appended": 3}
"""Questions within a repetition: one of 50 ms samples a moment of the machine, native averages over seconds."""
STREAM_STEPS = 4
"""Background steps between two tubelets of the stream: what a device four times faster than the stream can do."""
console = Console()


@dataclasses.dataclass
class Row:
    """One scenario: seconds to the first token, medians; ratios native over ours within a repetition.

    ``repeats``: questions to ours, ``ASKS`` in each repetition.
    """

    scenario: str
    model: str
    tubelets: int
    suffix_tokens: int
    native_ttft_s: float
    ours_ttft_s: float
    native_p95_s: float
    ours_p95_s: float
    native_max_s: float
    ours_max_s: float
    ratio: float
    ratio_min: float
    ratio_max: float
    repeats: int
    answers_equal: bool
    background: str = "off"
    """The engine's ``background_encoding``."""


class Contest:
    """Native and ours over the same clip, and the times that each took."""

    def __init__(self, model: QwenVideoModel, size: tuple[int, int] = (SIDE, SIDE)) -> None:
        """``size``: (height, width) in pixels of the frames."""
        self.model = model
        self.size = size
        self.question = QUESTION
        self.answerer = ClipAnswerer(model, EngineConfig(), ["camera"])
        self._rng = np.random.default_rng(0)
        self._ids = itertools.count()

    def clip(self, count: int) -> Clip:
        """``count`` tubelets, one a second."""
        return Clip(tuple(self.tubelet(k) for k in range(count)), 1.0)

    def tubelet(self, second: int) -> Tubelet:
        """One that was never seen before."""
        number = next(self._ids)
        frames = np.stack([random_frame(self._rng, *self.size)] * 2)
        return Tubelet(number, "camera", frames, (number,), second * NANOSECONDS, 0.0)

    def native(self, clip: Clip) -> tuple[float, list[int]]:
        """Seconds to the first token, and the token."""
        segments = clip_segments((clip,), ["camera"], 10.0)
        self.settle()
        started = time.perf_counter()
        tokens = self.model.native_generate(segments, QUESTION, GenerationOptions(1), true_time=True)
        return time.perf_counter() - started, tokens

    def ours(self, clip: Clip) -> tuple[float, list[int]]:
        """The same through the engine."""
        self.settle()
        started = time.perf_counter()
        answer = self.answerer.answer((clip,), Question(QUESTION, max_new_tokens=1))
        return time.perf_counter() - started, list(answer.token_ids)

    def settle(self) -> None:
        """Until the device has nothing left to do, so that nothing of before is timed."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)

    def suffix_tokens(self, clip: Clip) -> int:
        """Tokens of the prompt after the last video token."""
        prompt = self.answerer.prompt((clip,), QUESTION)
        return len(prompt) - prompt.prefix_length


def make_model(*, short: bool) -> QwenVideoModel:
    """About 30 M random parameters; ``short``: the question's words are single tokens."""
    model, processor = random_model("qwen2_5_vl", **SIZES)
    if short:
        processor.tokenizer.add_tokens(list(WORDS))
    return wrap_model(model, processor, name="random Qwen2.5-VL", min_pixels=56 * 56, max_pixels=SIDE * SIDE)


def row(contest: Contest, scenario: str, clip: Clip, pairs: list[tuple[float, float]], equal: bool) -> Row:
    """Summarise (native, ours) seconds."""
    native, ours = np.array(pairs).T
    ratios = native / ours
    return Row(
        scenario=scenario,
        model=f"{contest.model.name}, {contest.model.weight_bytes / 4e6:.1f} M",
        tubelets=len(clip),
        suffix_tokens=contest.suffix_tokens(clip),
        native_ttft_s=float(np.median(native)),
        ours_ttft_s=float(np.median(ours)),
        native_p95_s=float(np.percentile(native, 95)),
        ours_p95_s=float(np.percentile(ours, 95)),
        native_max_s=float(native.max()),
        ours_max_s=float(ours.max()),
        ratio=float(np.median(ratios)),
        ratio_min=float(ratios.min()),
        ratio_max=float(ratios.max()),
        repeats=len(pairs),
        answers_equal=equal,
    )


def measure_clip(contest: Contest, count: int, repeats: int, scenarios: Sequence[str] = SCENARIOS) -> Iterator[Row]:
    """Scenarios at one clip length, interleaved."""
    clip = contest.clip(count)
    answerer = contest.answerer

    def prepare(scenario: str) -> Clip:
        """Bring the caches into the state that the scenario begins with; the clip to ask about."""
        if scenario == "appended":
            contest.ours(clip)
            newest = contest.tubelet(count - 1)
            contest.ours(dataclasses.replace(clip, tubelets=clip.tubelets[:-1]))
            return dataclasses.replace(clip, tubelets=(*clip.tubelets[:-1], newest))
        if scenario == "follow_up":
            contest.ours(clip)
            return clip
        answerer.drop_caches()
        while (scenario == "background_first" and answerer.prefill_ahead((clip,), ())) or (
            scenario == "vision_first" and answerer.encode_ahead((clip,))
        ):
            pass
        return clip

    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in scenarios}
    equal = dict.fromkeys(scenarios, True)
    contest.native(clip)
    title = f"{contest.model.name}: {count} tubelets, suffix {contest.suffix_tokens(clip)}"
    for _ in track(range(repeats), title, console=console):
        native_s, native_tokens = contest.native(clip)
        for name in scenarios:
            for again in range(ASKS.get(name, 1)):
                asked = prepare(name)
                ours_s, tokens = contest.ours(asked)
                pairs[name].append((native_s, ours_s))
                if asked is clip:
                    equal[name] &= tokens == native_tokens
                elif not again:
                    equal[name] &= tokens == contest.native(asked)[1]
    for name in scenarios:
        measured = row(contest, name, clip, pairs[name], equal[name])
        yield dataclasses.replace(measured, background=BACKGROUND.get(name, "off"))


def measure_stream(contest: Contest, *, background: bool, seconds: int, questions: int) -> Iterator[Row]:
    """A live stream of one tubelet a second, memory sliding and evicting, questions at random moments.

    Each question is asked a second time: the follow-up of the same moment, to compare with on a busy machine.
    """
    rng = np.random.default_rng(1)
    memory = SmartFrameManager(STREAM_MEMORY)
    moments = set(rng.choice(np.arange(seconds // 3, seconds), questions, replace=False).tolist())
    first: list[tuple[float, float]] = []
    follow_up: list[tuple[float, float]] = []
    sizes: list[int] = []
    equal = True
    contest.answerer.drop_caches()
    title = f"stream of {seconds} s, background {'full' if background else 'off'}"
    for second in track(range(seconds), title, console=console):
        for half in (0, 1):
            memory.add_frame(random_frame(rng, *contest.size), (2 * second + half) * NANOSECONDS // 2)
        ahead = memory.next_clip()
        if background:
            for _ in range(STREAM_STEPS):
                if not contest.answerer.prefill_ahead((memory.clip(),), () if ahead is None else (ahead,)):
                    break
        if second in moments:
            clip = memory.clip()
            native_s, native_tokens = contest.native(clip)
            for asked in (first, follow_up):
                ours_s, tokens = contest.ours(clip)
                asked.append((native_s, ours_s))
                equal &= tokens == native_tokens
            sizes.append(len(clip))
    for scenario, pairs in (("stream", first), ("follow_up", follow_up)):
        measured = row(contest, scenario, memory.clip(), pairs, equal)
        yield dataclasses.replace(
            measured, tubelets=int(np.median(sizes)), background="full" if background else "off"
        )


def peak_memory(path: str, count: int) -> float:
    """Bytes above the loaded and warmed-up model that one cold answer needs, in a fresh process."""
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from benchmarks.latency import *\n"
        f"contest = Contest(make_model(short=True)); run = contest.{path}\n"
        "run(contest.clip(2)); contest.answerer.drop_caches()\n"
        f"clip = contest.clip({count})\n"
        "open('/proc/self/clear_refs', 'w').write('5')\n"
        "read = lambda key: next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(key))\n"
        "before = read('VmRSS'); run(clip); print((read('VmHWM') - before) * 1024)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(result.stdout.split()[-1])


def main() -> None:
    """Measure, print a table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tubelets", type=int, nargs="+", default=[10, 20, 40, 80])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--stream-seconds", type=int, default=600)
    parser.add_argument("--stream-questions", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"machine": machine(), "rows": [], "peak_memory_bytes": {}, "peak_memory_ratio": {}}

    def keep(rows: Iterable[Row]) -> None:
        for measured in rows:
            result["rows"].append(dataclasses.asdict(measured))
            args.out.write_text(json.dumps(result, indent=2) + "\n")

    args.out.parent.mkdir(parents=True, exist_ok=True)
    contest = Contest(make_model(short=True))
    for count in args.tubelets:
        keep(measure_clip(contest, count, args.repeats))
        keep(decoding_rows(contest, count, args.repeats, row))
    for background in (True, False):
        seconds, questions = args.stream_seconds, args.stream_questions
        keep(measure_stream(contest, background=background, seconds=seconds, questions=questions))
    longer = Contest(make_model(short=False))
    for count in args.tubelets:
        keep(measure_clip(longer, count, args.repeats, ["follow_up"]))
    tiny = Contest(load("vstream-tiny"), FRAME_SIZE)
    for count in args.tubelets:
        keep(measure_clip(tiny, count, args.repeats))
    longest = max(args.tubelets)
    with console.status(f"peak memory at {longest} tubelets, in fresh processes"):
        peaks = {path: float(np.median([peak_memory(path, longest) for _ in range(3)])) for path in ("native", "ours")}
    result["peak_memory_bytes"][str(longest)] = peaks
    result["peak_memory_ratio"][str(longest)] = peaks["ours"] / peaks["native"]
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    show(result)
    console.print(f"written to {args.out}")


def show(result: dict[str, Any]) -> None:
    """The rows as tables, one for each model and question."""
    console.print(f"Seconds to the first token (median; of ours also p95 and maximum) on {result['machine']}")
    rows = result["rows"]
    for model, suffix in dict.fromkeys((r["model"], r["suffix_tokens"]) for r in rows):
        table = Table(title=f"{model}, {suffix} tokens after the video", title_justify="left", box=box.SIMPLE)
        for column in ("scenario", "tubelets", "native", "ours", "p95", "max", "native / ours"):
            table.add_column(column, justify="left" if column == "scenario" else "right")
        for r in rows:
            if (r["model"], r["suffix_tokens"]) == (model, suffix):
                seconds = (r[key] for key in ("native_ttft_s", "ours_ttft_s", "ours_p95_s", "ours_max_s"))
                ratio = f"{r['ratio']:.1f} ({r['ratio_min']:.1f}-{r['ratio_max']:.1f})"
                name = r["scenario"] + (f", {r['background']}" if r["scenario"] == "stream" else "")
                table.add_row(name, str(r["tubelets"]), *(f"{s:.3f}" for s in seconds), ratio)
        console.print(table)
    same = sum(r["answers_equal"] for r in rows)
    console.print(f"the same answers as native in {same} of {len(rows)} rows")
    for tubelets, ratio in result["peak_memory_ratio"].items():
        console.print(f"peak memory above the weights at {tubelets} tubelets: {100 * ratio:.0f} % of native's")


if __name__ == "__main__":
    main()
