"""The command ``vstream``: ask about a recording, see what memory keeps of it, make a bag of a video, run the demo.

Exit codes: 0 success, 1 failure (one line on stderr says why), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from vstream_ros import DEFAULT_MODEL, __version__
from vstream_ros.errors import ConfigError, VStreamError
from vstream_ros.memory.clip import NANOSECONDS
from vstream_ros.memory.memory_config import MemoryConfig
from vstream_ros.replay.terminal import literal, one_line, printable

if TYPE_CHECKING:
    from vstream_ros.engine import DelayedBatchInferenceEngine
    from vstream_ros.replay.ask import Fed
    from vstream_ros.replay.frames import Source

ASK_TIMEOUT_S = 3600.0
"""Offline nobody waits for the answer by the clock of a robot, and a CPU takes minutes for a clip."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; ``argv`` without the program's name. Returns the exit code."""
    args = build_parser().parse_args(argv)
    notes = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        return args.run(args, Console(highlight=False), notes)
    except VStreamError as error:
        if args.debug:
            raise
        notes.print(f"vstream: {one_line(error)}", style="red", markup=False)
    except KeyboardInterrupt:
        if args.debug:
            raise
        notes.print("vstream: interrupted")
    return 1


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(prog="vstream", description=__doc__.split("\n")[0])
    parser.add_argument("--version", action="version", version=f"vstream {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, add, run, text in (
        ("ask", _add_ask, _ask, "answer questions about a video or a bag, without ROS"),
        ("memory", _add_memory, _memory, "draw what memory keeps of a video or a bag, without ROS and without a model"),
        ("compare", _add_compare, _compare, "compare ways to answer over the same frames, native inference first"),
        ("record", _add_record, _record, "make a ROS 2 bag of a video"),
        ("demo", _add_demo, _demo, "run the node on a recording and ask it through its service"),
    ):
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        add(command)
        command.add_argument("--debug", action="store_true", help="show the stack trace of a failure")
        command.set_defaults(run=run)
    return parser


def _add_ask(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("recording", type=Path, metavar="VIDEO_OR_BAG", help="video, rosbag2 folder, .mcap, .db3, or a folder with one")
    add("questions", nargs="+", metavar="QUESTION", help="asked in this order")
    add("--model", default=DEFAULT_MODEL, help="hub id or checkpoint folder (default %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default auto)")
    add("--local-files-only", action="store_true", help="never ask the model hub")
    _add_memory_options(parser)
    add(
        "--start-time", type=parse_seconds, metavar="SECONDS", default="0",
        help="ask about frames from this header stamp on; a video's count from its start (default: all)",
    )
    add("--end-time", type=parse_seconds, metavar="SECONDS", default="0", help="and up to this one (default: all)")
    add(
        "--choice", action="append", default=[], metavar="TEXT",
        help="answer each question with one of these, the most probable; repeatable",
    )
    add("--max-new-tokens", type=int, metavar="N", help="length of an answer at most (default: the engine's)")
    add("--json-schema", metavar="FILE_OR_TEXT", default="", help="answer with JSON that is valid under this schema")
    add(
        "--timeout", type=float, default=ASK_TIMEOUT_S, metavar="SECONDS",
        help="for each question (default %(default)s)",
    )
    add("--json", action="store_true", help="print one JSON document instead of tables")
    add("--memory-sheet", type=Path, metavar="FILE", help="also draw what memory holds in the end: a .png or .jpg")


def _add_memory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recording", type=Path, metavar="VIDEO_OR_BAG", help="as for ask")
    parser.add_argument("sheet", type=Path, metavar="FILE", help="the picture to write, a .png or .jpg")
    _add_memory_options(parser)


def _add_memory_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--topic", action="append", metavar="TOPIC", help="image topic of a bag, repeatable (default: all)")
    add("--sample-rate", type=float, default=2.0, metavar="HZ", help="frames per second to keep (default %(default)s)")
    add(
        "--star-memory-size", type=int, default=MemoryConfig.star_memory_size, metavar="FRAMES",
        help="long-term key frames (default %(default)s)",
    )
    add(
        "--stream-window-size", type=int, default=MemoryConfig.stream_window_size, metavar="FRAMES",
        help="most recent frames (default %(default)s)",
    )


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recording", type=Path, metavar="VIDEO_OR_BAG", help="its first image topic is used")
    parser.add_argument("question", nargs="?", default="Describe what is happening in this video.")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="hub id or checkpoint folder")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    parser.add_argument("--local-files-only", action="store_true", help="never ask the model hub")
    parser.add_argument("--frames", type=int, default=40, help="frames to compare over, from the start")
    parser.add_argument("--sample-rate", type=float, default=2.0, metavar="HZ", help="frames per second to take")
    parser.add_argument("--window", type=int, default=20, metavar="FRAMES", help="that the replaced cache holds")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="length of an answer at most")
    parser.add_argument("--out", type=Path, default=Path("compare"), metavar="FOLDER", help="for the page and the JSON")


