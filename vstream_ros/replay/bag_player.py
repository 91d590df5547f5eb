"""Executable ``bag_player``: publish a bag's image topics, for machines without rosbag2.

Messages go out as the bytes that the bag holds, without being decoded or encoded again.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import rclpy
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rich.console import Console
from rich.progress import Progress
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image

from vstream_ros.errors import ConfigError, InvalidRequestError, VStreamError
from vstream_ros.images.cdr import restamped
from vstream_ros.memory.clip import NANOSECONDS
from vstream_ros.replay.bags import COMPRESSED_IMAGE, IMAGE, BagSource
from vstream_ros.replay.flow_control import FlowControl
from vstream_ros.replay.playback import Pacer, Prefetcher, ScheduledFrame
from vstream_ros.replay.played_node import PlayedNode
from vstream_ros.replay.sources import is_bag, open_source
from vstream_ros.replay.terminal import frame_progress
from vstream_ros.ros_arguments import split_arguments

MESSAGE_CLASSES = {IMAGE: Image, COMPRESSED_IMAGE: CompressedImage}
CLOCK_PERIOD_S = 0.005
QUEUE_DEPTH = 30
"""Messages kept for a reliable subscriber that is behind: a second of video."""
FLUSH_TIMEOUT_S = 5.0
SETTLE_S = 0.2
"""From the publisher's seeing a subscription until that subscription has surely seen the publisher."""


@dataclass(frozen=True)
class PlayerOptions:
    """How a bag is played. Raises ``ConfigError`` naming the option and the value."""

    rate: float = 1.0
    """Bag seconds per second."""
    loop: bool = False
    clock: bool = False
    reliable: bool = True
    wait_subscribers_s: float = 5.0
    """How long to wait at most for a subscription on every topic; 0: not at all."""
    restamp: bool = False
    node: str = "/vstream"
    """The node that is played to: nothing is lost on the way to it, however fast it is played."""
    wait_ready_s: float = 0.0
    """How long to wait at most until that node's model is loaded; 0: not at all."""

    def __post_init__(self) -> None:
        if not 0.0 < self.rate <= 1000.0:
            raise ConfigError(f"--rate must be in (0, 1000], got {self.rate}")
        if not 0.0 <= self.wait_subscribers_s < float("inf"):
            raise ConfigError(f"--wait-subscribers must be >= 0 seconds, got {self.wait_subscribers_s}")
        if not 0.0 <= self.wait_ready_s < float("inf"):
            raise ConfigError(f"--wait-ready must be >= 0 seconds, got {self.wait_ready_s}")


