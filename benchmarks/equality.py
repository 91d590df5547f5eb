"""Is a cached answer the native one? Randomised streams, compared on tokens and on logits, with negative controls.

    python -m benchmarks.equality [--streams 200]

Tokens alone are nearly blind to a wrong cache, so every comparison looks at the logits of every generated token. The
controls damage the cache on purpose and must be seen.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.engine.answers import Question
from vstream_ros.engine.engine_config import EngineConfig
from vstream_ros.engine.segments import clip_segments
from vstream_ros.memory import Clip, MemoryConfig, SmartFrameManager
from vstream_ros.memory.clip import NANOSECONDS
from vstream_ros.models.base import GenerationOptions, Prompt
from vstream_ros.models.loader import wrap_model
from vstream_ros.models.qwen.video_model import QwenVideoModel
from vstream_ros.synthetic.random_model import FAMILIES, random_model

LOGIT_TOLERANCE = 1e-4
CONTROL_THRESHOLD = 1e-2
WORDS = ["what", "who", "where", "when", "is", "the", "red", "car", "person", "left", "door", "before", "after", "seen"]


@dataclasses.dataclass
class Generated:
    """Tokens and the logits that each was chosen from, (tokens, vocabulary) float32."""

    tokens: list[int]
    logits: torch.Tensor


@dataclasses.dataclass
class Comparison:
    """Two answers side by side. The difference is taken up to the first token that differs."""

    tokens_equal: bool
    logit_difference: float

    @property
    def equal(self) -> bool:
        return self.tokens_equal and self.logit_difference <= LOGIT_TOLERANCE


def compare(one: Generated, other: Generated) -> Comparison:
    """Largest absolute logit difference over the steps whose inputs were the same."""
    steps = min(len(one.tokens), len(other.tokens))
    differs = [k for k in range(steps) if one.tokens[k] != other.tokens[k]]
    comparable = min(differs[0] + 1 if differs else steps, one.logits.shape[0], other.logits.shape[0])
    difference = (one.logits[:comparable] - other.logits[:comparable]).abs().max().item()
    return Comparison(one.tokens == other.tokens, difference)


@contextmanager
def recorded_logits(model: Any) -> Iterator[list[torch.Tensor]]:
    """Collects the last row of everything that the language model's head computes."""
    rows: list[torch.Tensor] = []
    hook = model.lm_head.register_forward_hook(lambda _m, _i, output: rows.append(output[0, -1].float().cpu().clone()))
    try:
        yield rows
    finally:
        hook.remove()


def cached_answer(
    answerer: ClipAnswerer, clips: tuple[Clip, ...], question: Question, part: Hashable | None = None
) -> Generated:
    """The engine's answer; ``part``: on a fork."""
    with recorded_logits(answerer.model.model) as rows:  # type: ignore[attr-defined]
        answer = answerer.answer(clips, question, part=part)
    return Generated(list(answer.token_ids), torch.stack(rows))


def native_answer(answerer: ClipAnswerer, clips: tuple[Clip, ...], question: Question) -> Generated:
    """Plain ``model.generate`` over the same frames: one call of the installed processor, no cache."""
    model = answerer.model
    assert isinstance(model, QwenVideoModel)
    segments = clip_segments(clips, answerer.cameras, answerer.config.camera_block_s)
    options = GenerationOptions(question.max_new_tokens, question.temperature, question.seed)
    true_time = answerer.config.time_positions == "true"
    with recorded_logits(model.model) as rows:
        tokens = model.native_generate(segments, question.text, options, true_time=true_time)
    return Generated(tokens, torch.stack(rows))


# -- negative controls: each damages what the next answer is computed from -------------------------------------------


def _swap_tubelets(answerer: ClipAnswerer, clips: tuple[Clip, ...], rng: np.random.Generator) -> tuple[Clip, ...]:
    """Two tubelets of the longest clip change places (ids and times stay): needs two of them."""
    index = max(range(len(clips)), key=lambda k: len(clips[k]))
    tubelets = list(clips[index].tubelets)
    a, b = rng.choice(len(tubelets), 2, replace=False)
    one, other = tubelets[a], tubelets[b]
    tubelets[a] = dataclasses.replace(one, frames=other.frames)
    tubelets[b] = dataclasses.replace(other, frames=one.frames)
    swapped = dataclasses.replace(clips[index], tubelets=tuple(tubelets))
    return (*clips[:index], swapped, *clips[index + 1 :])


