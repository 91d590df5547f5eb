"""``generate`` of the installed transformers: native inference, and what the engine's own decoder learns from it.

Native inference is one call with a watch on every token. What ``generate`` returns is the answer. The watch is a
stopping criterion, and where transformers reads the decision to stop one step late, to spare a device the wait, it is
shown one token more than is returned.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation import EosTokenCriteria, MaxLengthCriteria
from transformers.generation import logits_process as processors

from vstream_ros.errors import ModelFailedError
from vstream_ros.models.base import GenerationOptions
from vstream_ros.models.grammar import GrammarProcessor
from vstream_ros.models.token_chooser import LastScores, TokenChooser


def checked_log_probability(value: float) -> float:
    """``value``; ``ModelFailedError`` where it is not finite, so that the logits were not either."""
    if not math.isfinite(value):
        raise ModelFailedError(
            "the model computed numbers that are not finite, so it has no answer; use another torch_dtype "
            "(bfloat16 or float32 instead of float16) or fetch the checkpoint again, then reload the model"
        )
    return value


class _TokenWatch(StoppingCriteria):
    """Reports each token with its log-probability, and stops when told to."""

    def __init__(self, on_token: Callable[[int, float], bool], last: LastScores) -> None:
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
        row = self._last.row.float()
        return self._on_token(token, checked_log_probability(float(row[token] - row.logsumexp(-1))))


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
    last = LastScores(sampling=options.temperature > 0.0)
    own = LogitsProcessorList([last])
    if options.grammar is not None:
        own.insert(0, GrammarProcessor(options.grammar, inputs["input_ids"].shape[1]))
    watch = None if options.on_token is None else _TokenWatch(options.on_token, last)
    device = inputs["input_ids"].device  # not model.device: the first parameter's, which may be the vision encoder's
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices, enabled=options.temperature > 0.0):
        if options.temperature > 0.0:
            torch.manual_seed(options.seed)
        output = model.generate(
            **inputs,
            generation_config=generation_config(model, options),
            logits_processor=own,
            stopping_criteria=StoppingCriteriaList([] if watch is None else [watch]),
        )
    new_tokens: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
    if watch is not None:
        watch.finish(new_tokens)
    return new_tokens


_STATELESS = (
    processors.MinLengthLogitsProcessor, processors.MinNewTokensLengthLogitsProcessor, processors.MinPLogitsWarper,
    processors.NoRepeatNGramLogitsProcessor, processors.RepetitionPenaltyLogitsProcessor,
    processors.SuppressTokensAtBeginLogitsProcessor, processors.SuppressTokensLogitsProcessor,
    processors.TemperatureLogitsWarper, processors.TopKLogitsWarper, processors.TopPLogitsWarper,
)  # fmt: skip
"""What several answers may share."""
KEPT_RULES = 64


@dataclass(frozen=True)
class _Rules:
    """What ``generate`` prepares for prompts of one length."""

    processors: tuple[LogitsProcessor, ...]
    """A ``LastScores`` among them, as a place for each answer's own."""
    criteria: StoppingCriteriaList
    end_ids: tuple[int, ...]

    @property
    def can_be_shared(self) -> bool:
        return not self.criteria and all(isinstance(p, (LastScores, *_STATELESS)) for p in self.processors)


class TokenChoosers:
    """Makes the choosers of one model. ``generate`` prepares what they need and then decodes by a function of ours.

    That takes 2 ms on a fast CPU, and the device is waited for: so what it prepared is kept for the next question of
    the same length. The model's thread owns it.
    """

    def __init__(self, model: Any) -> None:
        """``model``: a loaded ``…ForConditionalGeneration``."""
        self._model = model
        self._rules: OrderedDict[Hashable, _Rules] = OrderedDict()

    @torch.inference_mode()
    def make(self, input_ids: torch.Tensor, options: GenerationOptions) -> TokenChooser:
        """``input_ids``: (1, length) of the whole prompt on the language model's device."""
        config = generation_config(self._model, options)
        config.use_cache = False
        key = (input_ids.shape[1], config.to_json_string())
        rules = self._rules.pop(key, None) or self._prepare(input_ids, config)
        if rules.can_be_shared:
            self._rules[key] = rules
            while len(self._rules) > KEPT_RULES:
                self._rules.popitem(last=False)
        last = LastScores(sampling=options.temperature > 0.0)
        generator = None
        if options.temperature > 0.0:
            generator = torch.Generator(input_ids.device).manual_seed(options.seed)
        grammar = None if options.grammar is None else GrammarProcessor(options.grammar, input_ids.shape[1])
        own = LogitsProcessorList()
        for processor in rules.processors:
            if not isinstance(processor, LastScores):
                own.append(processor)
                continue
            if grammar is not None:
                own.append(grammar)
            own.append(last)
        return TokenChooser(input_ids, own, last, rules.criteria, rules.end_ids, generator, grammar)

    def _prepare(self, input_ids: torch.Tensor, config: GenerationConfig) -> _Rules:
        prepared: dict[str, Any] = {}

        def keep(model: Any, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            prepared.update(kwargs)
            return input_ids

        self._model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            generation_config=config,
            logits_processor=LogitsProcessorList([LastScores(sampling=False)]),
            custom_generate=keep,
        )
        end_ids = prepared["generation_config"]._eos_token_tensor
        # Length and end tokens are told without waiting for the device.
        told = (MaxLengthCriteria, EosTokenCriteria)
        return _Rules(
            tuple(prepared["logits_processor"]),
            StoppingCriteriaList(c for c in prepared["stopping_criteria"] if not isinstance(c, told)),
            () if end_ids is None else tuple(end_ids.tolist()),
        )
