"""What every callback of the node needs: it must not raise, and it may have to wait for another thread."""

from __future__ import annotations

import functools
import logging
import traceback
from collections.abc import Callable
from concurrent.futures import Future as ThreadFuture
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.exceptions import InvalidHandle
from rclpy.node import Node
from rclpy.task import Future
from rclpy.timer import Timer

from vstream_ros.errors import VStreamError
from vstream_ros.node.messages import ros_text


def never_raising(node: Node, what: str, callback: Callable[..., Any]) -> Callable[..., Any]:
    """``callback``, but what it raises goes to the log: an exception in a callback ends ``spin()``, and with it the
    node. Returns None then."""

    @functools.wraps(callback)
    def call(*args: Any) -> Any:
        try:
            return callback(*args)
        except Exception:  # noqa: BLE001
            node.get_logger().error(f"{what} failed, which is a defect:\n{traceback.format_exc()}")
            return None

    return call


def steady_timer(node: Node, period_s: float, what: str, callback: Callable[[], Any]) -> Timer:
    """A timer whose callback, named ``what`` in the log, never raises.

    One on ROS time would stand still where use_sim_time is set and nobody publishes /clock.
    """
    return node.create_timer(
        period_s, never_raising(node, what, callback), clock=Clock(clock_type=ClockType.STEADY_TIME)
    )


def in_executor(node: Node, future: ThreadFuture[Any]) -> Future:
    """An rclpy future to ``await`` in an async callback until another thread has ended ``future``."""
    done = Future()

    def wake(_: ThreadFuture[Any]) -> None:
        done.set_result(None)
        # Without this the awaiting callback goes on with the next message that happens to come, or never.
        executor = node.executor
        if executor is not None:
            try:
                executor.wake()
            except InvalidHandle:  # it is shutting down
                return

    future.add_done_callback(wake)
    return done


def fill_failure(node: Node, response: Any, error: Exception) -> None:
    """What a service with ``success`` and ``message`` answers after an error. Called in its ``except``."""
    response.success = False
    known = isinstance(error, VStreamError)
    response.message = ros_text(str(error) if known else f"{type(error).__name__}: {error}")
    if not known:
        node.get_logger().error(f"a service failed unexpectedly:\n{traceback.format_exc()}")


class RosLogHandler(logging.Handler):
    """Hands what memory and engine log (Python's logging, any thread) to the node's logger, and so to /rosout."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self._logger = node.get_logger()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            # One call site per severity: rclpy refuses a call site that changes its severity.
            if record.levelno >= logging.ERROR:
                self._logger.error(text)
            elif record.levelno >= logging.WARNING:
                self._logger.warning(text)
            elif record.levelno >= logging.INFO:
                self._logger.info(text)
            else:
                self._logger.debug(text)
        except Exception:  # noqa: BLE001
            self.handleError(record)
