"""A node on its own, as the demo and the evaluation need it: started, fed by the player, asked through its service."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from vstream_ros.demo.processes import find_config, find_executable, require_running, running
from vstream_ros.errors import ModelFailedError, NotReadyError, VStreamError
from vstream_ros.memory.clip import NANOSECONDS
from vstream_ros.replay.ask import Reply
from vstream_ros.replay.sources import open_source
from vstream_ros.replay.terminal import literal

if TYPE_CHECKING:
    from vstream_ros.demo.client import DemoClient

TOPIC = "/camera/front/image_raw"
WAIT = ("--wait-subscribers", "30")
"""The first frame is kept for ever: it must not be lost because a busy machine discovers slowly."""
START_TIMEOUT_S = 60.0
LOAD_TIMEOUT_S = 3600.0
ANSWER_TIMEOUT_S = 1800.0
"""A 3B model on a CPU takes minutes to look at 20 frames."""
ARRIVAL_TIMEOUT_S = 6.0
"""For what is still under way when the player has published everything."""


class Session:
    """A running node with a loaded model. Not thread-safe."""

    def __init__(self, client: DemoClient, workdir: Path) -> None:
        self.client = client
        self._workdir = workdir

    def play(self, bag: Path, rate: float, out: Console) -> tuple[int, int]:
        """Replay a bag and wait until the node has what arrives. Returns the frames that it received, and the bag's."""
        client, log = self.client, self._workdir / "bag_player.log"
        with open_source(bag) as source:
            expected = source.frame_count
        client.wait_for_fresh_status()
        before = client.frames_received()
        command = [str(find_executable("bag_player")), str(bag), "--rate", f"{rate:g}", *WAIT]

        def received() -> int:
            return client.frames_received() - before

        with running(command, log) as player, out.status("") as status:
            while player.poll() is None and received() < expected:
                status.update(f"replaying {literal(bag)}: the node has received {received()} of {expected} frames")
                client.wait_until(lambda: player.poll() is not None or received() >= expected, 0.5)
            if player.returncode:
                raise NotReadyError(f"bag_player failed: {log.read_text(errors='replace').strip()}")
            client.wait_until(lambda: received() >= expected, ARRIVAL_TIMEOUT_S)
        if not received():
            raise NotReadyError("the node received no frame of the replay")
        return received(), expected

    def ask(self, question: str, out: Console) -> tuple[Reply, Any]:
        """Ask through the service. Returns the reply with its metrics, and the whole ``AskVideo.Response``."""
        start = time.monotonic()
        with out.status(f"asking: {literal(question)}"):
            response = self.client.ask(question, ANSWER_TIMEOUT_S)
        code = "" if response.success else _code_name(response)
        metrics = fields_of(response.metrics) | {"round_trip": time.monotonic() - start}
        return Reply(question, response.answer, metrics, code, response.message), response

    def ask_together(self, questions: Sequence[str], out: Console) -> tuple[list[str], float]:
        """Ask all questions at once. Returns the answers (an error's name where there is none), and seconds."""
        start = time.monotonic()
        with out.status(f"asking {len(questions)} questions at once"):
            responses = self.client.ask_together(questions, ANSWER_TIMEOUT_S)
        return [r.answer if r.success else _code_name(r) for r in responses], time.monotonic() - start

    def wait_for_model(self, model: str, out: Console) -> None:
        """Raises ``NotReadyError`` or ``ModelFailedError`` where it doesn't come."""
        from vstream_ros.msg import CacheStatus

        client = self.client
        with out.status("starting the node"):
            if not client.wait_until(lambda: client.cache is not None, START_TIMEOUT_S):
                raise NotReadyError(f"the node published no status within {START_TIMEOUT_S:.0f} s")
        settled = (CacheStatus.READY, CacheStatus.FAILED)
        with out.status(f"the node is loading {literal(model)}"):
            client.wait_until(lambda: client.model_state() in settled, LOAD_TIMEOUT_S)
        if client.model_state() != CacheStatus.READY:
            # The service says why, in the words a planner would get.
            raise ModelFailedError(client.ask("Is the model there?", 10.0).message or f"{model} could not be loaded")
        out.print(f"The node is up and has loaded {literal(model)}", highlight=False)


@contextmanager
def node_session(
    workdir: Path, model: str, out: Console, *, compressed: bool, parameters: Mapping[str, Any] | None = None
) -> Iterator[Session]:
    """Run the installed node with the installed parameter file and ``model``, its log in ``workdir``.

    ``parameters``: what differs from the file. On an error the end of the node's log is printed. Raises
    ``VStreamError`` when the node can't be started, dies, or does not load the model.
    """
    executable = find_executable("qa_node")
    log = workdir / "node.log"
    os.environ.setdefault("ROS_LOG_DIR", str((workdir / "ros_log").absolute()))
    given = {
        "model": model, "front.image_topic": TOPIC, "front.image_transport": "compressed" if compressed else "raw",
        **(parameters or {}),
    }
    command = [str(executable), "--ros-args", "--params-file", str(find_config(executable))]
    command += [word for name, value in given.items() for word in ("-p", f"{name}:={value}")]
    client_class = _client_class()
    with ExitStack() as stack:
        node = stack.enter_context(running(command, log))
        client = client_class(lambda: require_running(node, log))
        stack.callback(client.close)
        session = Session(client, workdir)
        try:
            session.wait_for_model(model, out)
            yield session
        except VStreamError:
            print_tail(log, out)
            raise


def stamps_ns(response: Any) -> list[int]:
    """The header stamps of the frames that a response rests on, in nanoseconds."""
    return [stamp.sec * NANOSECONDS + stamp.nanosec for stamp in response.frame_stamps]


def fields_of(message: Any) -> dict[str, Any]:
    """Return a ROS message's fields by name."""
    return {name: getattr(message, name) for name in message.get_fields_and_field_types()}


def print_tail(log: Path, out: Console) -> None:
    """Print the end of the node's log, where there is one."""
    if log.exists() and (lines := log.read_text(errors="replace").splitlines()[-20:]):
        out.print(f"The end of {literal(log)}:", highlight=False)
        out.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _client_class() -> type[DemoClient]:
    try:
        from vstream_ros.demo.client import DemoClient, use_private_domain
    except ImportError as error:
        raise NotReadyError(f"the demo needs ROS 2 and the built package ({error}): run make demo") from error
    use_private_domain()
    return DemoClient


def _code_name(response: Any) -> str:
    """Return the name of the response's ``error_code``."""
    names = (n for n in dir(response) if n.isupper() and getattr(response, n) == response.error_code)
    return next(names, f"error {response.error_code}")
