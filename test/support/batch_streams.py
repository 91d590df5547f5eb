"""Randomised streams whose questions are answered together, and every answer is compared with native's.

One to eight questions of different lengths begin at different steps, about all of memory or a part, greedy or sampled,
with drafts that are right, wrong or right half of the way; some have choices, some are cancelled between two tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Any

import numpy as np

from support.asking import siblings_seen
from support.choices import largest_difference, native_scores
from support.equality import Comparison, Generated, compare, generated, native_answer, recorded_choices
from support.streams import WORDS, RandomStream, StreamKind, random_question
from vstream_ros.engine.answerer import Running
from vstream_ros.engine.answers import Answer, Question
from vstream_ros.engine.choices import Choices
from vstream_ros.engine.continuation import Interrupts
from vstream_ros.errors import CanceledError
from vstream_ros.memory import Clip
from vstream_ros.models.qwen.video_model import QwenVideoModel

MOST = 8
"""Questions together."""


@dataclasses.dataclass
class BatchResult:
    """One stream of batches."""

    comparisons: list[Comparison]
    cancelled: int = 0
    drafted: int = 0
    """Tokens that a draft had right."""
    wrong_drafts: int = 0
    """Tokens that a draft had wrong."""
    sampled: int = 0
    """Answers."""
    chosen: int = 0
    """Answers with choices, compared by the log-probability of every token."""
    sibling_difference: float = float("inf")
    """The smallest over the stream's batches of what it does to the logits that rows see each other."""


@dataclasses.dataclass
class Asked:
    """A question, when it begins, and how it ends."""

    clips: tuple[Clip, ...]
    part: Hashable | None
    question: Question
    begins_at: int
    cancelled_at: int
    """Tokens; 0: never."""
    running: Running | None = None
    told: int = 0
    rows: dict[int, Any] = dataclasses.field(default_factory=dict)
    native: Generated | None = None

    def interrupts(self) -> Interrupts:
        def note(text: str, tokens: int) -> None:
            self.told = tokens

        def check() -> CanceledError | None:
            return CanceledError("enough") if 0 < self.cancelled_at <= self.told else None

        return Interrupts(check, note)


