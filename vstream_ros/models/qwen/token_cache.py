"""Token ids of texts that come again with every prompt: the template's, labels, the times between tubelets."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

MAX_BYTES = 4 << 20
LARGEST_SHARE = 64
"""A text that takes more than this part of the whole is not kept: it would push out what comes again."""


class TokenCache:
    """Tokenizes texts and keeps the last used ones, bounded in bytes. The model's thread owns it."""

    def __init__(self, tokenize: Callable[[str], Sequence[int]], max_bytes: int = MAX_BYTES) -> None:
        self._tokenize = tokenize
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self.nbytes = 0
        """Of the texts and ids that are kept."""

    def __len__(self) -> int:
        return len(self._kept)

    def ids(self, text: str) -> np.ndarray:
        """(tokens,) int64, read-only."""
        if (kept := self._kept.get(text)) is not None:
            self._kept.move_to_end(text)
            return kept
        ids = np.array(self._tokenize(text), dtype=np.int64)
        ids.setflags(write=False)
        if _size(text, ids) * LARGEST_SHARE <= self._max_bytes:
            self._kept[text] = ids
            self.nbytes += _size(text, ids)
            while self.nbytes > self._max_bytes:
                self.nbytes -= _size(*self._kept.popitem(last=False))
        return ids


def _size(text: str, ids: np.ndarray) -> int:
    return sys.getsizeof(text) + sys.getsizeof(ids)
