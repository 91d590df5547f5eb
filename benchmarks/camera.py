"""The camera path: what a frame costs from the callback to the memory, and how many are lost on the way there.

    python -m benchmarks.camera --out build/bench_camera.json

The second part runs the installed node and a camera as processes of their own, while questions are being answered by
a small random-weight model.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rclpy
from ament_index_python.packages import get_package_prefix
from builtin_interfaces.msg import Time
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sensor_msgs.msg import Image

from vstream_ros.engine import ModelState
from vstream_ros.msg import CacheStatus
from vstream_ros.node.qa_node import QaNode
from vstream_ros.srv import AskVideo
from vstream_ros.synthetic.random_model import write_random_checkpoint

PREFIX = Path(get_package_prefix("vstream_ros"))
PROFILE = PREFIX / "share" / "vstream_ros" / "config" / "fastdds_large_images.xml"
RATE_HZ = 30.0
START_S = 1_700_000_000
SETTLE_S = 2.5
"""From the match to the first image: a node that changes its reliability subscribes anew within a second."""
WAIT_S = 120.0
NODE_PARAMETERS = {"device": "cpu", "star_memory_size": 10, "stream_window_size": 10, "max_pixels": 100_352}
"""Little enough that a CPU answers many questions during a stream."""
TOPIC = "/front/image_raw"
# Stream: (reliability of its publisher, with the shipped Fast DDS profile).
STREAMS = {"reliable": ("reliable", False), "best_effort": ("best_effort", False), "profile": ("best_effort", True)}
DISTRO = os.environ.get("ROS_DISTRO", "")
PROFILE_VARIABLE = f"FAST{'RTPS' if DISTRO in ('humble', 'jazzy') else 'DDS'}_DEFAULT_PROFILES_FILE"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure the camera path.")
    parser.add_argument("--out", type=Path, default=Path("build/bench_camera.json"))
    parser.add_argument("--frames", type=int, default=200, help="1080p frames of the first part")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each stream of the second part")
    parser.add_argument("--publish", nargs=2, metavar=("TOPIC", "RELIABILITY"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.publish:
        publish_stream(*args.publish, seconds=args.seconds)
        return 0
    # This machine and a domain of our own, whatever the surrounding shell says; the processes inherit it.
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ["ROS_DOMAIN_ID"] = os.environ.get("VSTREAM_DOMAIN_ID") or str(1 + os.getpid() % 100)
    console = Console(stderr=True, soft_wrap=True)
    with tempfile.TemporaryDirectory() as name, Progress(console=console, transient=True) as progress:
        folder = Path(name)
        checkpoint = write_random_checkpoint(folder / "model")
        callback = measure_callback(checkpoint, args.frames, progress)
        streams = measure_streams(checkpoint, folder, args.seconds, progress)
    result = {
        **callback,
        "frames_lost_percent": streams["reliable"]["lost_percent"],
        "best_effort_frames_lost_percent": streams["best_effort"]["lost_percent"],
        "best_effort_with_profile_frames_lost_percent": streams["profile"]["lost_percent"],
        "streams": streams,
        "node_parameters": NODE_PARAMETERS,
        "machine": {
            "cpus": os.cpu_count(),
            "processor": platform.machine(),
            "python": platform.python_version(),
            "ros_distro": DISTRO,
            "rmw": rclpy.get_rmw_implementation_identifier(),
        },
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    show(result, console)
    console.print(f"written to {args.out}")
    return 0


# ---- from the callback to the memory ----


def measure_callback(checkpoint: Path, frames: int, progress: Progress) -> dict[str, float]:
    """Kept 1080p bgr8 images, serialized as they arrive, through the node's own callback, one OpenCV thread; the first
    ones warm up."""
    warm_up = 10
    cv2.setNumThreads(1)
    rclpy.init()
    overrides = {"model": str(checkpoint), "device": "cpu", "autostart": False}
    node = QaNode(parameter_overrides=[Parameter(name, value=value) for name, value in overrides.items()])
    try:
        node.trigger_configure()
        assert node.engine is not None
        while node.engine.status().model_state is not ModelState.READY:
            time.sleep(0.1)
        camera = node.cameras["front"]
        # As rclpy hands it out, serialized; other pixels each time would only measure the making of them.
        rng = np.random.default_rng(0)
        picture = cv2.resize(rng.integers(0, 255, (27, 48, 3), np.uint8), (1920, 1080), interpolation=cv2.INTER_CUBIC)
        message = image(picture, "bgr8", 0.0)
        wall, cpu = [], []
        for index in progress.track(range(frames + warm_up), description="1080p callback to memory"):
            message.header.stamp = stamp(index * 0.5)
            raw = serialize_message(message)
            info = {"publication_sequence_number": index, "publisher_gid": {"data": b"benchmark"}}
            started, started_cpu = time.perf_counter(), time.process_time()
            camera.on_image(raw, info)
            wall.append((time.perf_counter() - started) * 1e3)
            cpu.append((time.process_time() - started_cpu) * 1e3)
        kept = node.engine.status().cameras[0].frames_kept
        if kept != frames + warm_up:
            raise RuntimeError(f"{kept} of {frames + warm_up} frames were kept, so the figures mean nothing")
    finally:
        node.destroy_node()
        node.wait_closed()
        rclpy.shutdown()
    return {
        "callback_to_memory_ms": statistics.median(wall[warm_up:]),
        "callback_to_memory_p95_ms": float(np.percentile(wall[warm_up:], 95)),
        "callback_to_memory_cpu_ms": statistics.median(cpu[warm_up:]),
        "callback_frames": frames,
    }


# ---- frames lost ----


def measure_streams(checkpoint: Path, folder: Path, seconds: float, progress: Progress) -> dict[str, dict[str, float]]:
    """VGA at 30 Hz from another process to the installed node, which is asked all the while; a fresh node for each."""
    task = progress.add_task("640x480 at 30 Hz", total=len(STREAMS))
    results = {}
    for name, (reliability, with_profile) in STREAMS.items():
        progress.update(task, description=f"640x480 at 30 Hz, {name.replace('_', ' ')}")
        with running_node(checkpoint, folder) as planner:
            planner.wait(lambda status: status.model_state == CacheStatus.READY, "the model is loaded")
            results[name] = planner.stream(reliability, with_profile, seconds)
        progress.advance(task)
    return results


@contextmanager
def running_node(checkpoint: Path, folder: Path) -> Iterator[Planner]:
    parameters = {"model": checkpoint, **NODE_PARAMETERS}
    command = [str(PREFIX / "lib" / "vstream_ros" / "qa_node"), "--ros-args"]
    for name, value in parameters.items():
        command += ["-p", f"{name}:={value}"]
    with (folder / "node.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    planner = Planner(process, folder / "node.log")
    try:
        yield planner
    finally:
        planner.close()
        process.terminate()
        process.wait(10.0)


class Planner:
    """Asks the node and reads its status."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log
        rclpy.init()
        self._node = Node("benchmark")
        self._statuses: list[CacheStatus] = []
        self._node.create_subscription(CacheStatus, "/vstream/cache_status", self._statuses.append, 10)
        self._ask = self._node.create_client(AskVideo, "/vstream/ask")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._executor.shutdown()
        self._thread.join(5.0)
        self._node.destroy_node()
        rclpy.shutdown()

    def wait(self, condition: Callable[[CacheStatus], bool], what: str) -> CacheStatus:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            if self._statuses and condition(self._statuses[-1]):
                return self._statuses[-1]
            time.sleep(0.1)
        raise RuntimeError(f"not so: {what}. The node's log:\n{self._log.read_text(errors='replace')}")

    def stream(self, reliability: str, with_profile: bool, seconds: float) -> dict[str, float]:
        """Run the camera's process to its end, asking all the while."""
        environment = dict(os.environ)
        if with_profile:
            environment[PROFILE_VARIABLE] = str(PROFILE)
        command = [sys.executable, "-m", "benchmarks.camera", "--seconds", str(seconds)]
        command += ["--publish", TOPIC, reliability]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        self.wait(lambda status: received(status) > 0 or process.poll() is not None, "images arrive")
        latencies, errors = [], 0
        while process.poll() is None:
            future = self._ask.call_async(AskVideo.Request(question="What happens?", max_new_tokens=32))
            while not future.done() and self._process.poll() is None:
                time.sleep(0.01)
            response = future.result()
            errors += not response.success
            latencies.append(response.metrics.total_latency)
        assert process.stdout is not None
        published = int(process.stdout.read())
        arrived = self._settled()
        return {
            "published": published,
            "callbacks": arrived,
            "lost_percent": 100.0 * (published - arrived) / published,
            "questions": len(latencies),
            "questions_failed": errors,
            "answer_latency_s": statistics.median(latencies) if latencies else 0.0,
        }

    def _settled(self) -> int:
        """Callbacks so far, when three statuses in a row say the same."""
        self._statuses.clear()
        self.wait(
            lambda _: len(s := self._statuses) >= 3 and len({received(status) for status in s[-3:]}) == 1,
            "the stream has ended",
        )
        return received(self._statuses[-1])


