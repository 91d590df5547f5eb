"""What an answer will probably say: the last answer to the same question, or what followed the same words before.

A draft is checked by the model in one pass, which on any device costs little more than a pass for one token as long as
it is short, and what it has right counts. What it has wrong costs its rows; so each answer has a credit of wrong rows,
which right ones fill up again.
"""

from __future__ import annotations

from collections import ChainMap, OrderedDict
from collections.abc import Mapping, Sequence
from types import MappingProxyType

MAX_LENGTH = 64
"""Tokens of one draft: a pass over as many takes as long as six over one, on a CPU."""
NGRAM = 3
"""Tokens that must have stood before, for what followed them to be proposed."""
FIRST_CREDIT = 8
"""Wrong rows that an answer may cost where it was never given before."""
REMEMBERED = 64
"""Answers."""
MAX_TOKENS = 512
"""Of an answer that are remembered."""

Tokens = tuple[int, ...]
Place = tuple[Tokens, int]
"""Tokens, and where in them something ends."""


def _ngrams(tokens: Tokens) -> dict[Tokens, Place]:
    """Where each n-gram that something follows stands in ``tokens``, the last time."""
    return {tokens[end - NGRAM : end]: (tokens, end) for end in range(NGRAM, len(tokens))}


class AnswerBook:
    """The last answers of one model, as tokens. Bounded; the model's thread owns it."""

    def __init__(self) -> None:
        self._answers: OrderedDict[str, Tokens] = OrderedDict()
        """By question, the last one newest."""
        self._ngrams: dict[Tokens, Place] = {}
        """Of all of them."""

    def remember(self, question: str, tokens: Sequence[int]) -> None:
        """``tokens``: the whole answer, end token included."""
        self._forget(self._answers.pop(question, ()))
        self._answers[question] = tuple(tokens[:MAX_TOKENS])
        self._ngrams.update(_ngrams(self._answers[question]))
        if len(self._answers) > REMEMBERED:
            self._forget(self._answers.popitem(last=False)[1])

    def draft(self, question: str, question_tokens: Sequence[int]) -> Draft:
        """For a new answer; ``question_tokens``: of the prompt behind the clip."""
        return Draft(self._answers.get(question, ()), ChainMap(self._ngrams, _ngrams(tuple(question_tokens))))

    def _forget(self, tokens: Tokens) -> None:
        for ngram in _ngrams(tokens):
            if ngram in self._ngrams and self._ngrams[ngram][0] is tokens:
                del self._ngrams[ngram]


class Draft:
    """Proposes how one answer goes on, and learns from what becomes of it."""

    def __init__(self, last: Tokens = (), ngrams: Mapping[Tokens, Place] = MappingProxyType({})) -> None:
        """
        Args:
            last: the last answer to the same question.
            ngrams: where the same words stood before, in other answers or in the question.
        """
        self._last = last
        self._ngrams = ngrams
        self._credit = MAX_LENGTH if last else FIRST_CREDIT
        self._length = MAX_LENGTH if last else FIRST_CREDIT // 2
        self.proposed = 0
        """Tokens proposed so far."""
        self.accepted = 0
        """Of them, those that were right."""

    def propose(self, answer: Sequence[int], room: int) -> Tokens:
        """How ``answer`` may go on: ``room`` tokens at most."""
        room = min(room, self._length, self._credit)
        if room <= 0:
            return ()
        if self._last[: len(answer)] == tuple(answer):
            tokens, end = self._last, len(answer)
        else:
            tokens, end = self._ngrams.get(tuple(answer[-NGRAM:]), ((), 0))
        return tokens[end : end + room]

    def judge(self, proposed: int, right: int) -> None:
        """Of the last draft's ``proposed`` tokens the first ``right`` ones were accepted."""
        if not proposed:
            return
        self.proposed += proposed
        self.accepted += right
        self._credit = min(MAX_LENGTH, self._credit + right) - (proposed - right)
        self._length = min(MAX_LENGTH, 2 * self._length) if right == proposed else max(1, right)
