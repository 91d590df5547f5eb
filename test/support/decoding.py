"""Questions at the engine's decoder, without an engine: made by hand and driven step by step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from support.frames import random_frame
from vstream_ros.engine.continuation import Interrupts
from vstream_ros.engine.drafts import Draft
from vstream_ros.engine.free_text import FreeText
from vstream_ros.engine.timeline import Timeline
from vstream_ros.engine.vision_cache import VisionCache
from vstream_ros.memory.clip import NANOSECONDS, Clip, Tubelet
from vstream_ros.models.base import GenerationOptions, Prompt, Segment, VideoModel


def random_clip(model: VideoModel, tubelets: int, seed: int = 0, height: int = 56, width: int = 56) -> Clip:
    """Random frames, a second to each tubelet."""
    rng = np.random.default_rng(seed)
    size = model.frame_spec.fit(height, width)
    frames = [np.stack([random_frame(rng, *size)] * 2) for _ in range(tubelets)]
    return Clip(tuple(Tubelet(k, "camera", f, (k,), k * NANOSECONDS, 0.0) for k, f in enumerate(frames)), 1.0)


def segments_of(clip: Clip) -> list[Segment]:
    return [Segment(clip.tubelets, clip.second_per_grid, clip.tubelets[0].time_ns)]


def prompt_of(model: VideoModel, clip: Clip, question: str = "what?") -> Prompt:
    return model.build_prompt(segments_of(clip), question, true_time=True)


def timeline_of(model: VideoModel, chunk: int = 2) -> Timeline:
    return Timeline(model, VisionCache(model, 1 << 30), chunk)


def free_text(
    model: VideoModel,
    prompt: Prompt,
    options: GenerationOptions,
    draft: Draft | None = None,
    interrupts: Interrupts | None = None,
) -> FreeText:
    """A question that no batch has yet."""
    return FreeText(
        prompt,
        model.token_chooser(prompt, options),
        options.max_new_tokens,
        draft or Draft(),
        interrupts or Interrupts(),
        model.text_stream(),
    )


@contextmanager
def passes_of(model: Any) -> Iterator[list[int]]:
    """Rows of each pass of the language model within it."""
    passes: list[int] = []

    def count(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        states: Sequence[torch.Tensor] = args or (kwargs["hidden_states"],)
        passes.append(states[0].shape[1])

    hook = model.model.model.language_model.layers[0].register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield passes
    finally:
        hook.remove()
