"""The installed executable as a process of its own, and a planner beside it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # support

try:
    import rclpy  # noqa: F401
    from ament_index_python.packages import PackageNotFoundError, get_package_prefix

    import vstream_ros.srv  # noqa: F401

    PREFIX = Path(get_package_prefix("vstream_ros"))
except (ImportError, LookupError) as error:  # without ROS 2, or before `make build`
    collect_ignore_glob = ["test_qa_node*.py", "test_shapes_node.py"]
    MISSING = str(error)
else:
    from support.ros_client import TIMEOUT_S, Planner, isolate_ros, wait_until, write_endless_checkpoint
    from vstream_ros.msg import CacheStatus

    isolate_ros()
    assert issubclass(PackageNotFoundError, LookupError)

    class NodeProcess:
        """``lib/vstream_ros/qa_node`` with these parameters. What it writes goes to a file."""

        def __init__(self, log: Path, parameters: dict[str, Any], arguments: tuple[str, ...] = ()) -> None:
            command = [str(PREFIX / "lib" / "vstream_ros" / "qa_node"), "--ros-args", *arguments]
            for name, value in parameters.items():
                command += ["-p", f"{name}:={value}"]
            self._log = log
            with log.open("wb") as file:
                self.process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)

        @property
        def log(self) -> str:
            return self._log.read_text(errors="replace")

        def wait_log(self, text: str) -> None:
            def found() -> bool:
                assert self.process.poll() is None, f"the node ended:\n{self.log}"
                return text in self.log

            wait_until(found, f"{text!r} in the log")

        def stop(self, number: int = signal.SIGINT, timeout_s: float = TIMEOUT_S) -> int:
            self.process.send_signal(number)
            return self.process.wait(timeout_s)

    @pytest.fixture(scope="session")
    def checkpoint(tmp_path_factory) -> Path:
        return write_endless_checkpoint(tmp_path_factory.mktemp("model"))

    @pytest.fixture
    def launch(tmp_path, checkpoint) -> Iterator[Callable[..., NodeProcess]]:
        """Start the executable; it is ended with the test, and its log shown where the test failed."""
        running: list[NodeProcess] = []

        def launch_node(*arguments: str, **parameters: Any) -> NodeProcess:
            defaults = {"model": checkpoint, "device": "cpu", "torch_dtype": "float32", "max_new_tokens": 8}
            log = tmp_path / f"node{len(running)}.log"
            running.append(NodeProcess(log, {**defaults, **parameters}, arguments))
            return running[-1]

        yield launch_node
        for node in running:
            if node.process.poll() is None:
                node.process.kill()
                node.process.wait()
            sys.stdout.write(node.log)

    @pytest.fixture
    def planner() -> Iterator[Planner]:
        planner = Planner()
        yield planner
        planner.close()

    @pytest.fixture
    def status(planner: Planner) -> Callable[[Callable[[CacheStatus], Any], str], CacheStatus]:
        """The latest ~/cache_status that fulfils a condition."""
        heard = planner.hear(CacheStatus, "/vstream/cache_status")

        def latest(condition: Callable[[CacheStatus], Any], what: str) -> Any:
            return wait_until(lambda: heard[-1] if heard and condition(heard[-1]) else None, what)

        return latest


def pytest_report_header() -> str | None:
    left_out = "test_qa_node*.py and test_shapes_node.py"
    return f"system tier: {left_out} are left out: {MISSING}" if "MISSING" in globals() else None
