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

from ament_index_python.packages import get_package_share_directory
from rcl_interfaces.srv import GetParameters

from support.replay_media import TOPIC, image_bag, pictures
from support.ros_client import Planner, isolate_ros, wait_until
from vstream_ros.msg import CacheStatus

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
    return [value.string_value or value.string_array_value or value.integer_value for value in reply.values]


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


def test_replay_plays_the_bag_to_the_node(tmp_path: Path) -> None:
    bag = image_bag(tmp_path / "bag", pictures(24, 84, 112))  # 2.4 s, of which 2 Hz are kept
    arguments = {"bag": bag, "rate": 2.0, "clock": "true", "model": "/no/such/model", "image_topic": TOPIC}
    with planner_of("/vstream") as planner, launched("replay.launch.py", **arguments):
        heard = planner.hear(CacheStatus, "/vstream/cache_status")
        wait_until(lambda: heard and heard[-1].cameras[0].frames_kept >= 4, "the bag's frames are in the memory")
