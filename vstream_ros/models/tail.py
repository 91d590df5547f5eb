"""What the engine computes behind a clip: one interface, two ways to hold the keys and values of it."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from vstream_ros.models.base import Rows, TubeletFeatures, VideoModel


class Tail(abc.ABC):
    """The tokens behind one clip. Whatever ``forward`` raises, what it holds is unknown then. The model's thread only.

    Attributes:
        length: tokens that it holds.
        max_rows: of one pass.
    """

    length = 0
    max_rows = 1 << 30

    @abc.abstractmethod
    def forward(
        self, rows: Rows, clip_rows: int, wanted: np.ndarray, features: Sequence[TubeletFeatures]
    ) -> torch.Tensor:
        """One pass over ``rows``; the first ``clip_rows`` of them, which ``features`` are of, belong to the clip.

        Returns:
            (count, vocabulary) float32 logits of what follows the ``wanted`` rows, as ``VideoModel.forward``.
        """

    @abc.abstractmethod
    def keep(self, kept: np.ndarray) -> None:
        """Keep the tokens at ``kept`` (rising) and no others."""

    @abc.abstractmethod
    def close(self) -> None:
        """Nobody needs the tokens any more."""


class CacheTail(Tail):
    """In the clip's own KV cache, behind the clip: whoever owns that crops it in the end."""

    def __init__(self, model: VideoModel, cache: Any) -> None:
        """``cache``: holds the clip, or all but its last tokens."""
        self._model = model
        self._cache = cache

    def forward(
        self, rows: Rows, clip_rows: int, wanted: np.ndarray, features: Sequence[TubeletFeatures]
    ) -> torch.Tensor:
        logits = self._model.forward(rows, self._cache, wanted, features)
        self.length += len(rows) - clip_rows
        return logits

    def keep(self, kept: np.ndarray) -> None:
        if self._model.cache_rolls_back:
            self._model.keep_rows(self._cache, self._cache.get_seq_length() - self.length, kept)
            self.length = len(kept)

    def close(self) -> None:
        self.length = 0
