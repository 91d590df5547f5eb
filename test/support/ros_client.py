"""What the node and system tiers share: a planner and a camera in one rclpy node, and a small model to ask.

Real rclpy, in its own context and domain, spun by a thread of its own.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from builtin_interfaces.msg import Duration, Time
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from support.domains import own_domain
from vstream_ros.action import AskVideo as AskVideoAction
from vstream_ros.srv import AskVideo

DOMAIN = own_domain()
TIMEOUT_S = 120.0
"""For whatever must happen: far beyond what it takes, so that a busy machine fails no test."""
SECOND = 1_000_000_000
START_NS = 1_700_000_000 * SECOND
CAMERA_TOPIC = "/front/image_raw"
RELIABLE = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
BEST_EFFORT = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)


def isolate_ros() -> None:
    """This machine and this process's domain only; inherited by the processes that a test starts."""
    os.environ["ROS_DOMAIN_ID"] = str(DOMAIN)
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"


def write_endless_checkpoint(folder: Path) -> Path:
    """A small random-weight model that never ends an answer: its length is always max_new_tokens."""
    from vstream_ros.synthetic.random_model import write_random_checkpoint

    write_random_checkpoint(folder)
    path = folder / "generation_config.json"
    config = json.loads(path.read_text())
    config["eos_token_id"] = [1_000_000]  # not a token
    path.write_text(json.dumps(config))
    return folder


FRAMES = 8
"""That the node of the fixture ``watching`` has seen."""


