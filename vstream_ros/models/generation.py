"""One call of ``generate`` with a watch on every token. Native and cached answers both go through here."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from vstream_ros.models.base import GenerationOptions


class _LastScores(LogitsProcessor):
    """Keeps the distribution that the next token is drawn from: after penalties and bans, before temperature."""

    row: torch.Tensor | None = None
    """(vocabulary,) logits"""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.row = scores[0]
        return scores


class _TokenWatch(StoppingCriteria):
    """Reports each token with its log-probability, and stops when told to."""

    def __init__(self, on_token: Callable[[int, float], bool], last: _LastScores) -> None:
        self._on_token = on_token
        self._last = last

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        assert self._last.row is not None
        token = int(input_ids[0, -1])
        row = self._last.row.float()
        stop = self._on_token(token, float(row[token] - torch.logsumexp(row, dim=-1)))
        return torch.full((input_ids.shape[0],), stop, device=input_ids.device, dtype=torch.bool)


def generation_config(model: Any, options: GenerationOptions) -> GenerationConfig:
    """The checkpoint's own generation config with this question's decoding mode; nothing else is changed."""
    config: GenerationConfig = copy.deepcopy(model.generation_config)
    config.max_new_tokens = options.max_new_tokens
    config.max_length = None
    config.num_beams = 1
    config.do_sample = options.temperature > 0.0
    if config.do_sample:
        config.temperature = options.temperature
    else:
        # Greedy search warns about sampling parameters that checkpoints carry.
        config.temperature = config.top_p = config.top_k = None
    return config


@torch.inference_mode()
def run_generate(model: Any, inputs: dict[str, Any], options: GenerationOptions) -> list[int]:
    """Run ``model.generate`` on a batch of one and return the new token ids.

    The process's random state is left as it was; ``options.seed`` decides what sampling draws.
    """
    last = _LastScores()
    watch = [_TokenWatch(options.on_token, last)] if options.on_token is not None else []
    device = inputs["input_ids"].device  # not model.device: the first parameter's, which may be the vision encoder's
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices, enabled=options.temperature > 0.0):
        if options.temperature > 0.0:
            torch.manual_seed(options.seed)
        output = model.generate(
            **inputs,
            generation_config=generation_config(model, options),
            logits_processor=LogitsProcessorList([last]),
            stopping_criteria=StoppingCriteriaList(watch),
        )
    new_tokens: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
    return new_tokens
