"""Clips and a question to an answer, on the thread that owns the model."""

from __future__ import annotations

import logging
import math
import secrets
import time
import traceback
from collections.abc import Callable, Hashable, Iterable, Sequence, Set
from dataclasses import dataclass, field, replace

import torch

from vstream_ros.engine.answers import Answer, AnswerMetrics, Question
from vstream_ros.engine.engine_config import EngineConfig
from vstream_ros.engine.feature_importance import FeatureImportance
from vstream_ros.engine.segments import clip_segments
from vstream_ros.engine.timeline import SyncReport, Timeline
from vstream_ros.engine.timelines import Timelines
from vstream_ros.engine.vision_cache import VisionCache
from vstream_ros.errors import (
    CanceledError,
    IncompleteAnswerError,
    InvalidRequestError,
    ModelFailedError,
    QuestionTimeoutError,
    VStreamError,
)
from vstream_ros.memory.clip import Clip
from vstream_ros.models.base import GenerationOptions, Prompt, VideoModel

logger = logging.getLogger(__name__)


@dataclass
class Interrupts:
    """What may end an answer before its time. ``check`` returns the reason, or None to go on."""

    check: Callable[[], VStreamError | None] = lambda: None
    on_text: Callable[[str, int], None] | None = None
    """Called after each token with the text so far and the number of tokens."""

    def raise_if_due(self) -> None:
        if (reason := self.check()) is not None:
            raise reason


