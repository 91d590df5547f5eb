"""One call of ``generate`` with a watch on every token. Native and cached answers both go through here.

What ``generate`` returns is the answer. The watch is a stopping criterion, and where transformers reads the decision to
stop one step late, to spare a device the wait, it is shown one token more than is returned.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from vstream_ros.errors import ModelFailedError
from vstream_ros.models.base import GenerationOptions
from vstream_ros.models.grammar import GrammarProcessor


class _LastScores(LogitsProcessor):
    """Keeps the distribution that the next token is drawn from: after penalties and bans, before temperature."""

    def __init__(self, sampling: bool) -> None:
        self._sampling = sampling
        self._row = torch.empty(0)
        """(vocabulary,) logits"""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self._row = scores[0]
        if self._sampling:
            # Drawing from what is not finite would end CUDA for the whole process; ``log_probability`` refuses it then.
            return torch.where(scores.logsumexp(-1, keepdim=True).isfinite(), scores, torch.zeros_like(scores))
        return scores

    def log_probability(self, token: int) -> float:
        """Of a token that was chosen from the distribution; ``ModelFailedError`` where that is none."""
        row = self._row.float()
        value = float(row[token] - torch.logsumexp(row, dim=-1))
        if not math.isfinite(value):
            raise ModelFailedError(
                "the model computed numbers that are not finite, so it has no answer; use another torch_dtype "
                "(bfloat16 or float32 instead of float16) or fetch the checkpoint again, then reload the model"
            )
        return value


class _TokenWatch(StoppingCriteria):
    """Reports each token with its log-probability, and stops when told to."""

    def __init__(self, on_token: Callable[[int, float], bool], last: _LastScores) -> None:
        self._on_token = on_token
        self._last = last
        self._reported = 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        stop = self._report(int(input_ids[0, -1]))
        return torch.full((input_ids.shape[0],), stop, device=input_ids.device, dtype=torch.bool)

    def finish(self, tokens: list[int]) -> None:
        """Report the last of ``tokens``, which are the answer, if ``generate`` ended without showing it."""
        if self._reported == len(tokens) - 1:
            self._report(tokens[-1])

    def _report(self, token: int) -> bool:
        self._reported += 1
        return self._on_token(token, self._last.log_probability(token))


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
    """Run ``model.generate`` on a batch of one and return the new token ids: what the answer is.

    The process's random state is left as it was; ``options.seed`` decides what sampling draws. Raises
    ``ModelFailedError`` where ``options.on_token`` would be called with a log-probability that is not finite.
    """
    last = _LastScores(sampling=options.temperature > 0.0)
    processors = LogitsProcessorList([last])
    if options.grammar is not None:
        processors.insert(0, GrammarProcessor(options.grammar, inputs["input_ids"].shape[1]))
    watch = None if options.on_token is None else _TokenWatch(options.on_token, last)
    device = inputs["input_ids"].device  # not model.device: the first parameter's, which may be the vision encoder's
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices, enabled=options.temperature > 0.0):
        if options.temperature > 0.0:
            torch.manual_seed(options.seed)
        output = model.generate(
            **inputs,
            generation_config=generation_config(model, options),
            logits_processor=processors,
            stopping_criteria=StoppingCriteriaList([] if watch is None else [watch]),
        )
    new_tokens: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
    if watch is not None:
        watch.finish(new_tokens)
    return new_tokens
