"""From logits to tokens as ``generate`` chooses them: the checkpoint's generation config, transformers' processors.

One answer has one chooser. Nothing here waits for the device: tokens and log-probabilities stay on it until the decoder
reads those of all answers at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteriaList

from vstream_ros.models.grammar import GrammarProcessor, shared_length


class LastScores(LogitsProcessor):
    """Keeps the distribution that the next token is drawn from: after penalties and bans, before temperature."""

    def __init__(self, sampling: bool) -> None:
        self._sampling = sampling
        self.row = torch.empty(0)
        """(vocabulary,) logits"""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.row = scores[0]
        if self._sampling:
            # Drawing from what is not finite would end CUDA for the whole process; the log-probability is nan then.
            return torch.where(scores.logsumexp(-1, keepdim=True).isfinite(), scores, torch.zeros_like(scores))
        return scores


class TokenChooser:
    """Chooses one answer's tokens. The model's thread owns it."""

    def __init__(
        self,
        prompt_ids: torch.Tensor,
        processors: LogitsProcessorList,
        last: LastScores,
        criteria: StoppingCriteriaList,
        end_ids: Sequence[int],
        generator: torch.Generator | None,
        grammar: GrammarProcessor | None = None,
    ) -> None:
        """
        Args:
            prompt_ids: (1, length) int64 on the model's device.
            processors: in the order in which ``generate`` applies them, ``last`` among them.
            last: sees the distribution before temperature.
            criteria: what may end the answer besides ``end_ids`` and its length.
            end_ids: any of these tokens ends the answer.
            generator: draws the tokens; None: the likeliest is taken.
            grammar: what the answer is held to, one of ``processors``.
        """
        self._ids = prompt_ids
        self._prompt_length = prompt_ids.shape[1]
        self._processors = processors
        self._plain = list(processors) == [last]
        self._last = last
        self._criteria = criteria
        self.end_ids = tuple(end_ids)
        self._generator = generator
        self._grammar = grammar
        self._chosen: list[int] = []
        """The answer's tokens of which ``_ids`` has the ids behind the prompt's."""

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn; else the answer is the only one, and can be drafted."""
        return self._generator is not None

    def choose(self, logits: torch.Tensor, answer: Sequence[int], draft: Sequence[int] = ()) -> torch.Tensor:
        """The next token behind ``answer``, and behind ``answer`` and each beginning of ``draft``.

        Args:
            logits: (1 + len(draft), vocabulary) float32, one row for each of them.
            answer: the tokens so far.
            draft: what may follow them; empty where tokens are drawn.

        Returns:
            (1 + len(draft), 2) float64 on the device: token, log-probability before temperature (not finite where the
            logits are not).
        """
        if self._plain and not self.samples:
            tokens, rows = logits.argmax(-1), logits
        else:
            chosen, seen = zip(*(self._next(row, [*answer, *draft[:k]]) for k, row in enumerate(logits)), strict=True)
            tokens, rows = torch.cat(chosen), torch.stack(seen)
        log_probabilities = rows.gather(-1, tokens[:, None])[:, 0] - rows.logsumexp(-1)
        return torch.stack([tokens.double(), log_probabilities.double()], dim=-1)

    def admitted(self, answer: Sequence[int], draft: Sequence[int]) -> int:
        """How many of the first tokens of ``draft`` may follow ``answer`` at all: only these can be chosen from.

        Raises ``InvalidRequestError`` where the grammar can't be followed, as ``choose`` does.
        """
        return len(draft) if self._grammar is None else self._grammar.admitted(answer, draft)

    def is_whole(self, answer: Sequence[int]) -> bool:
        """Whether the answer's grammar takes it as a whole one, not cut; any is where there is none."""
        return self._grammar is None or self._grammar.is_whole(answer)

    def log_probabilities(self, logits: torch.Tensor, answers: Iterable[Sequence[int]]) -> torch.Tensor:
        """(rows, vocabulary) float32: of every token behind each of ``answers``; ``logits`` likewise."""
        if not self._plain:
            rows = [self._processed(row, answer)[1] for row, answer in zip(logits, answers, strict=True)]
            logits = torch.stack(rows)
        return logits.log_softmax(-1)

    def ends(self, answer: Sequence[int]) -> bool:
        """Whether the answer is complete with its last token."""
        if answer[-1] in self.end_ids:
            return True
        return bool(self._criteria) and bool(self._criteria(self._input_ids(answer), None).all())

    def _next(self, row: torch.Tensor, answer: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The token behind ``answer``, (1,), and the (vocabulary,) distribution before temperature."""
        scores, seen = self._processed(row, answer)
        if self._generator is None:
            return scores.argmax(-1, keepdim=True), seen
        probabilities = torch.nn.functional.softmax(scores[None], dim=-1)
        return torch.multinomial(probabilities, num_samples=1, generator=self._generator)[0], seen

    def _processed(self, row: torch.Tensor, answer: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(vocabulary,) scores after all processors, and those before temperature."""
        scores = self._processors(self._input_ids(answer), row[None].clone())
        return scores[0], self._last.row

    def _input_ids(self, answer: Sequence[int]) -> torch.Tensor:
        """(1, length) of the prompt and ``answer``, as ``generate`` has them."""
        common = shared_length(answer, self._chosen)
        new = list(answer[common:])
        if common < len(self._chosen):
            self._ids = self._ids[:, : self._prompt_length + common]
        if new:
            self._ids = torch.cat([self._ids, torch.tensor([new], device=self._ids.device)], dim=1)
        self._chosen = list(answer)
        return self._ids