def received(status: CacheStatus) -> int:
    return int(status.cameras[0].frames_received) if status.cameras else 0


# ---- the camera's process ----


def publish_stream(topic: str, reliability: str, seconds: float) -> None:
    """Publish at 30 Hz as soon as somebody listens; writes to stdout how many images that were."""
    rclpy.init()
    node = Node("camera")
    policy = ReliabilityPolicy.RELIABLE if reliability == "reliable" else ReliabilityPolicy.BEST_EFFORT
    publisher = node.create_publisher(Image, topic, QoSProfile(depth=10, reliability=policy))
    deadline = time.monotonic() + WAIT_S
    while publisher.get_subscription_count() == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(SETTLE_S)
    picture = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    count = round(seconds * RATE_HZ)
    started = time.monotonic()
    for index in range(count):
        time.sleep(max(0.0, started + index / RATE_HZ - time.monotonic()))
        publisher.publish(image(picture, "bgr8", index / RATE_HZ))
    time.sleep(2.0)  # what is still on its way dies with the process
    sys.stdout.write(f"{count}\n")
    node.destroy_node()
    rclpy.shutdown()


def image(picture: np.ndarray, encoding: str, seconds: float) -> Image:
    height, width, channels = picture.shape
    message = Image(height=height, width=width, encoding=encoding, step=width * channels)
    message.data.frombytes(picture.tobytes())
    message.header.stamp = stamp(seconds)
    return message


def stamp(seconds: float) -> Time:
    return Time(sec=START_S + int(seconds), nanosec=round(seconds % 1 * 1e9) % 1_000_000_000)


def show(result: dict[str, Any], console: Console) -> None:
    table = Table(title="Camera path")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("1080p bgr8, callback to memory, median", f"{result['callback_to_memory_ms']:.2f} ms")
    table.add_row("the same, 95th percentile", f"{result['callback_to_memory_p95_ms']:.2f} ms")
    table.add_row("the same, CPU time, median", f"{result['callback_to_memory_cpu_ms']:.2f} ms")
    for name, stream in result["streams"].items():
        label = {"profile": "best effort, with the Fast DDS profile"}.get(name, name.replace("_", " "))
        lost = f"{stream['lost_percent']:.2f} % of {stream['published']:.0f} lost"
        table.add_row(f"640x480 at 30 Hz, {label}", lost)
    asked = sum(stream["questions"] for stream in result["streams"].values())
    table.add_row("questions answered meanwhile", f"{asked:.0f}")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
