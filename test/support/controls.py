"""Negative controls of equality: each damages on purpose what the next answer is computed from, and must be seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from support.equality import Generated, cached_answer
from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.engine.answers import Question
from vstream_ros.memory import Clip
from vstream_ros.models.base import Prompt

CONTROL_THRESHOLD = 1e-2
"""Largest logit difference from native that every control must exceed."""


def control_tubelets_swapped(
    answerer: ClipAnswerer, clips: tuple[Clip, ...], question: Question, rng: np.random.Generator
) -> Generated:
    """The pixels of two tubelets in each other's place (ids and times stay): needs two in the longest clip.

    The first and the last, which lie farthest apart. Two in the middle may both get next to no attention in a model of
    random weights (differences down to 4e-3, whichever two differ most), so that there would be nothing to be seen.
    """
    answerer.drop_caches()
    index = max(range(len(clips)), key=lambda k: len(clips[k]))
    first, *between, last = clips[index].tubelets
    tubelets = (
        dataclasses.replace(first, frames=last.frames),
        *between,
        dataclasses.replace(last, frames=first.frames),
    )
    swapped = dataclasses.replace(clips[index], tubelets=tubelets)
    return cached_answer(answerer, (*clips[:index], swapped, *clips[index + 1 :]), question)


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
