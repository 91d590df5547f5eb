"""Work ahead of the question, in steps of at most one tubelet."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.engine.answers import BackgroundState
from vstream_ros.engine.camera_memories import CameraMemories
from vstream_ros.engine.device_memory import is_out_of_memory
from vstream_ros.engine.engine_config import EngineConfig
from vstream_ros.engine.model_host import ModelHost
from vstream_ros.engine.recovery import first_line, forget_frames, recover_from_out_of_memory
from vstream_ros.engine.status_board import StatusBoard

FIRST_PAUSE_S = 1.0
"""After a first failure; each further one doubles it."""
MAX_FAILURES = 6
"""In a row: then work ahead ends, half a minute after the first of them."""

logger = logging.getLogger(__name__)


class WorkAhead:
    """Belongs to the model's thread.

    What fails again and again is not tried for ever: the pauses between tries double, and after ``MAX_FAILURES`` in a
    row nothing is tried any more until ``resume``. The row ends where the caches have caught up with memory: a step
    that succeeds on the way to the one that fails again says nothing.
    """

    def __init__(
        self,
        config: EngineConfig,
        cameras: CameraMemories,
        host: ModelHost,
        board: StatusBoard,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``clock``: steady seconds."""
        self._mode = config.background_encoding
        self._duty = config.background_duty
        self._cameras = cameras
        self._host = host
        self._board = board
        self._clock = clock
        self._failures = 0
        """In a row."""
        self._retry_at = float("-inf")
        self._publish("")

    def resume(self) -> None:
        """Begin anew after failures: the model or the memory is another one, or a question could be answered."""
        if self._failures:
            self._failures, self._retry_at = 0, float("-inf")
            self._publish("")

    def step(self) -> float | None:
        """Take one step. Returns the seconds to wait before the next one, None where nothing is left to do."""
        answerer = self._host.answerer
        if answerer is None or self._mode == "off" or self._failures >= MAX_FAILURES:
            return None
        started = self._clock()
        if started < self._retry_at:  # woken by a frame
            return self._retry_at - started
        out_of_memory, failure = False, ""
        worked = False
        try:
            worked = self._work(answerer)
        except Exception as error:  # noqa: BLE001  (the thread must outlive it)
            out_of_memory, failure = is_out_of_memory(error), first_line(error)
            logger.error("background work failed:\n%s", forget_frames(error))
        finally:
            self._board.publish()
        if failure:
            return self._after_failure(answerer, failure, out_of_memory)
        if not worked:
            self.resume()
            return None
        return (self._clock() - started) * (1.0 / self._duty - 1.0)

    def _work(self, answerer: ClipAnswerer) -> bool:
        clips, next_clips = self._cameras.clips_ahead()
        archived = self._cameras.archived_tubelets()
        if self._mode == "vision":
            return answerer.encode_ahead((*clips, *next_clips), archived)
        return answerer.prefill_ahead(clips, next_clips, archived)

    def _after_failure(self, answerer: ClipAnswerer, failure: str, out_of_memory: bool) -> float | None:
        """Outside of the ``except``, so that nothing holds what the step had computed. Returns what ``step`` does."""
        if out_of_memory:  # what was prefilled before stays: the next try goes on from there
            recover_from_out_of_memory(answerer, keep_intact=True)
        else:
            answerer.drop_caches()
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            answerer.timelines.ahead = None  # nobody goes on with it, and a question may need its memory
            logger.error("work ahead of questions ends after %d failures in a row: %s", self._failures, failure)
        pause_s = FIRST_PAUSE_S * 2.0 ** (self._failures - 1)
        self._retry_at = self._clock() + pause_s
        self._board.publish()
        self._publish(failure)
        return pause_s if self._failures < MAX_FAILURES else None

    def _publish(self, error: str) -> None:
        if self._mode == "off":
            state = BackgroundState.OFF
        elif self._failures >= MAX_FAILURES:
            state = BackgroundState.STOPPED
        else:
            state = BackgroundState.PAUSED if self._failures else BackgroundState.ON
        self._board.publish_background(state, self._failures, error)