class BatchStream:
    """Asks a ``RandomStream``'s memories many questions at once."""

    def __init__(self, model: QwenVideoModel, seed: int, text_positions: str, kind: StreamKind) -> None:
        self._rng = np.random.default_rng(seed)
        self.stream = RandomStream(model, self._rng, text_positions, kind)
        self.answerer = self.stream.answerer
        self._vocabulary = model.model.get_input_embeddings().num_embeddings
        self._known: list[Question] = []
        self.result = BatchResult([])

    def run(self, steps: int) -> BatchResult:
        """Grow, and ask a batch, ``steps`` times; then a batch whose rows see each other."""
        for _ in range(steps):
            self.stream.grow()
            self.stream.work_ahead()
            asked = self._questions(int(self._rng.integers(1, MOST + 1)))
            self._check(asked, self._answer(asked))
        self._sibling_control()
        return self.result

    def _questions(self, count: int) -> list[Asked]:
        rng, clips = self._rng, self.stream.clips()
        asked = []
        for _ in range(count):
            question = random_question(rng, int(rng.integers(1, 14)))
            if self._known and rng.random() < 0.5:  # again: its draft is there
                question = self._known[int(rng.integers(len(self._known)))]
            if rng.random() < 0.2:
                question = dataclasses.replace(question, temperature=0.8, seed=int(rng.integers(1, 1 << 40)))
            elif rng.random() < 0.2:
                choices = tuple(str(word) for word in rng.choice(WORDS, int(rng.integers(2, 6)), replace=False))
                question = dataclasses.replace(question, choices=choices)
            about, part = clips, None
            if rng.random() < 0.25:
                clip = clips[int(rng.integers(len(clips)))]
                first = int(rng.integers(len(clip)))
                about = (dataclasses.replace(clip, tubelets=clip.tubelets[first:]),)
                part = (clip.tubelets[0].camera, first)
            cancelled_at = int(rng.integers(1, 8)) if rng.random() < 0.15 else 0
            asked.append(Asked(about, part, question, int(rng.integers(0, 10)), cancelled_at))
        greedy = [a.question for a in asked if a.question.temperature == 0.0 and not a.question.choices]
        self._known = greedy or self._known
        self._write_drafts(asked)
        return sorted(asked, key=lambda a: a.begins_at)

    def _write_drafts(self, asked: list[Asked]) -> None:
        """Some answers are remembered before they are given: as native's, as its first half, or its first word."""
        rng = self._rng
        for one in asked:
            if one.question.temperature == 0.0 and not one.question.choices and rng.random() < 0.5:
                one.native = native_answer(self.answerer, one.clips, one.question)
                tokens = one.native.tokens
                right = int(rng.choice([len(tokens), len(tokens) // 2, 1]))
                wrong = rng.integers(0, self._vocabulary, len(tokens) - right).tolist()
                self.answerer.remember(one.question, [*tokens[:right], *wrong])

    def _answer(self, asked: list[Asked]) -> dict[Running, Any]:
        outcomes: dict[Running, Any] = {}
        waiting, step = list(asked), 0
        with recorded_choices(self.answerer) as recorded:
            while waiting or self.answerer.running:
                while waiting and waiting[0].begins_at <= step and self.answerer.has_room():
                    one = waiting.pop(0)
                    one.running = self.answerer.begin(
                        one.clips, one.question, part=one.part, interrupts=one.interrupts()
                    )
                    one.rows = recorded[-1]
                if self.answerer.running:
                    outcomes.update(self.answerer.step())
                step += 1
        self.stream.check_integrity()
        return outcomes

    def _check(self, asked: list[Asked], outcomes: dict[Running, Any]) -> None:
        result, model = self.result, self.answerer.model
        for one in asked:
            assert one.running is not None
            outcome = outcomes[one.running]
            if one.question.choices:
                assert isinstance(one.running.continuation, Choices)
                scores = one.running.continuation.token_log_probabilities
                native_ones = native_scores(self.answerer, one.clips, one.question)
                best = int(np.argmax([sum(parts) for parts in native_ones]))
                result.comparisons.append(
                    Comparison(outcome.choice_index == best, largest_difference(scores, native_ones))
                )
                result.chosen += 1
                continue
            native = one.native or native_answer(self.answerer, one.clips, one.question)
            if isinstance(outcome, CanceledError):
                result.cancelled += 1
                assert outcome.answer == model.decode_text(native.tokens[: one.told])
                continue
            assert isinstance(outcome, Answer), outcome
            result.comparisons.append(compare(generated(outcome.token_ids, one.rows), native))
            result.drafted += outcome.metrics.draft_tokens_right
            result.wrong_drafts += outcome.metrics.draft_tokens - outcome.metrics.draft_tokens_right
            result.sampled += one.question.temperature > 0.0

    def _sibling_control(self) -> None:
        clips = self.stream.clips()
        questions = [Question(f"what is {word}?", max_new_tokens=4) for word in ("left", "right", "behind")]
        asked = [Asked(clips, None, question, 0, 0) for question in questions]
        with siblings_seen():
            outcomes = self._answer(asked)
        differences = []
        for one in asked[1:]:
            assert one.running is not None
            answer = outcomes[one.running]
            native = native_answer(self.answerer, clips, one.question)
            differences.append(compare(generated(answer.token_ids, one.rows), native).logit_difference)
        self.result.sibling_difference = max(differences)


def run_batches(model: QwenVideoModel, seed: int, *, text_positions: str, steps: int = 3) -> BatchResult:
    """One stream."""
    kind = StreamKind(cameras=1 + seed % 3 // 2, mixed_sizes=seed % 2 == 1)
    return BatchStream(model, seed, text_positions, kind).run(steps)
