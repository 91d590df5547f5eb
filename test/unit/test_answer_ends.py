"""Where the engine's own answers end: at an end token, at their length, or before, within a right draft too."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from support.decoding import random_clip
from support.equality import Generated, compare, generated, native_answer, recorded_choices
from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.engine.answers import Answer, Question
from vstream_ros.engine.continuation import Interrupts
from vstream_ros.engine.engine_config import EngineConfig
from vstream_ros.errors import CanceledError, ModelFailedError, VStreamError
from vstream_ros.memory.clip import Clip
from vstream_ros.models.base import Rows
from vstream_ros.models.qwen.video_model import QwenVideoModel

LENGTH = 8
QUESTION = Question("what happened?", max_new_tokens=LENGTH)


@pytest.fixture
def answerer(any_model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch) -> ClipAnswerer:
    monkeypatch.setattr(any_model.model.generation_config, "eos_token_id", None)  # every answer has its full length
    return ClipAnswerer(any_model, EngineConfig(), ["camera"])


@pytest.fixture
def clips(any_model: QwenVideoModel) -> tuple[Clip, ...]:
    return (random_clip(any_model, 3),)


def asked(answerer: ClipAnswerer, clips: tuple[Clip, ...], question: Question = QUESTION) -> tuple[Answer, Generated]:
    with recorded_choices(answerer) as recorded:
        answer = answerer.answer(clips, question)
    answerer.timelines.check_integrity()
    return answer, generated(answer.token_ids, recorded[0])


def first_of_its_kind(tokens: tuple[int, ...], at_least: int) -> int:
    """The first place from ``at_least`` on whose token does not stand before it."""
    return next(k for k in range(at_least, len(tokens)) if tokens[k] not in tokens[:k])


@pytest.mark.parametrize("drafted", [False, True])
def test_whichever_end_token_comes_first_is_the_last(
    answerer: ClipAnswerer, clips: tuple[Clip, ...], any_model: QwenVideoModel, drafted: bool
) -> None:
    whole, _ = asked(answerer, clips)
    assert len(whole.token_ids) == LENGTH
    end = first_of_its_kind(whole.token_ids, 2)
    unused = next(token for token in range(10, 300) if token not in whole.token_ids)
    any_model.model.generation_config.eos_token_id = [unused, *whole.token_ids[end:]]
    if not drafted:
        answerer = ClipAnswerer(any_model, EngineConfig(drafts="off"), ["camera"])
    answer, cached = asked(answerer, clips)
    assert answer.token_ids == whole.token_ids[: end + 1]
    assert answer.metrics.draft_tokens_right == (end if drafted else 0)  # all but the first, the end token too
    assert compare(cached, native_answer(answerer, clips, QUESTION)).equal
    assert answer.text == any_model.decode_text(answer.token_ids)


@pytest.mark.parametrize("drafted", [False, True])
@pytest.mark.parametrize("length", [1, 2, 5, LENGTH])
def test_an_answer_has_max_new_tokens_at_most(
    answerer: ClipAnswerer, clips: tuple[Clip, ...], any_model: QwenVideoModel, length: int, drafted: bool
) -> None:
    whole, _ = asked(answerer, clips)
    if not drafted:
        answerer = ClipAnswerer(any_model, EngineConfig(drafts="off"), ["camera"])
    question = replace(QUESTION, max_new_tokens=length)
    answer, cached = asked(answerer, clips, question)
    assert answer.token_ids == whole.token_ids[:length]
    assert compare(cached, native_answer(answerer, clips, question)).equal
    # The first token is not drafted, and behind the last one there is none: what would be thrown away is not computed.
    assert answer.metrics.draft_tokens == (max(0, length - 2) if drafted else 0)
    assert answer.metrics.passes == (min(length, 2) if drafted else length)
    longer, cached = asked(answerer, clips)  # behind a draft that is too short
    assert longer.token_ids == whole.token_ids
    assert compare(cached, native_answer(answerer, clips, QUESTION)).equal


class Stop:
    """Ends an answer after some of its tokens, in one of two ways."""

    def __init__(self, after: int, how: str) -> None:
        self._after = after
        self._how = how
        self.told: list[str] = []
        self.checks = 0

    def interrupts(self) -> Interrupts:
        return Interrupts(self._check, self._on_text)

    def _check(self) -> VStreamError | None:
        self.checks += 1
        return CanceledError("enough") if self._how == "check" and len(self.told) == self._after else None

    def _on_text(self, text: str, tokens: int) -> None:
        self.told.append(text)
        assert tokens == len(self.told)
        if self._how == "on_text" and tokens == self._after:
            raise KeyError("the listener broke")


@pytest.mark.parametrize("how", ["check", "on_text"])
@pytest.mark.parametrize("drafted", [False, True])
@pytest.mark.parametrize("after", [1, 3, LENGTH])
def test_a_stop_keeps_the_text_so_far(
    answerer: ClipAnswerer, clips: tuple[Clip, ...], any_model: QwenVideoModel, after: int, drafted: bool, how: str
) -> None:
    """Drafted, the third token comes in the middle of a pass that has the whole answer right."""
    whole, _ = asked(answerer, clips)
    if not drafted:
        answerer = ClipAnswerer(any_model, EngineConfig(drafts="off"), ["camera"])
    stop = Stop(after, how)
    with pytest.raises(VStreamError) as stopped:
        answerer.answer(clips, QUESTION, interrupts=stop.interrupts())
    assert isinstance(stopped.value, CanceledError) == (how == "check")
    if how == "on_text":
        assert "on_text raised KeyError" in str(stopped.value)
        assert isinstance(stopped.value.__cause__, KeyError)
    assert stopped.value.answer == any_model.decode_text(whole.token_ids[:after])
    assert len(stop.told) == after  # not one more, although they were computed
    assert answerer.running == 0
    answerer.timelines.check_integrity()
    answer, cached = asked(answerer, clips)
    assert answer.metrics.cache_hit
    assert answer.token_ids == whole.token_ids
    assert compare(cached, native_answer(answerer, clips, QUESTION)).equal


def test_behind_the_last_token_nobody_is_asked_any_more(answerer: ClipAnswerer, clips: tuple[Clip, ...]) -> None:
    asked(answerer, clips)
    for _ in range(2):
        counting = Stop(LENGTH + 1, "check")
        answer = answerer.answer(clips, QUESTION, interrupts=counting.interrupts())
        checks = counting.checks
        too_late = Stop(LENGTH + 1, "check")
        check = too_late._check
        interrupts = Interrupts(
            lambda check=check, late=too_late, n=checks: check() or (CanceledError("late") if late.checks > n else None)
        )
        assert answerer.answer(clips, QUESTION, interrupts=interrupts).token_ids == answer.token_ids
        assert too_late.checks == checks


def test_text_comes_whole_character_by_character(
    answerer: ClipAnswerer, clips: tuple[Clip, ...], any_model: QwenVideoModel
) -> None:
    """What is told is the beginning of the answer, drafted or not."""
    for drafted in (False, True):
        told: list[str] = []
        answer = answerer.answer(
            clips, QUESTION, interrupts=Interrupts(on_text=lambda text, _, told=told: told.append(text))
        )
        assert (answer.metrics.draft_tokens_right > 0) == drafted
        assert len(told) == LENGTH
        assert all(after.startswith(before) for before, after in itertools.pairwise(told))
        assert answer.text.startswith(told[-1])  # but for a character that is not complete


# -- numbers that are none ---------------------------------------------------------------------------------------------


@pytest.fixture
def breaks_at(any_model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, float], None]:
    """The ``count``-th wanted row from here on has ``value`` in its logits, and nothing else differs."""
    forward = any_model.forward

    def damage(count: int, value: float) -> None:
        seen = 0

        def damaged(rows: Rows, cache: Any, wanted: np.ndarray, features: Any = ()) -> torch.Tensor:
            nonlocal seen
            logits = forward(rows, cache, wanted, features).clone()
            for row in logits:
                seen += 1
                if seen == count:
                    row[7] = value
            return logits

        monkeypatch.setattr(any_model, "forward", damaged)

    return damage


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("temperature", "drafted"), [(0.0, False), (0.0, True), (1.0, False)])
@pytest.mark.parametrize("processors", [False, True])
def test_logits_that_are_not_finite_end_the_answer_where_they_are(
    answerer: ClipAnswerer,
    clips: tuple[Clip, ...],
    any_model: QwenVideoModel,
    breaks_at: Callable[[int, float], None],
    monkeypatch: pytest.MonkeyPatch,
    value: float,
    temperature: float,
    drafted: bool,
    processors: bool,
) -> None:
    if processors:
        monkeypatch.setattr(any_model.model.generation_config, "repetition_penalty", 1.3)
    question = replace(QUESTION, temperature=temperature, seed=5)
    if not drafted:
        answerer = ClipAnswerer(any_model, EngineConfig(drafts="off"), ["camera"])
    plain, _ = asked(answerer, clips, question)
    told: list[str] = []
    with monkeypatch.context() as patch:
        breaks_at(4, value)
        with pytest.raises(ModelFailedError, match="not finite") as failed:
            answerer.answer(clips, question, interrupts=Interrupts(on_text=lambda text, _: told.append(text)))
        patch.undo()
    assert len(told) == 3
    assert failed.value.answer == any_model.decode_text(plain.token_ids[:3])
    assert len(answerer.timelines.current) == 0  # what was computed is not to be trusted
    assert answerer.vision.nbytes == 0
    assert answerer.running == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_choices_are_refused_as_well(
    answerer: ClipAnswerer,
    clips: tuple[Clip, ...],
    any_model: QwenVideoModel,
    breaks_at: Callable[[int, float], None],
    monkeypatch: pytest.MonkeyPatch,
    value: float,
) -> None:
    """Also where the token with the infinite logit is in none of them, which then all have no probability at all."""
    monkeypatch.setattr(any_model.model.generation_config, "eos_token_id", [2, 3])
    question = replace(QUESTION, choices=("yes", "no"))
    assert sum(answerer.answer(clips, question).probabilities) == pytest.approx(1.0)
    assert all(7 not in any_model.tokenize(choice) for choice in question.choices)
    breaks_at(1, value)
    with pytest.raises(ModelFailedError, match="not finite"):
        answerer.answer(clips, question)
