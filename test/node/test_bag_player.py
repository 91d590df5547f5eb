"""bag_player as its own process, heard by a real rclpy subscriber."""

from __future__ import annotations

import itertools
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2")

from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.qos import QoSProfile, QoSReliabilityPolicy  # noqa: E402
from rosbags.rosbag2 import StoragePlugin, Writer  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from sensor_msgs.msg import CompressedImage, Image  # noqa: E402

from support.ros_client import DOMAIN  # noqa: E402
from vstream_ros.memory.clip import NANOSECONDS  # noqa: E402
from vstream_ros.replay.bags import COMPRESSED_IMAGE, IMAGE, TYPES  # noqa: E402

TOPIC = "/camera/image_raw"
JPEG_TOPIC = "/rear/image_raw/compressed"
START_NS = 1_000 * NANOSECONDS
PERIOD_NS = 20_000_000
RELIABLE = QoSProfile(depth=100, reliability=QoSReliabilityPolicy.RELIABLE)
BEST_EFFORT = QoSProfile(depth=100, reliability=QoSReliabilityPolicy.BEST_EFFORT)

_Header = TYPES.types["std_msgs/msg/Header"]
_Time = TYPES.types["builtin_interfaces/msg/Time"]


def _header(stamp_ns: int):
    return _Header(stamp=_Time(sec=stamp_ns // NANOSECONDS, nanosec=stamp_ns % NANOSECONDS), frame_id="front")


def _image(index: int, stamp_ns: int) -> bytes:
    pixels = np.full(6 * 8 * 3, index, np.uint8)
    message = TYPES.types[IMAGE](
        header=_header(stamp_ns), height=6, width=8, encoding="rgb8", is_bigendian=0, step=24, data=pixels
    )
    return bytes(TYPES.serialize_cdr(message, IMAGE))


def _jpeg(index: int, stamp_ns: int) -> bytes:
    message = TYPES.types[COMPRESSED_IMAGE](
        header=_header(stamp_ns), format="jpeg", data=np.full(5, index, np.uint8)
    )
    return bytes(TYPES.serialize_cdr(message, COMPRESSED_IMAGE))


def _write_bag(folder: Path, frames: int = 20, *, jpegs: bool = False, damaged: int = -1) -> Path:
    """A bag of ``frames`` small images at 50 Hz; header stamps are 1 ms before the receive times."""
    with Writer(folder, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        images = writer.add_connection(TOPIC, IMAGE, typestore=TYPES)
        pictures = writer.add_connection(JPEG_TOPIC, COMPRESSED_IMAGE, typestore=TYPES) if jpegs else None
        for index in range(frames):
            receive_ns = START_NS + index * PERIOD_NS
            cdr = _image(index, receive_ns - 1_000_000)
            writer.write(images, receive_ns, cdr[:40] if index == damaged else cdr)
            if pictures is not None:
                writer.write(pictures, receive_ns + 1, _jpeg(index, receive_ns - 1_000_000))
    return folder


class Listener:
    """A node that is spun in a thread and keeps what it hears."""

    def __init__(self) -> None:
        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self._node = Node("listener", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()

    def hear(self, msgtype: type, topic: str, qos: QoSProfile = RELIABLE) -> list:
        heard: list = []
        self._node.create_subscription(msgtype, topic, heard.append, qos)
        self._executor.wake()
        return heard

    def wait_for_player(self) -> None:
        """Until its publisher can be seen."""
        _wait_for(lambda: self._node.count_publishers(TOPIC) > 0, 60.0)

    def close(self) -> None:
        self._executor.shutdown()
        self._thread.join(5.0)
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)


@pytest.fixture(autouse=True)
def domain(monkeypatch):
    """The tests' own ROS domain, on this machine only."""
    monkeypatch.setenv("ROS_DOMAIN_ID", str(DOMAIN))
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")


@pytest.fixture
def listener(domain):
    node = Listener()
    yield node
    node.close()


def _finish(process: subprocess.Popen, code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=90.0)
    assert process.returncode == code, err
    return out, err


def _wait_for(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def _stamps(messages: list) -> list[int]:
    return [m.header.stamp.sec * NANOSECONDS + m.header.stamp.nanosec for m in messages]


def _recorded_stamps(frames: int = 20) -> list[int]:
    return [START_NS + i * PERIOD_NS - 1_000_000 for i in range(frames)]


def test_every_frame_arrives_once_in_order_with_its_stamp_and_pixels(tmp_path, listener, play):
    images = listener.hear(Image, TOPIC)
    out, _ = _finish(play(_write_bag(tmp_path / "bag")))
    _wait_for(lambda: len(images) >= 20)
    assert _stamps(images) == _recorded_stamps()
    assert [set(m.data) for m in images] == [{i} for i in range(20)]
    assert (images[3].width, images[3].height, images[3].step, images[3].encoding) == (8, 6, 24, "rgb8")
    assert images[3].header.frame_id == "front"
    assert out.startswith(f"published 20 messages on {TOPIC}")


def test_both_kinds_of_image_are_played_and_topics_selects(tmp_path, listener, play):
    images, jpegs = listener.hear(Image, TOPIC), listener.hear(CompressedImage, JPEG_TOPIC)
    bag = _write_bag(tmp_path / "bag", jpegs=True)
    _finish(play(bag))
    _wait_for(lambda: len(images) >= 20 and len(jpegs) >= 20)
    assert [bytes(m.data) for m in jpegs] == [bytes([i] * 5) for i in range(20)]
    assert jpegs[0].format == "jpeg"
    out, _ = _finish(play(bag, "--topics", JPEG_TOPIC))
    _wait_for(lambda: len(jpegs) >= 40)
    assert (len(images), len(jpegs)) == (20, 40)
    assert out.startswith(f"published 20 messages on {JPEG_TOPIC}")


@pytest.mark.parametrize("arguments", [["--remap", f"{TOPIC}:=/front"], ["--ros-args", "-r", f"{TOPIC}:=/front"]])
def test_topics_can_be_remapped(tmp_path, listener, play, arguments):
    images = listener.hear(Image, "/front")
    _finish(play(_write_bag(tmp_path / "bag", 5), *arguments))
    _wait_for(lambda: len(images) >= 5)
    assert _stamps(images) == _recorded_stamps(5)


def test_loop_starts_over_with_the_same_stamps(tmp_path, listener, play):
    images = listener.hear(Image, TOPIC)
    process = play(_write_bag(tmp_path / "bag", 5), "--loop", "--rate", "2")
    _wait_for(lambda: len(images) >= 15)
    process.send_signal(signal.SIGINT)
    out, _ = _finish(process)
    assert _stamps(images)[:15] == _recorded_stamps(5) * 3
    assert int(re.search(r"interrupted, published (\d+) messages", out)[1]) >= 15


def test_restamp_gives_stamps_of_now_and_keeps_the_rest(tmp_path, listener, play):
    images = listener.hear(Image, TOPIC)
    before = time.time_ns()
    _finish(play(_write_bag(tmp_path / "bag", 5), "--restamp"))
    _wait_for(lambda: len(images) >= 5)
    stamps = _stamps(images)
    assert before < stamps[0]
    assert stamps[-1] < time.time_ns()
    assert stamps == sorted(set(stamps))
    assert [set(m.data) for m in images] == [{i} for i in range(5)]


def test_clock_follows_bag_time(tmp_path, listener, play):
    clocks = listener.hear(Clock, "/clock")
    images = listener.hear(Image, TOPIC)
    _finish(play(_write_bag(tmp_path / "bag"), "--clock"))
    _wait_for(lambda: len(images) >= 20 and clocks)
    times = [c.clock.sec * NANOSECONDS + c.clock.nanosec for c in clocks]
    assert times == sorted(times)
    assert START_NS <= times[0] < times[-1]
    assert times[-1] >= START_NS + 19 * PERIOD_NS
    assert len(times) > 25  # more than one for each image


def test_clock_jumps_back_where_the_loop_does(tmp_path, listener, play):
    clocks = listener.hear(Clock, "/clock")
    images = listener.hear(Image, TOPIC)
    process = play(_write_bag(tmp_path / "bag", 10), "--clock", "--loop")
    _wait_for(lambda: len(images) >= 25)
    process.send_signal(signal.SIGINT)
    _finish(process)
    times = [c.clock.sec * NANOSECONDS + c.clock.nanosec for c in clocks]
    steps_back = [b for a, b in itertools.pairwise(times) if b < a]
    assert len(steps_back) >= 2
    assert set(steps_back) == {START_NS}


def test_a_best_effort_player_offers_best_effort(tmp_path, listener, play):
    reliable, best_effort = listener.hear(Image, TOPIC, RELIABLE), listener.hear(Image, TOPIC, BEST_EFFORT)
    _finish(play(_write_bag(tmp_path / "bag"), "--reliability", "best_effort"))
    _wait_for(lambda: len(best_effort) > 0)
    assert not reliable


def test_it_waits_for_the_subscription_before_the_first_frame(tmp_path, listener, play):
    process = play(_write_bag(tmp_path / "bag", 5))
    assert process.stderr.readline() == f"waiting for a subscription on {TOPIC}\n"
    listener.wait_for_player()
    images = listener.hear(Image, TOPIC)
    _finish(process)
    _wait_for(lambda: len(images) >= 5)
    assert _stamps(images) == _recorded_stamps(5)


def test_without_a_subscription_it_says_so_and_plays(tmp_path, play):
    out, err = _finish(play(_write_bag(tmp_path / "bag", 3), "--wait-subscribers", "0.1"))
    assert f"no subscription on {TOPIC}" in err
    assert out.startswith("published 3 messages")


def test_sigint_while_waiting_ends_it_cleanly(tmp_path, listener, play):
    process = play(_write_bag(tmp_path / "bag", 3))
    listener.wait_for_player()
    process.send_signal(signal.SIGINT)
    out, err = _finish(process)
    assert out.startswith("interrupted, published 0 messages")
    assert "Traceback" not in err


def test_a_damaged_message_is_left_out_and_counted(tmp_path, listener, play):
    images = listener.hear(Image, TOPIC)
    out, _ = _finish(play(_write_bag(tmp_path / "bag", 6, damaged=2)))
    _wait_for(lambda: len(images) >= 5)
    assert [m.data[0] for m in images] == [0, 1, 3, 4, 5]
    assert out.startswith("published 5 messages")
    assert "1 damaged messages left out" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing"], "missing does not exist"),
        (["bag", "--topics", "/other"], f"has no image topic /other; it has {TOPIC}"),
        (["bag", "--rate", "0"], "--rate must be in (0, 1000], got 0.0"),
        (["bag", "--remap", "nonsense"], "nonsense"),
        (["bag", "--ros-args", "-r", "nonsense"], "nonsense"),
    ],
)
def test_a_failure_is_one_line_and_exit_1(tmp_path, play, monkeypatch, arguments, words):
    _write_bag(tmp_path / "bag", 2)
    monkeypatch.chdir(tmp_path)
    out, err = _finish(play(*arguments), code=1)
    # rcl writes a line of its own about ROS arguments before us.
    lines = [line for line in err.splitlines() if "[rcl]" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("bag_player: ")
    assert words in lines[0]
    assert not out


def test_wrong_usage_is_exit_2(play):
    _, err = _finish(play("bag", "--no-such-option"), code=2)
    assert "--no-such-option" in err
