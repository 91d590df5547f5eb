"""The launch files, run for real. Where launch isn't installed (it is no wheel) they are skipped, and named."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("launch_ros.actions", reason="launch and launch_ros come with a ROS 2 installation only")

import yaml
from ament_index_python.packages import get_package_share_directory
from rcl_interfaces.srv import GetParameters

from support.replay_media import TOPIC, image_bag, pictures
from support.ros_client import Planner, isolate_ros, wait_until, write_endless_checkpoint
from vstream_ros.msg import CacheStatus

CONFIG = Path(get_package_share_directory("vstream_ros")) / "config"
LAUNCH = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import AnyLaunchDescriptionSource
path, *arguments = sys.argv[1:]
service = LaunchService()
source = AnyLaunchDescriptionSource(path)
pairs = [tuple(a.split(":=", 1)) for a in arguments]
service.include_launch_description(LaunchDescription([IncludeLaunchDescription(source, launch_arguments=pairs)]))
sys.exit(service.run())
"""
"""What `ros2 launch` does, which is a package of its own."""
PARAMETERS = """
/**:
  ros__parameters:
    model: /no/such/model/in/the/file
    cameras: [left, right]
    left: {image_topic: /left/in_the_file}
    right: {image_topic: /right/in_the_file}
    star_memory_size: 12
"""


@contextmanager
def launched(file: str, **arguments: object) -> Iterator[subprocess.Popen]:
    isolate_ros()
    path = Path(get_package_share_directory("vstream_ros")) / "launch" / file
    words = [f"{name}:={value}" for name, value in arguments.items()]
    process = subprocess.Popen([sys.executable, "-c", LAUNCH, str(path), *words])
    try:
        yield process
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (0, -signal.SIGINT)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@contextmanager
def planner_of(node: str) -> Iterator[Planner]:
    planner = Planner(node)
    try:
        yield planner
    finally:
        planner.close()


def parameters(planner: Planner, *names: str) -> list[Any]:
    reply = planner.call(GetParameters, f"{planner.target}/get_parameters", GetParameters.Request(names=list(names)))
    return [
        value.string_value or value.string_array_value or value.integer_value or value.bool_value
        for value in reply.values
    ]


@pytest.fixture
def params_file(tmp_path: Path) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(PARAMETERS)
    return path


def test_arguments_override_the_file(params_file: Path) -> None:
    given = {"model": "/no/such/model", "image_topic": "/given/image", "namespace": "robot1", "log_level": "debug"}
    with launched("qa.launch.py", params_file=params_file, **given), planner_of("/robot1/vstream") as planner:
        names = ("model", "left.image_topic", "right.image_topic", "star_memory_size")
        assert parameters(planner, *names) == ["/no/such/model", "/given/image", "/right/in_the_file", 12]
        answer = planner.ask_when_ready()
        assert answer.error_code == answer.MODEL_FAILED
        assert "/no/such/model" in answer.message


def test_arguments_not_given_leave_the_file_alone(params_file: Path) -> None:
    with launched("qa.launch.py", params_file=params_file), planner_of("/vstream") as planner:
        names = ("model", "cameras", "left.image_topic", "star_memory_size")
        expected = ["/no/such/model/in/the/file", ["left", "right"], "/left/in_the_file", 12]
        assert parameters(planner, *names) == expected


def test_own_configuration_is_the_default() -> None:
    with launched("qa.launch.py", model="/no/such/model"), planner_of("/vstream") as planner:
        assert parameters(planner, "model", "cameras") == ["/no/such/model", ["front"]]


def test_several_files_and_a_preset_apply_in_their_order(params_file: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.yaml"
    second.write_text("vstream: {ros__parameters: {cameras: [rear], star_memory_size: 6, stream_slide: 3}}")
    given = {"params_file": f"{params_file},{second}", "preset": "low_vram", "image_topic": "/given/image"}
    with launched("qa.launch.py", **given), planner_of("/vstream") as planner:
        preset = yaml.safe_load((CONFIG / "low_vram.yaml").read_text())["/**"]["ros__parameters"]
        names = ("model", "cameras", "rear.image_topic", "stream_slide", "star_memory_size")
        expected = ["/no/such/model/in/the/file", ["rear"], "/given/image", 3, preset["star_memory_size"]]
        assert parameters(planner, *names) == expected


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"params_file": "/nope.yaml"}, "the parameter file /nope.yaml can't be read"),
        (
            {"preset": "lo_vram"},
            "there is no preset 'lo_vram'; there are high_quality, long_video, low_latency, low_vram",
        ),
    ],
)
def test_wrong_files_are_an_error(given: dict[str, str], says: str) -> None:
    isolate_ros()
    words = [f"{name}:={value}" for name, value in given.items()]
    command = [sys.executable, "-c", LAUNCH, str(CONFIG.parent / "launch" / "qa.launch.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert says in done.stdout + done.stderr


def test_replay_plays_the_bag_to_the_node(tmp_path: Path) -> None:
    bag = image_bag(tmp_path / "bag", pictures(24, 84, 112))  # 2.4 s, of which 2 Hz are kept
    arguments = {"bag": bag, "rate": 2.0, "clock": "true", "model": "/no/such/model", "image_topic": TOPIC}
    with planner_of("/vstream") as planner, launched("replay.launch.py", **arguments):
        heard = planner.hear(CacheStatus, "/vstream/cache_status")
        wait_until(lambda: heard and heard[-1].cameras[0].frames_kept >= 4, "the bag's frames are in the memory")
        assert parameters(planner, "use_sim_time") == [True]


def test_replay_waits_for_the_model_in_its_namespace(tmp_path: Path) -> None:
    model = write_endless_checkpoint(tmp_path / "model")
    bag = image_bag(tmp_path / "bag", pictures(24, 84, 112))
    arguments = {"bag": bag, "rate": 100.0, "model": model, "image_topic": TOPIC, "namespace": "robot1"}
    with planner_of("/robot1/vstream") as planner:
        heard = planner.hear(CacheStatus, "/robot1/vstream/cache_status")
        with launched("replay.launch.py", **arguments):
            wait_until(lambda: heard and heard[-1].cameras and heard[-1].cameras[0].frames_received == 24, "all of it")
            assert parameters(planner, "use_sim_time") == [False]
    early = [s for s in heard if s.model_state != CacheStatus.READY and s.cameras]
    assert all(s.cameras[0].frames_received == 0 for s in early)