def image(index: int = 0, *, stamp_ns: int | None = None, size: tuple[int, int] = (84, 112), **fields: Any) -> Image:
    """An rgb8 picture that differs from index to index, half a second apart; ``fields`` replace the message's own."""
    height, width = size
    stamp_ns = START_NS + index * SECOND // 2 if stamp_ns is None else stamp_ns
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x + 7 * index, y + 13 * index, x + y], axis=2).astype(np.uint8)
    message = Image(height=height, width=width, encoding="rgb8", step=3 * width)
    message.data.frombytes(pixels.tobytes())
    message.header.stamp = Time(sec=stamp_ns // SECOND, nanosec=stamp_ns % SECOND)
    message.header.frame_id = "camera"
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = TIMEOUT_S) -> Any:
    """The first true value of ``condition``; fails the test with ``what`` when there is none in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout_s:g} s: {what}")


class Planner:
    """Publishes images, asks questions, and listens. Every method may block, none raises from another thread."""

    def __init__(self, node_name: str = "/vstream") -> None:
        self.target = node_name
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=DOMAIN)
        self.node = Node("planner", context=self.context)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()
        self._clients: dict[str, Any] = {}
        self._matched: dict[str, Any] = {}
        """By service: the node that knows this client."""
        self._publishers: dict[Any, Any] = {}
        self.server: Node | None = None
        """The node that is asked, where it lives in this process."""

    def close(self) -> None:
        self._executor.shutdown()
        self._thread.join(10.0)
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    # -- cameras --

    def publisher(self, topic: str = CAMERA_TOPIC, msg_type: type = Image, qos: QoSProfile = RELIABLE) -> Any:
        key = topic, msg_type, qos.reliability
        if key not in self._publishers:
            self._publishers[key] = self.node.create_publisher(msg_type, topic, qos)
        return self._publishers[key]

    def publish(self, *messages: Any, topic: str = CAMERA_TOPIC, qos: QoSProfile = RELIABLE) -> None:
        """Publish when somebody listens; on a reliable topic nothing of it is lost then."""
        publisher = self.publisher(topic, type(messages[0]), qos)
        wait_until(publisher.get_subscription_count, f"a subscription on {topic}")
        for message in messages:
            publisher.publish(message)
            time.sleep(0.01)  # a burst of all would overrun the subscription's queue

    def hear(self, msg_type: type, topic: str) -> list:
        """A list that fills with what comes on ``topic``."""
        heard: list = []
        self.node.create_subscription(msg_type, topic, heard.append, 100)
        return heard

    def close_subscriptions(self) -> None:
        """Hear nothing any more."""
        for subscription in list(self.node.subscriptions):
            self._executor.create_task(self.node.destroy_subscription, subscription)
        self._executor.wake()

    # -- services --

    def client(self, srv_type: type, name: str) -> Any:
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = self.node.create_client(srv_type, name, qos_profile=RELIABLE)
        if name not in self._matched or self._matched[name] is not self.server:  # or another node has taken over
            assert client.wait_for_service(TIMEOUT_S), f"no service {name}"
            self._wait_matched(name)
            self._matched[name] = self.server
        return client

    def _wait_matched(self, *services: str) -> None:
        """Wait until the server knows the client too: an answer that it sends before is lost (rmw_fastrtps)."""
        for name in services:
            if self.server is None:
                time.sleep(1.0)
            else:
                wait_until(lambda name=name: self.server.count_clients(name), f"the node knows the client of {name}")

    def call(self, srv_type: type, name: str, request: Any) -> Any:
        return wait_for_result(self.client(srv_type, name).call_async(request), name)

    def ask_later(self, question: str = "What happens?", **fields: Any) -> Any:
        """The future of the answer."""
        request = AskVideo.Request(question=question, **{"max_new_tokens": 8, **fields})
        return self.client(AskVideo, f"{self.target}/ask").call_async(request)

    def ask(self, question: str = "What happens?", **fields: Any) -> Any:
        return wait_for_result(self.ask_later(question, **fields), "an answer")

    def ask_when_ready(self, question: str = "What happens?", **fields: Any) -> Any:
        """Ask until the model is loaded."""
        not_ready = AskVideo.Response.NOT_READY
        return wait_until(
            lambda: None if (r := self.ask(question, **fields)).error_code == not_ready else r, "the model is loaded"
        )

    def trigger(self, name: str) -> Any:
        return self.call(Trigger, f"{self.target}/{name}", Trigger.Request())

    def transition_later(self, transition: int) -> Any:
        """The future of the response, if there is one."""
        request = ChangeState.Request(transition=Transition(id=transition))
        return self.client(ChangeState, f"{self.target}/change_state").call_async(request)

    def transition(self, transition: int) -> bool:
        return bool(wait_for_result(self.transition_later(transition), "the transition").success)

    def state(self) -> str:
        return str(self.call(GetState, f"{self.target}/get_state", GetState.Request()).current_state.label)

    # -- action --

    def send_goal(self, question: str = "What happens?", feedback: list | None = None, **fields: Any) -> Any:
        """The accepted goal's handle."""
        handle = wait_for_result(self.send_goal_later(question, feedback, **fields), "the goal's acceptance")
        assert handle.accepted
        return handle

    def send_goal_later(self, question: str = "What happens?", feedback: list | None = None, **fields: Any) -> Any:
        """The future of the goal's handle."""
        name = f"{self.target}/ask"
        if "action" not in self._clients:
            client = self._clients["action"] = ActionClient(self.node, AskVideoAction, name)
            assert client.wait_for_server(TIMEOUT_S), "no action server"
            self._wait_matched(*(f"{name}/_action/{part}" for part in ("send_goal", "get_result", "cancel_goal")))
        goal = AskVideoAction.Goal(question=question, **{"max_new_tokens": 8, **fields})
        return self._clients["action"].send_goal_async(
            goal, feedback_callback=None if feedback is None else lambda message: feedback.append(message.feedback)
        )


def wait_for_result(future: Any, what: str, timeout_s: float = TIMEOUT_S) -> Any:
    wait_until(future.done, what, timeout_s)
    return future.result()


def code_name(response: Any) -> str:
    """The name of a response's error code, for readable failures."""
    names = "NONE NOT_READY MODEL_FAILED INVALID_REQUEST NO_FRAMES BUSY TIMEOUT CANCELED OUT_OF_MEMORY INTERNAL"
    return {getattr(AskVideo.Response, name): name for name in [*names.split(" "), "INCOMPLETE"]}[response.error_code]


def seconds(value: float) -> Duration:
    return Duration(sec=int(value), nanosec=round(value % 1 * 1e9))