@dataclass
class _Decoding:
    """The answer that is being generated: what is told of it meanwhile, and in the end what counts."""

    model: VideoModel
    interrupts: Interrupts
    token_ids: tuple[int, ...] = ()
    """As reported so far; from ``finish`` on the answer's own."""
    log_probabilities: list[float] = field(default_factory=list)
    first_token_at: float = 0.0
    stopped_by: VStreamError | None = None
    stopped_after: int = 0
    """Tokens after which ``stopped_by`` was found."""

    def on_token(self, token_id: int, log_probability: float) -> bool:
        if not self.token_ids:
            self.first_token_at = time.monotonic()
        self.token_ids += (token_id,)
        self.log_probabilities.append(log_probability)
        if self.stopped_by is None:
            self.stopped_by, self.stopped_after = self._tell() or self.interrupts.check(), len(self.token_ids)
        return self.stopped_by is not None

    def _tell(self) -> VStreamError | None:
        """Call ``on_text``. What it raises must not pass through the model's call, which would cost the cache."""
        if self.interrupts.on_text is None:
            return None
        text = self.model.decode_text(self.token_ids)
        try:
            self.interrupts.on_text(text, len(self.token_ids))
        except Exception as error:
            logger.exception("on_text raised; its question ends")
            what = traceback.format_exception_only(error)[-1].strip()
            failed = VStreamError(f"the caller's on_text raised {what}; the log has the traceback")
            failed.__cause__ = error
            return failed
        return None

    def finish(self, token_ids: tuple[int, ...]) -> None:
        """``generate`` returned ``token_ids``: forget what was reported behind them."""
        self.token_ids = token_ids
        del self.log_probabilities[len(token_ids) :]
        if self.stopped_after > len(token_ids):
            self.stopped_by = None  # the answer was complete before

    @property
    def confidence(self) -> float:
        """Geometric mean of the tokens' probabilities."""
        return math.exp(math.fsum(self.log_probabilities) / len(self.token_ids)) if self.token_ids else 0.0


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
        self._encoded_ahead: set[int] = set()
        """Tubelets whose features were computed before a question: not again, should the cache have dropped them."""

    def prompt(self, clips: Sequence[Clip], question: str) -> Prompt:
        """The whole prompt, as native inference would have it."""
        segments = clip_segments(clips, self.cameras, self.config.camera_block_s)
        true_time = self.config.time_positions == "true"
        return self.model.build_prompt(
            segments, question, true_time=true_time, text_positions=self.config.text_positions
        )

    def answer(
        self,
        clips: Sequence[Clip],
        question: Question,
        *,
        part: Hashable | None = None,
        arrived_at: float | None = None,
        interrupts: Interrupts | None = None,
    ) -> Answer:
        """Answer from the KV cache, after bringing it in step with ``clips``.

        Args:
            clips: one per camera, at least one, none empty.
            question: limits already filled in (``max_new_tokens`` > 0).
            part: None where the clips are all of memory; else which part they are (any key), to be answered on a fork.
            arrived_at: ``time.monotonic()`` at which the question came; default now.
            interrupts: asked between chunks and tokens.

        Raises:
            InvalidRequestError: prompt and answer would not fit into the model's context, or the answer can't be held
                to its schema.
            IncompleteAnswerError: ``max_new_tokens`` cut an answer under a schema.
            ModelFailedError: the model's logits are not finite; the caches were dropped.
            VStreamError: whatever ``interrupts`` says; its ``answer`` then holds the text so far.
            Exception: whatever the model raises; the KV cache that it was working on is then emptied.
        """
        started = time.monotonic()
        arrived_at = started if arrived_at is None else arrived_at
        interrupts = interrupts or Interrupts()
        prompt = self.prompt(clips, question.text)
        self._check_context(prompt, question.max_new_tokens)
        grammar = self.model.compile_grammar(question.json_schema) if question.json_schema else None
        timelines = self.timelines
        timeline = timelines.for_memory(prompt) if part is None else timelines.for_part(part, prompt)

        seed = question.seed
        if question.temperature > 0.0 and seed == 0:
            seed = secrets.randbits(63) or 1
        decoding = _Decoding(self.model, interrupts)
        options = GenerationOptions(question.max_new_tokens, question.temperature, seed, decoding.on_token, grammar)
        try:
            report = timeline.answer(prompt, options, interrupts.raise_if_due)
        except (CanceledError, InvalidRequestError, QuestionTimeoutError):
            raise  # between two calls of the model: what is held is whole
        except ModelFailedError:
            self.drop_caches()  # what is not finite may be in there
            raise
        except Exception:
            timeline.reset()  # it holds what every layer holds, but what a failing model wrote there is not known
            raise
        finally:
            timelines.shrink()
        decoding.finish(report.token_ids)
        text = self.model.decode_text(decoding.token_ids)
        if decoding.stopped_by is not None:
            decoding.stopped_by.answer = text
            raise decoding.stopped_by
        if grammar is not None and not grammar.accepts(decoding.token_ids):
            raise IncompleteAnswerError(
                f"max_new_tokens ({question.max_new_tokens}) cut the answer before its JSON was complete; raise it, or "
                "bound the schema (maxLength, maxItems, enum)",
                answer=text,
            )

        finished = time.monotonic()
        metrics = self._metrics(prompt, report)
        metrics.queue_latency = started - arrived_at
        metrics.encoding_latency = report.encoding_s
        metrics.first_token_latency = decoding.first_token_at - arrived_at
        metrics.generation_latency = finished - decoding.first_token_at
        metrics.total_latency = finished - arrived_at
        metrics.new_tokens = len(decoding.token_ids)
        metrics.seed = seed
        return Answer(
            text=text,
            metrics=metrics,
            confidence=decoding.confidence,
            frame_cameras=tuple(t.camera for t in prompt.tubelets for _ in t.stamps_ns),
            frame_stamps_ns=tuple(stamp for t in prompt.tubelets for stamp in t.stamps_ns),
            token_ids=decoding.token_ids,
        )

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
        """Forget what was computed from other tubelets than ``held``: those that memory and questions hold."""
        self.timelines.keep_only(held)
        self.vision.keep_only(held)
        self.importance.keep_only(held)
        self._encoded_ahead &= held

    def drop_caches(self) -> None:
        """Forget all that was computed; the frames are elsewhere and stay."""
        self.timelines.reset()
        self.vision.clear()
        self._encoded_ahead.clear()

    def _metrics(self, prompt: Prompt, report: SyncReport) -> AnswerMetrics:
        return AnswerMetrics(
            cache_hit=report.tubelets_prefilled == 0,
            frames=sum(len(tubelet.stamps_ns) for tubelet in prompt.tubelets),
            tubelets=len(prompt.tubelets),
            tubelets_reused=len(prompt.tubelets) - report.tubelets_encoded,
            visual_tokens=sum(end - start for start, end in prompt.spans),
            prompt_tokens=len(prompt),
            prompt_tokens_reused=report.tokens_reused,
            model=self.model.name,
        )

    def _check_context(self, prompt: Prompt, max_new_tokens: int) -> None:
        needed, limit = len(prompt) + max_new_tokens, self.model.context_length
        if needed > limit:
            raise InvalidRequestError(
                f"the prompt of {len(prompt)} tokens and {max_new_tokens} new ones exceed the {limit} tokens of "
                f"{self.model.name}; shorten the question, or lower max_new_tokens, max_pixels, star_memory_size or "
                "stream_window_size"
            )


def tubelet_ids(clips: Iterable[Clip]) -> set[int]:
    """The ids of all tubelets of ``clips``."""
    return {tubelet.id for clip in clips for tubelet in clip.tubelets}


def _settled(clips: Sequence[Clip]) -> list[Clip]:
    """``clips`` without provisional tubelets, which change with the next frame, and without empty clips."""
    kept = (replace(clip, tubelets=tuple(t for t in clip.tubelets if not t.provisional)) for clip in clips)
    return [clip for clip in kept if clip.tubelets]
