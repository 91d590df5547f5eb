"""Clips and a question to an answer, on the thread that owns the model."""

from __future__ import annotations

import secrets
import time
from collections.abc import Hashable, Iterable, Sequence, Set
from dataclasses import replace

import torch

from vstream_ros.engine.answers import Answer, Question
from vstream_ros.engine.choices import Choices, begin_choices
from vstream_ros.engine.clip_batch import ClipBatch
from vstream_ros.engine.continuation import Continuation, Interrupts
from vstream_ros.engine.drafts import AnswerBook, Draft
from vstream_ros.engine.engine_config import EngineConfig
from vstream_ros.engine.feature_importance import FeatureImportance
from vstream_ros.engine.free_text import FreeText
from vstream_ros.engine.outcome import Outcome, Running, outcome_of
from vstream_ros.engine.segments import clip_segments
from vstream_ros.engine.timeline import SyncReport, Timeline
from vstream_ros.engine.timelines import Timelines
from vstream_ros.engine.vision_cache import VisionCache
from vstream_ros.errors import InvalidRequestError, ModelFailedError
from vstream_ros.memory.clip import Clip
from vstream_ros.models.base import GenerationOptions, Prompt, VideoModel

MAX_BATCHES = 4
"""Clips about which questions are answered side by side: each has a KV cache, which shares what is common only."""


