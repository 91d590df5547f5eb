"""One of several given answers, by the probability that the model gives each of them."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from vstream_ros.engine.continuation import Continuation, Interrupts, NewRows
from vstream_ros.models.base import Prompt
from vstream_ros.models.generation import checked_log_probability
from vstream_ros.models.token_chooser import TokenChooser

BANNED = -1e6
"""Log-probability that stands for none at all."""


MAX_NODES = 64
"""Tokens of choices in one pass: the logits of each are as many numbers as the vocabulary has tokens."""


class Choices(Continuation):
    """The choices' tokens as a tree, common beginnings shared; see ``Continuation``.

    A choice's score is the log-probability of all its tokens and of the end behind them: the probability that the model
    would answer with exactly this. Nothing is divided by the length: the end token closes every choice, so that a short
    one is not preferred for being the beginning of a long one, and the likeliest choice is the one that free text would
    give where free text is one of them.
    """

    def __init__(
        self,
        prompt: Prompt,
        chooser: TokenChooser,
        interrupts: Interrupts,
        choices: Sequence[Sequence[int]],
        *,
        branching: bool,
    ) -> None:
        """
        Args:
            choices: the tokens of each one, at least one.
            branching: whether several may be computed side by side; else one after another.
        """
        super().__init__(prompt, chooser, interrupts)
        self._choices = [tuple(tokens) for tokens in choices]
        self._branching = branching
        self.token_log_probabilities: list[list[float]] = []
        """Of each choice that was computed: of its tokens and, last, of the end."""
        self._beginnings: list[tuple[int, ...]] = []
        """What stands behind the question, with each wanted row of the pass."""
        self._edges: list[tuple[tuple[int, ...], int]] = []
        """(beginning, next token) that the choices of the pass are made of."""
        self._batch: list[tuple[int, ...]] = []
        """The choices of the pass."""
        self._kept = 0

    @property
    def finished(self) -> bool:
        return self.failure is not None or len(self.token_log_probabilities) == len(self._choices)

    @property
    def probabilities(self) -> list[float]:
        """Of each choice, given that it is one of them."""
        scores = np.array([sum(parts) for parts in self.token_log_probabilities])
        shares = np.exp(scores - scores.max())
        return [float(share) for share in shares / shares.sum()]

    def rows(self, limit: int, draft_limit: int) -> NewRows:
        start, whole = len(self.cached), len(self._suffix_ids)
        end = min(whole, start + limit)
        ids, positions = self._chain((), start, end)
        self._batch, self._beginnings, self._kept = [], [], end - start
        if end < whole:
            return NewRows(ids, positions, np.arange(-1, end - start - 1), np.arange(0))
        # The question's last token is computed again with the next choices: its logits are those of their first. What
        # stays in the cache is followed by nothing then, so that the next pass needs no mask.
        self._kept -= 1
        nodes = self._nodes(min(MAX_NODES, limit - (end - start)))
        self._beginnings = [(), *nodes]
        depths = np.array([len(node) for node in nodes], dtype=np.int64)
        last = end - start - 1
        places = {node: last + k for k, node in enumerate(self._beginnings)}
        return NewRows(
            np.concatenate([ids, np.array([node[-1] for node in nodes], dtype=np.int64)]),
            np.concatenate([positions, self._suffix_positions[:, -1:] + depths], axis=1),
            np.array([*range(-1, last), *(places[node[:-1]] for node in nodes)], dtype=np.int64),
            np.arange(last, last + 1 + len(nodes)),
        )

    def pick(self, logits: torch.Tensor) -> torch.Tensor:
        if not self._batch:
            return logits.new_zeros(0, 2, dtype=torch.float64)
        table = self._chooser.log_probabilities(logits, self._beginnings)
        places = {node: k for k, node in enumerate(self._beginnings)}
        edges = dict.fromkeys((c[:k], c[k]) for c in self._batch for k in range(len(c)))
        rows = torch.tensor([places[node] for node, _ in edges], device=logits.device)
        tokens = torch.tensor([token for _, token in edges], device=logits.device)
        ends = torch.tensor([places[choice] for choice in self._batch], device=logits.device)
        end_ids = torch.tensor(self._chooser.end_ids, device=logits.device)
        values = torch.cat([table[rows, tokens], table[ends][:, end_ids].logsumexp(-1)]).double()
        self._edges = list(edges)
        return torch.stack([torch.zeros_like(values), values], dim=-1)

    def take(self, values: np.ndarray) -> int:
        if self._batch:
            # What a processor of the checkpoint bans has no probability at all, which is a number.
            logs = [checked_log_probability(max(value, BANNED)) for value in values[:, 1].tolist()]
            table = dict(zip(self._edges, logs, strict=False))
            ends = logs[len(self._edges) :]
            self.token_log_probabilities += [
                [*(table[choice[:k], choice[k]] for k in range(len(choice))), end]
                for choice, end in zip(self._batch, ends, strict=True)
            ]
            if self.finished:
                self.first_token_at = time.monotonic()
        return self._kept

    def _nodes(self, limit: int) -> list[tuple[int, ...]]:
        """The beginnings of the next choices, whole ones among them, each after its own beginning; sets ``_batch``."""
        nodes: dict[tuple[int, ...], None] = {}
        for choice in self._choices[len(self.token_log_probabilities) :]:
            new = [choice[:k] for k in range(1, len(choice) + 1) if choice[:k] not in nodes]
            if self._batch and (len(nodes) + len(new) > limit or not self._branching):
                break
            nodes.update(dict.fromkeys(new))
            self._batch.append(choice)
        return list(nodes)
