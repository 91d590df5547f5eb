"""Turns a fresh clone into a runnable package: what the Makefile calls. Standard library only.

    environment.py [--distro D] env            create the Python environment
    environment.py [--distro D] build          ... and build the package with colcon
    environment.py [--distro D] exec -- CMD    ... and run a command in it

Everything lies under build/DISTRO-pyXY/ (env, src, build, install, log), so that two distributions live side by side;
stamps make the second run a matter of milliseconds. Where a ROS 2 is sourced, the environment is a venv on top of it
that adds what has no rosdep key; elsewhere it holds ROS 2 itself, as wheels.
"""

import shutil
import sys

if not (3, 10) <= sys.version_info[:2] <= (3, 13):  # first: an older Python stumbles over the lines below
    found = [n for n in ("python3.12", "python3.11", "python3.13", "python3.10") if shutil.which(n)]
    hint = f"run make again with PYTHON={found[0]}" if found else "install one, then run make with PYTHON=python3.12"
    sys.stderr.write(f"vstream_ros needs Python 3.10 to 3.13, this is {sys.version.split()[0]}: {hint}.\n")
    sys.exit(2)

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import subprocess
import sysconfig
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "vstream_ros"
PYTHON_VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
DEFAULT_DISTRO = "kilted"
FREE_GIGABYTES = 12
"""The environment takes 6.3, and pip as much again for what it unpacks and keeps."""
MARK = "VSTREAM_ENVIRONMENT"
"""Set for every command, so that make inside make doesn't take our own wheels for a sourced ROS 2."""
GUARD = "_ROS_WHEELS_BOOTSTRAP_COMPLETE"
"""A .pth file of the wheels starts the interpreter a second time to set LD_LIBRARY_PATH, unless this is set; we set
both. A child process inherits them: one that runs another venv's Python with ROS 2 wheels of its own must drop both
first, or it loads this environment's libraries."""
FOREIGN = ("AMENT_PREFIX_PATH", "CMAKE_PREFIX_PATH", "COLCON_PREFIX_PATH", "PYTHONPATH", "PYTHONHOME", "ROS_DISTRO")
"""A surrounding shell's, that would lead CMake or Python to another ROS 2."""
MAKE = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")
"""Ours, that would reach the make that CMake calls."""


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
    """The sourced ROS 2 if there is one, else the wheels of ``asked`` (default: kilted)."""
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


def check_machine(layout: Layout) -> None:
    """Ask now for what pip or the build would only miss minutes later."""
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
    if subprocess.run([sys.executable, "-c", "import rclpy"], capture_output=True, check=False).returncode:
        raise SetupError(
            f"ROS 2 {layout.distro} is sourced, but {sys.executable} can't import its rclpy: run make again with the "
            "Python that it was built for, mostly PYTHON=/usr/bin/python3."
        )


def check_wheels() -> None:
    name, version = platform.libc_ver()
    new_enough = name == "glibc" and [int(n) for n in version.split(".")[:2]] >= [2, 28]
    if sys.platform != "linux" or platform.machine() != "x86_64" or not new_enough:
        raise SetupError(
            f"ROS 2 wheels exist for x86-64 Linux with glibc 2.28 or later only, this is {platform.machine()} "
            f"{sys.platform} with {name or 'another libc'} {version}: install ROS 2, source it and run make again."
        )


def apt(package: str) -> str:
    return f"Debian, Ubuntu: apt install {package}"


def ensure_env(layout: Layout) -> str:
    """Create the environment, or bring it up to date. Returns what it was made from."""
    wanted = f"{sys.base_prefix} {made_of(layout)}"
    stamp = layout.env / "vstream-stamp"
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


def ensure_build(layout: Layout) -> None:
    """Run colcon where something changed that it copies or compiles. The rest is linked: an edit counts at once."""
    made_from = ensure_env(layout)
    compiled = [ROOT / name for name in ("CMakeLists.txt", "package.xml", "setup.cfg", "tools/executable.py.in")]
    compiled += [p for folder in ("msg", "srv", "action") for p in sorted((ROOT / folder).iterdir())]
    linked = [p for folder in (PACKAGE, "launch", "config") for p in sorted((ROOT / folder).rglob("*"))]
    names = [str(p.relative_to(ROOT)) for p in linked if "__pycache__" not in p.parts]
    wanted = digest(compiled, [made_from, *names])
    stamp = layout.install / "vstream-stamp"
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
    ours = [str(p) for p in paths]
    rest = [p for p in variables.get(name, "").split(os.pathsep) if p and p not in ours]
    variables[name] = os.pathsep.join([*ours, *rest])


def run(layout: Layout, name: str, what: str, command: list[str]) -> None:
    """One stage: a line that says what, where it stands now and then, the end of its log if it fails."""
    log = ROOT / "build" / f"{layout.base.name}-{name}.log"
    start = time.monotonic()
    say(f"-- {what}")
    with log.open("w") as stream:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(layout), stdout=stream, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=20)
                if process.returncode is None:
                    say(f"   {time.monotonic() - start:3.0f} s  {latest_step(log)}")
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode:
        say("\n".join(log.read_text(errors="replace").strip().splitlines()[-30:]))
        raise SetupError(f"Failed: {what} (the end of {log.relative_to(ROOT)} stands above).")
    say(f"   done in {time.monotonic() - start:.0f} s")


def latest_step(log: Path) -> str:
    """Of pip's or colcon's output, without the warnings and details in between."""
    steps = re.compile(r"^ *((?:Collecting|Downloading|Installing|Building|Starting) .{0,60})", re.MULTILINE)
    return (["", *steps.findall(log.read_text(errors="replace"))])[-1]


def digest(files: Iterable[Path], words: Iterable[str]) -> str:
    state = hashlib.sha256()
    for path in files:
        state.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    for word in words:
        state.update(word.encode() + b"\0")
    return state.hexdigest()


def read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def say(text: str) -> None:
    sys.stderr.write(text + "\n")


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Two makes in one clone: the second waits for the first."""
    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build" / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("-- waiting for another make in this folder")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--distro", help="one that there are wheels of (default: kilted), or the sourced one")
    parser.add_argument("action", choices=("env", "build", "exec"))
    parser.add_argument("command", nargs=argparse.REMAINDER, help="for exec")
    arguments = parser.parse_args()
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if bool(command) != (arguments.action == "exec"):
        parser.error("exec takes a command, the others take none")
    try:
        layout = choose(arguments.distro)
        with one_at_a_time():
            if arguments.action == "env":
                ensure_env(layout)
            else:
                ensure_build(layout)
    except SetupError as problem:
        say(str(problem))
        return 2
    except KeyboardInterrupt:
        return 130
    if command:
        execute(layout, command)
    say(f"-- ready: {layout.base.relative_to(ROOT)}")
    return 0


def execute(layout: Layout, command: list[str]) -> NoReturn:
    """Become the command: signals and the exit status are its own."""
    variables = environment(layout)
    program = shutil.which(command[0], path=variables["PATH"])
    if program is None:
        say(f"{command[0]}: no such command in {layout.env.relative_to(ROOT)} or on the PATH")
        sys.exit(127)
    os.chdir(ROOT)
    os.execve(program, command, variables)


if __name__ == "__main__":
    sys.exit(main())
