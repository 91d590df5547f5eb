"""An answer in the model's own words, token by token, or by as many tokens at once as its draft has right."""

from __future__ import annotations

import logging
import math
import time
import traceback
from collections.abc import Callable

import numpy as np
import torch

from vstream_ros.engine.continuation import Continuation, Interrupts, NewRows
from vstream_ros.engine.drafts import Draft
from vstream_ros.errors import InvalidRequestError, VStreamError
from vstream_ros.models.base import Prompt
from vstream_ros.models.generation import checked_log_probability
from vstream_ros.models.token_chooser import TokenChooser

logger = logging.getLogger(__name__)


class FreeText(Continuation):
    """Greedy or sampled; see ``Continuation``.

    Greedy tokens may be drafted: the draft's tokens are computed together with the last one, and those count that the
    model would have chosen anyway.
    """

    def __init__(
        self,
        prompt: Prompt,
        chooser: TokenChooser,
        max_new_tokens: int,
        draft: Draft,
        interrupts: Interrupts,
        text_stream: Callable[[int], str],
    ) -> None:
        """``draft``: what may come; empty where tokens are drawn."""
        super().__init__(prompt, chooser, interrupts)
        self._max_new_tokens = max_new_tokens
        self.draft = draft
        self._text_stream = text_stream
        self._text = ""
        self.token_ids: list[int] = []
        """The answer, end token included."""
        self._log_probabilities: list[float] = []
        self.passes = 0
        """Of the model, for tokens of the answer."""
        self._complete = False
        self._proposed: tuple[int, ...] = ()
        self._behind = 0
        """Rows of the pass before the draft's."""

    @property
    def finished(self) -> bool:
        return self._complete or self.failure is not None

    @property
    def samples(self) -> bool:
        """Whether its tokens are drawn."""
        return self._chooser.samples

    @property
    def is_whole(self) -> bool:
        """Whether the answer is one that its grammar knows; free text always is."""
        return self._chooser.is_whole(self.token_ids)

    @property
    def confidence(self) -> float:
        """Geometric mean of the tokens' probabilities."""
        return math.exp(math.fsum(self._log_probabilities) / len(self.token_ids)) if self.token_ids else 0.0

    def rows(self, limit: int, draft_limit: int) -> NewRows:
        start, whole = len(self.cached), len(self._suffix_ids) + len(self.token_ids)
        end = min(whole, start + limit)
        if start < len(self._suffix_ids):
            # Computed again from the beginning, the answer comes in a pass of its own: a model may have written the
            # token that stands for video, and with the clip's last rows that would be taken for one of them.
            end = min(end, len(self._suffix_ids))
        self._proposed = ()
        if end == whole and self.token_ids:
            room = min(draft_limit, limit - (end - start), self._max_new_tokens - len(self.token_ids) - 1)
            self._proposed = self._admitted(self.draft.propose(self.token_ids, room))
        self._behind = end - start
        count = self._behind + len(self._proposed)
        ids, positions = self._chain([*self.token_ids, *self._proposed], start, start + count)
        wanted = np.arange(self._behind - 1, count) if end == whole else np.arange(0)
        return NewRows(ids, positions, np.arange(-1, count - 1), wanted)

    def pick(self, logits: torch.Tensor) -> torch.Tensor:
        if not len(logits):
            return logits.new_zeros(0, 2, dtype=torch.float64)
        try:
            return self._chooser.choose(logits, self.token_ids, self._proposed)
        except InvalidRequestError as error:  # of its grammar: nobody else's question ends with it
            self.failure = error
            return logits.new_zeros(0, 2, dtype=torch.float64)

    def take(self, values: np.ndarray) -> int:
        if not len(values):
            return self._behind
        self.passes += 1
        right = 0
        for (token, log_probability), drafted in zip(values.tolist(), (*self._proposed, None), strict=True):
            self._append(int(token), checked_log_probability(log_probability))
            right += drafted == int(token)  # also the one that ends the answer
            if self.finished or drafted != int(token):
                break
        self.draft.judge(len(self._proposed), right)
        return self._behind + right

    def _admitted(self, proposed: tuple[int, ...]) -> tuple[int, ...]:
        """The part of a draft that the answer's grammar lets through."""
        try:
            return proposed[: self._chooser.admitted(self.token_ids, proposed)]
        except InvalidRequestError:  # ``pick`` will find it again
            return ()

    def _append(self, token: int, log_probability: float) -> None:
        if not self.token_ids:
            self.first_token_at = time.monotonic()
        self.token_ids.append(token)
        self._log_probabilities.append(log_probability)
        self._tell(token)
        self.stop_if_due()
        self._complete = len(self.token_ids) >= self._max_new_tokens or self._chooser.ends(self.token_ids)

    def _tell(self, token: int) -> None:
        """Call ``on_text``; what it raises ends this answer and nothing else."""
        if self._interrupts.on_text is None:
            return
        self._text += self._text_stream(token)
        try:
            self._interrupts.on_text(self._text, len(self.token_ids))
        except Exception as error:
            logger.exception("on_text raised; its question ends")
            what = traceback.format_exception_only(error)[-1].strip()
            self.failure = VStreamError(f"the caller's on_text raised {what}; the log has the traceback")
            self.failure.__cause__ = error
