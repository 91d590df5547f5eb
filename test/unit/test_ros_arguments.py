"""Parameter files and presets, as launch files and the executable take them. No ROS."""

from __future__ import annotations

from pathlib import Path

import pytest

from vstream_ros.errors import ConfigError
from vstream_ros.ros_arguments import (
    check_parameter_files,
    first_camera,
    parameter_files,
    preset_parameters,
    read_parameters,
)

CONFIG = Path(__file__).resolve().parents[2] / "config"


@pytest.fixture
def write(tmp_path):
    def write_file(name, text):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_file


def section(name, **parameters):
    lines = "".join(f"\n    {key}: {value}" for key, value in parameters.items())
    return f"{name}:\n  ros__parameters:{lines}\n"


def test_several_files_apply_in_their_order(write):
    a, b = write("a.yaml", section("/**", cameras="[one]")), write("b.yaml", section("/**", cameras="[two]"))
    files = parameter_files(f"{a}, {b}")
    assert files == [a, b]
    assert first_camera(files) == "two"
    assert first_camera([b, a]) == "one"
    assert parameter_files(str(a)) == [a]


def test_a_section_of_the_nodes_own_beats_one_for_all_as_in_ros(write):
    a, b = write("a.yaml", section("vstream", cameras="[one]")), write("b.yaml", section("/**", cameras="[two]"))
    assert first_camera([a, b]) == "one"
    both = write("c.yaml", section("vstream", cameras="[one]") + section("/**", cameras="[two]"))
    assert read_parameters(both)["cameras"] == ["one"]


def test_without_cameras_in_a_file_the_camera_is_the_nodes_default(write):
    assert first_camera([write("a.yaml", section("/**", device="cpu"))]) == "front"
    assert first_camera([]) == "front"


def test_every_shipped_file_can_be_given():
    presets = [path.stem for path in CONFIG.glob("*.yaml") if path.stem != "qa"]
    assert len(presets) >= 3
    assert parameter_files(str(CONFIG / "qa.yaml"))
    for preset in presets:
        assert preset_parameters(preset, CONFIG)
    assert preset_parameters("", CONFIG) == {}


def test_an_unknown_preset_lists_those_there_are():
    with pytest.raises(ConfigError, match="'lo_vram'; there are high_quality, long_video, low_latency, low_vram"):
        preset_parameters("lo_vram", CONFIG)
    with pytest.raises(ConfigError, match=r"'\.\./config/low_vram'"):
        preset_parameters("../config/low_vram", CONFIG)


@pytest.mark.parametrize(
    "text",
    [
        section("/**", a=1),
        section("vstream", a=1),
        section("/robot1/vstream", a=1),
        section("/*/vstream", a=1),
        f"robot1:\n  {section('vstream').replace(chr(10), chr(10) + '  ')}      a: 1\n",
        section("other", b=2) + section("vstream", a=1),
    ],
)
def test_sections_for_the_node_are_found(write, text):
    assert read_parameters(write("a.yaml", text)) == {"a": 1}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [b", "is no YAML"),
        ("", "says nothing to the node vstream"),
        ("just words", "says nothing to the node vstream"),
        ("[1, 2]", "says nothing to the node vstream"),
        ("vstream: {model: x}", "ros__parameters"),
        ("vstream:\n  ros__parameters: 5\n", "says nothing"),
        (section("other_node", a=1), "says nothing to the node vstream"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(write, text, says):
    path = write("a.yaml", text)
    with pytest.raises(ConfigError, match=says) as refused:
        parameter_files(str(path))
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"/nope.yaml can't be read: No such file"):
        parameter_files("/nope.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="it is no text"):
        parameter_files(str(tmp_path / "binary.yaml"))


def test_the_command_lines_files_are_checked_for_the_nodes_name(write):
    mine = write("a.yaml", section("mine", a=1))
    check_parameter_files(["--ros-args", "-r", "__node:=mine", "--params-file", str(mine)])
    with pytest.raises(ConfigError, match="the node vstream"):
        check_parameter_files(["--ros-args", "--params-file", str(mine)])
    check_parameter_files(["--ros-args", "-p", "a:=1"])
