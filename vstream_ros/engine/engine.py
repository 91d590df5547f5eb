"""Delayed batch encoding: frames stream into memory all the time, a question encodes what the memory holds."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch

from vstream_ros.engine.answerer import Interrupts
from vstream_ros.engine.cameras import CameraMemories
from vstream_ros.engine.config import EngineConfig
from vstream_ros.engine.device_memory import is_out_of_memory, read_device_memory
from vstream_ros.engine.model_host import ModelHost
from vstream_ros.engine.model_thread import ModelThread, PendingAnswer
from vstream_ros.engine.types import Answer, DeviceMemory, EngineStatus, ModelState, Question
from vstream_ros.errors import (
    BusyError,
    CanceledError,
    ConfigError,
    InvalidRequestError,
    NoFramesError,
    OutOfMemoryError,
    VStreamError,
)
from vstream_ros.memory import Clip, FrameStatus, MemoryConfig, Verdict
from vstream_ros.memory.types import NANOSECONDS
from vstream_ros.models.base import FrameSpec

DEFAULT_CAMERA = "camera"
NOTHING_TAKEN: tuple[float, tuple[Clip, ...], int] = (float("-inf"), (), -1)


@dataclasses.dataclass
class _Counters:
    """Totals since the engine was made; over all threads."""

    cache_hits: int = 0
    cache_misses: int = 0
    tokens_reused: int = 0
    tokens_computed: int = 0
    answers: int = 0
    failures: int = 0
    last_failure: str = ""


@dataclasses.dataclass(frozen=True)
class _TimelineState:
    """What the model's thread last published about its timeline, for other threads to read."""

    tubelet_ids: tuple[int, ...] = ()
    tokens: int = 0
    nbytes: int = 0
    features: int = 0
    ahead_ids: tuple[int, ...] = ()


