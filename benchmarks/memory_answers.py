"""What a model answers from what a memory has kept, against everything that was shown."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.memory_interface import TUBELET_FRAMES, Kept
from benchmarks.memory_recall import ANSWER_KINDS, CAMERA, CAMERA_SHARE, RATE_HZ, make_scene, play
from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.engine.answers import Question
from vstream_ros.engine.engine_config import EngineConfig
from vstream_ros.images import SizeRule
from vstream_ros.memory import Clip, MemoryConfig
from vstream_ros.models.loader import load_model
from vstream_ros.models.qwen.video_model import QwenVideoModel
from vstream_ros.synthetic.shapes_questions import ask, readings, right

MINUTES, WORLD = 10, "plain"
MAX_NEW_TOKENS = 120


@functools.cache
def load(name: str, device: str = "cpu", torch_dtype: str = "float32") -> QwenVideoModel:
    """A model, once in each process, on one thread where that is the CPU."""
    torch.set_num_threads(1)
    config = EngineConfig()
    return load_model(
        name, device=device, torch_dtype=torch_dtype, local_files_only=True,
        min_pixels=config.min_pixels, max_pixels=config.max_pixels,
    )


class Asker:
    """Asks about what was kept, each strategy with a KV cache of its own."""

    def __init__(self, model: QwenVideoModel, rate_hz: float) -> None:
        self._model = model
        self._second_per_grid = TUBELET_FRAMES / rate_hz
        self._answerers: dict[str, ClipAnswerer] = {}

    @property
    def frame_size(self) -> SizeRule:
        """From a camera's (height, width) to the model's."""
        return self._model.frame_spec.fit

    def ask(self, strategy: str, kept: Kept, question: str, max_new_tokens: int = MAX_NEW_TOKENS) -> str:
        """The answer; "" where nothing was kept."""
        if not kept.tubelets:
            return ""
        if strategy not in self._answerers:
            self._answerers[strategy] = ClipAnswerer(self._model, EngineConfig(), ["camera"])
        clip = Clip(kept.tubelets, self._second_per_grid)
        return self._answerers[strategy].answer([clip], Question(question, max_new_tokens=max_new_tokens)).text


def answers(
    model: str, seed: int, strategies: Sequence[str], minutes: float = MINUTES
) -> dict[str, list[dict[str, Any]]]:
    """Play one scene and ask one question of each of ``ANSWER_KINDS``.

    By strategy: objects with kind, question, answer, truth and right.
    """
    loaded = load(model)
    camera = CAMERA if np.random.default_rng([seed, 401]).random() < CAMERA_SHARE else None
    scene = make_scene(WORLD, minutes, seed)
    shown, kept = play(scene, strategies, MemoryConfig(), camera=camera, size=loaded.frame_spec.fit(*CAMERA))
    facts, asker = readings(shown), Asker(loaded, RATE_HZ)
    given: dict[str, list[dict[str, Any]]] = {name: [] for name in strategies}
    for number, kind in enumerate(ANSWER_KINDS):
        qa = ask(kind, shown, np.random.default_rng([seed, 501, number]), facts)
        if qa is None:
            continue
        for name in strategies:
            text = asker.ask(name, kept[name], qa.question)
            given[name].append(
                {"kind": kind, "question": qa.question, "answer": text, "truth": qa.answer,
                 "right": right(text, qa.answer)}
            )
    return given
