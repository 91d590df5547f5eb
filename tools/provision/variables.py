"""The variables that every command of the environment gets."""

import os
from pathlib import Path

from provision.layout import MARK, PYTHON_VERSION, Layout

GUARD = "_ROS_WHEELS_BOOTSTRAP_COMPLETE"
"""A .pth file of the wheels starts the interpreter a second time to set LD_LIBRARY_PATH, unless this is set; we set
both. A child process inherits them: one that runs another venv's Python with ROS 2 wheels of its own must drop both
first, or it loads this environment's libraries."""
FOREIGN = ("AMENT_PREFIX_PATH", "CMAKE_PREFIX_PATH", "COLCON_PREFIX_PATH", "PYTHONPATH", "PYTHONHOME", "ROS_DISTRO")
"""A surrounding shell's, that would lead CMake or Python to another ROS 2."""
MAKE = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")
"""Ours, that would reach the make that CMake calls."""


def environment(layout: Layout) -> dict[str, str]:
    """The variables that sourcing would set, and those that keep a run to itself."""
    variables = {k: v for k, v in os.environ.items() if k not in (*MAKE, MARK)}
    libraries = [layout.install / "lib"]
    prefixes = [layout.install]
    if not layout.sourced:
        variables = {k: v for k, v in variables.items() if k not in FOREIGN}
        variables |= {"ROS_DISTRO": layout.distro, GUARD: "1"}
        prefixes.append(layout.env)
        wheels = layout.env / "lib" / f"python{PYTHON_VERSION}" / "site-packages"
        libraries += [layout.env / "lib", *sorted(wheels.glob("ros_*.libs"))]
    # Some versions of ament install into dist-packages under local/ with Debian's Python.
    folders = ("lib/python3*/*-packages", "local/lib/python3*/*-packages")
    prepend(variables, "AMENT_PREFIX_PATH", prefixes)
    prepend(variables, "CMAKE_PREFIX_PATH", prefixes)
    prepend(variables, "PYTHONPATH", [p for folder in folders for p in layout.install.glob(folder)])
    prepend(variables, "LD_LIBRARY_PATH", libraries)
    prepend(variables, "PATH", [layout.install / "bin", layout.env / "bin"])
    variables |= {"VIRTUAL_ENV": str(layout.env), MARK: layout.base.name}
    # Never the robot's own: a test must not talk to what is running there. Up to 101 is safe on Linux.
    variables["ROS_DOMAIN_ID"] = os.environ.get("VSTREAM_DOMAIN_ID") or str(1 + os.getpid() % 101)
    variables.pop("ROS_LOCALHOST_ONLY", None)  # where both are understood it wins, with a warning
    local = {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    variables |= {"ROS_LOCALHOST_ONLY": "1"} if layout.distro == "humble" else local
    variables.setdefault("ROS_LOG_DIR", str(layout.base / "log" / "ros"))
    return variables


def prepend(variables: dict[str, str], name: str, paths: list[Path]) -> None:
    """Put paths before those that a variable names already, each once."""
    ours = [str(p) for p in paths]
    rest = [p for p in variables.get(name, "").split(os.pathsep) if p and p not in ours]
    variables[name] = os.pathsep.join([*ours, *rest])
