"""How far the cameras' images have come, for a player that must lose none: ``~/image_progress``."""

from __future__ import annotations

from collections.abc import Mapping

from rclpy.node import Node

from vstream_ros.msg import CacheStatus, CameraStatus
from vstream_ros.node.callbacks import steady_timer
from vstream_ros.node.camera_subscription import CameraSubscription

PERIOD_S = 0.01
LOOK_PERIOD_S = 0.5
"""How often it is looked whether anybody listens."""


class ImageProgress:
    """Publishes as long as there is a subscription; costs nothing otherwise.

    The message is a ``CacheStatus`` of which only ``header`` and each camera's ``name``, ``topic`` and
    ``frames_received`` are filled.
    """

    def __init__(self, node: Node, cameras: Mapping[str, CameraSubscription]) -> None:
        """``cameras``: by name; the same object is looked into each time."""
        self._node = node
        self._cameras = cameras
        self._publisher = node.create_publisher(CacheStatus, "~/image_progress", 10)
        self._publishing = steady_timer(node, PERIOD_S, "publishing the images' progress", self._publish)
        self._publishing.cancel()
        self._looking = steady_timer(node, LOOK_PERIOD_S, "looking for a player", self._look)

    def _look(self) -> None:
        if not self._publisher.get_subscription_count():
            self._publishing.cancel()
        elif self._publishing.is_canceled():
            self._publishing.reset()

    def _publish(self) -> None:
        message = CacheStatus()
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.cameras = [
            CameraStatus(name=name, topic=camera.topic, frames_received=camera.received)
            for name, camera in self._cameras.items()
        ]
        self._publisher.publish(message)
