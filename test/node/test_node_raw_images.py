"""Images as they come off the wire: read as far as they are needed, refused where they are no images, missed where the
middleware lost them."""

from __future__ import annotations

import struct
import threading

import numpy as np
import pytest
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image

from support.ros_client import BEST_EFFORT, CAMERA_TOPIC, SECOND, START_NS, code_name, image, wait_until
from vstream_ros.images import cdr
from vstream_ros.msg import CacheStatus
from vstream_ros.node import camera_subscription
from vstream_ros.node.camera_subscription import SubscriptionEventCallbacks


def camera(node):
    return node.node.cameras["front"]


def wait_received(node, images: int) -> None:
    wait_until(lambda: camera(node).received >= images, f"{images} images arrive")


def test_only_what_is_kept_is_deserialized(start, planner, monkeypatch):
    read = []

    def counted(message, msg_type):
        read.append(msg_type)
        return cdr.read_image(message, msg_type)

    monkeypatch.setattr(camera_subscription, "read_image", counted)
    node = start(sample_rate_hz=2.0)
    planner.publish(*(image(i, stamp_ns=START_NS + i * SECOND // 10) for i in range(31)))
    wait_received(node, 31)
    node.wait_kept(7)
    assert read == ["sensor_msgs/msg/Image"] * 7


@pytest.mark.parametrize("reliable", [True, False])
@pytest.mark.parametrize("compressed", [True, False])
def test_both_types_by_both_kinds_of_publisher(start, planner, reliable, compressed):
    node = start(
        **{"front.image_transport": "compressed" if compressed else "raw"},
        qos_reliability="reliable" if reliable else "best_effort",
    )
    topic, message = CAMERA_TOPIC, image(0)
    if compressed:
        import cv2

        topic, message = f"{CAMERA_TOPIC}/compressed", CompressedImage(format="jpeg", header=message.header)
        message.data.frombytes(cv2.imencode(".jpg", np.full((84, 112, 3), 90, np.uint8))[1].tobytes())
    publisher = planner.publisher(topic, type(message), *([] if reliable else [BEST_EFFORT]))
    wait_until(publisher.get_subscription_count, "a subscription")

    def arrives():  # best effort may lose some
        publisher.publish(message)
        return node.memory.frames_kept == 1

    wait_until(arrives, "a frame is kept")


# ---- what is no image ----


def malformed() -> dict[str, bytes]:
    good = serialize_message(image(0))
    at = good.index(b"rgb8")
    return {
        "no stamp": good[:8],
        "the encapsulation of another format": b"\x00\x07" + good[2:],
        "cut within the pixels": good[: len(good) // 2],
        "cut within the encoding": good[: at + 2],
        "a string that is longer than the message": good[: at - 4] + struct.pack("<I", 2**32 - 1) + good[at:],
        "a string that is not UTF-8": good[:at] + b"\xff\xfe\xff\xff" + good[at + 4 :],
        "bytes behind the end": good + bytes(100),
    }


def test_messages_that_are_no_images_are_counted_and_the_node_goes_on(start, planner):
    node = start()
    messages = malformed()
    publisher = planner.publisher()
    wait_until(publisher.get_subscription_count, "a subscription")
    for count, message in enumerate(messages.values(), start=1):
        publisher.publish(message)
        wait_received(node, count)
    planner.publish(image(20), image(21))
    node.wait_kept(2)
    assert node.memory.frames_rejected == len(messages)
    assert sum(camera(node).report().rejections.values()) == len(messages)
    assert code_name(planner.ask()) in ("NONE", "NOT_READY")


def test_a_big_endian_publisher_is_understood(start, planner):
    from vstream_ros.replay.bags import IMAGE, TYPES

    node = start()
    sent = [image(i) for i in range(2)]
    publisher = planner.publisher()
    wait_until(publisher.get_subscription_count, "a subscription")
    for message in sent:
        plain = TYPES.deserialize_cdr(serialize_message(message), IMAGE)
        publisher.publish(bytes(TYPES.serialize_cdr(plain, IMAGE, little_endian=False)))
    node.wait_kept(2)
    (clip,) = node.node.engine.clips()
    assert np.array_equal(clip.tubelets[0].frames[1], np.frombuffer(sent[1].data, np.uint8).reshape(84, 112, 3))


# ---- lost images ----


class Blocked:
    """Holds the node's executor inside the callback of one image."""

    def __init__(self, node, monkeypatch):
        self.inside, self._go_on = threading.Event(), threading.Event()
        original = camera_subscription.read_stamp_ns

        def blocking(message):
            self.inside.set()
            assert self._go_on.wait(60.0)
            return original(message)

        monkeypatch.setattr(camera_subscription, "read_stamp_ns", blocking)
        self._undo = lambda: monkeypatch.setattr(camera_subscription, "read_stamp_ns", original)

    def release(self):
        self._undo()
        self._go_on.set()


def test_images_that_a_busy_node_could_not_take_are_counted(start, planner, monkeypatch):
    statuses = planner.hear(CacheStatus, "/vstream/cache_status")
    node = start()
    planner.publish(image(0))
    node.wait_kept(1)
    blocked = Blocked(node, monkeypatch)
    planner.publish(image(1))
    assert blocked.inside.wait(60.0)
    planner.publish(*(image(2 + i) for i in range(40)))  # its queue holds 10
    planner.publisher().wait_for_all_acked()
    blocked.release()
    # The queue keeps the newest: the last one comes for sure.
    wait_until(lambda: node.memory.newest_stamp_ns == START_NS + 41 * SECOND // 2, "the last image is kept")
    assert camera(node).received == 12
    assert camera(node).report().lost == 30
    wait_until(lambda: statuses and statuses[-1].cameras[0].frames_lost == 30, "the status says so", 30.0)


def test_nothing_is_lost_where_everything_arrives(start, planner):
    node = start()
    planner.publish(*map(image, range(30)))
    wait_received(node, 30)
    assert camera(node).report().lost == 0


def test_what_was_published_while_nobody_listened_is_no_loss(start, planner):
    from lifecycle_msgs.msg import Transition

    node = start()
    planner.publish(image(0))
    wait_received(node, 1)
    planner.transition(Transition.TRANSITION_DEACTIVATE)
    publisher = planner.publisher()
    wait_until(lambda: publisher.get_subscription_count() == 0, "the subscription is gone")
    for i in range(5):
        publisher.publish(image(1 + i))
    planner.transition(Transition.TRANSITION_ACTIVATE)
    planner.publish(image(10), image(11))
    wait_received(node, 3)
    assert camera(node).report().lost == 0


def test_each_publisher_has_a_sequence_of_its_own(start, planner):
    node = start(cameras=["front"])
    first = planner.publisher()
    second = planner.node.create_publisher(Image, CAMERA_TOPIC, 100)
    wait_until(lambda: first.get_subscription_count() and second.get_subscription_count(), "both are heard")
    for i in range(5):
        first.publish(image(3 * i))
        wait_received(node, 2 * i + 1)
        second.publish(image(3 * i + 1))
        wait_received(node, 2 * i + 2)
    third = planner.node.create_publisher(Image, CAMERA_TOPIC, 100)
    wait_until(third.get_subscription_count, "the third is heard")
    third.publish(image(40))
    wait_received(node, 11)
    assert camera(node).report().lost == 0


def test_a_message_lost_event_counts_where_no_image_comes_through(start, planner):
    node = start()
    lost = threading.Event()
    subscription = camera(node)
    event = type("Event", (), {"total_count": 5, "total_count_change": 5})()

    def report():
        subscription.on_message_lost(event)
        lost.set()

    node.executor.create_task(report)
    assert lost.wait(60.0)
    assert subscription.report().lost == 5
    assert subscription.report().lost_s_ago is not None


def test_a_middleware_without_message_lost_events_is_served(start, planner, monkeypatch):
    def unsupported(*, message_lost, **others):
        if message_lost is not None:
            raise camera_subscription.UnsupportedEventTypeError("no such event")
        return SubscriptionEventCallbacks(**others)

    monkeypatch.setattr(camera_subscription, "SubscriptionEventCallbacks", unsupported)
    node = start()
    planner.publish(image(0))
    node.wait_kept(1)


def test_a_rclpy_without_message_info_is_served(start, planner, monkeypatch):
    """Humble's calls back with the message alone: losses are then told by the stamps."""
    monkeypatch.setattr(camera_subscription, "CALLBACK_TAKES_INFO", False)
    node = start(sample_rate_hz=0.0)
    stamps = [i for i in range(40) if i not in (30, 31)]
    planner.publish(*(image(i, stamp_ns=START_NS + i * SECOND // 10) for i in stamps))
    wait_received(node, len(stamps))
    wait_until(lambda: camera(node).report().lost == 2, "two are missed")
