"""A cached answer and the native one, side by side.

Tokens alone are nearly blind to a wrong cache, so every comparison looks at the logits of every generated token.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.engine.answers import Question
from vstream_ros.engine.segments import clip_segments
from vstream_ros.memory import Clip
from vstream_ros.models.base import GenerationOptions
from vstream_ros.models.qwen.video_model import QwenVideoModel
from vstream_ros.models.token_chooser import TokenChooser

LOGIT_TOLERANCE = 1e-4


@dataclass
class Generated:
    """Tokens and the logits that each was chosen from, (tokens, vocabulary) float32."""

    tokens: list[int]
    logits: torch.Tensor


@dataclass
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


@contextmanager
def recorded_choices(answerer: ClipAnswerer) -> Iterator[list[dict[int, torch.Tensor]]]:
    """Collects, for each question that begins within it, the logits by place in the answer.

    Where a token is computed again, behind another draft, the last logits are those it was chosen from.
    """
    model = answerer.model
    chooser_of = model.token_chooser
    recorded: list[dict[int, torch.Tensor]] = []

    def watched(*args: Any) -> TokenChooser:
        chooser = chooser_of(*args)
        choose, rows = chooser.choose, {}
        recorded.append(rows)

        def recording(logits: torch.Tensor, answer: Sequence[int], draft: Sequence[int] = ()) -> torch.Tensor:
            rows.update({len(answer) + k: row.float().cpu().clone() for k, row in enumerate(logits)})
            return choose(logits, answer, draft)

        chooser.choose = recording  # type: ignore[method-assign]
        return chooser

    model.token_chooser = watched  # type: ignore[method-assign]
    try:
        yield recorded
    finally:
        del model.token_chooser


def generated(tokens: Sequence[int], rows: dict[int, torch.Tensor]) -> Generated:
    """An answer's tokens with what ``recorded_choices`` has of it."""
    return Generated(list(tokens), torch.stack([rows[k] for k in range(len(tokens))]))


def cached_answer(
    answerer: ClipAnswerer, clips: tuple[Clip, ...], question: Question, part: Hashable | None = None
) -> Generated:
    """The engine's answer; ``part``: on a fork."""
    with recorded_choices(answerer) as recorded:
        answer = answerer.answer(clips, question, part=part)
    return generated(answer.token_ids, recorded[0])


def native_answer(answerer: ClipAnswerer, clips: tuple[Clip, ...], question: Question) -> Generated:
    """Plain ``model.generate`` over the same frames: one call of the installed processor, no cache."""
    model = answerer.model
    assert isinstance(model, QwenVideoModel)
    segments = clip_segments(clips, answerer.cameras, answerer.config.camera_block_s)
    grammar = model.compile_grammar(question.json_schema) if question.json_schema else None
    options = GenerationOptions(question.max_new_tokens, question.temperature, question.seed, grammar=grammar)
    config = answerer.config
    rules = {"true_time": config.time_positions == "true", "text_positions": config.text_positions}
    with recorded_logits(model.model) as rows:
        tokens = model.native_generate(segments, question.text, options, **rules)
    return Generated(tokens, torch.stack(rows))
