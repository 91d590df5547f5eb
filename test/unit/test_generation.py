"""What a native answer's tokens are: those that ``generate`` returns, however many its criteria were shown."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from support.decoding import random_clip, segments_of
from support.equality import cached_answer, compare, native_answer
from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.engine.answers import Question
from vstream_ros.engine.continuation import Interrupts
from vstream_ros.engine.engine_config import EngineConfig
from vstream_ros.errors import ModelFailedError
from vstream_ros.memory.clip import Clip
from vstream_ros.models.base import GenerationOptions
from vstream_ros.models.qwen.video_model import QwenVideoModel

NEW_TOKENS = 5
QUESTION = Question("what happened?", max_new_tokens=NEW_TOKENS)


@pytest.fixture(autouse=True)
def _full_length(any_model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(any_model.model.generation_config, "eos_token_id", None)


@pytest.fixture
def answerer(any_model: QwenVideoModel) -> ClipAnswerer:
    return ClipAnswerer(any_model, EngineConfig(), ["camera"])


@pytest.fixture
def clips(any_model: QwenVideoModel) -> tuple[Clip, ...]:
    return (random_clip(any_model, 2),)


class Criterion(StoppingCriteria):
    def __init__(self, function: Callable[[torch.Tensor, Any], Any]) -> None:
        self._function = function

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        return self._function(input_ids, scores)


def stops_one_late(generate: Callable[..., torch.Tensor], **inputs: Any) -> torch.Tensor:
    """As where the stop is read one step later than it was decided: one token more is generated, shown, and undone."""
    config = copy.deepcopy(inputs["generation_config"])
    config.max_new_tokens += 1
    watch, decided = inputs["stopping_criteria"], False

    def late(input_ids: torch.Tensor, scores: Any) -> torch.Tensor:
        nonlocal decided
        before, decided = decided, bool(watch(input_ids, scores).any())
        return torch.full((1,), before)

    inputs |= {"generation_config": config, "stopping_criteria": StoppingCriteriaList([Criterion(late)])}
    return generate(**inputs)[:, :-1]


def hides_the_last(generate: Callable[..., torch.Tensor], **inputs: Any) -> torch.Tensor:
    """As where the greatest length is noticed without asking the stopping criteria."""
    watch = inputs["stopping_criteria"]
    end = inputs["input_ids"].shape[1] + inputs["generation_config"].max_new_tokens

    def hidden(input_ids: torch.Tensor, scores: Any) -> torch.Tensor:
        return watch(input_ids, scores) if input_ids.shape[1] < end else torch.zeros(1, dtype=torch.bool)

    return generate(**inputs | {"stopping_criteria": StoppingCriteriaList([Criterion(hidden)])})


@pytest.fixture(params=[stops_one_late, hides_the_last])
def other_generate(
    request: pytest.FixtureRequest, any_model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], None]:
    """Called, it replaces the model's ``generate`` by one that shows its criteria another number of tokens."""
    generate = any_model.model.generate
    return lambda: monkeypatch.setattr(
        any_model.model, "generate", lambda **inputs: request.param(generate, **inputs), raising=False
    )


def heard_from(
    model: QwenVideoModel,
    clips: tuple[Clip, ...],
    stops: Callable[[int], bool] = lambda heard: False,
    max_new_tokens: int = NEW_TOKENS,
) -> tuple[list[int], list[int]]:
    """What native inference returns, and what it has reported; ``stops``: whether to end after so many tokens."""
    heard: list[int] = []

    def hear(token: int, log_probability: float) -> bool:
        assert log_probability <= 0.0
        heard.append(token)
        return stops(len(heard))

    options = GenerationOptions(max_new_tokens, on_token=hear)
    return model.native_generate(segments_of(clips[0]), QUESTION.text, options, true_time=True), heard


