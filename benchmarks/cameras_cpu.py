"""What many cameras cost the node: CPU seconds of the installed node while they publish and nobody asks.

    python -m benchmarks.cameras_cpu --out build/bench_cameras_cpu.json

The node and the cameras are processes of their own; the cameras' has the shipped Fast DDS profile, so that what is
published arrives. The node's idle CPU, measured before the first image, is subtracted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import rclpy
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from rclpy.signals import SignalHandlerOptions
from rich.console import Console
from rich.table import Table
from sensor_msgs.msg import CompressedImage, Image

from benchmarks.camera import DISTRO, NODE_PARAMETERS, PREFIX, PROFILE, PROFILE_VARIABLE, SETTLE_S, WAIT_S, image, stamp
from vstream_ros.demo.processes import running
from vstream_ros.msg import CacheStatus
from vstream_ros.synthetic.random_model import write_random_checkpoint

TRANSPORTS = ("raw", "compressed")
CDR_STAMP_AT = 4
"""Where the stamp stands in a serialized message that begins with a header."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure the CPU that many cameras cost the node.")
    parser.add_argument("--out", type=Path, default=Path("build/bench_cameras_cpu.json"))
    parser.add_argument("--label", default="", help="written into each row, such as the commit")
    parser.add_argument("--cameras", type=int, default=8)
    parser.add_argument("--rate", type=float, default=30.0, help="images per second of each camera")
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each measurement")
    parser.add_argument("--transport", choices=TRANSPORTS, nargs="+", default=TRANSPORTS)
    parser.add_argument("--reliability", choices=("reliable", "best_effort"), nargs="+", default=("best_effort",))
    parser.add_argument("--publish", nargs=2, metavar=("TRANSPORT", "RELIABILITY"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.publish:
        publish(args, *args.publish)
        return 0
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ["ROS_DOMAIN_ID"] = os.environ.get("VSTREAM_DOMAIN_ID") or str(1 + os.getpid() % 100)
    console = Console(stderr=True, soft_wrap=True)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = write_random_checkpoint(folder / "model")
        for transport in args.transport:
            for reliability in args.reliability:
                console.print(f"{args.cameras} cameras, {transport}, {reliability.replace('_', ' ')}")
                rows.append(measure(args, transport, reliability, checkpoint, folder))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(rows, indent=2) + "\n")
    show(rows, console)
    console.print(f"written to {args.out}")
    return 0


# ---- the node ----


def measure(
    args: argparse.Namespace, transport: str, reliability: str, checkpoint: Path, folder: Path
) -> dict[str, Any]:
    """One row: a fresh node, idle and then with the cameras."""
    names = camera_names(args.cameras)
    parameters = {"model": checkpoint, **NODE_PARAMETERS, "cameras": f"[{', '.join(names)}]"}
    parameters |= {"qos_reliability": reliability} | {f"{name}.image_transport": transport for name in names}
    command = [str(PREFIX / "lib" / "vstream_ros" / "qa_node"), "--ros-args"]
    for key, value in parameters.items():
        command += ["-p", f"{key}:={value}"]
    log = folder / "node.log"
    with running(command, log) as node, Listener(node, log) as listener:
        listener.wait(lambda status: status.model_state == CacheStatus.READY, "the model is loaded")
        idle, _, _ = cpu_during(listener, node, min(5.0, args.seconds))
        with running(cameras_command(args, transport, reliability), folder / "cameras.log"):
            listener.wait(lambda status: all(c.frames_kept for c in status.cameras), "every camera is heard")
            busy, before, after = cpu_during(listener, node, args.seconds)
    wall_s = after["at"] - before["at"]
    published = args.cameras * args.rate * wall_s
    received = after["received"] - before["received"]
    return {
        "label": args.label,
        "transport": transport,
        "reliability": reliability,
        "cameras": args.cameras,
        "rate_hz": args.rate,
        "size": list(args.size),
        "seconds": wall_s,
        "cpu_percent": busy,
        "idle_cpu_percent": idle,
        "cpu_ms_per_image": 10.0 * (busy - idle) * wall_s / received,
        "received_percent": 100.0 * received / published,
        "received": received,
        "kept": after["kept"] - before["kept"],
        "machine": {"cpus": os.cpu_count(), "ros_distro": DISTRO, "rmw": rclpy.get_rmw_implementation_identifier()},
    }


def cpu_during(listener: Listener, process: subprocess.Popen[bytes], seconds: float) -> tuple[float, dict, dict]:
    """CPU of the process in percent of one core, and the cameras' counts at the beginning and at the end."""
    probe = psutil.Process(process.pid)
    counts, used = [], []
    for wait_s in (0.0, seconds):
        listener.spin(wait_s)
        counts.append(listener.next_counts())
        times = probe.cpu_times()
        used.append(times.user + times.system)
    before, after = counts
    return 100.0 * (used[1] - used[0]) / (after["at"] - before["at"]), before, after


class Listener:
    """Reads the node's status."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log
        self._statuses: list[CacheStatus] = []

    def __enter__(self) -> Listener:
        rclpy.init()
        self._node = Node("benchmark")
        self._node.create_subscription(CacheStatus, "/vstream/cache_status", self._statuses.append, 10)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._node.destroy_node()
        rclpy.shutdown()

    def spin(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            rclpy.spin_once(self._node, timeout_sec=left)

    def wait(self, condition: Callable[[CacheStatus], bool], what: str) -> CacheStatus:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            if self._statuses and self._statuses[-1].model_state == CacheStatus.FAILED:
                break
            if self._statuses and condition(self._statuses[-1]):
                return self._statuses[-1]
            self.spin(0.1)
        raise RuntimeError(f"not so: {what}. The node's log:\n{self._log.read_text(errors='replace')}")

    def next_counts(self) -> dict[str, Any]:
        """The cameras' counts of the next status, and when it came."""
        self._statuses.clear()
        status = self.wait(lambda _: True, "a status comes")
        return {
            "at": time.monotonic(),
            "received": sum(int(camera.frames_received) for camera in status.cameras),
            "kept": sum(int(camera.frames_kept) for camera in status.cameras),
        }


# ---- the cameras' process ----


def cameras_command(args: argparse.Namespace, transport: str, reliability: str) -> list[str]:
    command = ["env", f"{PROFILE_VARIABLE}={PROFILE}", sys.executable, "-m", "benchmarks.cameras_cpu"]
    command += ["--cameras", str(args.cameras), "--rate", str(args.rate), "--size", *map(str, args.size)]
    return [*command, "--publish", transport, reliability]


def publish(args: argparse.Namespace, transport: str, reliability: str) -> None:
    """Publish until the process is ended. Serialized once: only the stamp differs, so that this takes little CPU."""
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)  # a signal ends it at once
    node = Node("cameras")
    policy = ReliabilityPolicy.RELIABLE if reliability == "reliable" else ReliabilityPolicy.BEST_EFFORT
    suffix = "/compressed" if transport == "compressed" else ""
    publishers = [
        node.create_publisher(
            type(message(args, transport)), f"/{name}/image_raw{suffix}", QoSProfile(depth=10, reliability=policy)
        )
        for name in camera_names(args.cameras)
    ]
    deadline = time.monotonic() + WAIT_S
    while not all(p.get_subscription_count() for p in publishers) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(SETTLE_S)
    raw = bytearray(serialize_message(message(args, transport)))
    started, index = time.monotonic(), 0
    while True:
        seconds = index / args.rate
        for number, publisher in enumerate(publishers):
            # Spread over the period, as unsynchronized cameras are.
            time.sleep(max(0.0, started + seconds + number / args.rate / args.cameras - time.monotonic()))
            at = stamp(seconds)
            raw[CDR_STAMP_AT : CDR_STAMP_AT + 8] = at.sec.to_bytes(4, sys.byteorder) + at.nanosec.to_bytes(
                4, sys.byteorder
            )
            publisher.publish(bytes(raw))
        index += 1


def message(args: argparse.Namespace, transport: str) -> Image | CompressedImage:
    width, height = args.size
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 255, (27, 48, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    if transport == "raw":
        return image(picture, "rgb8", 0.0)
    compressed = CompressedImage(format="jpeg")
    compressed.data.frombytes(cv2.imencode(".jpg", picture)[1].tobytes())
    return compressed


def camera_names(count: int) -> list[str]:
    return [f"camera{index}" for index in range(count)]


def show(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title=f"{rows[0]['cameras']} cameras at {rows[0]['rate_hz']:g} Hz")
    for heading in ("images", "CPU of the node", "idle", "CPU per image", "received", "kept"):
        table.add_column(heading, justify="left" if heading == "images" else "right")
    for row in rows:
        table.add_row(
            f"{row['transport']}, {row['reliability'].replace('_', ' ')}",
            f"{row['cpu_percent']:.1f} %",
            f"{row['idle_cpu_percent']:.1f} %",
            f"{row['cpu_ms_per_image']:.2f} ms",
            f"{row['received_percent']:.1f} %",
            f"{row['kept']}",
        )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
