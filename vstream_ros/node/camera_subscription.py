"""One camera: its subscription, what became of its images, and whether its topic is well."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSCompatibility, QoSProfile, ReliabilityPolicy, qos_check_compatible
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image

try:
    from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks, UnsupportedEventTypeError

from vstream_ros.engine import DelayedBatchInferenceEngine
from vstream_ros.errors import FrameError
from vstream_ros.images import SensorDepth, decode_compressed, decode_image
from vstream_ros.images.cdr import COMPRESSED_IMAGE, IMAGE, read_image, read_stamp_ns
from vstream_ros.memory import Verdict
from vstream_ros.node.callbacks import never_raising
from vstream_ros.node.diagnostics import CameraReport
from vstream_ros.node.losses import LossCounter
from vstream_ros.node.settings import CameraSettings
from vstream_ros.text import clipped

QUEUE_DEPTH = 10
"""Images that wait while the executor is busy: a third of a second at 30 Hz, 60 MB of 1080p."""
WARN_PERIOD_S = 10.0
MAX_REASONS = 12
"""Different reasons of rejection that are counted apart."""
CALLBACK_TAKES_INFO = hasattr(Subscription, "CallbackType")
"""Whether rclpy hands a callback the message's info: from Iron on."""


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
        self._qos = _qos_profile(ReliabilityPolicy.RELIABLE)
        self._publishers: tuple[Any, ...] = ()
        self._started_at = 0.0
        self._last_image_at: float | None = None
        self._last_warning_at = float("-inf")
        self._last_rejection: tuple[float, str] | None = None
        self._depth = SensorDepth(settings.name)
        self._rejecting_since: float | None = None
        """When the first of the images came that were all rejected, None where the last one was not."""
        self._rejected_in_a_row = 0
        self._losses = LossCounter()
        self.topic = node.resolve_topic_name(settings.topic)
        self.received = 0
        self.rejections: Counter[str] = Counter()

    @property
    def lost(self) -> int:
        """Images that were published and never came."""
        return self._losses.total

    @property
    def _msg_type(self) -> type:
        return CompressedImage if self._settings.compressed else Image

    @property
    def _type_name(self) -> str:
        return COMPRESSED_IMAGE if self._settings.compressed else IMAGE

    # -- subscription ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Subscribe; the reliability follows the publishers that are there, or that come."""
        self._started_at = time.monotonic()
        self._last_image_at = self._rejecting_since = None
        self._rejected_in_a_row = 0
        self._subscribe(self._wanted_reliability())

    def stop(self) -> None:
        """Unsubscribe. Safe within a callback because the executor has one thread."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None

    def check_graph(self) -> None:
        """Look at the topic's publishers, and subscribe anew where they need another reliability."""
        if self._subscription is None:
            return
        wanted = self._wanted_reliability()
        if wanted is not self._qos.reliability:
            self._node.get_logger().info(f"camera {self._settings.name}: {self.topic} is now {wanted.name.lower()}")
            self.stop()
            self._subscribe(wanted)

    def _wanted_reliability(self) -> ReliabilityPolicy:
        self._publishers = tuple(self._node.get_publishers_info_by_topic(self.topic))
        choice = self._reliability()
        if choice == "best_effort":
            return ReliabilityPolicy.BEST_EFFORT
        offers = [publisher.qos_profile.reliability for publisher in self._own_publishers()]
        if choice == "reliable" or all(offer is ReliabilityPolicy.RELIABLE for offer in offers):
            # Also where there is no publisher yet: a player that waits for its subscriber finds the right one at once.
            return self._qos.reliability if choice == "auto" and not offers else ReliabilityPolicy.RELIABLE
        return ReliabilityPolicy.BEST_EFFORT

    def _own_publishers(self) -> list[Any]:
        """Those of the type that is subscribed, when the graph was last looked at."""
        return [publisher for publisher in self._publishers if publisher.topic_type == self._type_name]

    def _subscribe(self, reliability: ReliabilityPolicy) -> None:
        self._qos = _qos_profile(reliability)
        self._losses.restart()
        try:
            on_lost = never_raising(self._node, "the message lost callback", self.on_message_lost)
            self._subscription = self._create_subscription(on_lost)
        except UnsupportedEventTypeError:  # by this middleware; the gaps between the images that come still tell
            self._subscription = self._create_subscription(None)

    def _create_subscription(self, message_lost: Callable[..., Any] | None) -> Subscription:
        what = f"the image callback of camera {self._settings.name}"
        on_image: Callable[..., None] = self.on_image if CALLBACK_TAKES_INFO else partial(self.on_image, info={})
        return self._node.create_subscription(
            self._msg_type,
            self.topic,
            never_raising(self._node, what, on_image),
            self._qos,
            # No event for incompatible publishers: they are seen in the graph, where they also vanish.
            event_callbacks=SubscriptionEventCallbacks(message_lost=message_lost, use_default_callbacks=False),
            raw=True,  # most images are skipped by their stamp: no more of them need be read
        )

    def _incompatible_qos(self) -> str:
        """Why a publisher that is there can't reach this subscription, "" where all can."""
        for publisher in self._own_publishers():
            compatibility, reason = qos_check_compatible(publisher.qos_profile, self._qos)
            if compatibility == QoSCompatibility.ERROR:
                return clipped(reason.removeprefix("ERROR: ").rstrip(";"))
        return ""

    # -- images ------------------------------------------------------------------------------------------------------

    def on_image(self, message: bytes, info: Mapping[str, Any]) -> None:
        """From the subscription into the memory. The executor's thread; nothing else may run meanwhile.

        ``message``: serialized; it is read no further than needed. ``info``: rclpy's MessageInfo, empty where it has
        none.
        """
        self.received += 1
        self._last_image_at = time.monotonic()
        name = self._settings.name
        numbered = self._count_sequence(info)
        try:
            header_ns = read_stamp_ns(message)
            if not numbered:
                self._losses.arrive_unnumbered(header_ns)
            stamp_ns = self._stamp_ns(header_ns)
        except FrameError as error:
            self._engine.reject_unstamped(name, str(error))
            self._count_rejection(str(error))
            return
        # Before anything is read or converted: most images end here.
        slot = self._engine.offer(stamp_ns, camera=name, clock=self._now_ns)
        if slot.withdrawn:
            self._count_rejection(slot.withdrawn)
        if not slot.wanted:
            self._count_outcome(slot.verdict, slot.reason)
            return
        decode = decode_compressed if self._settings.compressed else decode_image
        try:
            frame = decode(read_image(message, self._type_name), slot.frame_size, self._depth)
        except FrameError as error:
            self._engine.reject(slot, str(error))
            self._count_rejection(str(error))
            return
        status = self._engine.keep(slot, frame)
        self._count_outcome(status.verdict, status.reason)
        if status.cleared:
            self._node.get_logger().warning(f"camera {name}: the memory was cleared: {status.cleared}")

    def on_message_lost(self, event: Any) -> None:
        """The middleware lost images on their way. The executor's thread."""
        self._losses.tell(event.total_count_change)

    def _stamp_ns(self, header_ns: int) -> int:
        """The header's stamp, or the time of receipt where the driver leaves it zero."""
        stamp_ns = header_ns or self._now_ns()
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

    # -- counting ----------------------------------------------------------------------------------------------------

    def _count_sequence(self, info: Mapping[str, Any]) -> bool:
        """Look for a gap before this image; False where it has no place in a sequence of one publisher."""
        sequence = info.get("publication_sequence_number")
        publisher = info.get("publisher_gid")
        if sequence is None or (publisher is None and len(self._own_publishers()) > 1):
            return False
        self._losses.arrive(b"" if publisher is None else publisher["data"], sequence)
        return True

    def _count_outcome(self, verdict: Verdict, reason: str) -> None:
        if verdict.rejected:  # the engine has counted it
            self._count_rejection(reason)
        else:
            self._count_acceptance()

    def _count_acceptance(self) -> None:
        """An image was kept, or is one of those between two samples."""
        self._rejecting_since = None
        self._rejected_in_a_row = 0

    def _count_rejection(self, reason: str) -> None:
        now, reason = time.monotonic(), clipped(reason)
        if self._rejecting_since is None:
            self._rejecting_since = now
        self._rejected_in_a_row += 1
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
        publishers = self._own_publishers()
        foreign = {clipped(p.topic_type) for p in self._publishers if p.topic_type != self._type_name}
        return CameraReport(
            name=self._settings.name,
            topic=self.topic,
            msg_type=self._type_name,
            active=active,
            reliability=self._qos.reliability.name.lower(),
            publishers=len(publishers),
            foreign_types=tuple(sorted(foreign)),
            incompatible_qos=self._incompatible_qos(),
            received=self.received,
            silent_s=now - (self._last_image_at if self._last_image_at is not None else self._started_at),
            seen=self._last_image_at is not None,
            rejections=dict(self.rejections),
            rejected_s_ago=None if last is None else now - last[0],
            last_rejection="" if last is None else last[1],
            rejecting_s=None if self._rejecting_since is None else now - self._rejecting_since,
            rejected_in_a_row=self._rejected_in_a_row,
            lost=self.lost,
            lost_s_ago=self._losses.seconds_since,
        )


def _qos_profile(reliability: ReliabilityPolicy) -> QoSProfile:
    return QoSProfile(depth=QUEUE_DEPTH, reliability=reliability, durability=DurabilityPolicy.VOLATILE)
