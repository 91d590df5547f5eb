"""The package, built and installed by colcon."""

import shutil
from pathlib import Path

from provision.layout import ROOT, Layout
from provision.machine import check_machine
from provision.stages import run
from provision.stamps import STAMP, digest, read

PACKAGE = "vstream_ros"


def ensure_build(layout: Layout, made_from: str) -> None:
    """Run colcon where something changed that it copies or compiles. The rest is linked: an edit counts at once.

    ``made_from``: what the environment was made from, as ``ensure_env`` says.
    """
    compiled = [ROOT / name for name in ("CMakeLists.txt", "package.xml", "setup.cfg", "tools/executable.py.in")]
    compiled += [p for folder in ("msg", "srv", "action") for p in sorted((ROOT / folder).iterdir())]
    linked = [p for folder in (PACKAGE, "launch", "config") for p in sorted((ROOT / folder).rglob("*"))]
    names = [str(p.relative_to(ROOT)) for p in linked if "__pycache__" not in p.parts]
    wanted = digest(compiled, [made_from, *names])
    stamp = layout.install / STAMP
    if read(stamp) == wanted:
        return
    check_machine(layout)
    shutil.rmtree(layout.install, ignore_errors=True)  # or links to files that are gone would stay
    command = ["colcon", "--log-base", str(layout.base / "log"), "build", "--merge-install", "--symlink-install"]
    command += ["--base-paths", str(link_sources(layout)), "--build-base", str(layout.base / "build")]
    command += ["--install-base", str(layout.install), "--cmake-args", "--no-warn-unused-cli", "-DBUILD_TESTING=OFF"]
    command += [f"-DPython3_EXECUTABLE={layout.python}", "-DCMAKE_BUILD_TYPE=Release"]
    run(layout, "colcon", f"building {PACKAGE} with colcon for ROS 2 {layout.distro}", command)
    stamp.write_text(wanted)


def link_sources(layout: Layout) -> Path:
    """A source folder without the environment in it: CMake refuses to export include folders (numpy's) inside it."""
    source = layout.base / "src"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    for path in ROOT.iterdir():
        if not path.name.startswith(".") and path.name not in ("build", "install", "log"):
            (source / path.name).symlink_to(path)
    return source
