"""Work ahead of the question, in steps of at most one tubelet."""

from __future__ import annotations

import time

from vstream_ros.engine.camera_memories import CameraMemories
from vstream_ros.engine.engine_config import EngineConfig
from vstream_ros.engine.model_host import ModelHost
from vstream_ros.engine.status import StatusBoard


class WorkAhead:
    """Belongs to the model's thread."""

    def __init__(self, config: EngineConfig, cameras: CameraMemories, host: ModelHost, board: StatusBoard) -> None:
        self._config = config
        self._cameras = cameras
        self._host = host
        self._board = board

    def step(self) -> float | None:
        """Take one step. Returns the seconds to wait before the next one, None where nothing is left to do."""
        answerer, mode = self._host.answerer, self._config.background_encoding
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
            self._board.publish()
        if not worked:
            return None
        return (time.monotonic() - started) * (1.0 / self._config.background_duty - 1.0)
