"""One of several given answers, by the probability that the model gives each of them."""

from __future__ import annotations

import reprlib
import time
from collections.abc import Sequence

import numpy as np
import torch

from vstream_ros.engine.choice_tree import ChoiceTree
from vstream_ros.engine.continuation import Continuation, Interrupts, NewRows
from vstream_ros.errors import InvalidRequestError
from vstream_ros.models.base import GenerationOptions, Prompt, VideoModel
from vstream_ros.models.generation import checked_log_probability
from vstream_ros.models.token_chooser import TokenChooser

BANNED = -1e6
"""Log-probability that stands for none at all."""
MAX_NODES = 64
"""Tokens of choices in one pass: the logits of each are as many numbers as the vocabulary has tokens."""


def tokenize_choices(model: VideoModel, choices: Sequence[str]) -> list[tuple[int, ...]]:
    """The tokens of each choice, as ``model`` would write it: without white space around it.

    Raises ``InvalidRequestError`` where two are the same to the tokenizer, or where one is nothing to it.
    """
    seen: dict[tuple[int, ...], str] = {}
    for choice in choices:
        tokens = tuple(model.tokenize(choice.strip()))
        shown = reprlib.repr(choice)
        if not tokens:
            raise InvalidRequestError(f"{shown} of choices is no token of {model.name}; write it in other characters")
        if tokens in seen:
            other = reprlib.repr(seen[tokens])
            raise InvalidRequestError(f"{other} and {shown} of choices are the same to {model.name}; leave one out")
        seen[tokens] = choice
    return list(seen)


def begin_choices(model: VideoModel, prompt: Prompt, texts: Sequence[str], interrupts: Interrupts) -> Choices:
    """What answers ``prompt`` with one of ``texts``. Computes nothing yet.

    Raises ``InvalidRequestError`` where ``model`` can't: they don't fit into its context, it can't tell them apart, or
    its cache can't be brought back for a second one.
    """
    if len(texts) > 1 and not (model.takes_masks or model.cache_rolls_back):
        raise InvalidRequestError(
            "choices need a KV cache that can be rolled back, or attention that takes masks; set kv_cache: full or "
            "attn_implementation: sdpa"
        )
    choices = tokenize_choices(model, texts)
    longest = max(map(len, choices))
    if len(prompt) + longest > model.context_length:
        raise InvalidRequestError(
            f"the prompt of {len(prompt)} tokens and the longest of choices, {longest}, exceed the "
            f"{model.context_length} tokens of {model.name}; shorten question or choices, or lower max_pixels, "
            "star_memory_size or stream_window_size"
        )
    # Where the checkpoint forces an end at the greatest length, that lies behind all of them.
    chooser = model.token_chooser(prompt, GenerationOptions(longest + 2))
    return Choices(prompt, chooser, interrupts, choices, branching=model.takes_masks)


