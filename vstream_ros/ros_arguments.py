"""What a command line or a launch file says to an executable, before any of ROS is imported."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
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


def parameter_files(params_file: str) -> list[Path]:
    """The files of a launch file's argument, paths with commas between them, all of them checked.

    Raises ``ConfigError`` where one can't be read or says nothing to the node.
    """
    files = [Path(name.strip()).expanduser() for name in params_file.split(",") if name.strip()]
    for path in files:
        read_parameters(path)
    return files


def preset_parameters(preset: str, config: Path) -> dict[str, Any]:
    """What a preset sets: a YAML file of the installed folder ``config``, named without its suffix.

    Values instead of a file: its section is `/**:`, which to ROS never overrides a section named after the node. Empty
    for an empty name; raises ``ConfigError`` with those there are for an unknown one.
    """
    if not preset:
        return {}
    known = sorted(path.stem for path in config.glob("*.yaml") if path.name != MAIN_FILE)
    if preset not in known:
        raise ConfigError(f"there is no preset {preset!r}; there are {', '.join(known)}")
    return read_parameters(config / f"{preset}.yaml")


def first_camera(files: Sequence[Path]) -> str:
    """The first name of the parameter `cameras` as the files set it together; the node's default where none does."""
    cameras = [read_parameters(path, NODE, wildcards).get("cameras") for wildcards in (True, False) for path in files]
    return next((str(names[0]) for names in reversed(cameras) if names), "front")


def read_parameters(path: Path, node: str = NODE, wildcards: bool | None = None) -> dict[str, Any]:
    """What a parameter file says to the node, in whatever namespace.

    Args:
        path: of the file.
        node: the node's name.
        wildcards: only what stands in sections for all nodes, or only what stands in sections named after this one.

    Raises:
        ConfigError: it can't be read, is no YAML, or says nothing to the node.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"the parameter file {path} can't be read: {reason}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"the parameter file {path} is no YAML: {' '.join(str(error).split())}") from error
    sections = [(name.rpartition("/")[2], section) for name, section in _sections(tree)]
    mine = [(name != node, section or {}) for name, section in sections if name in (node, "**", "*")]
    if not mine:
        raise ConfigError(
            f"the parameter file {path} says nothing to the node {node}: it needs a section `/**:` with "
            f"`ros__parameters:`, as config/{MAIN_FILE} has"
        )
    parameters: dict[str, Any] = {}
    for is_wildcard, section in sorted(mine, key=lambda item: not item[0]):
        if wildcards in (None, is_wildcard):
            parameters.update(section)
    return parameters


def _sections(tree: Any) -> Iterator[tuple[str, Any]]:
    """Node names, and what stands under their ``ros__parameters``; namespaces may be nested."""
    for name, section in tree.items() if isinstance(tree, Mapping) else ():
        if isinstance(section, Mapping) and isinstance(section.get("ros__parameters", {}), Mapping | None):
            if "ros__parameters" in section:
                yield str(name), section["ros__parameters"]
            yield from _sections({k: v for k, v in section.items() if k != "ros__parameters"})
