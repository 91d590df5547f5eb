"""Delayed batch encoding: frames stream into memory all the time, a question encodes what the memory holds.

Threads: callers' threads add frames and submit questions, the model's thread (``ModelThread``) does everything with the
model. Locks: ``CameraMemories``, ``ModelHost``, ``ModelThread`` and ``StatusBoard`` have one each, held for bookkeeping
only; none of them is taken while another one is held. A load holds a lock of the whole process around all this.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vstream_ros.engine.answers import DeviceMemory, EngineStatus, ModelState, Question
from vstream_ros.engine.asking import QuestionDesk
from vstream_ros.engine.background import WorkAhead
from vstream_ros.engine.camera_memories import CameraMemories
from vstream_ros.engine.engine_config import EngineConfig, parted_configs
from vstream_ros.engine.feature_importance import FeatureImportance, cameras_by_features
from vstream_ros.engine.memory_files import MemoryFile, load_memories, save_memories
from vstream_ros.engine.model_host import ModelHost
from vstream_ros.engine.model_loads import ModelLoads
from vstream_ros.engine.model_thread import ModelThread, PendingAnswer
from vstream_ros.engine.status_board import StatusBoard
from vstream_ros.errors import BusyError, VStreamError
from vstream_ros.memory import Clip, FrameSlot, FrameStatus, MemoryConfig, MemorySnapshot
from vstream_ros.memory.future_stamps import Clock
from vstream_ros.memory.stamps import checked_stamp_ns, stamp_ns_of_seconds
from vstream_ros.models.frame_spec import FrameSpec


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
        after: Future[Any] | None = None,
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
            after: nothing is loaded before this has ended: what an earlier engine's ``close`` returned, so that the
                weights of both are never there together.
            overrides: single fields of ``EngineConfig`` and ``MemoryConfig`` (for all cameras).

        Raises:
            ConfigError: a parameter is unknown or out of its range.
        """
        if device is not None:
            overrides["device"] = device
        self.config, memories = parted_configs(config, memory, overrides)
        by_features = cameras_by_features(self.config, memories)
        spec = FrameSpec(min_pixels=self.config.min_pixels, max_pixels=self.config.max_pixels)
        self._cameras = CameraMemories(memories, spec, star_max_pixels=self.config.star_max_pixels)
        name = model if isinstance(model, str) else ""
        importance = partial(FeatureImportance, by_features, self._cameras.reweigh)
        self._host = ModelHost(name, self.config, self._cameras.names, self._cameras.max_tubelets, importance)
        self._board = StatusBoard(self.config, self._cameras, self._host)
        self._desk = QuestionDesk(
            self.config, self._cameras, self._host, self._board,
            others_wait=lambda: self._thread.count_questions()[0] > 0,
            on_answer=lambda: self._work_ahead.resume(),
        )  # fmt: skip
        self._work_ahead = WorkAhead(self.config, self._cameras, self._host, self._board)
        self._loads = ModelLoads(self.config, self._cameras, self._host, self._board, self._work_ahead)
        if name:
            self._loads.expect(name)
        elif model is not None and not isinstance(model, str):
            self._loads.adopt(model, processor)
        self._thread = ModelThread(self._desk, self._work_ahead.step, after=after)

    def __enter__(self) -> DelayedBatchInferenceEngine:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- model -------------------------------------------------------------------------------------------------------

    def load(self, model: str | None = None) -> Future[str]:
        """Load (or load again) a checkpoint in the model's thread. Returns at once.

        The state is LOADING from now on, and questions are refused. The model that is there is kept until the new one
        is, and answers again where that can't be loaded; where the device has no room for both, by estimate, the log
        says so and the old one is freed first. ``model``: hub id or folder; default: the one that was named last.

        Returns:
            a future of the name of what was loaded. It carries ``ModelFailedError`` or ``ConfigError`` where that
            failed, ``CanceledError`` where a later load, unload or close overtook it, ``NotReadyError`` after
            ``close``.
        """
        ticket = self._host.announce_load(model)
        self._loads.expect(self._host.describe()[0])
        return self._thread.run(lambda: self._loads.load(ticket))

    def unload(self) -> Future[None]:
        """Free the weights and the caches in the model's thread; the frames stay. Returns at once. The future carries
        ``CanceledError`` where a later load overtook it, so that nothing was freed."""
        ticket = self._host.announce_unload()
        return self._thread.run(lambda: self._loads.free(ticket))

    # -- frames ------------------------------------------------------------------------------------------------------

    @property
    def cameras(self) -> tuple[str, ...]:
        """The cameras' names, in prompt order."""
        return self._cameras.names

    def frame_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) at which an image of this size is kept; raises ``FrameError`` for an impossible one."""
        return self._cameras.frame_size(height, width)

    def offer(
        self, stamp_ns: int | None = None, *, camera: str | None = None, clock: Clock | None = None
    ) -> FrameSlot:
        """Offer a frame by its stamp, before anyone pays for its conversion; counts it, and judges it once.

        Where the slot is ``wanted``, convert the image (``slot.frame_size`` tells its size) and ``keep`` or ``reject``
        it, in this thread. A frame that is not wanted ends here.

        Args:
            stamp_ns: nanoseconds; default: one sampling period after the last frame.
            camera: default: the only camera.
            clock: the one that stamps come from, in nanoseconds, 0 while it stands still: it tells a false stamp at
                once. Called in this thread, and only for a stamp that looks false.

        Raises:
            FrameError: no such stamp; it is counted.
            InvalidRequestError: an unknown camera, or none named where there are several.
        """
        return self._cameras.offer(stamp_ns, camera, clock)

    def keep(self, slot: FrameSlot, frame: np.ndarray) -> FrameStatus:
        """Store the frame of a slot, (height, width, 3) uint8 RGB of any size: it is scaled and copied.

        Where the slot is not wanted, nothing is done. Raises ``FrameError`` for what is no such image: it is counted
        and nothing else changes.
        """
        status = self._cameras.keep(slot, frame)
        if status.cleared:
            self._thread.run_once(self._forget_cleared)
        if status.kept and self.config.background_encoding != "off":
            self._thread.poke()
        return status

    def reject(self, slot: FrameSlot, reason: str) -> None:
        """Count an offered image that could not be used, and why."""
        self._cameras.reject(slot, reason)

    def reject_unstamped(self, camera: str, reason: str) -> None:
        """Count an image that could not even be offered, because nobody can tell its stamp."""
        self._cameras.reject_unstamped(camera, reason)

    def add_frame(
        self,
        frame: np.ndarray,
        timestamp: float | None = None,
        *,
        camera: str | None = None,
        stamp_ns: int | None = None,
    ) -> FrameStatus:
        """Keep a frame, if the sampling grid wants it: ``offer`` and ``keep`` in one. Never waits for the model.

        Args:
            frame: (height, width, 3) uint8 RGB of any size; it is scaled to ``frame_size`` and copied.
            timestamp: seconds, on any clock that increases; default: one sampling period after the last frame.
            camera: default: the only camera.
            stamp_ns: the same in nanoseconds, exact.

        Raises:
            FrameError: not such an image or no such time; it is counted and nothing else changes.
            InvalidRequestError: an unknown camera, or none named where there are several.
        """
        if stamp_ns is None and timestamp is not None:
            stamp_ns = self._cameras.stamp_ns_of(timestamp, camera)
        return self.keep(self.offer(stamp_ns, camera=camera), frame)

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
        to_ns = checked_stamp_ns if nanoseconds else stamp_ns_of_seconds
        stamped = ((frame, to_ns(timestamp)) for frame, timestamp in frames)
        statuses = self._cameras.update_star_memory(stamped, camera)
        if statuses and self.config.background_encoding != "off":
            self._thread.poke()
        return statuses

    def clear(self, reason: str = "requested", camera: str | None = None) -> None:
        """Forget the frames of one camera or of all, and what was computed from them. A question that is being answered
        from some of them ends with ``CanceledError``."""
        self._cameras.clear(reason, camera)
        self._thread.run_once(self._forget_cleared)

    def save_memory(self, path: str | Path) -> MemoryFile:
        """Write what memory holds to a file (docs/saved_memory.md), as a whole or not at all, in this thread. Raises
        ``MemoryFileError``; a file that was there before is then as it was."""
        return save_memories(self._cameras, Path(path))

    def load_memory(self, path: str | Path) -> MemoryFile:
        """Put what such a file holds in the place of what memory holds: the next answer is the one before the saving.

        Reads in this thread. Questions about frames that go end with ``CanceledError``. Raises ``MemoryFileError``
        (``NoMemoryFileError`` where there is no file), and has changed nothing then.
        """
        loaded = load_memories(self._cameras, Path(path))
        self._thread.run_once(self._forget_cleared)
        return loaded

    def clips(self, question: Question | None = None) -> tuple[Clip, ...]:
        """What memory would hand out for a question (default: about everything), one clip per camera with frames."""
        question = question or Question("")
        return self._cameras.take(question.cameras, question.start_ns, question.end_ns).clips

    def snapshots(self) -> tuple[MemorySnapshot, ...]:
        """What each camera's memory holds and why: ``memory.draw_contact_sheet`` draws it."""
        return self._cameras.snapshots()

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
        whole = question if isinstance(question, Question) else Question(question)
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
        pending = PendingAnswer(question, deadline=now, arrived_at=now, on_text=on_text)
        try:
            checked = self._desk.validate(question)
            pending.question, pending.deadline = checked, now + checked.timeout_s
            self._host.require()
            if not self._thread.submit(pending, self.config.max_queued_questions):
                raise BusyError(
                    f"{self.config.max_queued_questions} questions are waiting already; ask again later or raise "
                    "max_queued_questions"
                )
        except VStreamError as error:
            self._board.count_failure(error)
            pending.future.set_exception(error)
        return pending

    def cancel_all(self, reason: str) -> None:
        """End every waiting and running question with ``CanceledError``."""
        self._thread.cancel_all(reason)

    def _forget_cleared(self) -> None:
        self._desk.forget_cleared()
        self._work_ahead.resume()

    # -- status ------------------------------------------------------------------------------------------------------

    def status(self) -> EngineStatus:
        """A snapshot for diagnostics; cheap."""
        return self._board.status(*self._thread.count_questions())

    def device_memory(self) -> list[DeviceMemory]:
        """Bytes per device, and how they are shared between weights, frames, features and KV cache."""
        return self._board.device_memory()

    def close(self, reason: str = "the engine was closed", *, wait_s: float = 5.0) -> Future[None]:
        """End the questions with ``CanceledError`` (``reason``), the model's thread, and free the weights.

        From now on questions and loads end at once with ``NotReadyError``. A load that has begun can't be interrupted:
        its end is waited for, here for ``wait_s`` at most.

        Returns:
            a future that ends, without a result, when the weights are freed; its callbacks run in the model's thread.
        """
        ticket = self._host.announce_end()
        self._thread.close(reason, last_job=lambda: self._loads.free(ticket), wait_s=wait_s)
        self._cameras.close()
        return self._thread.ended
