"""The installed executable against a hostile world, as real processes."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from ament_index_python.packages import get_package_prefix
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition

from support.ros_client import CAMERA_TOPIC, SECOND, START_NS, TIMEOUT_S, code_name, image, wait_for_result, wait_until
from vstream_ros.msg import CacheStatus

CAMERA = Path(__file__).with_name("camera_process.py")
EXIT_S = 5.0


def test_a_robots_day(launch, planner, status):
    """One process through it all: a camera that dies mid-stream, a flood of questions, malformed images, stamps that
    go back, a signal; after each the node answers. One test, because each start of the process loads torch."""
    node = launch(max_queued_questions=20, max_parallel_questions=1)
    status(lambda s: s.model_state == CacheStatus.READY, "the model is loaded")

    # A camera process is killed mid-stream.
    camera = subprocess.Popen([sys.executable, str(CAMERA), CAMERA_TOPIC, "30"])
    try:
        status(lambda s: s.cameras[0].frames_kept >= 4, "frames from the camera process")
    finally:
        camera.send_signal(signal.SIGKILL)
        camera.wait()
    answer = planner.ask()
    assert code_name(answer) == "NONE"
    assert answer.metrics.frames >= 2

    # 50 questions at once: each one is answered, or told BUSY.
    codes = Counter(code_name(r) for r in flood(planner, 50))
    assert set(codes) <= {"NONE", "BUSY"}
    assert codes.total() == 50
    assert codes["NONE"] > 0

    # Malformed images, between good ones.
    assert planner.trigger("clear_memory").success
    bad = [
        {"step": 1},
        {"step": 2**32 - 1},
        {"data": b"\x01" * 10},
        {"data": b""},
        {"encoding": "nonsense"},
        {"height": 0, "width": 0, "step": 0, "data": b""},
        {"height": 2**31, "width": 2**31},
    ]
    good = [image(1_000 + i) for i in range(4)]
    planner.publish(good[0], good[1], *(image(1_002 + i, **fields) for i, fields in enumerate(bad)))
    planner.publish(*(image(1_020 + i) for i in range(2)))
    rejected = status(lambda s: s.cameras[0].frames_rejected >= len(bad), "the bad images are counted")
    assert rejected.cameras[0].frames_rejected == len(bad)
    answer = planner.ask()
    assert code_name(answer) == "NONE"
    assert answer.metrics.frames == 4

    # Backward stamps, as in a video with B-frames in decoding order: dropped one by one, the memory stays.
    epoch = rejected.memory_epoch
    before = rejected.cameras[0]
    stamps = shuffled_stamps(200)
    planner.publish(*(image(i, stamp_ns=stamp) for i, stamp in enumerate(stamps)))
    after = status(lambda s: s.cameras[0].frames_received >= before.frames_received + len(stamps), "all of them arrive")
    assert after.memory_epoch == epoch
    assert after.cameras[0].frames_rejected > before.frames_rejected
    assert after.cameras[0].frames_kept > before.frames_kept
    assert code_name(planner.ask()) == "NONE"

    # SIGINT with a question in flight: the question gets its answer, the process ends well.
    running = planner.ask_later(max_new_tokens=20_000)
    waiting = planner.ask_later(max_new_tokens=20_000)
    status(lambda s: s.queued_questions > 0 or running.done(), "one question runs, the other waits")
    time.sleep(0.5)
    assert not running.done()
    node.process.send_signal(signal.SIGINT)
    node.process.send_signal(signal.SIGINT)  # as ros2 launch and the terminal together do
    assert node.process.wait(EXIT_S) == 0
    assert code_name(wait_for_result(running, "the last answer")) == "CANCELED"
    assert code_name(wait_for_result(waiting, "the waiting question's end")) == "CANCELED"
    assert "Traceback" not in node.log


def shuffled_stamps(count):
    """30 Hz, every fifth frame up to 0.2 s late: small steps back, none of them a jump."""
    rng = random.Random(5)
    start = START_NS + 1_000 * SECOND
    stamps = [start + i * SECOND // 30 for i in range(count)]
    return [s - rng.randrange(SECOND // 5) if i % 5 == 4 else s for i, s in enumerate(stamps)]


def flood(planner, count):
    futures = [planner.ask_later(f"Question {i}?") for i in range(count)]
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline and not all(f.done() for f in futures):
        time.sleep(0.05)
    assert sum(f.done() for f in futures) == count
    return [future.result() for future in futures]


def test_without_weights_the_node_stays_up_and_says_so(launch, planner, status, tmp_path):
    arrays = planner.hear(DiagnosticArray, "/diagnostics")
    node = launch(model=tmp_path / "no_such_model", local_files_only="true")
    status(lambda s: s.model_state == CacheStatus.FAILED, "the load fails")
    response = planner.ask()
    assert code_name(response) == "MODEL_FAILED"
    assert "no_such_model" in response.message
    reloaded = planner.trigger("reload_model")
    assert not reloaded.success
    assert "no_such_model" in reloaded.message
    entry = wait_until(
        lambda: next((s for s in (arrays[-1].status if arrays else ()) if s.name == "vstream: model"), None), "an entry"
    )
    assert entry.level == b"\x02"
    # A transition that is impossible now: some versions of rclpy raise in their own service, and the log says so.
    planner.transition_later(Transition.TRANSITION_CONFIGURE)
    assert planner.state() == "active"
    assert code_name(planner.ask()) == "MODEL_FAILED"
    assert node.stop(signal.SIGTERM, EXIT_S) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_start_is_a_clean_exit(launch, number):
    node = launch()
    time.sleep(1.0)  # inside the imports
    assert node.stop(number, EXIT_S) == 0
    assert "Traceback" not in node.log


def test_a_bad_start_value_is_one_line_and_exit_1(launch):
    node = launch(star_memory_size=7)
    assert node.process.wait(TIMEOUT_S) == 1
    assert node.log == "qa_node: star_memory_size must be an even number of frames >= 2, got 7\n"


def call(*words):
    """The executable with these arguments, which must end by itself. Its output, stdout before stderr."""
    executable = Path(get_package_prefix("vstream_ros")) / "lib" / "vstream_ros" / "qa_node"
    done = subprocess.run([str(executable), *map(str, words)], capture_output=True, text=True, timeout=TIMEOUT_S)
    return done.returncode, done.stdout, done.stderr


def test_help_says_what_it_is_and_starts_nothing():
    code, out, err = call("--help")
    assert (code, err) == (0, "")
    assert "--params-file" in out
    path = next(word for word in out.split() if word.endswith("qa.yaml"))
    assert "ros__parameters" in Path(path).read_text()


@pytest.mark.parametrize("word", ["--frobnicate", "model:=/models/mine", "extra"])
def test_an_unknown_argument_is_one_line_and_exit_2(word):
    assert call(word, "--ros-args", "-p", "device:=cpu") == (
        2, "", f"qa_node: unknown argument {word}; parameters follow --ros-args, see qa_node --help\n"
    )


def test_a_parameter_file_that_says_nothing_is_one_line_and_exit_1(tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("other_node:\n  ros__parameters:\n    model: x\n")
    for path, says in (("/nope.yaml", "No such file"), (other, "says nothing to the node vstream")):
        code, out, err = call("--ros-args", "--params-file", path)
        assert (code, out) == (1, "")
        assert err.count("\n") == 1
        assert err.startswith(f"qa_node: the parameter file {path}")
        assert says in err


def test_an_unknown_ros_argument_is_named():
    code, _, err = call("--ros-args", "--nonsense")
    assert code == 1
    assert "unknown ROS arguments ['--nonsense']" in err
