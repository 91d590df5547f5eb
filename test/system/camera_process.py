"""A camera as a process of its own: publishes images until it is killed. ``camera_process.py TOPIC RATE``"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # support

import rclpy
from sensor_msgs.msg import Image

from support.ros_client import RELIABLE, START_NS, image

SECOND = 1_000_000_000


def main(topic: str, rate_hz: float) -> None:
    rclpy.init()
    node = rclpy.create_node("camera")
    publisher = node.create_publisher(Image, topic, RELIABLE)
    while publisher.get_subscription_count() == 0:
        time.sleep(0.05)
    for index in range(1_000_000):
        publisher.publish(image(index, stamp_ns=START_NS + round(index * SECOND / rate_hz), size=(480, 640)))
        time.sleep(1.0 / rate_hz)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