class BagPlayer:
    """Plays one bag on a node. ``play`` runs in the caller's thread until the end or until ``stop`` is set."""

    def __init__(self, node: Node, source: BagSource, options: PlayerOptions, stop: threading.Event) -> None:
        self._node = node
        self._source = source
        self.options = options
        self._stop = stop
        self._pacer = Pacer(options.rate, stop)
        reliability = QoSReliabilityPolicy.RELIABLE if options.reliable else QoSReliabilityPolicy.BEST_EFFORT
        qos = QoSProfile(depth=QUEUE_DEPTH, reliability=reliability)
        self._publishers: dict[str, Publisher] = {
            topic: node.create_publisher(MESSAGE_CLASSES[source.topic_types[topic]], topic, qos)
            for topic in source.topics
        }
        self.topics = [publisher.topic_name for publisher in self._publishers.values()]
        """The names the topics are published under, after remapping."""
        self._flow = FlowControl(stop)
        self._played_node = PlayedNode(node, options.node, self._flow, stop, progress=options.reliable)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(node)
        self._executor_thread = threading.Thread(target=self._spin, name="player-executor", daemon=True)
        self._executor_thread.start()
        self._clock = _ClockPublisher(node, self._pacer) if options.clock else None
        self.published = 0
        self.skipped = 0
        self.lost = 0
        """Messages that the node did not take within a long time."""
        self.worst_delay_s = 0.0
        """How late the latest message went out."""

    def missing_subscribers(self) -> list[str]:
        """The topics without a subscription."""
        return [p.topic_name for p in self._publishers.values() if p.get_subscription_count() == 0]

    def wait_for_subscribers(self) -> list[str]:
        """Wait until each topic has a subscription, and return the topics that got none in time."""
        deadline = time.monotonic() + self.options.wait_subscribers_s
        while (missing := self.missing_subscribers()) and time.monotonic() < deadline:
            if self._stop.wait(0.02):
                return missing
        if len(missing) < len(self._publishers) and self.options.wait_subscribers_s > 0.0:
            self._stop.wait(SETTLE_S)
        return missing

    def wait_for_model(self) -> str:
        """Wait until the node's model is loaded. Returns what is wrong, empty where nothing is."""
        return self._played_node.wait_for_model(self.options.wait_ready_s)

    def close(self) -> None:
        """End the executor's thread."""
        self._executor.shutdown()
        self._executor_thread.join()

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            return

    def play(self, progress: Progress | None = None) -> None:
        """Publish every frame when it is due. Raises ``InvalidRequestError`` when the bag breaks off."""
        task = None
        if progress is not None:
            total = None if self.options.loop else self._source.frame_count or None
            task = progress.add_task(", ".join(self.topics), total=total)
        frames = Prefetcher(self._source, loop=self.options.loop)
        if self.options.reliable:  # a camera that offers best effort does not wait for anybody either
            self._played_node.wait_for_progress()
        try:
            for item in frames:
                if self.published == 0:
                    self._pacer.start()
                if not self._pacer.wait_until(item.due_ns):
                    break
                self._publish(item)
                if progress is not None and task is not None:
                    progress.update(task, completed=self.published)
            self._flush()
        finally:
            frames.close()
            self.skipped = frames.skipped
            self.lost = self._flow.lost
            if self._clock is not None:
                self._clock.close()

    def _publish(self, item: ScheduledFrame) -> None:
        frame = item.frame
        publisher = self._publishers[frame.topic]
        self._flow.send(publisher.topic_name)
        if self._clock is not None:
            self._clock.reach(item)
        data = frame.cdr
        if self.options.restamp:
            data = restamped(data, self._node.get_clock().now().nanoseconds)
        publisher.publish(data)
        self.published += 1
        delay_ns = (self._pacer.elapsed_ns() - item.due_ns) / self.options.rate
        self.worst_delay_s = max(self.worst_delay_s, delay_ns / NANOSECONDS)

    def _flush(self) -> None:
        """Let reliable subscribers fetch what they have not got yet, before the publishers go.

        Fast DDS asks for acknowledgements every three seconds, so that this takes as long even when nothing is missing.
        """
        self._flow.drain()
        deadline = time.monotonic() + FLUSH_TIMEOUT_S
        for publisher in self._publishers.values():
            while time.monotonic() < deadline and not self._stop.is_set():
                if publisher.wait_for_all_acked(Duration(seconds=0.05)):
                    break


