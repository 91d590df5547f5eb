"""What a model that comes or goes means for everything else of the engine."""

from __future__ import annotations

from typing import Any

import torch

from vstream_ros.engine.background import WorkAhead
from vstream_ros.engine.camera_memories import CameraMemories
from vstream_ros.engine.device_memory import reset_peak
from vstream_ros.engine.engine_config import EngineConfig
from vstream_ros.engine.model_host import ModelHost, Ticket
from vstream_ros.engine.status_board import StatusBoard
from vstream_ros.models.base import VideoModel
from vstream_ros.models.frame_spec import frame_spec_of


class ModelLoads:
    """``expect`` runs in any thread, the rest in the model's (or before that has begun)."""

    def __init__(
        self, config: EngineConfig, cameras: CameraMemories, host: ModelHost, board: StatusBoard, ahead: WorkAhead
    ) -> None:
        self._config = config
        self._cameras = cameras
        self._host = host
        self._board = board
        self._ahead = ahead

    def expect(self, model: str) -> None:
        """Keep frames at the size that a checkpoint will want, where its files are here to say it."""
        if self._host.answerer is not None:
            return  # there is a model that takes other frames, for now
        spec = frame_spec_of(model, min_pixels=self._config.min_pixels, max_pixels=self._config.max_pixels)
        if spec is not None:
            self._cameras.use_frame_spec(spec, f"{model} takes other frame sizes")

    def load(self, ticket: Ticket) -> str:
        """Load what the ticket names; returns the name of what is there then."""
        try:
            return self.use(self._host.load(ticket), ticket)
        finally:
            self._board.publish()

    def adopt(self, model: Any, processor: Any) -> None:
        """Take a loaded transformers model."""
        ticket = self._host.announce_load(None)
        wrapped = self._host.wrap(model, processor)
        self._host.install(wrapped, ticket)
        self.use(wrapped, ticket)

    def use(self, model: VideoModel, ticket: Ticket) -> str:
        """Fit everything else to the model that was installed, and be READY; returns its name."""
        self._cameras.use_frame_spec(model.frame_spec, f"{model.name} takes other frame sizes")
        reset_peak({model.device, torch.device("cpu"), *model.weight_bytes_by_device})
        self._ahead.resume()
        return self._host.finish(ticket)

    def free(self, ticket: Ticket) -> None:
        """Give the weights and the caches back."""
        self._host.free(ticket)
        self._board.publish()
