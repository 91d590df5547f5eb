"""Which ROS 2 a clone is set up for, and where its files lie."""

import importlib.util
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from provision.stamps import read

ROOT = Path(__file__).resolve().parents[2]
PYTHON_VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
DEFAULT_DISTRO = "kilted"
MARK = "VSTREAM_ENVIRONMENT"
"""Set for every command, so that make inside make doesn't take our own wheels for a sourced ROS 2."""


class SetupError(Exception):
    """Something that the user has to change; the message is one line that says what."""


@dataclass(frozen=True)
class Layout:
    """Which ROS 2, and where things are."""

    distro: str
    sourced: bool

    @property
    def base(self) -> Path:
        kind = "system-" if self.sourced else ""
        return ROOT / "build" / f"{self.distro}-{kind}py{PYTHON_VERSION.replace('.', '')}"

    @property
    def env(self) -> Path:
        return self.base / "env"

    @property
    def python(self) -> Path:
        return self.env / "bin" / "python"

    @property
    def install(self) -> Path:
        return self.base / "install"

    def requirements(self) -> list[Path]:
        """A sourced ROS 2 brings what rosdep installs."""
        names = ["requirements.txt", "requirements-dev.txt"]
        if not self.sourced:
            names = [f"requirements-ros-{self.distro}.txt", "requirements-base.txt", *names]
        return [ROOT / name for name in names]


def choose(asked: str | None) -> Layout:
    """The sourced ROS 2 if there is one, else the wheels of ``asked`` (default: kilted).

    Raises ``SetupError`` where another one is sourced, or where there are no wheels of it.
    """
    prefixes = [Path(p) for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    if prefixes and MARK not in os.environ and importlib.util.find_spec("rclpy"):
        distro = sourced_distro(prefixes)
        if asked and asked != distro:
            raise SetupError(f"ROS 2 {distro} is sourced here: for ROS_DISTRO={asked}, use a shell that sources none.")
        return Layout(distro, sourced=True)
    layout = Layout(asked or DEFAULT_DISTRO, sourced=False)
    if not layout.requirements()[0].exists():
        known = " and ".join(sorted(p.stem.rpartition("-")[2] for p in ROOT.glob("requirements-ros-*.txt")))
        raise SetupError(f"ROS 2 {asked} isn't sourced, and there are wheels of {known} only: source it, or take one.")
    return layout


def sourced_distro(prefixes: list[Path]) -> str:
    """Read from the installation: make overwrites the variable ROS_DISTRO when it is given on its command line."""
    for prefix in prefixes:
        hook = prefix / "share" / "ros_environment" / "environment" / "1.ros_distro.sh"
        match = re.search(r"ROS_DISTRO=(\w+)", read(hook) or "")
        if match:
            return match[1]
    return os.environ.get("ROS_DISTRO", "ros2")
