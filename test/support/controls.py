"""Negative controls of equality: each damages on purpose what the next answer is computed from, and must be seen."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from support.equality import Generated, cached_answer, compare, native_answer
from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.engine.answers import Question
from vstream_ros.images.resize import resize_rgb
from vstream_ros.memory import Clip, Tubelet
from vstream_ros.models.base import Prompt

CONTROL_THRESHOLD = 1e-2
"""Largest logit difference from native that every control must exceed."""


def visible_swap(
    answerer: ClipAnswerer, clips: tuple[Clip, ...], question: Question
) -> tuple[int, tuple[int, int]]:
    """Which clip, and which two of its tubelets, to swap so that it must be seen: native inference itself tells.

    The longest clip, which needs two complete tubelets. A model of random weights hardly notices the exchange of some
    pairs (5e-4 in one of 192 streams, however much the pixels differ), and what native does not see proves nothing. The
    pair that lies farthest apart comes first, and is nearly always seen; else it is the most visible of eight.
    """
    native = native_answer(answerer, clips, question)
    index = max(range(len(clips)), key=lambda k: len(_complete(clips[k])))
    pairs = sorted(itertools.combinations(range(len(_complete(clips[index]))), 2), key=lambda pair: pair[0] - pair[1])
    seen = {}
    for pair in pairs[:8]:
        other = native_answer(answerer, with_swapped(clips, index, pair), question)
        seen[pair] = compare(other, native).logit_difference
        if seen[pair] > 10.0 * CONTROL_THRESHOLD:
            break
    return index, max(seen, key=lambda pair: seen[pair])


def _complete(clip: Clip) -> list[Tubelet]:
    return [tubelet for tubelet in clip.tubelets if not tubelet.provisional]


def with_swapped(clips: tuple[Clip, ...], index: int, pair: tuple[int, int]) -> tuple[Clip, ...]:
    """``clips`` with the pixels of two tubelets of one of them in each other's place."""
    damaged = dataclasses.replace(clips[index], tubelets=swapped(clips[index].tubelets, pair))
    return (*clips[:index], damaged, *clips[index + 1 :])


def swapped(tubelets: Sequence[Tubelet], pair: tuple[int, int]) -> tuple[Tubelet, ...]:
    """The pixels of two tubelets in each other's place, each at the other's size; ids and times stay."""
    one, other = (tubelets[k].frames for k in pair)
    exchanged = {pair[0]: _at_size_of(other, one), pair[1]: _at_size_of(one, other)}
    return tuple(dataclasses.replace(t, frames=exchanged.get(k, t.frames)) for k, t in enumerate(tubelets))


def _at_size_of(frames: np.ndarray, other: np.ndarray) -> np.ndarray:
    height, width = other.shape[1:3]
    scaled = np.stack([resize_rgb(frame, (height, width)) for frame in frames])
    scaled.setflags(write=False)  # as every tubelet's
    return scaled


def control_tubelets_swapped(
    answerer: ClipAnswerer, clips: tuple[Clip, ...], question: Question, rng: np.random.Generator
) -> Generated:
    """The pixels of two tubelets in each other's place: see ``visible_swap``."""
    answerer.drop_caches()
    return cached_answer(answerer, with_swapped(clips, *visible_swap(answerer, clips, question)), question)


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
