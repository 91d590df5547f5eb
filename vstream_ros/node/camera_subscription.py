"""One camera: its subscription, what became of its images, and whether its topic is well."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_policy_name_from_kind
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

from vstream_ros.engine import DelayedBatchInferenceEngine
from vstream_ros.errors import FrameError
from vstream_ros.images import SensorDepth, decode_compressed, decode_image
from vstream_ros.node.callbacks import guarded
from vstream_ros.node.diagnostics import CameraReport
from vstream_ros.node.messages import to_ns
from vstream_ros.node.settings import CameraSettings

QUEUE_DEPTH = 10
"""Images that wait while the executor is busy: a third of a second at 30 Hz, 60 MB of 1080p."""
WARN_PERIOD_S = 10.0
MAX_REASONS = 12
"""Different reasons of rejection that are counted apart."""


class CameraSubscription:
    """Feeds one camera's images to the engine. Everything here runs in the executor's one thread."""

    def __init__(
        self,
        node: Node,
        engine: DelayedBatchInferenceEngine,
        settings: CameraSettings,
        reliability: Callable[[], str],
    ) -> None:
        """``reliability``: the current value of the parameter qos_reliability."""
        self._node = node
        self._engine = engine
        self._settings = settings
        self._reliability = reliability
        self._subscription: Subscription | None = None
        self._qos = ReliabilityPolicy.RELIABLE
        self._incompatible = ""
        self._publishers: tuple[Any, ...] = ()
        self._started_at = 0.0
        self._last_image_at: float | None = None
        self._last_warning_at = float("-inf")
        self._last_rejection: tuple[float, str] | None = None
        self._depth = SensorDepth(settings.name)
        self.topic = node.resolve_topic_name(settings.topic)
        self.received = 0
        self.rejections: Counter[str] = Counter()

    @property
    def _msg_type(self) -> type:
        return CompressedImage if self._settings.compressed else Image

    # -- subscription ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Subscribe; the reliability follows the publishers that are there, or that come."""
        self._started_at = time.monotonic()
        self._last_image_at = None
        self._subscribe(self._wanted_qos())

    def stop(self) -> None:
        """Unsubscribe. Safe within a callback because the executor has one thread."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None

    def check_graph(self) -> None:
        """Look at the topic's publishers, and subscribe anew where they need another reliability."""
        if self._subscription is None:
            return
        wanted = self._wanted_qos()
        if wanted is not self._qos:
            self._node.get_logger().info(f"camera {self._settings.name}: {self.topic} is now {wanted.name.lower()}")
            self.stop()
            self._subscribe(wanted)

    def _wanted_qos(self) -> ReliabilityPolicy:
        self._publishers = tuple(self._node.get_publishers_info_by_topic(self.topic))
        choice = self._reliability()
        if choice == "best_effort":
            return ReliabilityPolicy.BEST_EFFORT
        offers = [p.qos_profile.reliability for p in self._publishers if p.topic_type == self._type_name]
        if choice == "reliable" or all(offer is ReliabilityPolicy.RELIABLE for offer in offers):
            # Also where there is no publisher yet: a player that waits for its subscriber finds the right one at once.
            return self._qos if choice == "auto" and not offers else ReliabilityPolicy.RELIABLE
        return ReliabilityPolicy.BEST_EFFORT

    @property
    def _type_name(self) -> str:
        return f"sensor_msgs/msg/{self._msg_type.__name__}"

    def _subscribe(self, reliability: ReliabilityPolicy) -> None:
        self._qos = reliability
        self._incompatible = ""
        self._subscription = self._node.create_subscription(
            self._msg_type,
            self.topic,
            guarded(self._node, f"the image callback of camera {self._settings.name}", self.on_image),
            QoSProfile(depth=QUEUE_DEPTH, reliability=reliability, durability=DurabilityPolicy.VOLATILE),
            event_callbacks=SubscriptionEventCallbacks(
                incompatible_qos=guarded(self._node, "the QoS event callback", self._on_incompatible_qos)
            ),
        )

    def _on_incompatible_qos(self, event: Any) -> None:
        # With "auto" this is how a best-effort camera announces itself; check_graph then subscribes anew.
        self._incompatible = qos_policy_name_from_kind(event.last_policy_kind)

    # -- images ------------------------------------------------------------------------------------------------------

    def on_image(self, message: Any) -> None:
        """From the subscription into the memory. The executor's thread; nothing else may run meanwhile."""
        self.received += 1
        self._last_image_at = time.monotonic()
        name = self._settings.name
        try:
            stamp_ns = self._stamp_ns(message)
        except FrameError as error:
            self._engine.reject_unstamped(name, str(error))
            self._count_rejection(str(error))
            return
        slot = self._engine.offer(stamp_ns, camera=name, clock=self._now_ns)  # most images end here, unconverted
        if slot.withdrawn:
            self._count_rejection(slot.withdrawn)
        if slot.verdict.rejected:
            self._count_rejection(slot.reason)
        if not slot.wanted:
            return
        decode = decode_compressed if self._settings.compressed else decode_image
        try:
            frame = decode(message, slot.frame_size, self._depth)
        except FrameError as error:
            self._engine.reject(slot, str(error))
            self._count_rejection(str(error))
            return
        status = self._engine.keep(slot, frame)
        if status.verdict.rejected:
            self._count_rejection(status.reason)
        if status.cleared:
            self._node.get_logger().warning(f"camera {name}: the memory was cleared: {status.cleared}")

    def _stamp_ns(self, message: Any) -> int:
        """The header's stamp, or the time of receipt where the driver leaves it zero."""
        stamp_ns = to_ns(message.header.stamp) or self._now_ns()
        if stamp_ns <= 0:
            raise FrameError(
                "the header stamp is before 1970; check the driver"
                if stamp_ns
                else "the header has no stamp and the ROS clock stands still; have /clock published or stamp the images"
            )
        return stamp_ns

    def _now_ns(self) -> int:
        """Of the ROS clock; 0 while it stands still."""
        return int(self._node.get_clock().now().nanoseconds)

    def _count_rejection(self, reason: str) -> None:
        now = time.monotonic()
        key = reason if reason in self.rejections or len(self.rejections) < MAX_REASONS else "for other reasons"
        self.rejections[key] += 1
        self._last_rejection = (now, reason)
        if now - self._last_warning_at >= WARN_PERIOD_S:
            self._last_warning_at = now
            total = sum(self.rejections.values())
            self._node.get_logger().warning(
                f"camera {self._settings.name}: an image was rejected ({total} so far): {reason}"
            )

    # -- report ------------------------------------------------------------------------------------------------------

    def report(self) -> CameraReport:
        """What diagnostics need to know, as plain values."""
        now = time.monotonic()
        active = self._subscription is not None
        last = self._last_rejection
        return CameraReport(
            name=self._settings.name,
            topic=self.topic,
            msg_type=self._type_name,
            active=active,
            reliability=self._qos.name.lower(),
            publishers=len(self._publishers),
            foreign_types=tuple(sorted({p.topic_type for p in self._publishers} - {self._type_name})),
            incompatible_qos=self._incompatible,
            received=self.received,
            silent_s=now - (self._last_image_at if self._last_image_at is not None else self._started_at),
            seen=self._last_image_at is not None,
            rejections=dict(self.rejections),
            rejected_s_ago=None if last is None else now - last[0],
            last_rejection="" if last is None else last[1],
        )
