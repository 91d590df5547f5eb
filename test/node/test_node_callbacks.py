"""The helpers that every callback of the node stands on."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future

import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from support.ros_client import DOMAIN, wait_until
from vstream_ros.node.callbacks import RosLogHandler, in_executor, never_raising


@pytest.fixture
def quiet_node():
    """A node without timers or traffic, spun by a thread."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=DOMAIN)
    node = Node("quiet", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    yield node
    executor.shutdown()
    thread.join(10.0)
    node.destroy_node()
    rclpy.shutdown(context=context)


def test_an_awaiting_callback_goes_on_without_any_traffic(quiet_node):
    future: Future[str] = Future()

    async def callback() -> str:
        await in_executor(quiet_node, future)
        return future.result()

    started = threading.Event()
    task = quiet_node.executor.create_task(callback)
    quiet_node.executor.create_task(started.set)
    assert started.wait(10.0)
    assert not task.done()
    future.set_result("from another thread")
    wait_until(task.done, "the callback goes on", 10.0)
    assert task.result() == "from another thread"


def test_a_future_that_is_done_already_is_not_waited_for(quiet_node):
    future: Future[None] = Future()
    future.set_result(None)
    assert in_executor(quiet_node, future).done()


def test_a_never_raising_callback_raises_nothing_and_logs_the_traceback(quiet_node, capfd):
    assert never_raising(quiet_node, "dividing", lambda a, b: a / b)(6, 3) == 2
    assert never_raising(quiet_node, "dividing", lambda a, b: a / b)(6, 0) is None
    log = capfd.readouterr().err
    assert "dividing failed" in log
    assert "ZeroDivisionError" in log


def test_the_librarys_log_reaches_ros_at_every_level(quiet_node, capfd):
    logger = logging.getLogger("vstream_ros.test_callbacks")
    handler = RosLogHandler(quiet_node)
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.INFO):
            logger.log(level, "at level %s", logging.getLevelName(level))
    finally:
        logger.removeHandler(handler)
    log = "".join(capfd.readouterr())
    assert all(f"at level {name}" in log for name in ("INFO", "WARNING", "ERROR"))
    assert "Error" not in log.replace("ERROR", "")