def _add_record(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("video", type=Path)
    add("bag", type=Path, help="the rosbag2 folder to make")
    add("--storage", choices=("sqlite3", "mcap"), default="sqlite3", help="(default sqlite3)")
    add("--topic", default="", help="(default /camera/image_raw, with --compressed /camera/image_raw/compressed)")
    add("--encoding", choices=("bgr8", "rgb8", "mono8"), default="bgr8", help="(default bgr8)")
    add("--compressed", action="store_true", help="write CompressedImage (JPEG) instead of Image")
    add("--quality", type=int, default=90, help="of the JPEGs, 1 to 100 (default 90)")
    add("--rate", type=float, metavar="HZ", help="frames per second to keep (default: all)")
    add("--size", type=parse_size, metavar="WIDTHxHEIGHT", help="(default: the video's)")
    add(
        "--start-stamp", type=parse_seconds, metavar="SECONDS", default="1704067200",
        help="header stamp of the video's start, or 'now' (default 1704067200, 2024-01-01)",
    )
    add("--frame-id", default="camera", help="(default camera)")
    add("--force", action="store_true", help="replace a bag that exists")


def _add_demo(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--video", type=Path, help="(default: a recorded scene of coloured shapes; with --model, a street scene)")
    add("--model", help="hub id or checkpoint folder (default: vstream-tiny; with --video, random weights)")
    add("--question", help="the first of two about a video, an additional one about the shapes")
    add("--workdir", type=Path, default=Path("build/demo"), help="for bag, log and downloads (default build/demo)")


def _ask(args: argparse.Namespace, out: Console, notes: Console) -> int:
    from vstream_ros.models.json_schema import check_schema
    from vstream_ros.replay.ask import answer_questions, camera_names, read_schema
    from vstream_ros.replay.sheet import check_picture_name, write_sheet
    from vstream_ros.replay.sources import open_source
    from vstream_ros.replay.terminal import metrics_table, print_reply

    memory = _memory_config(args)
    if args.memory_sheet is not None:
        check_picture_name(args.memory_sheet)
    schema = read_schema(args.json_schema)
    if schema:
        check_schema(schema)
    with open_source(args.recording, args.topic) as source:
        # After what can fail at once: torch takes seconds to import.
        from vstream_ros.engine import DelayedBatchInferenceEngine, EngineConfig

        config = EngineConfig(device=args.device, local_files_only=args.local_files_only, timeout_s=args.timeout)
        if args.max_new_tokens is not None:
            config = dataclasses.replace(config, max_new_tokens=args.max_new_tokens)
        cameras = camera_names(source.topics)
        memories = dict.fromkeys(cameras.values(), memory)
        with DelayedBatchInferenceEngine(args.model, config=config, memory=memories) as engine:
            with notes.status(f"loading {literal(args.model)}"):
                engine.load().result()
            fed = _fed(engine, source, cameras, notes)
            if args.memory_sheet is not None:
                write_sheet(engine.snapshots(), args.memory_sheet)
            replies = []
            asked = answer_questions(
                engine, args.questions, start_ns=args.start_time, end_ns=args.end_time, choices=args.choice,
                json_schema=schema,
            )
            for number, reply in enumerate(asked, start=1):
                replies.append(reply)
                print_reply(notes if args.json else out, number, reply)
    if args.json:
        document = {
            "recording": str(source.path), "model": args.model, "frames": dataclasses.asdict(fed),
            "start_time_ns": args.start_time or None, "end_time_ns": args.end_time or None,
            "answers": [reply.as_dict() for reply in replies],
        }
        out.print_json(json.dumps(document))
    elif metrics := [reply.metrics for reply in replies if not reply.error_code]:
        out.print(metrics_table(metrics))
    return int(any(reply.error_code for reply in replies))


def _memory(args: argparse.Namespace, out: Console, notes: Console) -> int:
    from vstream_ros.replay.ask import camera_names
    from vstream_ros.replay.sheet import check_picture_name, write_sheet
    from vstream_ros.replay.sources import open_source

    memory = _memory_config(args)
    check_picture_name(args.sheet)
    with open_source(args.recording, args.topic) as source:
        from vstream_ros.engine import DelayedBatchInferenceEngine

        cameras = camera_names(source.topics)
        with DelayedBatchInferenceEngine(memory=dict.fromkeys(cameras.values(), memory)) as engine:
            fed = _fed(engine, source, cameras, notes)
            write_sheet(engine.snapshots(), args.sheet)
    shown = printable(str(args.sheet))
    out.print(f"{fed.read} frames were read; {shown} shows what memory holds", markup=False, soft_wrap=True)
    return 0


def _memory_config(args: argparse.Namespace) -> MemoryConfig:
    return MemoryConfig(
        star_memory_size=args.star_memory_size, stream_window_size=args.stream_window_size,
        sample_rate_hz=args.sample_rate,
    )


def _fed(engine: DelayedBatchInferenceEngine, source: Source, cameras: Mapping[str, str], notes: Console) -> Fed:
    """Feed a recording to the engine with a progress bar, and say what of it was damaged."""
    from vstream_ros.replay.ask import feed
    from vstream_ros.replay.terminal import frame_progress

    with frame_progress(notes) as progress:
        task = progress.add_task("reading frames", total=None)
        fed = feed(
            engine, source, cameras,
            lambda read, total: progress.update(task, completed=read, total=max(read, total)),
        )
    if fed.damaged:
        fault = printable(fed.last_fault)
        notes.print(f"{fed.damaged} damaged frames left out: {fault}", style="yellow", markup=False)
    return fed


def _compare(args: argparse.Namespace, out: Console, notes: Console) -> int:
    for option, least in (("frames", 2), ("window", 2), ("max_new_tokens", 1)):
        if getattr(args, option) < least:
            name = option.replace("_", "-")
            raise ConfigError(f"--{name} must be at least {least}, got {getattr(args, option)}")
    from vstream_ros.replay.sources import open_source

    with open_source(args.recording) as source:
        from vstream_ros.compare.comparison import terminal_table, write_json, write_page
        from vstream_ros.compare.measure import compare
        from vstream_ros.engine import EngineConfig
        from vstream_ros.models.loader import load_model

        config = EngineConfig(device=args.device, local_files_only=args.local_files_only)
        with notes.status(f"loading {literal(args.model)}") as status:
            model = load_model(
                args.model,
                device=config.device,
                local_files_only=config.local_files_only,
                min_pixels=config.min_pixels,
                max_pixels=config.max_pixels,
            )
            comparison = compare(
                model,
                source,
                args.question,
                frames=args.frames,
                sample_rate_hz=args.sample_rate,
                max_new_tokens=args.max_new_tokens,
                window=args.window // 2,
                on_step=status.update,
            )
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(comparison, args.out / "compare.json")
    write_page(comparison, args.out / "compare.html")
    out.print(terminal_table(comparison))
    for note in comparison.notes:
        notes.print(note, style="yellow", markup=False)
    for result in comparison.results:
        out.print(f"{result.method}: {printable(result.answer) or '(empty)'}", markup=False, soft_wrap=True)
    out.print(f"written to {printable(str(args.out / 'compare.html'))} and compare.json beside it", markup=False)
    return 0


def _record(args: argparse.Namespace, out: Console, notes: Console) -> int:
    from vstream_ros.replay.record import RecordOptions, record
    from vstream_ros.replay.terminal import frame_progress, mebibytes

    options = RecordOptions(
        topic=args.topic, storage=args.storage, compressed=args.compressed, quality=args.quality,
        encoding=args.encoding, rate_hz=args.rate, size=args.size, start_ns=args.start_stamp, frame_id=args.frame_id,
    )
    with frame_progress(notes) as progress:
        task = progress.add_task(f"recording {literal(args.video.name)}", total=None)
        summary = record(
            args.video, args.bag, options, force=args.force,
            on_progress=lambda read, total: progress.update(task, completed=read, total=max(read, total)),
        )
    size = sum(file.stat().st_size for file in args.bag.iterdir())
    damaged = f", {summary.skipped} damaged ones left out" if summary.skipped else ""
    length_s = (summary.last_stamp_ns - summary.first_stamp_ns) / NANOSECONDS
    out.print(
        f"{printable(str(args.bag))}: {summary.frames} frames{damaged} on {options.topic_name}, {length_s:.2f} s, "
        f"{mebibytes(size)}",
        markup=False, soft_wrap=True,
    )
    return 0


def _demo(args: argparse.Namespace, out: Console, notes: Console) -> int:
    from vstream_ros.demo.run_demo import run_demo

    return run_demo(args.workdir, args.video, args.model, args.question, out)


def parse_size(text: str) -> tuple[int, int]:
    """Read "WIDTHxHEIGHT" into (width, height). Raises ``argparse.ArgumentTypeError``."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT such as 640x480, got {text!r}")
    return int(width), int(height)


def parse_seconds(text: str) -> int:
    """Read seconds with up to nine decimals, or "now", into nanoseconds. Raises ``argparse.ArgumentTypeError``."""
    if text == "now":
        return time.time_ns()
    try:
        # Not through a float: it holds today's nanoseconds to about 200 only.
        return int(Decimal(text) * NANOSECONDS)
    except (InvalidOperation, OverflowError, ValueError):
        raise argparse.ArgumentTypeError(f"expected seconds such as 1704067200.5, or 'now', got {text!r}") from None


if __name__ == "__main__":
    sys.exit(main())
