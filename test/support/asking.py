"""Several questions at one answerer at the same time, step by step."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from support.equality import Comparison, Generated, compare, generated, native_answer, recorded_choices
from vstream_ros.engine.answerer import ClipAnswerer, Outcome, Running
from vstream_ros.engine.answers import Answer, Question
from vstream_ros.engine.continuation import Interrupts
from vstream_ros.engine.decoder import Decoder
from vstream_ros.memory.clip import Clip

TEXTS = ("what?", "who is there, and what came before that?", "where is the red car now?", "when?", "why is it so?")


def questions(count: int, length: int = 6) -> list[Question]:
    """Of different texts and lengths."""
    return [Question(TEXTS[k % len(TEXTS)], max_new_tokens=length + k % 3) for k in range(count)]


def part_of(clips: tuple[Clip, ...], first: int = 2) -> tuple[Clip, ...]:
    """Without what stands before the tubelet ``first``."""
    return (replace(clips[0], tubelets=clips[0].tubelets[first:]),)


class Asking:
    """Begins questions, takes steps, and keeps what each has ended in, by the order in which they began."""

    def __init__(self, answerer: ClipAnswerer, recorded: list[dict[int, torch.Tensor]]) -> None:
        self.answerer = answerer
        self._recorded = recorded
        self._begun: list[tuple[Running, tuple[Clip, ...], Question, dict[int, torch.Tensor]]] = []
        self.outcomes: dict[int, Outcome] = {}
        self.ended: list[int] = []
        """In the order of their ends."""

    def begin(
        self,
        clips: tuple[Clip, ...],
        question: Question,
        part: Hashable | None = None,
        interrupts: Interrupts | None = None,
    ) -> int:
        """Returns its number."""
        running = self.answerer.begin(clips, question, part=part, interrupts=interrupts)
        self._begun.append((running, clips, question, self._recorded[-1]))
        return len(self._begun) - 1

    def running(self, number: int) -> Any:
        """Its continuation."""
        return self._begun[number][0].continuation

    def step(self, count: int = 1) -> None:
        """As many steps, while there is anything to do; every invariant is checked between them."""
        for _ in range(count):
            if not self.answerer.running:
                return
            for running, outcome in self.answerer.step():
                number = next(k for k, begun in enumerate(self._begun) if begun[0] is running)
                assert number not in self.outcomes
                self.outcomes[number] = outcome
                self.ended.append(number)
            for number in range(len(self._begun)):
                assert (number in self.outcomes) == (self.running(number) not in self.answerer._running)

    def finish(self) -> None:
        """Until all have ended."""
        for _ in range(1000):
            self.step()
        assert not self.answerer.running
        assert set(self.outcomes) == set(range(len(self._begun)))
        self.answerer.timelines.check_integrity()
        self.answerer.vision.check_integrity()

    def answer(self, number: int) -> Answer:
        outcome = self.outcomes[number]
        assert isinstance(outcome, Answer), outcome
        return outcome

    def generated(self, number: int) -> Generated:
        return generated(self.answer(number).token_ids, self._begun[number][3])

    def compare(self, number: int) -> Comparison:
        """Its answer with native's."""
        _, clips, question, _ = self._begun[number]
        return compare(self.generated(number), native_answer(self.answerer, clips, question))


@contextmanager
def asking(answerer: ClipAnswerer) -> Iterator[Asking]:
    """With the logits of everything that begins within it."""
    with recorded_choices(answerer) as recorded:
        yield Asking(answerer, recorded)


@contextmanager
def siblings_seen() -> Iterator[None]:
    """The negative control: within it each row sees everything before it, as it would without a mask."""
    visible_of = Decoder._visible

    def causal(self: Decoder, *args: Any) -> np.ndarray | None:
        visible = visible_of(self, *args)
        return None if visible is None else np.tri(*visible.shape, visible.shape[1] - visible.shape[0], dtype=bool)

    with patch.object(Decoder, "_visible", causal):
        yield
