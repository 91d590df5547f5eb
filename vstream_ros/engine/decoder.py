"""One pass of the model for everything that stands behind a clip: the next tokens of all its questions.

The cache holds the clip and behind it the tokens of all continuations, in the order in which they were computed. Each
row sees the clip, what its own continuation has in the cache, and its ancestors among the new rows; never a sibling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vstream_ros.engine.continuation import Continuation, NewRows
from vstream_ros.models.base import Rows, TubeletFeatures
from vstream_ros.models.tail import Tail

MAX_DEAD_ROWS = 64
"""Tokens that nobody needs any more and that stay in the cache, hidden, until others are moved together."""


@dataclass(frozen=True, eq=False)
class ClipRows:
    """The last of the clip's own tokens, computed in the same pass as the first question: one pass less."""

    token_ids: np.ndarray
    """(rows,) int64"""
    position_ids: np.ndarray
    """(4, rows) int64"""
    features: Sequence[TubeletFeatures]


NO_CLIP_ROWS = ClipRows(np.empty(0, np.int64), np.empty((4, 0), np.int64), ())


class Decoder:
    """The tokens behind one clip in one KV cache. Owned by the model's thread.

    Whatever a pass raises, what stands behind the clip is unknown then: ``close`` it.
    """

    def __init__(self, tail: Tail) -> None:
        """``tail``: of a cache that holds the clip, or all but its last tokens."""
        self._tail = tail

    @property
    def max_rows(self) -> int:
        """Of one pass."""
        return self._tail.max_rows

    def step(
        self, continuations: Sequence[Continuation], rows: Sequence[NewRows], clip_rows: ClipRows = NO_CLIP_ROWS
    ) -> None:
        """One pass over ``clip_rows`` and what each of ``continuations`` wants; each one then goes on.

        ``rows``: of each of them. ``clip_rows`` come before anything stands behind the clip.
        """
        before = len(clip_rows.token_ids)
        starts = np.cumsum([before, *map(len, rows)])
        held = self._tail.length
        logits = self._tail.forward(
            Rows(
                np.concatenate([clip_rows.token_ids, *(r.token_ids for r in rows)]),
                np.concatenate([clip_rows.position_ids, *(r.position_ids for r in rows)], axis=1),
                self._visible(continuations, rows, before),
            ),
            before,
            np.concatenate([start + r.wanted for start, r in zip(starts, rows, strict=False)]),
            clip_rows.features,
        )
        with torch.inference_mode():
            parts = logits.split([len(r.wanted) for r in rows])
            picked = [c.pick(part) for c, part in zip(continuations, parts, strict=True)]
            values = torch.cat(picked).cpu().numpy()  # the only time that a pass waits for the device
        for c, start, own in zip(
            continuations, starts, np.split(values, np.cumsum([len(p) for p in picked])[:-1]), strict=False
        ):
            kept = c.take(own)
            place = held - before + int(start)
            c.cached += range(place, place + kept)

    def tidy(self, running: Sequence[Continuation]) -> None:
        """Let go of tokens that none of ``running``, which is all there are, needs."""
        needed = np.sort(np.fromiter((index for c in running for index in c.cached), np.int64))
        end = int(needed[-1]) + 1 if len(needed) else 0
        if end - len(needed) > MAX_DEAD_ROWS:
            self._tail.keep(needed)
            places = {int(old): new for new, old in enumerate(needed)}
            for c in running:
                c.cached = [places[index] for index in c.cached]
        elif end < self._tail.length:
            self._tail.keep(np.arange(end))

    def close(self) -> None:
        """Nobody needs what stands behind the clip any more."""
        self._tail.close()

    def _visible(
        self, continuations: Sequence[Continuation], rows: Sequence[NewRows], before: int
    ) -> np.ndarray | None:
        """As in ``Rows``."""
        if len(rows) == 1 and rows[0].is_chain and len(continuations[0].cached) == self._tail.length:
            return None
        tail = self._tail.length
        assert not (before and tail), "the clip grew behind its questions"
        columns = tail + before
        visible = np.zeros((before + sum(map(len, rows)), columns + sum(map(len, rows))), dtype=bool)
        visible[:before, :before] = np.tri(before, dtype=bool)
        visible[before:, :before] = True
        start = before
        for c, new in zip(continuations, rows, strict=True):
            own = slice(start, start + len(new))
            visible[own, c.cached] = True
            visible[own, tail + start : tail + start + len(new)] = new.ancestors()
            start += len(new)
        return visible