def control_tubelets_swapped(
    answerer: ClipAnswerer, clips: tuple[Clip, ...], question: Question, rng: np.random.Generator
) -> Generated:
    """Two tubelets' pixels in each other's place."""
    answerer.drop_caches()
    return cached_answer(answerer, _swap_tubelets(answerer, clips, rng), question)


def control_position_off(
    answerer: ClipAnswerer, clips: tuple[Clip, ...], question: Question, rng: np.random.Generator
) -> Generated:
    """The text after the video stands one position too late."""
    answerer.drop_caches()
    model = answerer.model
    build = model.build_prompt

    def shifted(*args: Any, **kwargs: Any) -> Prompt:
        prompt = build(*args, **kwargs)
        positions = prompt.position_ids.copy()
        positions[1:, prompt.prefix_length :] += 1
        return dataclasses.replace(prompt, position_ids=positions)

    model.build_prompt = shifted  # type: ignore[method-assign]
    try:
        return cached_answer(answerer, clips, question)
    finally:
        del model.build_prompt


def control_stale_feature(
    answerer: ClipAnswerer, clips: tuple[Clip, ...], question: Question, rng: np.random.Generator
) -> Generated:
    """One tubelet's features are those of other pixels."""
    answerer.drop_caches()
    kept = [t for clip in clips for t in clip.tubelets if not t.provisional]  # features of others are never stored
    victim = kept[int(rng.integers(len(kept)))]
    other = dataclasses.replace(victim, frames=np.ascontiguousarray(255 - victim.frames[:, ::-1]))
    answerer.vision.features([other])  # stored under the victim's id
    return cached_answer(answerer, clips, question)


def control_kept_after_eviction(
    answerer: ClipAnswerer, clips: tuple[Clip, ...], question: Question, rng: np.random.Generator
) -> Generated:
    """Keys and values of an evicted tubelet are cut out, and those behind it kept, though they have seen it.

    The evicted one is an extra tubelet behind the first of ``clips``, which the answer is about.
    """
    answerer.drop_caches()
    index = max(range(len(clips)), key=lambda k: len(clips[k]))
    tubelets = list(clips[index].tubelets)
    second = tubelets[1]
    other = np.ascontiguousarray(255 - second.frames[:, ::-1])
    extra = dataclasses.replace(second, id=10**9, frames=other)  # at the same time: the text between stays the same
    longer = dataclasses.replace(clips[index], tubelets=(tubelets[0], extra, *tubelets[1:]))
    before = answerer.prompt((*clips[:index], longer, *clips[index + 1 :]), question.text)
    after = answerer.prompt(clips, question.text)
    timeline = answerer.timelines.current
    timeline.sync(before)
    position = before.tubelets.index(extra)
    start, end = before.spans[position][0], before.spans[position + 1][0]
    for layer in timeline.cache.layers:
        layer.keys = torch.cat([layer.keys[..., :start, :], layer.keys[..., end:, :]], dim=-2)
        layer.values = torch.cat([layer.values[..., :start, :], layer.values[..., end:, :]], dim=-2)
    timeline._record(after, after.prefix_length)
    timeline.check_integrity()
    return cached_answer(answerer, clips, question)


CONTROLS: dict[str, Callable[..., Generated]] = {
    "tubelets_swapped": control_tubelets_swapped,
    "position_off_by_one": control_position_off,
    "stale_feature": control_stale_feature,
    "kept_after_eviction": control_kept_after_eviction,
}


# -- streams ----------------------------------------------------------------------------------------------------------


