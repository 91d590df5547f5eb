"""What the node says of itself once a second: ~/cache_status, ~/vram_status, /diagnostics."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node

from vstream_ros.engine import DelayedBatchInferenceEngine, DeviceMemory, EngineStatus
from vstream_ros.msg import CacheStatus, VramStatus
from vstream_ros.node import diagnostics
from vstream_ros.node.callbacks import steady_timer
from vstream_ros.node.camera_subscription import CameraSubscription
from vstream_ros.node.messages import CameraCounts, cache_status, vram_statuses
from vstream_ros.node.settings import CameraSettings, Settings

PERIOD_S = 1.0


class StatusPublisher:
    """Publishes in every lifecycle state, hence with plain publishers."""

    def __init__(
        self,
        node: Node,
        settings: Callable[[], Settings],
        engine: Callable[[], DelayedBatchInferenceEngine | None],
        cameras: Mapping[str, CameraSubscription],
        lifecycle: Callable[[], str],
    ) -> None:
        """
        Args:
            engine: the engine, None while the node is not configured.
            cameras: by name; the same object is looked into each time.
            lifecycle: label of the node's state.
        """
        self._node = node
        self._settings = settings
        self._engine = engine
        self._cameras = cameras
        self._lifecycle = lifecycle
        self._cache = node.create_publisher(CacheStatus, "~/cache_status", 10)
        self._vram = node.create_publisher(VramStatus, "~/vram_status", 10)
        self._diagnostics = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._timer = steady_timer(node, PERIOD_S, "publishing the status", self._publish)

    def _publish(self) -> None:
        for camera in self._cameras.values():
            camera.check_graph()
        stamp = self._node.get_clock().now().to_msg()
        engine = self._engine()
        status = engine.status() if engine is not None else None
        devices = engine.device_memory() if engine is not None else []
        counts = {
            name: CameraCounts(camera.topic, camera.received, camera.lost) for name, camera in self._cameras.items()
        }
        self._cache.publish(cache_status(status, counts, stamp))
        for message in vram_statuses(devices, stamp):
            self._vram.publish(message)
        entries = self._entries(status, devices)
        name = self._node.get_fully_qualified_name().lstrip("/")
        self._diagnostics.publish(diagnostics.to_array(entries, name, stamp))

    def _entries(self, status: EngineStatus | None, devices: list[DeviceMemory]) -> list[diagnostics.Diagnostic]:
        settings, lifecycle = self._settings(), self._lifecycle()
        device = devices[0].device if devices else diagnostics.NO_HARDWARE
        return [
            diagnostics.model(status, lifecycle, device),
            *(self._camera(camera, status, settings.silent_camera_timeout_s) for camera in settings.cameras),
            diagnostics.questions(status, settings.engine.max_queued_questions),
            diagnostics.memory(status, devices),
        ]

    def _camera(
        self, settings: CameraSettings, status: EngineStatus | None, silent_timeout_s: float
    ) -> diagnostics.Diagnostic:
        camera = self._cameras.get(settings.name)
        if camera is None:
            topic = self._node.resolve_topic_name(settings.topic)
            return diagnostics.unconfigured_camera(settings.name, topic, self._lifecycle())
        return diagnostics.camera(camera.report(), status, silent_timeout_s)
