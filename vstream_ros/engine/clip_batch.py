"""Questions about one clip, answered together on one timeline."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np

from vstream_ros.engine.continuation import Continuation, Interrupts, NewRows
from vstream_ros.engine.decoder import NO_CLIP_ROWS, ClipRows, Decoder
from vstream_ros.engine.drafts import Draft
from vstream_ros.engine.free_text import FreeText
from vstream_ros.engine.timeline import SyncReport, Timeline
from vstream_ros.models.base import GenerationOptions, Prompt, VideoModel

UNBOUNDED = 1 << 30
ANSWER_TOKENS = 512
"""Expected of all answers together."""
PASS_ROWS = {"cpu": 48}
"""Rows of one pass for several questions, by the kind of device: so many that a question which waits for its first
token waits twice as long, at most, as it would alone."""
PASS_ROWS_ELSEWHERE = 256
DRAFT_ROWS = 64
"""Of all drafts in one pass."""


class ClipBatch:
    """Belongs to the model's thread. One ``step`` prefills a chunk of the clip, or computes one pass for all questions.

    A question may join at any step. The clip's part of the cache stays whatever happens to the questions.
    """

    def __init__(self, model: VideoModel, timeline: Timeline, prompt: Prompt, *, graphs: bool = True) -> None:
        """``prompt``: of the first question; ``timeline``: nobody else's until ``close``; ``graphs``: see
        ``VideoModel.open_tail``."""
        self._graphs = graphs
        self.timeline = timeline
        self._model = model
        self._pass_rows = PASS_ROWS.get(model.device.type, PASS_ROWS_ELSEWHERE)
        self._running: list[Continuation] = []
        self._plan = timeline.begin(prompt)
        self._decoder = self._open()

    @property
    def prompt(self) -> Prompt:
        """Of the first question: all prompts of the batch begin with the same clip."""
        return self._plan.prompt

    @property
    def report(self) -> SyncReport:
        """What it took to hold the clip, so far."""
        return self._plan.report

    def __len__(self) -> int:
        return len(self._running)

    def serves(self, prompt: Prompt) -> bool:
        """Whether a question with this prompt can join: it begins with the same clip."""
        if not (self._model.takes_masks and self._model.cache_rolls_back):
            return False
        end, own = prompt.prefix_length, self.prompt
        return (
            own.prefix_length == end
            and np.array_equal(own.tubelet_ids[:end], prompt.tubelet_ids[:end])
            and np.array_equal(own.input_ids[:end], prompt.input_ids[:end])
            and np.array_equal(own.position_ids[:, :end], prompt.position_ids[:, :end])
        )

    def add(self, continuation: Continuation) -> None:
        """Let a question join; its prompt is the first one's, or one that the batch ``serves``."""
        self._running.append(continuation)

    def step(self) -> list[Continuation]:
        """One chunk, or one pass; returns the questions that have ended.

        Raises whatever the model raises; all questions have failed then, and the batch is to be closed.
        """
        for continuation in self._running:
            continuation.stop_if_due()
        if ended := self._part_with_ended():
            return ended  # at once: whatever the next pass raises, it is not about these
        if len(self._plan.chunks) > 1:
            self.timeline.prefill_next(self._plan)
            return []
        chosen, rows = self._choose_rows()
        with self._clip_rows() as clip_rows:
            self._decoder.step(chosen, rows, clip_rows)
        return self._part_with_ended()

    def finish(self) -> None:
        """Step until every question has ended, and ``close`` whatever happens. Raises whatever the model raises."""
        try:
            while self._running:
                self.step()
        finally:
            self.close()

    def restart(self) -> None:
        """The caches were dropped: begin with the clip again, and go on with each answer where it was."""
        self.timeline.reset()
        report = self._plan.report
        self._plan = self.timeline.begin(self.prompt)
        report.tokens_reused = self._plan.report.tokens_reused
        self._plan.report = report  # the first question's: what is done again counts as well
        self._decoder.close()
        self._decoder = self._open()
        for continuation in self._running:
            continuation.forget_cached()

    def close(self) -> list[Continuation]:
        """Leave the timeline with the clip and nothing behind it; returns the questions that were left, among them
        those that had ended in the step that failed."""
        self._decoder.close()
        self.timeline.rollback(min(len(self.timeline), self.prompt.prefix_length))
        running, self._running = self._running, []
        return running

    def _open(self) -> Decoder:
        needed = len(self.prompt) + ANSWER_TOKENS
        return Decoder(self._model.open_tail(self.timeline.cache, needed, graphs=self._graphs))

    def _part_with_ended(self) -> list[Continuation]:
        running = [c for c in self._running if not c.finished]
        if running:  # else the whole tail goes, with ``close``
            self._decoder.tidy(running)
        ended = [c for c in self._running if c.finished]
        self._running = running
        return ended

    def _clip_rows(self) -> AbstractContextManager[ClipRows]:
        return self.timeline.last_chunk(self._plan) if self._plan.chunks else nullcontext(NO_CLIP_ROWS)

    def _choose_rows(self) -> tuple[list[Continuation], list[NewRows]]:
        """Who takes part in the next pass: first those that are in their answer, the others in the order of arrival."""
        alone = len(self._running) == 1
        left = min(UNBOUNDED if alone else self._pass_rows, self._decoder.max_rows)
        # Nobody tries a draft while a question waits for rows: it would wait the longer, and its own is none yet.
        draft_limit = 0 if any(c.in_question for c in self._running) else DRAFT_ROWS // len(self._running)
        chosen, rows = [], []
        for continuation in sorted(self._running, key=lambda c: c.in_question):
            if left <= 0:
                break
            new = continuation.rows(left, draft_limit)
            chosen.append(continuation)
            rows.append(new)
            left -= len(new)
        return chosen, rows


def answer_alone(
    model: VideoModel, timeline: Timeline, prompt: Prompt, options: GenerationOptions, draft: Draft | None = None
) -> FreeText:
    """The answer to one prompt on a timeline of its own. ``timeline`` then holds the clip; ``draft``: default none.

    Raises whatever the model raises; the timeline then keeps what all of its layers hold.
    """
    chooser = model.token_chooser(prompt, options)
    answer = FreeText(prompt, chooser, options.max_new_tokens, draft or Draft(), Interrupts(), model.text_stream())
    batch = ClipBatch(model, timeline, prompt)
    batch.add(answer)
    batch.finish()
    return answer
