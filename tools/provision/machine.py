"""What the machine must have, asked before the work that needs it begins."""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from provision.layout import PYTHON_VERSION, ROOT, Layout, SetupError

FREE_GIGABYTES = 12
"""The environment takes 6.3, and pip as much again for what it unpacks and keeps."""


def check_machine(layout: Layout) -> None:
    """Ask now for what pip or the build would only miss minutes later. Raises ``SetupError``."""
    if layout.sourced:
        check_sourced(layout)
    else:
        check_wheels()
    for variable, names in (("CXX", ("c++", "g++", "clang++")), ("CC", ("cc", "gcc", "clang"))):
        wanted = os.environ.get(variable, "").split()[:1] or names
        if not any(map(shutil.which, wanted)):
            raise SetupError(f"No compiler ({' or '.join(wanted)}) found: install one ({apt('build-essential')}).")
    for name in ("make", "cmake") if layout.sourced else ("make",):
        if not shutil.which(name):
            raise SetupError(f"No {name} found: install it ({apt(name)}).")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        dev = apt(f"python{PYTHON_VERSION}-dev")
        raise SetupError(f"The headers of {sys.executable} (Python.h) are missing: install them ({dev}).")
    if not (importlib.util.find_spec("ensurepip") and importlib.util.find_spec("venv")):
        venv = apt(f"python{PYTHON_VERSION}-venv")
        raise SetupError(f"{sys.executable} can't create a virtual environment: install what it lacks ({venv}).")
    free = shutil.disk_usage(ROOT).free / 1e9
    if not layout.env.exists() and free < FREE_GIGABYTES:
        raise SetupError(f"Installing needs {FREE_GIGABYTES} GB of disk at {ROOT}, {free:.0f} are free: make room.")


def check_sourced(layout: Layout) -> None:
    """That this Python is the sourced ROS 2's."""
    if subprocess.run([sys.executable, "-c", "import rclpy"], capture_output=True, check=False).returncode:
        raise SetupError(
            f"ROS 2 {layout.distro} is sourced, but {sys.executable} can't import its rclpy: run make again with the "
            "Python that it was built for, mostly PYTHON=/usr/bin/python3."
        )


def check_wheels() -> None:
    """That the wheels of ROS 2 run here."""
    name, version = platform.libc_ver()
    new_enough = name == "glibc" and [int(n) for n in version.split(".")[:2]] >= [2, 28]
    if sys.platform != "linux" or platform.machine() != "x86_64" or not new_enough:
        raise SetupError(
            f"ROS 2 wheels exist for x86-64 Linux with glibc 2.28 or later only, this is {platform.machine()} "
            f"{sys.platform} with {name or 'another libc'} {version}: install ROS 2, source it and run make again."
        )


def apt(package: str) -> str:
    """How the package is installed where there is apt."""
    return f"Debian, Ubuntu: apt install {package}"
