"""The command line: exit codes, one line for a failure, and no heavy import before it is needed."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from support.replay_media import image_bag, pictures, write_video
from vstream_ros import __version__
from vstream_ros.cli import main, parse_seconds, parse_size
from vstream_ros.errors import InvalidRequestError
from vstream_ros.memory.clip import NANOSECONDS
from vstream_ros.replay.sources import open_source


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"vstream {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["dance"], "dance"),
        (["ask", "video.mp4"], "QUESTION"),
        (["ask", "video.mp4", "What?", "--sample-rate", "fast"], "fast"),
        (["record", "video.mp4"], "bag"),
        (["record", "a", "b", "--storage", "zip"], "zip"),
        (["record", "a", "b", "--size", "640"], "WIDTHxHEIGHT"),
        (["record", "a", "b", "--start-stamp", "yesterday"], "yesterday"),
        (["demo", "--nothing"], "--nothing"),
    ],
)
def test_wrong_usage_is_exit_2_and_names_the_fault(capsys, arguments, words):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask", "nothing.mp4", "What?"],
        ["record", "nothing.mp4", "bag"],
        ["record", "video.mkv", "bag", "--quality", "0"],
        ["record", "video.mkv", "bag", "--rate", "-1"],
        ["ask", "video.mkv", "What?", "--sample-rate", "-1"],
        ["ask", "video.mkv", "What?", "--star-memory-size", "3"],
        ["ask", "video.mkv", "What?", "--topic", "/front"],
        ["ask", "video.mkv", "What?", "--json-schema", "{"],
        ["ask", "video.mkv", "What?", "--json-schema", '{"$ref": "#"}'],
        ["ask", "video.mkv", "What?", "--json-schema", "nothing.json"],
        ["ask", "video.mkv", "What?", "--json-schema", "/dev/zero"],
        ["ask", "video.mkv", "What?", "--json-schema", "video.mkv"],
        ["demo", "--video", "nothing.mp4"],
        ["compare", "video.mkv", "--frames", "1"],
        ["compare", "video.mkv", "--window", "-5"],
        ["compare", "video.mkv", "--max-new-tokens", "0"],
    ],
)
def test_a_failure_is_exit_1_and_one_line(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AMENT_PREFIX_PATH", "")
    write_video(tmp_path / "video.mkv", pictures(2), [0, 100])
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("vstream: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_debug_shows_where_it_failed():
    with pytest.raises(InvalidRequestError, match="does not exist"):
        main(["ask", "nothing.mp4", "What?", "--debug"])


def test_an_interrupt_is_no_stack_trace(monkeypatch, capsys, tmp_path):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vstream_ros.replay.sources.open_source", interrupted)
    assert main(["ask", str(tmp_path), "What?"]) == 1
    assert capsys.readouterr().err == "vstream: interrupted\n"


def test_record_passes_every_option_on(tmp_path, capsys):
    video = write_video(tmp_path / "v.mkv", pictures(4), [0, 100, 200, 300])
    bag = tmp_path / "bag"
    arguments = [
        "record", str(video), str(bag), "--storage", "mcap", "--topic", "/front", "--encoding", "mono8",
        "--rate", "5", "--size", "16x12", "--start-stamp", "1700000000.000000007", "--frame-id", "lens",
    ]  # fmt: skip
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith(f"{bag}: 2 frames on /front, 0.20 s, ")
    assert list(bag.glob("*.mcap"))
    with open_source(bag) as source:
        first, second = source
    message = first.message
    assert (message.encoding, message.width, message.height) == ("mono8", 16, 12)
    assert message.header.frame_id == "lens"
    assert first.stamp_ns == 1_700_000_000 * NANOSECONDS + 7
    assert second.stamp_ns - first.stamp_ns == NANOSECONDS // 5

    assert main(arguments) == 1
    assert "--force" in capsys.readouterr().err
    assert main([*arguments, "--force", "--compressed", "--quality", "20"]) == 0
    with open_source(bag) as source:
        assert "jpeg" in next(iter(source)).message.format


@pytest.mark.parametrize("name", ["[red].mkv", "caf\udce9.mkv", "[red]\x1b[2J.mkv"])
def test_a_name_is_a_name_and_no_markup(tmp_path, monkeypatch, capsys, name):
    """On a terminal the progress bar shows it."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    video = write_video(tmp_path / "v.mkv", pictures(2), [0, 100]).rename(tmp_path / name)
    assert main(["record", str(video), str(tmp_path / f"bag of {name}")]) == 0
    shown = capsys.readouterr()
    assert "\x1b[2J" not in shown.err + shown.out
    assert "bag of " in shown.out


def test_a_bag_is_no_video_to_record(tmp_path, capsys):
    bag = image_bag(tmp_path / "bag", pictures(1))
    assert main(["record", str(bag), str(tmp_path / "other")]) == 1
    assert "is a bag already" in capsys.readouterr().err


def test_stamps_are_exact_and_now_is_now(monkeypatch):
    assert parse_seconds("1700000000.123456789") == 1_700_000_000_123_456_789
    monkeypatch.setattr("time.time_ns", lambda: 42)
    assert parse_seconds("now") == 42
    for text in ("inf", "nan", "1e99x", ""):
        with pytest.raises(argparse.ArgumentTypeError):
            parse_seconds(text)


def test_size_is_width_by_height():
    assert parse_size("640x480") == (640, 480)
    for text in ("640", "640x", "-1x5", "axb"):
        with pytest.raises(argparse.ArgumentTypeError):
            parse_size(text)


def test_help_comes_without_torch_ros_or_bags():
    code = (
        "import sys\nfrom vstream_ros.cli import build_parser\nbuild_parser().format_help()\n"
        "sys.exit(','.join({'torch', 'transformers', 'rclpy', 'rosbags', 'av'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
