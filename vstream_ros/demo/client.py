"""The demo's view of the node, as a planner has it: services and status topics, nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import rclpy
from builtin_interfaces.msg import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from vstream_ros.errors import QuestionTimeoutError
from vstream_ros.msg import CacheStatus, VramStatus
from vstream_ros.node.qos import LATCHED
from vstream_ros.srv import AskVideo

NODE = "/vstream"
SPIN_S = 0.1


class DemoClient:
    """A ROS node in the caller's thread: it only listens while one of the methods is waiting.

    ``check`` is called many times a second during every wait; it raises when waiting has become pointless, because
    a process has died.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        # Ctrl-C is the demo's own business: it has processes to end.
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        self._node = Node("vstream_demo")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._ask = self._node.create_client(AskVideo, f"{NODE}/ask")
        self._clear = self._node.create_client(Trigger, f"{NODE}/clear_memory")
        self._show = self._node.create_client(Trigger, f"{NODE}/show_memory")
        self._node.create_subscription(Image, f"{NODE}/memory_image", self._on_sheet, LATCHED)
        self._sheet: Image | None = None
        self._node.create_subscription(CacheStatus, f"{NODE}/cache_status", self._on_cache, 10)
        self._node.create_subscription(VramStatus, f"{NODE}/vram_status", self._on_vram, 10)
        self.cache: CacheStatus | None = None
        """The latest status received; None before the first."""
        self.vram: dict[str, VramStatus] = {}
        """The latest per device."""
        self._received = 0

    def close(self) -> None:
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.shutdown()

    def wait_until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Listen until ``condition`` holds; False when it did not in time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() >= deadline:
                return False
            self._check()
            self._executor.spin_once(timeout_sec=SPIN_S)
        return True

    def model_state(self) -> int:
        """Return the node's model state (a constant of CacheStatus), UNLOADED before the first status."""
        return CacheStatus.UNLOADED if self.cache is None else self.cache.model_state

    def frames_received(self) -> int:
        """Return how many images of all cameras the node says it got."""
        return 0 if self.cache is None else sum(camera.frames_received for camera in self.cache.cameras)

    def wait_for_fresh_status(self, timeout_s: float = 5.0) -> None:
        """Listen until a status of each topic came that was sent after this call."""
        # The one after next: the next may have been on its way already.
        wanted = self._received + 2
        self.vram.clear()
        self.wait_until(lambda: self._received >= wanted and bool(self.vram), timeout_s)

    def ask(self, question: str, timeout_s: float) -> Any:
        """Call the service and return its response, an ``AskVideo.Response``, whatever it says.

        Raises ``QuestionTimeoutError`` if the service does not answer at all.
        """
        request = AskVideo.Request(question=question, timeout=Duration(sec=int(timeout_s)))
        # The node keeps the time; a little more than it was given means that the answer got lost.
        return self._call(self._ask, request, timeout_s + 10.0)

    def ask_together(self, questions: Sequence[str], timeout_s: float) -> list[Any]:
        """Call the service for all questions at once; their responses, in order. Raises as ``ask`` does."""
        futures = [
            self._ask.call_async(AskVideo.Request(question=question, timeout=Duration(sec=int(timeout_s))))
            for question in questions
        ]
        if not self.wait_until(lambda: all(future.done() for future in futures), timeout_s + 10.0):
            raise QuestionTimeoutError(f"{NODE}/ask did not answer within {timeout_s:.0f} s; see the node's log")
        return [future.result() for future in futures]

    def clear_memory(self) -> None:
        """Have the node forget all frames. Raises ``QuestionTimeoutError`` if it does not answer."""
        self._call(self._clear, Trigger.Request(), 10.0)

    def memory_sheet(self) -> np.ndarray:
        """What memory holds now, as the node draws it: (height, width, 3) uint8 RGB. Raises ``QuestionTimeoutError`` if
        it does not come."""
        self._sheet = None
        done = self._call(self._show, Trigger.Request(), 10.0)
        if not done.success or not self.wait_until(lambda: self._sheet is not None, 10.0):
            raise QuestionTimeoutError(f"{NODE}/memory_image did not come: {done.message}; see the node's log")
        sheet: Any = self._sheet
        return np.frombuffer(sheet.data, np.uint8).reshape(sheet.height, sheet.width, 3)

    def _call(self, client: Any, request: Any, timeout_s: float) -> Any:
        if not self.wait_until(client.service_is_ready, 10.0):
            raise QuestionTimeoutError(f"the service {client.srv_name} did not appear within 10 s; see the node's log")
        future = client.call_async(request)
        if not self.wait_until(future.done, timeout_s):
            raise QuestionTimeoutError(f"{client.srv_name} did not answer within {timeout_s:.0f} s; see the node's log")
        return future.result()

    def _on_sheet(self, sheet: Image) -> None:
        self._sheet = sheet

    def _on_cache(self, status: CacheStatus) -> None:
        self.cache = status
        self._received += 1

    def _on_vram(self, status: VramStatus) -> None:
        self.vram[status.device] = status


def use_private_domain() -> None:
    """Keep this process and its children apart from any robot. Call before the first ``DemoClient``."""
    # 1 to 101 are the domain ids that are safe on Linux; VSTREAM_DOMAIN_ID is what `make demo ROS_DOMAIN_ID=` sets.
    os.environ["ROS_DOMAIN_ID"] = os.environ.get("VSTREAM_DOMAIN_ID") or str(1 + os.getpid() % 101)
    if os.environ.get("ROS_DISTRO") == "humble":
        os.environ["ROS_LOCALHOST_ONLY"] = "1"
    else:
        os.environ.pop("ROS_LOCALHOST_ONLY", None)
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
