"""Whole answers: asked again, drafted, together, and as a choice. Scenarios of ``benchmarks.latency``.

Each row compares two ways of doing the same in one run: ``native_ttft_s`` is the one that is compared with and
``ours_ttft_s`` the other, both until the answers are complete.

- ``whole_answer_again``: an answer of ``LENGTH`` tokens, given before and given again after a tubelet was appended;
  native over ours, at equal length.
- ``half_draft``: as a follow-up, where the last answer was the same for its first half; without a draft over with one.
- ``batch_8``: eight questions about one clip, one after another over together.
- ``choices_8``: eight choices of up to six tokens; the first token of a follow-up over all probabilities.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
from rich.progress import track

from support.equality import native_answer
from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.engine.answers import Answer, Question
from vstream_ros.memory import Clip

LENGTH = 64
SCENARIOS = ("whole_answer_again", "half_draft", "batch_8", "choices_8")
CHOICE_TOKENS = (1, 2, 3, 4, 4, 5, 6, 6)


def answer_together(answerer: ClipAnswerer, clip: Clip, questions: Sequence[Question]) -> list[Answer]:
    """Their answers, all questions at once."""
    return answerer.finish([answerer.begin((clip,), question) for question in questions])


class Decoding:
    """The scenarios at one clip length."""

    def __init__(self, contest: Any, count: int) -> None:
        """``contest``: of ``benchmarks.latency``; ``count``: tubelets."""
        self.contest = contest
        self.clip = contest.clip(count)
        self._answerer = contest.answerer
        self._question = Question(contest.question, max_new_tokens=LENGTH)
        self._undrafted = dataclasses.replace(self._answerer.config, drafts="off")

    def pairs(self, scenario: str, repeats: int) -> tuple[list[tuple[float, float]], bool]:
        """(compared with, ours) seconds, and whether all answers were native's."""
        model = self.contest.model.model
        # Every answer has its full length.
        end, model.generation_config.eos_token_id = model.generation_config.eos_token_id, None
        if scenario == "choices_8":
            model.generation_config.eos_token_id = end if end is not None else 0
        try:
            measure: Callable[[], tuple[float, float, bool]] = getattr(self, f"_{scenario}")
            rows = [measure() for _ in track(range(repeats + 1), f"{scenario}, {len(self.clip)} tubelets")][1:]
        finally:
            model.generation_config.eos_token_id = end
        return [(compared, ours) for compared, ours, _ in rows], all(equal for *_, equal in rows)

    def _whole_answer_again(self) -> tuple[float, float, bool]:
        contest, clip = self.contest, self.clip
        contest.ours(clip)
        newest = contest.tubelet(len(clip))
        longer = dataclasses.replace(clip, tubelets=(*clip.tubelets, newest))
        started = time.perf_counter()
        native = native_answer(self._answerer, (longer,), self._question).tokens
        native_s = time.perf_counter() - started
        self._answerer.remember(self._question, native)  # it said the same before the tubelet came
        ours_s, answer = self._ask(longer)
        return native_s, ours_s, list(answer.token_ids) == native

    def _half_draft(self) -> tuple[float, float, bool]:
        native = self._native()
        kept, self._answerer.config = self._answerer.config, self._undrafted
        plain_s, plain = self._ask(self.clip)
        self._answerer.config = kept
        vocabulary = self.contest.model.model.get_input_embeddings().num_embeddings
        other = np.random.default_rng(0).integers(0, vocabulary, LENGTH // 2).tolist()
        self._answerer.remember(self._question, [*native[: LENGTH // 2], *other])
        ours_s, answer = self._ask(self.clip)
        return plain_s, ours_s, list(answer.token_ids) == list(plain.token_ids) == native

    def _batch_8(self) -> tuple[float, float, bool]:
        kept, self._answerer.config = self._answerer.config, self._undrafted
        questions = [dataclasses.replace(self._question, text=f"{self._question.text} {k}") for k in range(8)]
        self.contest.ours(self.clip)
        started = time.perf_counter()
        alone = [self._answerer.answer((self.clip,), question) for question in questions]
        alone_s = time.perf_counter() - started
        started = time.perf_counter()
        together = answer_together(self._answerer, self.clip, questions)
        together_s = time.perf_counter() - started
        self._answerer.config = kept
        self.first_token_ratio = together[0].metrics.first_token_latency / alone[0].metrics.first_token_latency
        equal = [a.token_ids for a in alone] == [t.token_ids for t in together]
        native = native_answer(self._answerer, (self.clip,), questions[0]).tokens
        return alone_s, together_s, equal and list(alone[0].token_ids) == native

    def _choices_8(self) -> tuple[float, float, bool]:
        model = self.contest.model
        rng = np.random.default_rng(1)
        choices = tuple(self._text_of(model, rng, count) for count in CHOICE_TOKENS)
        question = Question(self._question.text, choices=choices, max_new_tokens=1)
        first_s, _ = self.contest.ours(self.clip)
        first_s, _ = self.contest.ours(self.clip)
        started = time.perf_counter()
        answer = self._answerer.answer((self.clip,), question)
        ours_s = time.perf_counter() - started
        with patch.object(model, "takes_masks", new=False):  # one choice after another, behind each other's question
            alone = self._answerer.answer((self.clip,), question)
        return first_s, ours_s, bool(np.allclose(alone.probabilities, answer.probabilities, atol=1e-3))

    def _ask(self, clip: Clip) -> tuple[float, Answer]:
        started = time.perf_counter()
        answer = self._answerer.answer((clip,), self._question)
        return time.perf_counter() - started, answer

    def _native(self) -> list[int]:
        return native_answer(self._answerer, (self.clip,), self._question).tokens

    @staticmethod
    def _text_of(model: Any, rng: np.random.Generator, count: int) -> str:
        """A text of so many tokens."""
        while True:
            text = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), count))
            if len(model.tokenize(text)) == count:
                return str(text)


def decoding_rows(
    contest: Any, count: int, repeats: int, row: Callable[..., Any], scenarios: Sequence[str] = SCENARIOS
) -> Iterator[Any]:
    """One row per scenario; ``row``: of ``benchmarks.latency``."""
    decoding = Decoding(contest, count)
    for scenario in scenarios:
        pairs, equal = decoding.pairs(scenario, repeats)
        yield row(contest, scenario, decoding.clip, pairs, equal)