class _ClockPublisher:
    """Publishes the bag's time on /clock from a thread of its own, and never lets it go back within a pass."""

    def __init__(self, node: Node, pacer: Pacer) -> None:
        # Reliable matches subscribers of either kind.
        self._publisher = node.create_publisher(Clock, "/clock", QoSProfile(depth=10))
        self._pacer = pacer
        self._lock = threading.Lock()
        self._pass_index = -1
        self._offset_ns = 0
        self._newest_ns = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="clock", daemon=True)
        self._thread.start()

    def reach(self, item: ScheduledFrame) -> None:
        """Publish a time that is not before the frame's: a node must not see an image from its future."""
        with self._lock:
            if item.pass_index != self._pass_index:
                self._pass_index = item.pass_index
                self._offset_ns = item.frame.receive_ns - item.due_ns
                self._newest_ns = 0
            self._publish(item.frame.receive_ns)

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(CLOCK_PERIOD_S):
            with self._lock:
                if self._pass_index >= 0:
                    self._publish(self._offset_ns + self._pacer.elapsed_ns())

    def _publish(self, now_ns: int) -> None:
        self._newest_ns = max(self._newest_ns, now_ns)
        message = Clock()
        message.clock.sec, message.clock.nanosec = divmod(self._newest_ns, NANOSECONDS)
        self._publisher.publish(message)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments that are not ROS's own (``--ros-args ...``)."""
    parser = argparse.ArgumentParser(
        prog="bag_player", description="Publish the image topics of a ROS 2 bag, as bag time says.",
        epilog="ROS arguments follow --ros-args, for example: --ros-args -r /camera/image_raw:=/front/image_raw",
    )
    parser.add_argument("bag", type=Path, help="rosbag2 folder, .mcap or .db3 file")
    parser.add_argument("--rate", type=float, default=PlayerOptions.rate, help="bag seconds per second (default 1)")
    parser.add_argument("--loop", action="store_true", help="start over at the end; time then jumps back")
    parser.add_argument("--clock", action="store_true", help="publish bag time on /clock at 200 Hz")
    parser.add_argument("--topics", nargs="+", metavar="TOPIC", default=[], help="image topics to play (default all)")
    parser.add_argument("--remap", nargs="+", metavar="FROM:=TO", default=[], help="publish under other names")
    parser.add_argument("--reliability", choices=("reliable", "best_effort"), default="reliable")
    parser.add_argument(
        "--wait-subscribers", type=float, metavar="SECONDS", default=PlayerOptions.wait_subscribers_s,
        help="wait so long at most for a subscription on every topic (default 5, 0 does not wait)",
    )
    parser.add_argument(
        "--node", default=PlayerOptions.node,
        help="node that is played to (default /vstream): reliable play never runs ahead of it and so loses nothing",
    )
    parser.add_argument(
        "--wait-ready", type=float, metavar="SECONDS", default=PlayerOptions.wait_ready_s,
        help="wait so long at most until its model is loaded (default 0 does not wait)",
    )
    parser.add_argument("--restamp", action="store_true", help="header stamps of now; by default the bag's are kept")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the executable. ``argv`` as in ``sys.argv``. Returns 0, also after SIGINT; 1 on failure; 2 on usage."""
    argv = list(sys.argv if argv is None else argv)
    own, ros = split_arguments(argv[1:])
    args = build_parser().parse_args(own)
    for rule in args.remap:
        ros += ["--ros-args", "-r", rule]
    out, notes = Console(soft_wrap=True, highlight=False), Console(stderr=True, soft_wrap=True, highlight=False)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        _run(args, [argv[0], *ros], stop, out, notes)
    except VStreamError as error:
        notes.print(f"bag_player: {error}", style="red", markup=False)
        return 1
    return 0


def _run(args: argparse.Namespace, ros_argv: list[str], stop: threading.Event, out: Console, notes: Console) -> None:
    options = PlayerOptions(
        rate=args.rate, loop=args.loop, clock=args.clock, reliable=args.reliability == "reliable",
        wait_subscribers_s=args.wait_subscribers, restamp=args.restamp, wait_ready_s=args.wait_ready,
        node=f"/{args.node.strip('/')}",
    )
    if args.bag.exists() and args.bag.suffix != ".bag" and not is_bag(args.bag):
        raise InvalidRequestError(f"{args.bag} is no bag; make one first: vstream record {args.bag} BAG")
    with open_source(args.bag, args.topics) as source:
        assert isinstance(source, BagSource)
        try:
            # Our own handlers stay, so that the last messages are flushed before the context goes.
            rclpy.init(args=ros_argv, signal_handler_options=SignalHandlerOptions.NO)
            node = Node("bag_player")
            player = BagPlayer(node, source, options, stop)
        except (RuntimeError, ValueError) as error:  # what rcl says of wrong ROS arguments and of topic names
            rclpy.try_shutdown()
            raise InvalidRequestError(str(error).split(", at ")[0]) from error
        try:
            _play(player, stop, notes)
        finally:
            player.close()
            node.destroy_node()
            rclpy.shutdown()
    words = "interrupted, published" if stop.is_set() else "published"
    late = f", at most {player.worst_delay_s * 1e3:.0f} ms late" if player.published else ""
    damaged = f", {player.skipped} damaged messages left out ({source.last_fault})" if player.skipped else ""
    lost = f", {player.lost} of which the node did not take" if player.lost else ""
    out.print(f"{words} {player.published} messages on {', '.join(player.topics)}{late}{damaged}{lost}", markup=False)


def _play(player: BagPlayer, stop: threading.Event, notes: Console) -> None:
    def note(text: str) -> None:
        notes.print(text, style="yellow", markup=False)

    if missing := player.missing_subscribers():
        note(f"waiting for a subscription on {', '.join(missing)}")
    missing = player.wait_for_subscribers()
    if missing and not stop.is_set():
        note(f"no subscription on {', '.join(missing)}: playing anyway")
    if player.options.wait_ready_s:
        note(f"waiting for the model of {player.options.node}")
        if wrong := player.wait_for_model():
            note(f"{wrong}: playing anyway")
    with frame_progress(notes) as progress:
        player.play(progress)


if __name__ == "__main__":
    sys.exit(main())
