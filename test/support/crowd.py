"""Many clients of ``~/ask`` at once, in processes of their own: what became of their calls.

``crowd.py CLIENTS CALLS DEPTH WAIT_S TOKENS`` is one process: it makes its clients, prints ``ready``, and when a line
comes in it makes all calls in a row, spins, and prints how many ended with which error code.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

SERVICE = "/vstream/ask"
DISCOVERY_S = 120.0
UNANSWERED = "unanswered"
SLOWEST_S = "slowest_s"


@dataclass(frozen=True)
class Crowd:
    """Who calls."""

    processes: int
    clients: int = 1
    """Client objects in each process."""
    calls: int = 1
    """By each client object, all at once."""
    depth: int = 10
    """QoS depth of the clients; rclpy's default is 10."""
    wait_s: float = 120.0
    max_new_tokens: int = 8
    """Of every answer."""

    @property
    def total(self) -> int:
        return self.processes * self.clients * self.calls


def call_all(crowd: Crowd) -> tuple[Counter[str], float]:
    """Make all calls at the same moment. Returns how many ended with which error code, and after how many seconds."""
    words = (crowd.clients, crowd.calls, crowd.depth, crowd.wait_s, crowd.max_new_tokens)
    command = [sys.executable, str(Path(__file__)), *map(str, words)]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(crowd.processes)
    ]
    codes: Counter[str] = Counter()
    slowest_s = 0.0
    try:
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in running:
            told = json.loads(process.communicate(timeout=crowd.wait_s + DISCOVERY_S)[0])
            slowest_s = max(slowest_s, told.pop(SLOWEST_S))
            codes.update(told)
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
            process.wait()
    return codes, slowest_s


def main(clients: int, calls: int, depth: int, wait_s: float, max_new_tokens: int) -> None:
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.node import Node
    from rclpy.qos import QoSProfile

    from support.ros_client import code_name
    from vstream_ros.srv import AskVideo

    rclpy.init()
    node = Node("crowd")
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    made = [node.create_client(AskVideo, SERVICE, qos_profile=QoSProfile(depth=depth)) for _ in range(clients)]
    for client in made:
        assert client.wait_for_service(DISCOVERY_S)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    start = time.monotonic()
    request = AskVideo.Request(question="What happens?", max_new_tokens=max_new_tokens)
    futures = [client.call_async(request) for _ in range(calls) for client in made]
    while time.monotonic() < start + wait_s and not all(future.done() for future in futures):
        executor.spin_once(0.5)
    codes = Counter(code_name(future.result()) if future.done() else UNANSWERED for future in futures)
    sys.stdout.write(json.dumps({**codes, SLOWEST_S: time.monotonic() - start}) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # support
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
