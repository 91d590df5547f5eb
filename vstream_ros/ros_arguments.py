"""What a command line or a launch file says to an executable, before any of ROS is imported."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vstream_ros.errors import ConfigError

NODE = "vstream"
"""The node's name, unless it is remapped."""
MAIN_FILE = "qa.yaml"


def split_arguments(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part our own arguments from those between ``--ros-args`` and ``--`` or the end, which are ROS's.

    rclpy's ``remove_ros_args`` would also take a ``FROM:=TO`` of ours, for the sake of a syntax of ROS 1.
    """
    own: list[str] = []
    ros: list[str] = []
    current = own
    for word in words:
        if word == "--ros-args":
            current = ros
        if current is own or word != "--":
            current.append(word)
        else:
            current = own
    return own, ros


def check_parameter_files(ros_arguments: Sequence[str]) -> None:
    """Check what ``--params-file`` names, because rcl takes a file that says nothing to the node without a word.

    Raises ``ConfigError`` with one line.
    """
    node = NODE
    for word in ros_arguments:
        if word.startswith(("__node:=", "__name:=")):
            node = word.partition(":=")[2]
    for flag, path in itertools.pairwise(ros_arguments):
        if flag == "--params-file":
            read_parameters(Path(path), node)


def parameter_files(params_file: str, preset: str, config: Path) -> list[Path]:
    """The files that a launch file's arguments name, in the order in which they apply; all of them are checked.

    Args:
        params_file: one path or several with commas between them.
        preset: a YAML file of ``config`` without its suffix, or empty.
        config: the installed folder config/.

    Raises:
        ConfigError: one of them doesn't exist, or says nothing to the node.
    """
    files = [Path(name.strip()).expanduser() for name in params_file.split(",") if name.strip()]
    if preset:
        known = sorted(path.stem for path in config.glob("*.yaml") if path.name != MAIN_FILE)
        if preset not in known:
            raise ConfigError(f"there is no preset {preset!r}; there are {', '.join(known)}")
        files.append(config / f"{preset}.yaml")
    for path in files:
        read_parameters(path)
    return files


def first_camera(files: Iterable[Path]) -> str:
    """The first name of the parameter `cameras` as the last file has it; the node's own default where none has."""
    first = "front"
    for path in files:
        cameras = read_parameters(path).get("cameras")
        if cameras:
            first = str(cameras[0])
    return first


def read_parameters(path: Path, node: str = NODE) -> dict[str, Any]:
    """What a parameter file says to the node, in whatever namespace. Raises ``ConfigError`` where that is nothing."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"the parameter file {path} can't be read: {reason}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"the parameter file {path} is no YAML: {' '.join(str(error).split())}") from error
    parameters: dict[str, Any] = {}
    found = False
    for name, section in _sections(tree):
        if name.rpartition("/")[2] in (node, "**", "*"):
            found = True
            parameters.update(section or {})
    if not found:
        raise ConfigError(
            f"the parameter file {path} says nothing to the node {node}: it needs a section `/**:` with "
            f"`ros__parameters:`, as config/{MAIN_FILE} has"
        )
    return parameters


def _sections(tree: Any) -> Iterator[tuple[str, Any]]:
    """Node names, and what stands under their ``ros__parameters``; namespaces may be nested."""
    for name, section in tree.items() if isinstance(tree, Mapping) else ():
        if isinstance(section, Mapping) and isinstance(section.get("ros__parameters", {}), Mapping | None):
            if "ros__parameters" in section:
                yield str(name), section["ros__parameters"]
            yield from _sections({k: v for k, v in section.items() if k != "ros__parameters"})
