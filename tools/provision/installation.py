"""The Python environment: ROS 2 as wheels with what the package needs, or what a sourced ROS 2 lacks."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from provision.layout import ROOT, Layout
from provision.machine import check_machine
from provision.stages import run
from provision.stamps import STAMP, digest, read
from provision.variables import environment


def ensure_env(layout: Layout) -> str:
    """Create the environment, or bring it up to date. Returns what it was made from."""
    wanted = f"{sys.base_prefix} {made_of(layout)}"
    stamp = layout.env / STAMP
    found = read(stamp) or ""
    usable = layout.python.exists() and found.startswith(f"{sys.base_prefix} ")
    if usable and found == wanted:
        return wanted
    check_machine(layout)
    if not usable:
        shutil.rmtree(layout.env, ignore_errors=True)
        layout.base.mkdir(parents=True, exist_ok=True)
        (ROOT / "build" / "COLCON_IGNORE").touch()
        options = ["--system-site-packages"] if layout.sourced else []
        command = [sys.executable, "-m", "venv", *options, str(layout.env)]
        run(layout, "venv", f"creating {layout.env.relative_to(ROOT)}", command)
    command = [str(layout.python), "-m", "pip", "install", "--no-input", "--progress-bar=off"]
    for path in layout.requirements():
        command += ["-r", str(path)]
    if layout.sourced:
        command += ["-c", str(constraints(layout))]
        command += [] if shutil.which("colcon") else ["colcon-common-extensions"]
    what = "on top of the sourced ROS 2" if layout.sourced else f"and ROS 2 {layout.distro}"
    run(layout, "pip", f"installing torch, transformers {what}: about 3 GB to download, once", command)
    if not layout.sourced:
        name_our_headers(layout)
    stamp.write_text(wanted)
    return wanted


def made_of(layout: Layout) -> str:
    """Digest of what decides what is installed: requirements without their comments, Python, ROS 2."""
    lines = [line.partition("#")[0].strip() for path in layout.requirements() for line in path.read_text().splitlines()]
    return digest([], [sys.version, layout.base.name, *filter(None, lines)])


def constraints(layout: Layout) -> Path:
    """Keep the numpy that the sourced ROS 2 was compiled with: its cv_bridge doesn't load with another one."""
    code = "import numpy; print('numpy==' + numpy.__version__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    path = layout.base / "constraints.txt"
    path.write_text(result.stdout)
    return path


def name_our_headers(layout: Layout) -> None:
    """The wheels' CMake files name folders of the machine that built them, and CMake refuses missing ones."""
    code = "import numpy, sysconfig; print(sysconfig.get_paths()['include'], numpy.get_include(), sep='\\n')"
    command = [str(layout.python), "-c", code]
    result = subprocess.run(command, env=environment(layout), check=True, capture_output=True, text=True)
    python, numpy = result.stdout.splitlines()
    for path in (layout.env / "share").glob("**/*.cmake"):
        text = path.read_text()
        ours = re.sub(r"/opt/python/cp\d+-cp\d+/lib/python[\d.]+/site-packages/numpy/\w+/include", numpy, text)
        ours = re.sub(r"/opt/python/cp\d+-cp\d+/include/python[\d.]+", python, ours)
        if ours != text:
            path.write_text(ours)
