"""Tokens are chosen as ``generate`` of the installed transformers chooses them, whatever the checkpoint asks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from support.decoding import prompt_of, random_clip
from support.equality import Generated, compare, generated, native_answer, recorded_choices
from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.engine.answers import Answer, Question
from vstream_ros.engine.engine_config import EngineConfig
from vstream_ros.memory.clip import Clip
from vstream_ros.models.base import GenerationOptions
from vstream_ros.models.qwen.video_model import QwenVideoModel
from vstream_ros.models.token_chooser import TokenChooser

QUESTION = Question("again and again and again?", max_new_tokens=12)


@pytest.fixture
def config(any_model: QwenVideoModel) -> Iterator[Any]:
    """The checkpoint's generation config, to be changed at will."""
    saved = any_model.model.generation_config
    any_model.model.generation_config = copy.deepcopy(saved)
    any_model.model.generation_config.eos_token_id = None
    yield any_model.model.generation_config
    any_model.model.generation_config = saved


@pytest.fixture
def clips(any_model: QwenVideoModel) -> tuple[Clip, ...]:
    return (random_clip(any_model, 3),)


def asked(answerer: ClipAnswerer, clips: tuple[Clip, ...], question: Question) -> tuple[Answer, Generated]:
    with recorded_choices(answerer) as recorded:
        answer = answerer.answer(clips, question)
    return answer, generated(answer.token_ids, recorded[0])


def answerer_for(model: QwenVideoModel) -> ClipAnswerer:
    return ClipAnswerer(model, EngineConfig(), ["camera"])


def settings(plain: list[int], name: str) -> dict[str, Any]:
    """Generation config entries that change the answer ``plain``."""
    return {
        "repetition_penalty": {"repetition_penalty": 0.3},
        "no_repeat_ngram": {"no_repeat_ngram_size": 2, "repetition_penalty": 0.2},
        "suppress": {"suppress_tokens": [plain[0], plain[3]]},
        "begin_suppress": {"begin_suppress_tokens": [plain[0]]},
        "bad_words": {"bad_words_ids": [[plain[0]], [plain[1], plain[2]]]},
        "min_new_tokens": {"min_new_tokens": 6, "eos_token_id": [plain[0], plain[2]]},
        "several_ends": {"eos_token_id": [1, plain[7], plain[4]], "repetition_penalty": 1.01},
        "sequence_bias": {"sequence_bias": [[[plain[0]], -100.0], [[plain[1], plain[2]], -5.0]]},
        "forced_end": {"forced_eos_token_id": 9},
        "decay": {"exponential_decay_length_penalty": (2, 3.0), "eos_token_id": [plain[5], 1]},
        "all": {
            "repetition_penalty": 1.5,
            "no_repeat_ngram_size": 3,
            "suppress_tokens": [plain[1]],
            "min_new_tokens": 4,
            "eos_token_id": [plain[0], plain[6]],
        },
    }[name]


