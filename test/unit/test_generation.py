"""What an answer's tokens are: those that ``generate`` returns, however many its stopping criteria were shown."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from support.frames import random_frame
from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.engine.continuation import Interrupts
from vstream_ros.engine.answers import Answer, Question
from vstream_ros.engine.engine_config import EngineConfig
from vstream_ros.errors import CanceledError, ModelFailedError
from vstream_ros.memory.clip import NANOSECONDS, Clip, Tubelet
from vstream_ros.models.qwen.video_model import QwenVideoModel

NEW_TOKENS = 5
QUESTION = Question("what happened?", max_new_tokens=NEW_TOKENS)


@pytest.fixture
def answerer(any_model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch) -> ClipAnswerer:
    monkeypatch.setattr(any_model.model.generation_config, "eos_token_id", None)  # every answer has its full length
    return ClipAnswerer(any_model, EngineConfig(), ["camera"])


@pytest.fixture
def clips(any_model: QwenVideoModel) -> tuple[Clip, ...]:
    rng = np.random.default_rng(0)
    frames = [np.stack([random_frame(rng, *any_model.frame_spec.fit(56, 56))] * 2) for _ in range(2)]
    return (Clip(tuple(Tubelet(k, "camera", f, (k,), k * NANOSECONDS, 0.0) for k, f in enumerate(frames)), 1.0),)


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


def facts(answer: Answer) -> tuple[Any, ...]:
    return answer.token_ids, answer.text, answer.metrics.new_tokens, pytest.approx(answer.confidence)


def test_the_returned_tokens_are_the_answer(
    answerer: ClipAnswerer, clips: tuple[Clip, ...], other_generate: Callable[[], None]
) -> None:
    plain = answerer.answer(clips, QUESTION)
    assert len(plain.token_ids) == NEW_TOKENS
    other_generate()
    for question in (QUESTION, QUESTION):  # cold in the last chunk, and from the cache
        answer = answerer.answer(clips, question)
        assert facts(answer) == facts(plain)
        answerer.timelines.check_integrity()
        answerer.drop_caches()


def test_one_token_that_the_criteria_never_saw(
    answerer: ClipAnswerer, clips: tuple[Clip, ...], any_model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = Question("what happened?", max_new_tokens=1)
    plain = answerer.answer(clips, question)
    generate = any_model.model.generate
    monkeypatch.setattr(any_model.model, "generate", lambda **inputs: hides_the_last(generate, **inputs))
    answer = answerer.answer(clips, question)
    assert facts(answer) == facts(plain)
    assert answer.metrics.first_token_latency >= 0.0


@pytest.mark.parametrize("late", [False, True])
def test_an_answer_that_is_stopped_keeps_the_returned_tokens(
    answerer: ClipAnswerer,
    clips: tuple[Clip, ...],
    any_model: QwenVideoModel,
    monkeypatch: pytest.MonkeyPatch,
    late: bool,
) -> None:
    whole = answerer.answer(clips, QUESTION)
    if late:
        generate = any_model.model.generate
        monkeypatch.setattr(any_model.model, "generate", lambda **inputs: stops_one_late(generate, **inputs))
    shown = 0

    def count(text: str, tokens: int) -> None:
        nonlocal shown
        shown = tokens

    interrupts = Interrupts(lambda: CanceledError("enough") if shown == 3 else None, count)
    with pytest.raises(CanceledError) as stopped:
        answerer.answer(clips, QUESTION, interrupts=interrupts)
    assert stopped.value.answer == any_model.decode_text(whole.token_ids[:3])


def test_a_stop_behind_the_last_token_comes_too_late(
    answerer: ClipAnswerer, clips: tuple[Clip, ...], any_model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = answerer.answer(clips, QUESTION)
    generate = any_model.model.generate
    monkeypatch.setattr(any_model.model, "generate", lambda **inputs: stops_one_late(generate, **inputs))
    shown = 0

    def count(text: str, tokens: int) -> None:
        nonlocal shown
        shown = tokens

    interrupts = Interrupts(lambda: CanceledError("too late") if shown > NEW_TOKENS else None, count)
    assert facts(answerer.answer(clips, QUESTION, interrupts=interrupts)) == facts(plain)


class NoEvent:
    """A CPU has none to wait for."""

    def __init__(self, **_: Any) -> None: ...

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


def test_transformers_own_deferred_stop_check(
    answerer: ClipAnswerer, clips: tuple[Clip, ...], any_model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is not for CPUs, but runs on one."""
    whole = answerer.answer(clips, QUESTION)
    monkeypatch.setattr(any_model.model.generation_config, "eos_token_id", [whole.token_ids[2]])
    plain = answerer.answer(clips, QUESTION)
    assert len(plain.token_ids) <= 3
    monkeypatch.setattr("transformers.generation.utils.DeferredStopCheck.is_supported", lambda *_, **__: True)
    monkeypatch.setattr(torch, "Event", NoEvent)
    shown: list[int] = []
    interrupts = Interrupts(on_text=lambda _, tokens: shown.append(tokens))
    assert facts(answerer.answer(clips, QUESTION, interrupts=interrupts)) == facts(plain)
    assert shown[-1] == len(plain.token_ids) + 1  # or nothing would be tested
    answerer.timelines.check_integrity()
    assert answerer.answer(clips, QUESTION).metrics.cache_hit


# -- numbers that are none ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error(
    answerer: ClipAnswerer, clips: tuple[Clip, ...], any_model: QwenVideoModel, value: float, temperature: float
) -> None:
    question = Question("what happened?", max_new_tokens=NEW_TOKENS, temperature=temperature, seed=1)
    plain = answerer.answer(clips, question)
    told: list[str] = []
    weight = any_model.model.lm_head.weight.data
    kept = weight[7].clone()
    try:
        weight[7] = value
        with pytest.raises(ModelFailedError, match=r"not finite.*torch_dtype"):
            answerer.answer(clips, question, interrupts=Interrupts(on_text=lambda text, _: told.append(text)))
    finally:
        weight[7] = kept
    assert told == []
    assert len(answerer.timelines.current) == 0  # what was computed is not to be trusted
    assert answerer.vision.nbytes == 0
    assert facts(answerer.answer(clips, question)) == facts(plain)
