"""Executable ``qa_node``: the node ``vstream`` in its one executor, from start to signal."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any

from vstream_ros.errors import ConfigError
from vstream_ros.ros_arguments import MAIN_FILE, check_parameter_files, split_arguments

EXIT_DEADLINE_S = 3.5
"""From the signal on. A model that is being loaded can't be interrupted, and is not waited for any longer."""
DRAIN_S = 1.5
"""For answering the questions that were cut short, and for the log of what was saved."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM. ``argv`` as in ``sys.argv``. In the main thread of a process of its own.

    Ends the process with 0 after a signal; returns 1, with one line on stderr, where it can't start, and 2 where it was
    called with an argument that it doesn't know.
    """
    argv = list(sys.argv if argv is None else argv)
    own, ros = split_arguments(argv[1:])
    _, unknown = build_parser().parse_known_args(own)
    if unknown:
        sys.stderr.write(f"qa_node: unknown argument {unknown[0]}; parameters follow --ros-args, see qa_node --help\n")
        return 2
    stop = _SignalWatch()  # before the imports, which take seconds: Ctrl-C then is no traceback either

    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    from vstream_ros.node.qa_node import QaNode

    try:
        check_parameter_files(ros)
        # Without rclpy's handlers, so that the questions in flight are answered before the context goes.
        rclpy.init(args=argv, signal_handler_options=SignalHandlerOptions.NO)
        node = QaNode()
    except (ConfigError, RuntimeError, ValueError) as error:  # ours, and what rcl says of wrong ROS arguments
        text = re.sub(r", at \S+:\d+", "", " ".join(str(error).split()))  # rcl names its own source lines
        if type(error).__name__ == "UnknownROSArgsError":  # rclpy gives the list of them and no sentence
            text = f"unknown ROS arguments {text}"
        sys.stderr.write(f"qa_node: {text}\n")
        rclpy.try_shutdown()
        return 1
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    stop.wake = executor.wake
    if node.settings.autostart and not stop.is_set():
        node.autostart()
    _spin(node, executor, stop.is_set)
    deadline = time.monotonic() + DRAIN_S
    node.close()
    _spin(
        node,
        executor,
        lambda: not (node.open_questions or node.saving) or time.monotonic() >= deadline,
        period_s=0.05,
    )
    executor.shutdown()
    node.destroy_node()
    rclpy.try_shutdown()
    # A model thread that is still inside torch would crash the interpreter on its way out: then _SignalWatch ends us.
    node.wait_closed()
    # Everything is closed. The interpreter's own way out takes seconds more with torch and DDS loaded, and nothing
    # could end it then: a launch system would lose its patience first.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the arguments that are not ROS's own: there are none but --help."""
    return argparse.ArgumentParser(
        prog="qa_node",
        description="Watch cameras, remember what mattered, and answer questions about it: the node `vstream`.",
        usage="qa_node [-h] [--ros-args -p NAME:=VALUE ... --params-file FILE ... -r FROM:=TO ...]",
        epilog=f"Parameters, each with its meaning and default: {_main_file()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _main_file() -> str:
    from ament_index_python.packages import PackageNotFoundError, get_package_share_directory

    try:
        return os.path.join(get_package_share_directory("vstream_ros"), "config", MAIN_FILE)
    except PackageNotFoundError:
        return f"config/{MAIN_FILE} of vstream_ros"


class _SignalWatch:
    """A thread that waits for SIGINT and SIGTERM, because the main thread is inside rcl most of the time, where
    Python's signal handlers do not run."""

    def __init__(self) -> None:
        self.wake: Any = None
        """Called at the signal, in this thread; None until the node is there."""
        self._stop = threading.Event()
        signals = {signal.SIGINT, signal.SIGTERM}
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # in all threads that are started from here on
        threading.Thread(target=self._wait, args=(signals,), name="vstream-signals", daemon=True).start()

    def is_set(self) -> bool:
        return self._stop.is_set()

    def _wait(self, signals: set[signal.Signals]) -> None:
        signal.sigwait(signals)  # further ones stay blocked: ros2 launch and the terminal both send Ctrl-C
        self._stop.set()
        if self.wake is None:  # still importing: there is nothing to end
            os._exit(0)
        self.wake()
        time.sleep(EXIT_DEADLINE_S)
        sys.stderr.write(f"qa_node: still busy {EXIT_DEADLINE_S:g} s after the signal, leaving anyway\n")
        sys.stderr.flush()
        os._exit(0)


def _spin(node: Any, executor: Any, finished: Any, period_s: float | None = None) -> None:
    """Like ``executor.spin()`` until ``finished()``, but a robot's node does not die of what it is sent.

    Our own callbacks never raise; rclpy's (parameter services, the action's protocol) raise here, for example where
    a client has gone before its answer is sent. ``period_s``: how often to look without anything happening.
    """
    from rclpy.executors import ExternalShutdownException

    while not finished():
        try:
            executor.spin_once(period_s)
        except ExternalShutdownException:  # noqa: PERF203
            return
        except Exception:  # noqa: BLE001
            node.get_logger().error(f"a callback of rclpy failed:\n{traceback.format_exc()}")


if __name__ == "__main__":
    sys.exit(main())