class DelayedBatchInferenceEngine:
    """Frames in, answers out, without ROS.

    ::

        engine = DelayedBatchInferenceEngine(model=model, processor=processor, star_memory_size=20)
        status = engine.add_frame(frame, timestamp)
        answer, metrics = engine.ask("What is happening?")   # encodes the kept frames
        answer, metrics = engine.ask("Who is there?")        # reuses the KV cache: no encoding_latency

    Every method may be called from any thread. One thread of the engine's own loads the model and computes answers;
    adding frames never waits for it.
    """

    def __init__(
        self,
        model: Any = None,
        processor: Any = None,
        device: str | None = None,
        *,
        config: EngineConfig | None = None,
        memory: MemoryConfig | Mapping[str, MemoryConfig] | None = None,
        **overrides: Any,
    ) -> None:
        """
        Args:
            model: a loaded transformers model (with its ``processor``), or a hub id or folder, which ``load`` (or the
                first ``ask``) loads.
            processor: the loaded model's processor.
            device: short for ``device=`` in ``overrides``; a loaded model is moved there.
            config: parameters of the engine.
            memory: parameters of the only camera's memory, or one per camera by name, in prompt order.
            overrides: single fields of ``EngineConfig`` and ``MemoryConfig`` (for all cameras).

        Raises:
            ConfigError: a parameter is unknown or out of its range.
        """
        if device is not None:
            overrides["device"] = device
        self.config = _replace(config or EngineConfig(), overrides)
        cameras = memory if isinstance(memory, Mapping) else {DEFAULT_CAMERA: memory or MemoryConfig()}
        memory_overrides = {name: overrides.pop(name) for name in _fields(MemoryConfig) & overrides.keys()}
        if unknown := overrides.keys() - _fields(EngineConfig):
            raise ConfigError(f"unknown parameters: {', '.join(sorted(unknown))}")

        self._cameras = CameraMemories(
            {name: _replace(camera, memory_overrides) for name, camera in cameras.items()},
            FrameSpec(min_pixels=self.config.min_pixels, max_pixels=self.config.max_pixels),
        )
        self._host = ModelHost(model if isinstance(model, str) else "", self.config, self._cameras)
        self._counters = _Counters()
        self._counters_lock = threading.Lock()
        self._timeline_state = _TimelineState()
        if model is not None and not isinstance(model, str):
            self._host.adopt(self._host.wrap(model, processor))
        self._taken = NOTHING_TAKEN
        """When the last question's clips were taken, the clips, and the epoch."""
        self._thread = ModelThread(self._answer, self._background)

    def __enter__(self) -> DelayedBatchInferenceEngine:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- model -------------------------------------------------------------------------------------------------------

    def load(self, model: str | None = None) -> Future[None]:
        """Load (or load again) a checkpoint in the model's thread. Returns at once.

        Args:
            model: hub id or folder; default: the last one.

        Returns:
            a future that carries ``ModelFailedError`` or ``ConfigError`` where it failed.
        """
        ticket = self._host.announce_load(model)

        def load() -> None:
            try:
                self._host.load(ticket)
            finally:
                self._publish()

        return self._thread.run(load)

    def unload(self) -> Future[None]:
        """Free the weights and the caches in the model's thread; the frames stay. Returns at once."""
        self._host.announce_unload()

        def free() -> None:
            self._host.free()
            self._publish()

        return self._thread.run(free)

    # -- frames ------------------------------------------------------------------------------------------------------

    @property
    def cameras(self) -> tuple[str, ...]:
        """The cameras' names, in prompt order."""
        return self._cameras.names

    def frame_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) at which an image of this size is kept; raises ``FrameError`` for an impossible one."""
        return self._cameras.frame_size(height, width)

    def check(self, camera: str, stamp_ns: int) -> Verdict:
        """Whether a frame with this stamp is wanted, before anyone pays for its conversion; counts it as offered."""
        return self._cameras.check(camera, stamp_ns)

    def add_frame(
        self,
        frame: np.ndarray,
        timestamp: float | None = None,
        *,
        camera: str | None = None,
        stamp_ns: int | None = None,
    ) -> FrameStatus:
        """Keep a frame, if the sampling grid wants it. Never waits for the model.

        Args:
            frame: (height, width, 3) uint8 RGB of any size; it is scaled to ``frame_size`` and copied.
            timestamp: seconds, on any clock that increases; default: one sampling period after the last frame.
            camera: default: the only camera.
            stamp_ns: the same in nanoseconds, exact.

        Raises:
            FrameError: not such an image; it is counted and nothing else changes.
            InvalidRequestError: an unknown camera, or none named where there are several.
        """
        if stamp_ns is None and timestamp is not None:
            stamp_ns = round(timestamp * NANOSECONDS)
        status = self._cameras.add_frame(frame, stamp_ns, camera)
        if status.cleared:
            self._thread.run(self._drop_caches)
        if status.kept and self.config.background_encoding != "off":
            self._thread.poke()
        return status

    def update_star_memory(
        self, frames: Iterable[tuple[np.ndarray, float]], *, camera: str | None = None, nanoseconds: bool = False
    ) -> list[FrameStatus]:
        """Remember frames that a planner or a detector found important, whatever their age and the sampling grid.

        They become key tubelets at once: newer ones at the end of the window, older ones at their place in time, in
        the window or in star. A frame that memory holds already (by its stamp) makes its tubelet a key tubelet. The
        next question encodes the new tubelets only, and prefills from the first of them on. Never waits for the model.

        Args:
            frames: pairs of an image as ``add_frame`` takes it and its timestamp, in time order.
            camera: default: the only camera.
            nanoseconds: the timestamps are whole nanoseconds, as header stamps are, instead of seconds.

        Returns:
            what became of each frame.

        Raises:
            FrameError: an image is none or of another resolution than memory's, or the timestamps do not rise; it is
                counted and nothing else changes.
            InvalidRequestError: an unknown camera, or none named where there are several.
        """
        scale = 1 if nanoseconds else NANOSECONDS
        stamped = ((frame, round(timestamp * scale)) for frame, timestamp in frames)
        statuses = self._cameras.update_star_memory(stamped, camera)
        if statuses and self.config.background_encoding != "off":
            self._thread.poke()
        return statuses

    def reject(self, camera: str, reason: str) -> None:
        """Count an image that could not be used."""
        self._cameras.reject(camera, reason)

    def clear(self, reason: str = "requested", camera: str | None = None) -> None:
        """Forget the frames of one camera or of all, and what was computed from them.

        The question that is being answered ends with ``CanceledError``.
        """
        self._cameras.clear(reason, camera)
        self._thread.run(self._drop_caches)

    def clips(self, question: Question | None = None) -> tuple[Clip, ...]:
        """What memory would hand out for a question (default: about everything), one clip per camera with frames."""
        question = question or Question("")
        return self._cameras.clips(question.cameras, question.start_ns, question.end_ns)[0]

    # -- questions ---------------------------------------------------------------------------------------------------

    def ask(self, question: str | Question, **fields: Any) -> tuple[str, dict[str, Any]]:
        """Ask and wait for the answer; a named model that is not loaded yet is loaded first.

        Args:
            question: the text, or a whole ``Question``.
            fields: further fields of ``Question`` (``max_new_tokens``, ``cameras``, …).

        Returns:
            the answer and its metrics; ``encoding_latency`` is there only when something was encoded.

        Raises:
            VStreamError: see ``Question`` and ``errors``.
        """
        whole = Question(question) if isinstance(question, str) else question
        whole = dataclasses.replace(whole, **fields)
        name, state, _ = self._host.describe()
        if state is ModelState.UNLOADED and name:
            self.load().result()
        answer = self.submit(whole).future.result()
        return answer.text, answer.metrics.as_dict()

    def submit(self, question: Question, *, on_text: Callable[[str, int], None] | None = None) -> PendingAnswer:
        """Enqueue a question; never blocks, never raises.

        Args:
            on_text: called in the model's thread after each token, with the text so far and the number of tokens.

        Returns:
            a pending answer whose ``future`` ends in an ``Answer`` or a ``VStreamError``. Its callbacks run in the
            model's thread (or here, for a question that is refused at once).
        """
        now = time.monotonic()
        timeout_s = question.timeout_s or self.config.timeout_s
        filled = dataclasses.replace(
            question, max_new_tokens=question.max_new_tokens or self.config.max_new_tokens, timeout_s=timeout_s
        )
        pending = PendingAnswer(filled, deadline=now + timeout_s, arrived_at=now, on_text=on_text)
        try:
            self._validate(filled)
            self._host.require()
            if not self._thread.submit(pending, self.config.max_queued_questions):
                raise BusyError(
                    f"{self.config.max_queued_questions} questions are waiting already; ask again later or raise "
                    "max_queued_questions"
                )
        except VStreamError as error:
            self._count_failure(error)
            pending.future.set_exception(error)
        return pending

    def cancel_all(self, reason: str) -> None:
        """End every waiting and running question with ``CanceledError``."""
        self._thread.cancel_all(reason)

    def _validate(self, question: Question) -> None:
        if not question.text.strip():
            raise InvalidRequestError("the question is empty; put a sentence into question")
        if question.choices:
            raise InvalidRequestError("choices are not supported yet; leave them empty and put them into the question")
        if not 0.0 <= question.temperature <= 10.0:
            raise InvalidRequestError(f"temperature must be in [0, 10], got {question.temperature}")
        if question.timeout_s <= 0.0:
            raise InvalidRequestError(f"timeout must be > 0 s, or 0 for the default, got {question.timeout_s}")
        if question.end_ns and question.end_ns < question.start_ns:
            raise InvalidRequestError("end_time lies before start_time; swap them")
        self._cameras.require(question.cameras)
        if len(set(question.cameras)) != len(question.cameras):
            raise InvalidRequestError(f"cameras names one camera twice: {', '.join(question.cameras)}")

    def _answer(self, pending: PendingAnswer) -> Answer:
        """In the model's thread: take clip and epoch, answer, publish what the timeline now holds."""
        try:
            answer = self._compute(pending)
        except VStreamError as error:
            self._count_failure(error)
            raise
        except Exception as error:
            if self._host.answerer is not None:
                self._host.answerer.drop_caches()
            if is_out_of_memory(error):
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                out_of_memory = OutOfMemoryError(
                    "the device ran out of memory; lower max_pixels, star_memory_size or stream_window_size "
                    "(the frames are kept, the caches were dropped)"
                )
                self._count_failure(out_of_memory)
                raise out_of_memory from error
            self._count_failure(error)
            raise
        finally:
            self._publish()
        self._count(answer)
        return answer

    def _compute(self, pending: PendingAnswer) -> Answer:
        self._host.require()  # it may have been unloaded while the question waited
        answerer = self._host.answerer
        assert answerer is not None
        question = pending.question
        part = (question.cameras, question.start_ns, question.end_ns) if question.is_about_a_part else None
        clips, epoch = self._take_clips(pending)
        if not clips:
            raise NoFramesError(self._why_no_frames(question))

        def due() -> VStreamError | None:
            self._thread.end_due_questions()
            if self._cameras.epoch != epoch:
                return CanceledError("the memory was cleared while the question was being answered; ask again")
            return pending.due()

        return answerer.answer(
            clips,
            question,
            part=part,
            arrived_at=pending.arrived_at,
            interrupts=Interrupts(due, pending.on_text),
        )

    def _take_clips(self, pending: PendingAnswer) -> tuple[tuple[Clip, ...], int]:
        """The clips of a question. Questions that waited together about all of memory share one set of clips, and so
        one prefill: it was taken after the last of them came."""
        question = pending.question
        if question.is_about_a_part:
            return self._cameras.clips(question.cameras, question.start_ns, question.end_ns)
        taken_at, clips, epoch = self._taken
        if pending.arrived_at >= taken_at or epoch != self._cameras.epoch or not clips:
            taken_at = time.monotonic()
            clips, epoch = self._cameras.clips()
            self._taken = (taken_at, clips, epoch)
        return clips, epoch

    def _drop_caches(self) -> None:
        self._taken = NOTHING_TAKEN
        if self._host.answerer is not None:
            self._host.answerer.drop_caches()
        self._publish()

    def _background(self) -> float | None:
        """In the model's thread: one step of at most one tubelet. Returns the pause before the next one."""
        answerer, mode = self._host.answerer, self.config.background_encoding
        if answerer is None or mode == "off":
            return None
        started = time.monotonic()
        clips, next_clips = self._cameras.clips_ahead()
        try:
            worked = answerer.encode_ahead(clips) if mode == "vision" else answerer.prefill_ahead(clips, next_clips)
        except Exception:
            answerer.drop_caches()
            raise
        finally:
            self._publish()
        if not worked:
            return None
        return (time.monotonic() - started) * (1.0 / self.config.background_duty - 1.0)

    def _why_no_frames(self, question: Question) -> str:
        if question.start_ns or question.end_ns:
            return "the memory holds no frame of that time range; ask about another one or without start_time, end_time"
        names = ", ".join(question.cameras or self._cameras.names)
        return f"no frame came yet from: {names}; check the image topics and the camera drivers"

    def _count(self, answer: Answer) -> None:
        counters, metrics = self._counters, answer.metrics
        with self._counters_lock:
            counters.answers += 1
            counters.cache_hits += metrics.cache_hit
            counters.cache_misses += not metrics.cache_hit
            counters.tokens_reused += metrics.prompt_tokens_reused
            counters.tokens_computed += metrics.prompt_tokens - metrics.prompt_tokens_reused

    def _count_failure(self, error: Exception) -> None:
        with self._counters_lock:
            self._counters.failures += 1
            self._counters.last_failure = f"{type(error).__name__}: {error}"

    def _publish(self) -> None:
        answerer = self._host.answerer
        if answerer is None:
            self._timeline_state = _TimelineState()
        else:
            timelines = answerer.timelines
            held, ahead = timelines.current, timelines.ahead
            self._timeline_state = _TimelineState(
                held.tubelet_ids,
                len(held),
                timelines.nbytes,
                answerer.vision.nbytes,
                ahead.tubelet_ids if ahead is not None else (),
            )

    # -- status ------------------------------------------------------------------------------------------------------

    def status(self) -> EngineStatus:
        """A snapshot for diagnostics; cheap."""
        clips, epoch = self._cameras.clips()
        wanted = {tubelet.id for clip in clips for tubelet in clip.tubelets}
        timeline = self._timeline_state
        held = set(timeline.tubelet_ids)
        with self._counters_lock:
            counters = dataclasses.asdict(self._counters)
        model, state, error = self._host.describe()
        return EngineStatus(
            model=model,
            model_state=state,
            model_error=error,
            cameras=self._cameras.status(),
            clip_frames=sum(clip.frame_count for clip in clips),
            timeline_tubelets=len(timeline.tubelet_ids),
            timeline_tokens=timeline.tokens,
            timeline_bytes=timeline.nbytes,
            valid=bool(held) and held == wanted,
            pending_tubelets=len(wanted - held),
            ahead_pending_tubelets=self._behind_ahead(),
            queued_questions=self._thread.questions,
            memory_epoch=epoch,
            announcements=self._cameras.announcements,
            **counters,
        )

    def _behind_ahead(self) -> int:
        if self.config.background_encoding != "full":
            return 0
        _, next_clips = self._cameras.clips_ahead()
        return len({t.id for clip in next_clips for t in clip.tubelets} - set(self._timeline_state.ahead_ids))

    def device_memory(self) -> list[DeviceMemory]:
        """Bytes per device, and how they are shared between weights, frames, features and KV cache."""
        answerer, timeline = self._host.answerer, self._timeline_state
        host = torch.device("cpu")
        weights = {} if answerer is None else answerer.model.weight_bytes_by_device
        compute = host if answerer is None else answerer.model.device
        features = host if answerer is None else answerer.vision.device
        frames = sum(camera.nbytes for camera in self._cameras.status())
        return [
            dataclasses.replace(
                read_device_memory(device),
                model=weights.get(device, 0),
                frames=frames if device == host else 0,
                features=timeline.features if device == features else 0,
                kv_cache=timeline.nbytes if device == compute else 0,
            )
            for device in dict.fromkeys([compute, *weights, features, host])
        ]

    def close(self) -> None:
        """Cancel the questions and end the model's thread."""
        self._thread.close()


def _fields(config: type) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


def _replace(config: Any, overrides: Mapping[str, Any]) -> Any:
    """``config`` with those of ``overrides`` that are its fields."""
    return dataclasses.replace(config, **{k: v for k, v in overrides.items() if k in _fields(type(config))})
