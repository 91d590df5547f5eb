"""A question on its way through the decoder, and what becomes of it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from vstream_ros.engine.answers import Answer, AnswerMetrics, Question
from vstream_ros.engine.choices import Choices
from vstream_ros.engine.free_text import FreeText
from vstream_ros.engine.timeline import SyncReport
from vstream_ros.errors import IncompleteAnswerError, VStreamError
from vstream_ros.models.base import Prompt, VideoModel


@dataclass(eq=False)
class Running:
    """A question that is being answered. Its identity counts."""

    question: Question
    prompt: Prompt
    continuation: FreeText | Choices
    report: SyncReport
    """What its clip took; nothing where another question's had it done."""
    seed: int
    arrived_at: float
    """``time.monotonic()`` at which the question came, and at which its turn came."""
    started_at: float


Outcome = Answer | Exception


def outcome_of(model: VideoModel, running: Running, failure: Exception | None) -> Outcome:
    """What the caller of a question gets: ``failure``, if that is why it ended, or else its answer."""
    continuation = running.continuation
    tokens = tuple(continuation.token_ids) if isinstance(continuation, FreeText) else ()
    text = model.decode_text(tokens)
    if isinstance(failure, VStreamError):
        own = type(failure)(str(failure), answer=text)  # another question may have failed of the same
        own.__cause__ = failure.__cause__
        return own
    if failure is not None:
        return failure
    choice = -1
    probabilities: tuple[float, ...] = ()
    if isinstance(continuation, Choices):
        probabilities = tuple(continuation.probabilities)
        choice = int(np.argmax(probabilities))
        text, confidence = running.question.choices[choice], probabilities[choice]
    elif not continuation.is_whole:
        return IncompleteAnswerError(
            f"max_new_tokens ({running.question.max_new_tokens}) cut the answer before its JSON was complete; "
            "raise it, or bound the schema (maxLength, maxItems, enum)",
            answer=text,
        )
    else:
        confidence = continuation.confidence
    tubelets = running.prompt.tubelets
    return Answer(
        text=text,
        metrics=_metrics(model, running),
        confidence=confidence,
        choice_index=choice,
        probabilities=probabilities,
        frame_cameras=tuple(t.camera for t in tubelets for _ in t.stamps_ns),
        frame_stamps_ns=tuple(stamp for t in tubelets for stamp in t.stamps_ns),
        token_ids=tokens,
    )


def _metrics(model: VideoModel, running: Running) -> AnswerMetrics:
    finished_at = time.monotonic()
    prompt, report, continuation = running.prompt, running.report, running.continuation
    metrics = AnswerMetrics(
        queue_latency=running.started_at - running.arrived_at,
        encoding_latency=report.encoding_s,
        first_token_latency=continuation.first_token_at - running.arrived_at,
        generation_latency=finished_at - continuation.first_token_at,
        total_latency=finished_at - running.arrived_at,
        cache_hit=report.tubelets_prefilled == 0,
        frames=sum(len(tubelet.stamps_ns) for tubelet in prompt.tubelets),
        tubelets=len(prompt.tubelets),
        tubelets_reused=len(prompt.tubelets) - report.tubelets_encoded,
        visual_tokens=sum(end - start for start, end in prompt.spans),
        prompt_tokens=len(prompt),
        prompt_tokens_reused=report.tokens_reused,
        seed=running.seed,
        model=model.name,
    )
    metrics.passes = continuation.passes
    if isinstance(continuation, FreeText):
        metrics.new_tokens = len(continuation.token_ids)
        metrics.draft_tokens = continuation.draft.proposed
        metrics.draft_tokens_right = continuation.draft.accepted
    return metrics
