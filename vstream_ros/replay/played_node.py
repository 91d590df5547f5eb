"""The node that a player plays to: its model's state, and how far it has come with the images."""

from __future__ import annotations

import threading
import time
from typing import Any

from vstream_ros.replay.flow_control import FlowControl

PROGRESS_TIMEOUT_S = 5.0
"""From a node's being seen until it has told how many images it took."""
POLL_S = 0.02


class PlayedNode:
    """Listens on the player's node, which must be spun by another thread than the one that waits here."""

    def __init__(self, node: Any, name: str, flow: FlowControl, stop: threading.Event, *, progress: bool) -> None:
        """
        Args:
            node: the player's ``rclpy.node.Node``.
            name: of the node that is played to, with its namespace.
            flow: is told what that node takes, where ``progress`` is wanted.
            stop: ends every wait.
        """
        from vstream_ros.msg import CacheStatus

        self._node = node
        self._name = name
        self._flow = flow
        self._stop = stop
        self._loaded, self._failed = CacheStatus.READY, CacheStatus.FAILED
        self._model_state: int | None = None
        """Written by the executor's thread alone; None until a status came."""
        self._progress_topic = f"{name}/image_progress"
        node.create_subscription(CacheStatus, f"{name}/cache_status", self._on_status, 10)
        if progress:
            node.create_subscription(CacheStatus, self._progress_topic, self._on_progress, 10)

    def wait_for_model(self, timeout_s: float) -> str:
        """Wait until the model is loaded. Returns what is wrong, empty where nothing is or the player was stopped."""
        deadline = time.monotonic() + timeout_s
        while self._model_state not in (self._loaded, self._failed) and time.monotonic() < deadline:
            if self._stop.wait(POLL_S):
                return ""
        if self._model_state == self._failed:
            return f"{self._name} could not load its model, /diagnostics says why"
        if self._model_state is None:
            return f"no status came from {self._name} within {timeout_s:g} s"
        return "" if self._model_state == self._loaded else f"{self._name} loaded no model within {timeout_s:g} s"

    def wait_for_progress(self) -> None:
        """Wait until the node, if it is there, has told how many images it took before the first of ours."""
        deadline = time.monotonic() + PROGRESS_TIMEOUT_S
        while not self._flow.topics and self._node.count_publishers(self._progress_topic):
            if self._stop.wait(POLL_S) or time.monotonic() >= deadline:
                return

    def _on_status(self, status: Any) -> None:
        self._model_state = status.model_state

    def _on_progress(self, status: Any) -> None:
        self._flow.told({camera.topic: camera.frames_received for camera in status.cameras})