class Choices(Continuation):
    """The choices' tokens as a tree, computed in one pass, or in several where they are many; see ``Continuation``.

    A choice's score is the log-probability of all its tokens and of the end behind them: the probability that the
    model, drawing its words, would answer with exactly this. Nothing is divided by the length: the end closes every
    choice, so that a short one is not preferred for being the beginning of a long one.
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
            chooser: its processors are what the probabilities are taken behind.
            choices: the tokens of each one, no two the same, none empty.
            branching: whether several may be computed side by side; else one after another.

        Raises:
            InvalidRequestError: a choice holds a token that ends an answer.
        """
        super().__init__(prompt, chooser, interrupts)
        if ending := {token for choice in choices for token in choice}.intersection(chooser.end_ids):
            raise InvalidRequestError(
                f"a text of choices holds the token {min(ending)}, which ends an answer of this model; leave it out"
            )
        self._tree = ChoiceTree(choices)
        self._branching = branching
        self._token_logs = [0.0] * len(self._tree)
        """Log-probability of each node's token behind its parent, where the parent was computed."""
        self._end_logs = dict.fromkeys(self._tree.ends, 0.0)
        """Log-probability of the end behind each node that a choice ends with, where it was computed."""
        self._next = 0
        """The first node that was not computed."""
        self._held = 0
        """The tokens up to this node stay in the cache; all that a pass computes stands behind it."""
        self._behind = 0
        """Rows of the pass before ``_nodes``: of the question, and up to ``_held``."""
        self._nodes: list[int] = []
        """The nodes behind ``_held`` that are rows of the pass."""
        self._new: list[int] = []
        """The nodes of the pass whose logits are wanted: ``_next`` and those after it."""
        self._room = 0
        """How many nodes the pass could have had."""
        self.passes = 0
        """Of the model, for tokens of choices."""

    @property
    def finished(self) -> bool:
        return self.failure is not None or self._next == len(self._tree)

    @property
    def token_log_probabilities(self) -> list[list[float]]:
        """Of each choice, once ``finished``: of its tokens and, last, of the end."""
        tree = self._tree
        return [[*(self._token_logs[n] for n in tree.path(end)), self._end_logs[end]] for end in tree.ends]

    @property
    def probabilities(self) -> list[float]:
        """Of each choice, given that it is one of them."""
        scores = np.array([sum(parts) for parts in self.token_log_probabilities])
        shares = np.exp(scores - scores.max())
        return [float(share) for share in shares / shares.sum()]

    def rows(self, limit: int, draft_limit: int) -> NewRows:
        tree = self._tree
        start, whole = len(self.cached), len(self._suffix_ids) + tree.depths[self._held]
        end = min(whole, start + limit)
        ids, positions = self._chain(tree.beginning(self._held), start, end)
        self._behind = end - start
        self._nodes, self._new = [], []
        if end == whole:
            self._plan_nodes(min(MAX_NODES, limit - self._behind))
        places = {node: self._behind + k for k, node in enumerate([self._held, *self._nodes], start=-1)}
        depths = np.array([tree.depths[node] for node in self._nodes], dtype=np.int64)
        return NewRows(
            np.concatenate([ids, np.array([tree.tokens[node] for node in self._nodes], dtype=np.int64)]),
            np.concatenate([positions, self._suffix_positions[:, -1:] + depths], axis=1),
            np.array([*range(-1, self._behind - 1), *(places[tree.parents[n]] for n in self._nodes)], dtype=np.int64),
            np.array([places[node] for node in self._new], dtype=np.int64),
        )

    def pick(self, logits: torch.Tensor) -> torch.Tensor:
        if not self._new:
            return logits.new_zeros(0, 2, dtype=torch.float64)
        tree, device = self._tree, logits.device
        table = self._chooser.log_probabilities(logits, (tree.beginning(node) for node in self._new))
        edges = [(row, token) for row, node in enumerate(self._new) for token in tree.children[node]]
        rows, tokens = torch.tensor(edges, dtype=torch.int64, device=device).reshape(-1, 2).T
        ends = torch.tensor([k for k, node in enumerate(self._new) if node in self._end_logs], device=device).long()
        # A checkpoint may name an end that its vocabulary does not have; without any, all choices end alike.
        known = [token for token in self._chooser.end_ids if token < logits.shape[-1]]
        end_ids = torch.tensor(known, dtype=torch.int64, device=device)
        values = torch.cat([table[rows, tokens], table[ends][:, end_ids].logsumexp(-1)]).double()
        return torch.stack([torch.zeros_like(values), values], dim=-1)

    def take(self, values: np.ndarray) -> int:
        if self._new:
            self.passes += 1
            # What a processor of the checkpoint bans has no probability at all, which is a number.
            logs = iter([checked_log_probability(max(value, BANNED)) for value in values[:, 1].tolist()])
            for child in (c for node in self._new for c in self._tree.children[node].values()):
                self._token_logs[child] = next(logs)
            for node in (n for n in self._new if n in self._end_logs):
                self._end_logs[node] = next(logs)
            self._next = self._new[-1] + 1
        if self.finished:
            self.first_token_at = time.monotonic()
            return self._behind
        return self._hold()

    def _plan_nodes(self, room: int) -> None:
        """Set ``_nodes``, ``room`` at most, and ``_new``: the next ones, and before them what they stand behind."""
        tree = self._tree
        self._room = room
        self._nodes = tree.path(max(0, tree.parents[self._next]), self._held)[:room]
        if self._next == 0:
            self._new.append(0)  # its row is the question's last one
        known = {self._held, *self._nodes}
        for node in range(max(1, self._next), len(tree)):
            parent = tree.parents[node]
            last = self._nodes[-1] if self._nodes else self._held
            if len(self._nodes) == room or parent not in known or not (self._branching or parent == last):
                break
            known.add(node)
            self._nodes.append(node)
            self._new.append(node)

    def _hold(self) -> int:
        """Decide what the next pass finds in the cache; returns how many of this one's first rows stay.

        What all that is left begins with is held where it is long; else it is computed again with each pass, so that
        this one can hold other beginnings too.
        """
        tree = self._tree
        target = max(0, tree.parents[self._next])
        common = tree.common(self._held, target)
        if common != self._held:
            surplus = tree.depths[self._held] - tree.depths[common]
            self._held = common
            kept = max(0, self._behind - surplus)
            del self.cached[len(self.cached) - (surplus - (self._behind - kept)) :]
            return kept
        lead = 0
        for row, node in zip(self._nodes, tree.path(target, self._held), strict=False):
            if row != node:
                break
            lead += 1
        if self._branching and 4 * lead <= self._room:
            lead = 0
        if lead:
            self._held = self._nodes[lead - 1]
        return self._behind + lead
