"""The node in this process, with a planner beside it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # support

try:
    import rclpy

    import vstream_ros.srv  # noqa: F401
except ImportError as error:  # without ROS 2, or before `make build`
    collect_ignore_glob = ["test_node_*.py"]
    MISSING = str(error)
else:
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.parameter import Parameter

    from support.ros_client import (
        DOMAIN,
        FRAMES,
        Planner,
        image,
        isolate_ros,
        wait_until,
        write_endless_checkpoint,
    )
    from vstream_ros.engine import ModelState
    from vstream_ros.node.qa_node import QaNode

    isolate_ros()

    class RunningNode:
        """A ``QaNode`` that is spun by a thread, as ``main`` spins it."""

        def __init__(self, parameters: dict[str, Any]) -> None:
            self.context = rclpy.Context()
            rclpy.init(context=self.context, domain_id=DOMAIN)
            overrides = [Parameter(name, value=value) for name, value in parameters.items()]
            try:
                self.node = QaNode(context=self.context, parameter_overrides=overrides)
            except BaseException:
                rclpy.shutdown(context=self.context)
                raise
            self.executor = SingleThreadedExecutor(context=self.context)
            self.executor.add_node(self.node)
            if self.node.settings.autostart:
                self.node.autostart()
            self.error: BaseException | None = None
            self._thread = threading.Thread(target=self._spin, daemon=True)
            self._thread.start()

        def _spin(self) -> None:
            try:
                self.executor.spin()
            except BaseException as error:
                self.error = error
                raise

        @property
        def memory(self) -> Any:
            """Status of the first camera's memory."""
            return self.node.engine.status().cameras[0]

        def wait_ready(self) -> None:
            wait_until(lambda: self.node.engine.status().model_state is ModelState.READY, "the model is loaded")

        def wait_kept(self, frames: int) -> None:
            wait_until(lambda: self.memory.frames_kept >= frames, f"{frames} frames are kept")

        def close(self) -> None:
            if not self.context.ok():
                return  # closed by the test
            self.executor.shutdown()
            self._thread.join(10.0)
            self.node.destroy_node()
            self.node.wait_closed(30.0)
            rclpy.shutdown(context=self.context)

    @pytest.fixture(scope="session")
    def checkpoint(tmp_path_factory) -> Path:
        return write_endless_checkpoint(tmp_path_factory.mktemp("model"))

    @pytest.fixture
    def start(checkpoint, planner) -> Iterator[Callable[..., RunningNode]]:
        """Start the node with these parameters; no exception may have left a callback at the end."""
        running: list[RunningNode] = []

        def start_node(**parameters: Any) -> RunningNode:
            defaults = {"model": str(checkpoint), "device": "cpu", "torch_dtype": "float32", "max_new_tokens": 8}
            running.append(RunningNode({**defaults, **parameters}))
            planner.server = running[-1].node
            return running[-1]

        yield start_node
        for node in running:
            node.close()
        assert [node.error for node in running] == [None] * len(running)

    @pytest.fixture
    def watching(start, planner) -> RunningNode:
        """A node that has seen some frames and can answer."""
        node = start()
        planner.publish(*map(image, range(FRAMES)))
        node.wait_kept(FRAMES)
        node.wait_ready()
        return node

    @pytest.fixture
    def planner() -> Iterator[Planner]:
        planner = Planner()
        yield planner
        planner.close()


@pytest.fixture
def play() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start bag_player, in the environment as it is then; it is ended with the test."""
    processes: list[subprocess.Popen[str]] = []

    def start(bag: object, *args: object) -> subprocess.Popen[str]:
        # On a busy machine discovery may take longer than the default is willing to wait.
        waiting = [] if "--wait-subscribers" in args or "--no-such-option" in args else ["--wait-subscribers", "60"]
        command = [sys.executable, "-m", "vstream_ros.replay.bag_player", *map(str, (bag, *waiting, *args))]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def pytest_report_header() -> str | None:
    return f"node tier: test_node_*.py are left out: {MISSING}" if "MISSING" in globals() else None
