"""What stands behind a clip in the KV cache: a question and its answer, grown by a few tokens in each pass."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch

from vstream_ros.errors import VStreamError
from vstream_ros.models.base import Prompt
from vstream_ros.models.token_chooser import TokenChooser


@dataclasses.dataclass
class Interrupts:
    """What may end an answer before its time. ``check`` returns the reason, or None to go on."""

    check: Callable[[], VStreamError | None] = lambda: None
    on_text: Callable[[str, int], None] | None = None
    """Called after each token with the text so far and the number of tokens."""


@dataclasses.dataclass(frozen=True, eq=False)
class NewRows:
    """The tokens that a continuation wants computed in the next pass, as a tree."""

    token_ids: np.ndarray
    """(rows,) int64"""
    position_ids: np.ndarray
    """(4, rows) int64"""
    parents: np.ndarray
    """(rows,) int64: the row that each one follows, before it; -1: the end of what the cache holds already."""
    wanted: np.ndarray
    """(count,) int64: rows whose logits it needs"""

    def __len__(self) -> int:
        return int(self.token_ids.shape[0])

    @property
    def is_chain(self) -> bool:
        """Whether each row follows the one before it."""
        return bool((self.parents == np.arange(-1, len(self) - 1)).all())

    def ancestors(self) -> np.ndarray:
        """(rows, rows) bool: which rows each one follows, itself among them."""
        seen = np.eye(len(self), dtype=bool)
        for row, parent in enumerate(self.parents.tolist()):
            if parent >= 0:
                seen[row] |= seen[parent]
        return seen


class Continuation(abc.ABC):
    """One question behind a clip, until it has its answer. The model's thread owns it.

    ``rows`` says what to compute, ``pick`` what to read of the logits, on the device, and ``take`` goes on with what
    was read. It can be computed again from the beginning at any time: ``forget_cached``.
    """

    def __init__(self, prompt: Prompt, chooser: TokenChooser, interrupts: Interrupts) -> None:
        """``prompt``: the whole one of the question; the clip's part is in the cache."""
        end = prompt.prefix_length
        self.prompt = prompt
        self._chooser = chooser
        self._interrupts = interrupts
        self.failure: VStreamError | None = None
        """What ended it before its time."""
        self.first_token_at = 0.0
        """``time.monotonic()`` when there was something to tell; 0 before."""
        self._suffix_ids = prompt.input_ids[end:]
        self._suffix_positions = prompt.position_ids[:, end:]
        self.cached: list[int] = []
        """Where its tokens are in the cache, counted from the clip's end, in their order."""

    @property
    @abc.abstractmethod
    def finished(self) -> bool:
        """Whether there is nothing left to compute, or ``failure`` says why it ended before."""

    @property
    def in_question(self) -> bool:
        """Whether tokens of the question itself are still to be computed."""
        return len(self.cached) < len(self._suffix_ids)

    def stop_if_due(self) -> None:
        """End it where there is a reason to. Between two passes."""
        if not self.finished:
            self.failure = self._interrupts.check()

    @abc.abstractmethod
    def rows(self, limit: int, draft_limit: int) -> NewRows:
        """What to compute next: ``limit`` rows at most, and of what only may turn out useful ``draft_limit``."""

    @abc.abstractmethod
    def pick(self, logits: torch.Tensor) -> torch.Tensor:
        """(count, 2) float64 on the device: what to read of the wanted rows' (wanted, vocabulary) logits."""

    @abc.abstractmethod
    def take(self, values: np.ndarray) -> int:
        """Go on with what ``pick`` gave; returns how many of the first rows stay in the cache."""

    def forget_cached(self) -> None:
        """The cache has lost its tokens: they are computed again."""
        self.cached.clear()

    def _chain(self, answer: Sequence[int], start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and positions of the tokens in [start, end) of the suffix and ``answer`` behind it."""
        held = len(self._suffix_ids)
        ids = np.concatenate([self._suffix_ids, np.asarray(answer, dtype=np.int64)])[start:end]
        behind = self._suffix_positions[:, -1:] + 1 + np.arange(max(0, end - held))
        return ids, np.concatenate([self._suffix_positions, behind], axis=1)[:, start:end]