class ClipAnswerer:
    """Holds the timelines and the vision features of one model. Not thread-safe: the model's thread owns it."""

    def __init__(
        self,
        model: VideoModel,
        config: EngineConfig,
        cameras: Sequence[str],
        importance: FeatureImportance | None = None,
    ) -> None:
        """``importance``: judges what is encoded, before or at a question; none: the memory's own stands."""
        self.importance = importance or FeatureImportance((), lambda camera, tubelet_id, value: None)
        self.model = model
        self.config = config
        self.cameras = tuple(cameras)
        features_device = torch.device("cpu") if config.features_device == "cpu" else model.device
        self.vision = VisionCache(model, config.features_max_bytes, features_device, self.importance.observe)
        self.timelines = Timelines(
            lambda: Timeline(model, self.vision, config.prefill_chunk_tubelets),
            config.forks_max_bytes,
            config.max_forks,
        )
        self._batches: list[ClipBatch] = []
        """The next one to go on with first."""
        self._running: dict[Continuation, Running] = {}
        self._book = AnswerBook()
        self._encoded_ahead: set[int] = set()
        """Tubelets whose features were computed before a question: not again, should the cache have dropped them."""

    def prompt(self, clips: Sequence[Clip], question: str) -> Prompt:
        """The whole prompt, as native inference would have it."""
        segments = clip_segments(clips, self.cameras, self.config.camera_block_s)
        true_time = self.config.time_positions == "true"
        return self.model.build_prompt(
            segments, question, true_time=true_time, text_positions=self.config.text_positions
        )

    @property
    def running(self) -> int:
        """Questions that are being answered."""
        return sum(map(len, self._batches))

    def answer(
        self,
        clips: Sequence[Clip],
        question: Question,
        *,
        part: Hashable | None = None,
        arrived_at: float | None = None,
        interrupts: Interrupts | None = None,
    ) -> Answer:
        """``begin`` and ``finish``; arguments as of ``begin``, no other question running. Raises what both raise."""
        assert not self._batches
        return self.finish([self.begin(clips, question, part=part, arrived_at=arrived_at, interrupts=interrupts)])[0]

    def finish(self, running: Sequence[Running]) -> list[Answer]:
        """As many ``step`` as it takes until these questions, which are all that are running, have ended.

        Raises what the first of them that failed has ended in:
            ModelFailedError: the model's logits are not finite; the caches were dropped.
            VStreamError: whatever its ``interrupts`` say; its ``answer`` then holds the text so far.
            Exception: whatever the model raises; the KV cache that it was working on is then emptied.
        """
        outcomes: dict[Running, Outcome] = {}
        while len(outcomes) < len(running):
            outcomes.update(self.step())
        answers = []
        for outcome in map(outcomes.__getitem__, running):
            if isinstance(outcome, Exception):
                raise outcome
            answers.append(outcome)
        return answers

    def begin(
        self,
        clips: Sequence[Clip],
        question: Question,
        *,
        part: Hashable | None = None,
        arrived_at: float | None = None,
        interrupts: Interrupts | None = None,
    ) -> Running:
        """Let a question join those that are being answered. Computes nothing yet. Only where ``has_room``.

        Args:
            clips: one per camera, at least one, none empty.
            question: limits already filled in (``max_new_tokens`` > 0).
            part: None where the clips are all of memory; else which part they are (any key), to be answered on a fork.
            arrived_at: ``time.monotonic()`` at which the question came; default now.
            interrupts: asked between two steps and after each token.

        Raises:
            InvalidRequestError: prompt and answer would not fit into the model's context, no answer can be held to the
                schema, or ``begin_choices`` says so.
        """
        started_at = time.monotonic()
        prompt = self.prompt(clips, question.text)
        seed = 0 if question.choices else question.seed
        if question.temperature > 0.0 and seed == 0 and not question.choices:
            seed = secrets.randbits(63) or 1
        continuation = self._continuation(prompt, question, seed, interrupts or Interrupts())
        batch = next((b for b in self._batches if b.serves(prompt)), None)
        if batch is None:
            busy = [b.timeline for b in self._batches]
            known = self.timelines
            timeline = known.for_memory(prompt, busy) if part is None else known.for_part(part, prompt, busy)
            batch = ClipBatch(self.model, timeline, prompt, graphs=self.config.decode_graphs == "auto")
            self._batches.append(batch)
            report = batch.report
        else:
            report = SyncReport(tokens_reused=prompt.prefix_length)
        batch.add(continuation)
        arrived_at = started_at if arrived_at is None else arrived_at
        running = Running(question, prompt, continuation, report, seed, arrived_at, started_at)
        self._running[continuation] = running
        return running

    def has_room(self) -> bool:
        """Whether another question may ``begin``."""
        if not self.model.cache_rolls_back:
            return not self._batches
        return self.running < self.config.max_parallel_questions and len(self._batches) < MAX_BATCHES

    def step(self) -> list[tuple[Running, Outcome]]:
        """Go on with one batch of questions by a chunk or a pass, the next call with another one.

        Never raises for what a question or the model does. Returns what has ended: each question with its answer or
        with what it failed of.
        """
        batch = self._batches.pop(0)
        self._batches.append(batch)
        try:
            ended: list[tuple[Continuation, Exception | None]] = [(c, c.failure) for c in batch.step()]
        except Exception as error:  # noqa: BLE001  (each question's caller gets it)
            ended = [(c, c.failure if c.finished else error) for c in batch.close()]
            self._batches.remove(batch)
            if isinstance(error, ModelFailedError):
                self.drop_caches()  # what is not finite may be in there
            else:
                # It holds what every layer holds, but what a failing model wrote there is not known.
                batch.timeline.reset()
            self.timelines.shrink()
        else:
            if not len(batch):
                batch.close()
                self._batches.remove(batch)
                self.timelines.shrink()
        return [self._end(continuation, failure) for continuation, failure in ended]

    def _end(self, continuation: Continuation, failure: Exception | None) -> tuple[Running, Outcome]:
        running = self._running.pop(continuation)
        outcome = outcome_of(self.model, running, failure)
        if isinstance(outcome, Answer) and isinstance(continuation, FreeText) and not continuation.samples:
            self.remember(running.question, outcome.token_ids)
        return running, outcome

    def _continuation(
        self, prompt: Prompt, question: Question, seed: int, interrupts: Interrupts
    ) -> FreeText | Choices:
        model = self.model
        if question.choices:
            return begin_choices(model, prompt, question.choices, interrupts)
        self._check_context(prompt, question.max_new_tokens)
        grammar = model.compile_grammar(question.json_schema) if question.json_schema else None
        options = GenerationOptions(question.max_new_tokens, question.temperature, seed, grammar=grammar)
        chooser = model.token_chooser(prompt, options)
        drafts = self.config.drafts == "on" and model.cache_rolls_back and not chooser.samples
        draft = Draft()
        if drafts:
            draft = self._book.draft(_book_key(question), prompt.input_ids[prompt.prefix_length :].tolist())
        return FreeText(prompt, chooser, question.max_new_tokens, draft, interrupts, model.text_stream())

    def remember(self, question: Question, token_ids: Sequence[int]) -> None:
        """``question`` was answered by these tokens, end token included: they are the next answer's draft."""
        self._book.remember(_book_key(question), token_ids)

    def encode_ahead(self, clips: Sequence[Clip], archived: Set[int] = frozenset()) -> bool:
        """Compute the features of one tubelet that has none yet; False where there is nothing to do.

        ``clips`` are all of memory: what was computed of other tubelets than theirs and ``archived`` is forgotten.
        """
        self.keep_only(tubelet_ids(clips) | archived)
        for tubelet in (t for clip in clips for t in clip.tubelets if not t.provisional):
            if tubelet.id not in self.vision and tubelet.id not in self._encoded_ahead:
                self.vision.features([tubelet])
                self._encoded_ahead.add(tubelet.id)
                return True
        return False

    def prefill_ahead(
        self, clips: Sequence[Clip], next_clips: Sequence[Clip], archived: Set[int] = frozenset()
    ) -> bool:
        """Bring the current timeline, then the one for ``next_clips``, one tubelet nearer to its clips.

        ``clips`` are all of memory: what was computed of other tubelets than theirs and ``archived`` is forgotten.

        Returns:
            False where both are in step.
        """
        self.keep_only(tubelet_ids((*clips, *next_clips)) | archived)
        try:
            if settled := _settled(clips):
                prompt = self.prompt(settled, "")
                if self.timelines.for_memory(prompt).sync(prompt, max_tubelets=1).tubelets_prefilled:
                    return True
            if not next_clips:
                return False
            prompt = self.prompt(next_clips, "")
            prefilled = self.timelines.for_next(prompt).sync(prompt, max_tubelets=1).tubelets_prefilled
        finally:
            self.timelines.shrink()  # growing parts a timeline from the storage that it shared
        return bool(prefilled) and self.timelines.ahead is not None

    def keep_only(self, held: Set[int]) -> None:
        """Forget what was computed from other tubelets than ``held`` and those of the running questions."""
        held = held | {tubelet.id for batch in self._batches for tubelet in batch.prompt.tubelets}
        self.timelines.keep_only(held)
        self.vision.keep_only(held)
        self.importance.keep_only(held)
        self._encoded_ahead &= held

    def drop_caches(self) -> None:
        """Forget all that was computed; the frames are elsewhere and stay, and running questions begin again."""
        self.timelines.reset()
        self.vision.clear()
        self._encoded_ahead.clear()
        for batch in self._batches:
            batch.restart()

    def abandon(self) -> None:
        """Forget the running questions and all that was computed: nobody knows what a step that raised has left."""
        self._batches.clear()
        self._running.clear()
        self.drop_caches()

    def _check_context(self, prompt: Prompt, max_new_tokens: int) -> None:
        needed, limit = len(prompt) + max_new_tokens, self.model.context_length
        if needed > limit:
            raise InvalidRequestError(
                f"the prompt of {len(prompt)} tokens and {max_new_tokens} new ones exceed the {limit} tokens of "
                f"{self.model.name}; shorten the question, or lower max_new_tokens, max_pixels, star_memory_size or "
                "stream_window_size"
            )


def _book_key(question: Question) -> str:
    """What an answer is remembered by."""
    return f"{question.text}\0{question.json_schema}"


def tubelet_ids(clips: Iterable[Clip]) -> set[int]:
    """The ids of all tubelets of ``clips``."""
    return {tubelet.id for clip in clips for tubelet in clip.tubelets}


def _settled(clips: Sequence[Clip]) -> list[Clip]:
    """``clips`` without provisional tubelets, which change with the next frame, and without empty clips."""
    kept = (replace(clip, tubelets=tuple(t for t in clip.tubelets if not t.provisional)) for clip in clips)
    return [clip for clip in kept if clip.tubelets]