def random_frame(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8: coarse colour patches, different at every call."""
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def random_question(rng: np.random.Generator, max_new_tokens: int = 6) -> Question:
    """A few words, sometimes with what looks like a control token."""
    words = list(rng.choice(WORDS, int(rng.integers(1, 8))))
    if rng.random() < 0.2:
        words.append("<|video_pad|>")
    return Question(" ".join(words) + "?", max_new_tokens=max_new_tokens)


@dataclasses.dataclass
class StreamResult:
    """One randomised stream: every answer's comparison, and each control's largest logit difference."""

    comparisons: list[Comparison]
    controls: dict[str, float]


class RandomStream:
    """Cameras with memories of random parameters, fed at random, and an answerer over them."""

    def __init__(self, model: QwenVideoModel, rng: np.random.Generator, cameras: int) -> None:
        self._rng = rng
        self._update_rng = np.random.default_rng(rng.bit_generator.seed_seq.spawn(1)[0])  # type: ignore[attr-defined]
        self.names = [f"camera{k}" for k in range(cameras)]
        memory = MemoryConfig(
            star_memory_size=int(rng.choice([2, 4, 6])),
            stream_window_size=int(rng.choice([2, 4, 8])),
            stream_slide=int(rng.integers(1, 4)),
            sample_rate_hz=2.0 if rng.random() < 0.5 else None,
            include_pending=bool(rng.random() < 0.7),
            scene_threshold=float(rng.choice([0.3, 1.0])),  # 1: random frames don't count as scene cuts
        )
        self.config = EngineConfig(
            time_positions=str(rng.choice(["true", "index"])),
            prefill_chunk_tubelets=int(rng.integers(1, 5)),
            camera_block_s=float(rng.choice([1.0, 3.0])),
            features_max_bytes=int(rng.choice([0, 1 << 30])),
            forks_max_bytes=int(rng.choice([0, 1 << 30])),
        )
        ids = itertools.count()
        self._memories = {name: SmartFrameManager(memory, camera=name, ids=ids) for name in self.names}
        factor = model.frame_spec.factor
        self._sizes = {
            name: (factor * int(rng.integers(2, 5)), factor * int(rng.integers(2, 5))) for name in self.names
        }
        self._times = dict.fromkeys(self.names, 0)
        self.answerer = ClipAnswerer(model, self.config, self.names)

    def clips(self) -> tuple[Clip, ...]:
        """One clip per camera that has frames."""
        taken = (memory.clip() for memory in self._memories.values())
        return tuple(clip for clip in taken if clip.tubelets)

    def grow(self) -> None:
        """A few frames per camera with jitter and gaps, now and then after a clear."""
        for name in self.names:
            if self._rng.random() < 0.1:
                self._memories[name].clear("at random")
                self._times[name] = 0
            for _ in range(int(self._rng.integers(1, 12))):
                self.add_frame(name)

    def add_frame(self, name: str) -> None:
        """One random frame, half a second or more after the last."""
        rng = self._rng
        gap = 0.5 + rng.uniform(-0.01, 0.01) if rng.random() < 0.85 else rng.uniform(0.6, 5.0)
        self._times[name] += round(gap * NANOSECONDS)
        self._memories[name].add_frame(random_frame(rng, *self._sizes[name]), self._times[name])
        self._memories[name].check_integrity()

    def update_star_memory(self) -> None:
        """Now and then a few important frames: newer than memory, older, between frames, or held already."""
        rng = self._update_rng
        for name in self.names:
            memory = self._memories[name]
            if rng.random() >= 0.4 or not memory.clip().tubelets:
                continue
            held = [stamp for tubelet in memory.clip().tubelets for stamp in tubelet.stamps_ns]
            span_ns = held[-1] - held[0] + 2 * NANOSECONDS
            start_ns = int(rng.choice([held[0] - NANOSECONDS // 3, rng.integers(held[0], held[0] + span_ns)]))
            stamps = start_ns + np.cumsum(rng.integers(1, NANOSECONDS, int(rng.integers(1, 5))))
            if rng.random() < 0.3:
                stamps = np.union1d(stamps, rng.choice(held))
            memory.update_star_memory((random_frame(rng, *self._sizes[name]), int(stamp)) for stamp in stamps)
            memory.check_integrity()
            self._times[name] = max(self._times[name], int(stamps[-1]))

    def work_ahead(self) -> None:
        """Some background steps, as many as a pause of random length would allow."""
        if self._rng.random() < 0.3:
            self.answerer.encode_ahead(self.clips())
        for _ in range(int(self._rng.choice([0, 0, 3, 30]))):
            later = [memory.next_clip() or memory.clip() for memory in self._memories.values()]
            self.answerer.prefill_ahead(self.clips(), [clip for clip in later if clip.tubelets])
            self.check_integrity()

    def compare_answer(self, question: Question) -> Comparison:
        """The engine's answer about all of memory, or about a part on a fork, against native's."""
        clips, part = self.clips(), None
        if self._rng.random() < 0.3:
            clip = clips[int(self._rng.integers(len(clips)))]
            first = int(self._rng.integers(len(clip)))
            clips, part = (dataclasses.replace(clip, tubelets=clip.tubelets[first:]),), (clip.tubelets[0].camera, first)
        cached = cached_answer(self.answerer, clips, question, part)
        self.check_integrity()
        return compare(cached, native_answer(self.answerer, clips, question))

    def check_integrity(self) -> None:
        """Every invariant of the caches."""
        self.answerer.timelines.check_integrity()
        self.answerer.vision.check_integrity()

    def control_differences(self) -> dict[str, float]:
        """Each negative control's largest logit difference from native."""
        while max(map(len, self.clips()), default=0) < 2:
            self.add_frame(self.names[0])
        # A feature cache of zero bytes could not hold the stale feature; without true times an eviction would also move
        # every later position, which another control is about.
        config = dataclasses.replace(self.config, features_max_bytes=1 << 30, time_positions="true")
        answerer = ClipAnswerer(self.answerer.model, config, self.names)
        question = random_question(self._rng)
        native = native_answer(answerer, self.clips(), question)
        return {
            label: compare(control(answerer, self.clips(), question, self._rng), native).logit_difference
            for label, control in CONTROLS.items()
        }


def run_stream(model: QwenVideoModel, seed: int, *, cameras: int = 1, steps: int = 4) -> StreamResult:
    """Grow, slide, evict, clear, insert and ask at random, and compare every answer with native."""
    rng = np.random.default_rng(seed)
    stream = RandomStream(model, rng, cameras)
    comparisons = []
    for _ in range(steps):
        stream.grow()
        stream.work_ahead()
        stream.update_star_memory()
        comparisons += [stream.compare_answer(random_question(rng)) for _ in range(int(rng.integers(1, 4)))]
    return StreamResult(comparisons, stream.control_differences())


def _table(rows: list[dict[str, Any]]) -> Table:
    """One column per family."""
    table = Table("", *(row["family"] for row in rows))
    for key in ("streams", "answers", "failures"):
        table.add_row(key, *(str(row[key]) for row in rows))
    table.add_row("largest logit difference", *(f"{row['largest_logit_difference']:.1e}" for row in rows))
    for name in CONTROLS:
        table.add_row(f"smallest with {name}", *(f"{row['smallest_control_difference'][name]:.3f}" for row in rows))
    return table


def main() -> None:
    """Many streams of every family; writes ``build/bench_equality.json`` and exits 1 where one is not native."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--streams", type=int, default=200, help="per family")
    parser.add_argument("--out", type=Path, default=Path("build/bench_equality.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    rows: list[dict[str, Any]] = []
    failed = False
    for family in FAMILIES:
        made, processor = random_model(family)
        model = wrap_model(made, processor, name=family, min_pixels=56 * 56, max_pixels=224 * 224)
        results = [run_stream(model, seed, cameras=1 + seed % 3 // 2) for seed in track(range(args.streams), family)]
        comparisons = [c for result in results for c in result.comparisons]
        smallest = {name: min(result.controls[name] for result in results) for name in CONTROLS}
        row = {
            "family": family,
            "streams": len(results),
            "answers": len(comparisons),
            "failures": sum(not c.equal for c in comparisons),
            "largest_logit_difference": max(c.logit_difference for c in comparisons),
            "smallest_control_difference": smallest,
        }
        rows.append(row)
        failed |= bool(row["failures"]) or min(smallest.values()) <= CONTROL_THRESHOLD
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"tolerance": LOGIT_TOLERANCE, "rows": rows}, indent=2) + "\n")
    console.print(_table(rows))
    console.print(f"written to {args.out}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