def test_the_returned_tokens_are_the_answer(
    answerer: ClipAnswerer, clips: tuple[Clip, ...], any_model: QwenVideoModel, other_generate: Callable[[], None]
) -> None:
    cached = cached_answer(answerer, clips, QUESTION)
    plain, heard = heard_from(any_model, clips)
    assert heard == plain
    assert len(plain) == NEW_TOKENS
    other_generate()
    native, heard = heard_from(any_model, clips)
    assert native == plain
    assert heard[:NEW_TOKENS] == plain
    assert compare(cached, native_answer(answerer, clips, QUESTION)).equal


def test_one_token_that_the_criteria_never_saw(
    clips: tuple[Clip, ...], any_model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = heard_from(any_model, clips, max_new_tokens=1)
    generate = any_model.model.generate
    monkeypatch.setattr(any_model.model, "generate", lambda **inputs: hides_the_last(generate, **inputs))
    assert heard_from(any_model, clips, max_new_tokens=1) == (plain, plain)


@pytest.mark.parametrize("late", [False, True])
def test_an_answer_that_is_stopped_keeps_the_returned_tokens(
    clips: tuple[Clip, ...], any_model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    whole, _ = heard_from(any_model, clips)
    if late:
        generate = any_model.model.generate
        monkeypatch.setattr(any_model.model, "generate", lambda **inputs: stops_one_late(generate, **inputs))
    stopped, heard = heard_from(any_model, clips, lambda count: count == 3)
    assert stopped == whole[:3]
    assert heard == whole[: 4 if late else 3]


def test_a_stop_behind_the_last_token_comes_too_late(
    clips: tuple[Clip, ...], any_model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = heard_from(any_model, clips)
    generate = any_model.model.generate
    monkeypatch.setattr(any_model.model, "generate", lambda **inputs: stops_one_late(generate, **inputs))
    answer, heard = heard_from(any_model, clips, lambda count: count > NEW_TOKENS)
    assert answer == plain
    assert len(heard) == NEW_TOKENS + 1  # or nothing would be tested


class NoEvent:
    """A CPU has none to wait for."""

    def __init__(self, **_: Any) -> None: ...

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


def test_transformers_own_deferred_stop_check(
    answerer: ClipAnswerer, clips: tuple[Clip, ...], any_model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is not for CPUs, but runs on one."""
    whole, _ = heard_from(any_model, clips)
    monkeypatch.setattr(any_model.model.generation_config, "eos_token_id", [whole[2]])
    plain, heard = heard_from(any_model, clips)
    assert heard == plain
    assert len(plain) <= 3
    monkeypatch.setattr("transformers.generation.utils.DeferredStopCheck.is_supported", lambda *_, **__: True)
    monkeypatch.setattr(torch, "Event", NoEvent)
    answer, heard = heard_from(any_model, clips)
    assert answer == plain
    assert len(heard) == len(plain) + 1  # or nothing would be tested
    assert compare(cached_answer(answerer, clips, QUESTION), native_answer(answerer, clips, QUESTION)).equal
    answerer.timelines.check_integrity()
    assert answerer.answer(clips, QUESTION).metrics.cache_hit


# -- numbers that are none ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error(
    answerer: ClipAnswerer, clips: tuple[Clip, ...], any_model: QwenVideoModel, value: float, temperature: float
) -> None:
    question = replace(QUESTION, temperature=temperature, seed=1)
    plain = cached_answer(answerer, clips, question)
    told: list[str] = []
    weight = any_model.model.lm_head.weight.data
    kept = weight[7].clone()
    try:
        weight[7] = value
        with pytest.raises(ModelFailedError, match=r"not finite.*torch_dtype"):
            answerer.answer(clips, question, interrupts=Interrupts(on_text=lambda text, _: told.append(text)))
        with pytest.raises(ModelFailedError, match="not finite"):
            heard_from(any_model, clips)
    finally:
        weight[7] = kept
    assert told == []
    assert len(answerer.timelines.current) == 0  # what was computed is not to be trusted
    assert answerer.vision.nbytes == 0
    again = cached_answer(answerer, clips, question)
    assert compare(again, plain).equal
    assert compare(again, native_answer(answerer, clips, question)).equal