NAMES = [
    "repetition_penalty", "no_repeat_ngram", "suppress", "begin_suppress", "bad_words", "min_new_tokens",
    "several_ends", "sequence_bias", "forced_end", "decay", "all",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_are_natives_with_and_without_drafts(
    any_model: QwenVideoModel, config: Any, clips: tuple[Clip, ...], name: str
) -> None:
    answerer = answerer_for(any_model)
    plain = native_answer(answerer, clips, QUESTION).tokens
    for key, value in settings(plain, name).items():
        setattr(config, key, value)
    native = native_answer(answerer, clips, QUESTION)
    assert native.tokens != plain  # or nothing would be tested
    wrong = [(token + 1) % 250 for token in native.tokens]
    half = [*native.tokens[: len(native.tokens) // 2], *wrong[len(native.tokens) // 2 :]]
    for draft in (None, plain, native.tokens, wrong, half, [native.tokens[0], *wrong[1:]]):
        answerer = answerer_for(any_model)
        if draft is not None:
            answerer._book.remember(QUESTION.text, draft)
        answer, cached = asked(answerer, clips, QUESTION)
        assert compare(cached, native).equal
        if draft is native.tokens:
            assert answer.metrics.draft_tokens_right == answer.metrics.draft_tokens


def test_a_row_that_took_the_wrong_processors_would_be_seen(
    any_model: QwenVideoModel, config: Any, clips: tuple[Clip, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: drafted rows judged behind the answer's beginning alone, as if the draft were not there."""
    answerer = answerer_for(any_model)
    config.no_repeat_ngram_size, config.repetition_penalty = 2, 0.2
    native = native_answer(answerer, clips, QUESTION)
    answerer._book.remember(QUESTION.text, native.tokens)
    choose = TokenChooser.choose

    def careless(self: TokenChooser, logits: torch.Tensor, answer: list[int], draft: list[int] = ()) -> torch.Tensor:
        return torch.cat([choose(self, row[None], answer) for row in logits])

    monkeypatch.setattr(TokenChooser, "choose", careless)
    assert list(answerer.answer(clips, QUESTION).token_ids) != native.tokens


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"top_k": 3},
        {"top_p": 0.5},
        {"top_k": 40, "top_p": 0.8, "repetition_penalty": 1.3},
        {"min_p": 0.05, "suppress_tokens": [5, 6, 7]},
        {"typical_p": 0.6, "no_repeat_ngram_size": 2},
    ],
)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_sampled_tokens_are_natives_for_a_seed(
    any_model: QwenVideoModel, config: Any, clips: tuple[Clip, ...], settings: dict[str, Any], temperature: float
) -> None:
    for key, value in settings.items():
        setattr(config, key, value)
    answerer = answerer_for(any_model)
    drawn = set()
    for seed in (1, 2, 2**63 - 1):
        question = replace(QUESTION, temperature=temperature, seed=seed)
        native = native_answer(answerer, clips, question)
        for _ in range(2):  # the second time, a draft would be at hand
            answer, cached = asked(answerer, clips, question)
            assert compare(cached, native).equal
            assert answer.metrics.draft_tokens == 0
        drawn.add(tuple(native.tokens))
    assert temperature < 1.0 or len(drawn) > 1


def test_the_processs_random_state_is_left_alone(
    any_model: QwenVideoModel, config: Any, clips: tuple[Clip, ...]
) -> None:
    answerer = answerer_for(any_model)
    before = torch.random.get_rng_state()
    answerer.answer(clips, replace(QUESTION, temperature=1.0, seed=3))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("penalised", [False, True])
def test_rows_of_a_draft_are_what_each_is_alone(
    any_model: QwenVideoModel, config: Any, clips: tuple[Clip, ...], penalised: bool
) -> None:
    """And the token ids that the processors see are right after any draft, taken or not."""
    if penalised:
        config.repetition_penalty, config.no_repeat_ngram_size = 1.7, 2
    prompt, rng = prompt_of(any_model, clips[0]), np.random.default_rng(0)
    options = GenerationOptions(64)
    chooser = any_model.token_chooser(prompt, options)
    vocabulary = any_model.model.config.get_text_config().vocab_size
    answer: list[int] = []
    for _ in range(40):
        draft = rng.integers(0, 6, int(rng.integers(0, 5))).tolist()
        logits = torch.from_numpy(rng.normal(0, 3, (1 + len(draft), vocabulary)).astype(np.float32))
        logits[:, :6] += 9  # few tokens, so that they come again
        kept = logits.clone()
        together = chooser.choose(logits, answer, draft)
        assert torch.equal(logits, kept)  # left as they were
        for k, row in enumerate(logits):
            alone = any_model.token_chooser(prompt, options).choose(row[None], [*answer, *draft[:k]])
            torch.testing.assert_close(together[k : k + 1], alone)
        taken = int(rng.integers(0, len(draft) + 1))
        answer = [*answer, *draft[:taken], int(rng.integers(0, 6))]
        if rng.random() < 0.1:
            answer = answer[: len(answer) // 2]
        seen = chooser._input_ids(answer)
        assert seen.tolist() == [[*prompt.input_ids.tolist(), *answer]]
        table = chooser.log_probabilities(logits, [[*answer, *draft[:k]] for k in range(len(logits))])
        torch.testing.assert_close(table.exp().sum(-1), torch.ones(len(logits)))


def test_log_probabilities_are_those_before_temperature(
    any_model: QwenVideoModel, config: Any, clips: tuple[Clip, ...]
) -> None:
    prompt = prompt_of(any_model, clips[0])
    logits = torch.randn(1, any_model.model.config.get_text_config().vocab_size)
    for temperature in (0.0, 0.5, 2.0):
        chooser = any_model.token_chooser(prompt, GenerationOptions(4, temperature, seed=1))
        ((token, log_probability),) = chooser.choose(logits, []).tolist()
        assert log_probability == pytest.approx(float(logits.log_softmax(-1)[0, int(token)]), abs=1e-5)
        assert chooser.samples == (temperature > 0)
