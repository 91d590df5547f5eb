"""The probabilities of choices, by the engine and by native inference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.engine.answers import Answer, Question
from vstream_ros.engine.choices import Choices, tokenize_choices
from vstream_ros.engine.segments import clip_segments
from vstream_ros.memory import Clip
from vstream_ros.models.base import GenerationOptions
from vstream_ros.models.generation import generation_config
from vstream_ros.models.qwen.positions import PositionRules
from vstream_ros.models.qwen.video_model import QwenVideoModel

TOLERANCE = 1e-4
"""Of log-probabilities."""
NONE_AT_ALL = -1e5
"""Any log-probability below stands for a banned token."""


def scored(answerer: ClipAnswerer, clips: Sequence[Clip], question: Question) -> tuple[Answer, list[list[float]]]:
    """The engine's answer, and of each choice the log-probabilities of its tokens and, last, of the end."""
    running = answerer.begin(clips, question)
    (answer,) = answerer.finish([running])
    assert isinstance(running.continuation, Choices)
    return answer, running.continuation.token_log_probabilities


class _Dictation(LogitsProcessor):
    """Comes behind the checkpoint's own processors: notes each distribution, and lets one token alone follow."""

    def __init__(self, tokens: Sequence[int], end_ids: Sequence[int]) -> None:
        self._tokens = [*tokens, end_ids[0]]
        self._end_ids = list(end_ids)
        self.log_probabilities: list[float] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        logs = scores[0].log_softmax(-1)
        token = self._tokens[len(self.log_probabilities)]
        at_end = len(self.log_probabilities) == len(self._tokens) - 1
        self.log_probabilities.append(float(logs[self._end_ids].logsumexp(-1) if at_end else logs[token]))
        return torch.full_like(scores, float("-inf")).index_fill(1, torch.tensor([token]), 0.0)


@torch.inference_mode()
def native_scores(answerer: ClipAnswerer, clips: Sequence[Clip], question: Question) -> list[list[float]]:
    """The same by one ``generate`` a choice over the whole prompt, uncached, with the checkpoint's own processors."""
    model = answerer.model
    assert isinstance(model, QwenVideoModel)
    config = answerer.config
    rules = PositionRules(config.time_positions == "true", config.text_positions)
    segments = clip_segments(clips, answerer.cameras, config.camera_block_s)
    end_ids = model.model.generation_config.eos_token_id
    scores = []
    for tokens in tokenize_choices(model, question.choices):
        dictation = _Dictation(tokens, end_ids)
        inputs = model.native.inputs(segments, question.text, rules)
        options = GenerationOptions(len(tokens) + 2)
        model.model.generate(
            **inputs,
            generation_config=generation_config(model.model, options),
            logits_processor=LogitsProcessorList([dictation]),
        )
        assert len(dictation.log_probabilities) == len(tokens) + 1
        scores.append(dictation.log_probabilities)
    return scores


def largest_difference(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float:
    """Of two scorings of the same choices; what is banned in both is the same."""
    pairs = [(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)]
    return max(abs(max(a, NONE_AT_ALL) - max(b, NONE_AT_ALL)) for a, b in pairs)
