"""Turns a fresh clone into a runnable package: what the Makefile calls. Standard library only.

    environment.py [--distro D] env            create the Python environment
    environment.py [--distro D] build          ... and build the package with colcon
    environment.py [--distro D] exec -- CMD    ... and run a command in it

Everything lies under build/DISTRO-pyXY/ (env, src, build, install, log), so that two distributions live side by side; a stamp
in each folder makes the second run a matter of milliseconds. Where a ROS 2 is sourced, the environment is a venv on top of
it that adds what has no rosdep key; elsewhere it holds ROS 2 itself, as wheels.
"""

import sys

if not (3, 10) <= sys.version_info[:2] <= (3, 13):  # before anything that an older Python can't parse or import
    import shutil

    found = [n for n in ("python3.12", "python3.11", "python3.13", "python3.10") if shutil.which(n)]
    sys.stderr.write(
        "vstream_ros needs Python 3.10 to 3.13, this is %d.%d: %s.\n"
        % (
            sys.version_info[0],
            sys.version_info[1],
            "run make again with PYTHON=" + found[0] if found else "install one and run make again with PYTHON=python3.12",
        )
    )
    sys.exit(2)

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "vstream_ros"
DEFAULT_DISTRO = "kilted"
FREE_GIGABYTES = 14  # the environment takes 7 (torch alone 5), pip as much again while it unpacks
# Set in every command's environment, so that `make` inside `make` doesn't take our own wheels for a sourced ROS 2.
MARK = "VSTREAM_ENVIRONMENT"
# ros_wheels_bootstrapper, a .pth file of the wheels, starts the interpreter a second time to set LD_LIBRARY_PATH unless
# this is set. We set both. A child process inherits them: one that runs another venv's Python with ROS 2 wheels of its own
# must drop both first, or it loads this environment's libraries.
GUARD = "_ROS_WHEELS_BOOTSTRAP_COMPLETE"
# Of a surrounding shell: would lead CMake or Python to another ROS 2, or make's own flags into CMake's make.
FOREIGN = ("AMENT_PREFIX_PATH", "CMAKE_PREFIX_PATH", "COLCON_PREFIX_PATH", "PYTHONPATH", "PYTHONHOME", "ROS_DISTRO")
MAKE = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")


class CannotContinue(Exception):
    """Something that the user has to change; the message is one line that says what."""


@dataclass(frozen=True)
class Layout:
    """Which ROS 2, and where things are."""

    distro: str
    sourced: bool

    @property
    def base(self) -> Path:
        return ROOT / "build" / f"{self.distro}-py{sys.version_info[0]}{sys.version_info[1]}"

    @property
    def env(self) -> Path:
        return self.base / "env"

    @property
    def python(self) -> Path:
        return self.env / "bin" / "python"

    @property
    def install(self) -> Path:
        return self.base / "install"

    @property
    def site_packages(self) -> Path:
        return self.env / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"

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
            raise CannotContinue(f"ROS 2 {distro} is sourced here: for ROS_DISTRO={asked}, use a shell that sources no ROS 2.")
        return Layout(distro, sourced=True)
    distro = asked or DEFAULT_DISTRO
    if not Layout(distro, sourced=False).requirements()[0].exists():
        known = ", ".join(sorted(p.stem.rpartition("-")[2] for p in ROOT.glob("requirements-ros-*.txt")))
        raise CannotContinue(f"ROS 2 {distro} isn't sourced here, and as wheels there are {known} only: source it, or choose one of them.")
    return Layout(distro, sourced=False)


def sourced_distro(prefixes: Iterable[Path]) -> str:
    """Read from the installation: make overwrites the variable ROS_DISTRO when it is given on its command line."""
    for prefix in prefixes:
        hook = prefix / "share" / "ros_environment" / "environment" / "1.ros_distro.sh"
        if hook.exists() and (match := re.search(r"ROS_DISTRO=(\w+)", hook.read_text())):
            return match[1]
    return os.environ.get("ROS_DISTRO", "ros2")


def check_machine(layout: Layout) -> None:
    """Ask for everything that pip or the build would only miss minutes later."""
    if not layout.sourced:
        libc, version = platform.libc_ver()
        new_enough = libc == "glibc" and [int(n) for n in version.split(".")[:2]] >= [2, 28]
        if sys.platform != "linux" or platform.machine() != "x86_64" or not new_enough:
            raise CannotContinue(
                f"ROS 2 wheels exist for x86-64 Linux with glibc 2.28 or later, this is {platform.machine()} {sys.platform} with "
                f"{libc or 'another libc'} {version}: install ROS 2 (docs.ros.org), source its setup.bash and run make again."
            )
    elif subprocess.run([sys.executable, "-c", "import rclpy"], capture_output=True, check=False).returncode:
        raise CannotContinue(
            f"ROS 2 {layout.distro} is sourced, but {sys.executable} can't import its rclpy: "
            "run make again with the Python it was built for, mostly PYTHON=/usr/bin/python3."
        )
    debian = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for variable, names in (("CXX", ("c++", "g++", "clang++")), ("CC", ("cc", "gcc", "clang"))):
        names = (os.environ[variable].split()[0],) if os.environ.get(variable, "").strip() else names
        if not any(map(shutil.which, names)):
            raise CannotContinue(f"No C/C++ compiler ({' or '.join(names)}) on the PATH: install one (Debian, Ubuntu: apt install build-essential).")
    for name in ("make", "cmake") if layout.sourced else ("make",):
        if not shutil.which(name):
            raise CannotContinue(f"No {name} on the PATH: install it (Debian, Ubuntu: apt install {name}).")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        raise CannotContinue(f"The headers of {sys.executable} (Python.h) are missing: install them (Debian, Ubuntu: apt install {debian}-dev).")
    if not (importlib.util.find_spec("ensurepip") and importlib.util.find_spec("venv")):
        raise CannotContinue(f"{sys.executable} can't create a venv: install the missing part (Debian, Ubuntu: apt install {debian}-venv).")
    if not layout.env.exists() and (free := shutil.disk_usage(ROOT).free / 1e9) < FREE_GIGABYTES:
        raise CannotContinue(f"The environment needs {FREE_GIGABYTES} GB of disk while it is installed, {free:.0f} are free at {ROOT}: make room.")


def ensure_env(layout: Layout) -> str:
    """Create the environment, or bring it up to date. Returns what it was made from."""
    wanted = digest([*layout.requirements(), Path(__file__)], [sys.base_prefix, str(layout)])
    stamp = layout.env / "vstream-stamp"
    if read(stamp) == wanted and layout.python.exists():
        return wanted
    check_machine(layout)
    if not (stamp.exists() and layout.python.exists()):
        shutil.rmtree(layout.env, ignore_errors=True)
        layout.base.mkdir(parents=True, exist_ok=True)
        (ROOT / "build" / "COLCON_IGNORE").touch()
        options = ["--system-site-packages"] if layout.sourced else []
        run(layout, "venv", f"creating {layout.env.relative_to(ROOT)}", [sys.executable, "-m", "venv", *options, str(layout.env)])
    command = [str(layout.python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--progress-bar=off"]
    for path in layout.requirements():
        command += ["-r", str(path)]
    if layout.sourced:
        command += ["-c", str(constraints(layout))]
        if not shutil.which("colcon"):
            command.append("colcon-common-extensions")
    what = f"installing torch and transformers on top of ROS 2 {layout.distro}" if layout.sourced else f"installing ROS 2 {layout.distro}, torch, transformers"
    run(layout, "pip", f"{what} (about 3 GB to download, once)", command)
    if not layout.sourced:
        name_our_headers(layout)
    stamp.write_text(wanted)
    return wanted


def constraints(layout: Layout) -> Path:
    """Keep the numpy that the sourced ROS 2 was compiled with: its cv_bridge doesn't load with another major version."""
    code = "import numpy; print('numpy==' + numpy.__version__)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    path = layout.base / "constraints.txt"
    path.write_text(found.stdout)
    return path


def name_our_headers(layout: Layout) -> None:
    """The wheels' CMake files name the include folders of the machine that built them, and CMake refuses missing folders."""
    code = "import numpy, sysconfig; print(sysconfig.get_paths()['include']); print(numpy.get_include())"
    python, numpy = output(layout, [str(layout.python), "-c", code]).split("\n")[:2]
    for path in (layout.env / "share").glob("**/*.cmake"):
        text = path.read_text()
        ours = re.sub(r"/opt/python/cp\d+-cp\d+/lib/python[\d.]+/site-packages/numpy/\w+/include", numpy, text)
        ours = re.sub(r"/opt/python/cp\d+-cp\d+/include/python[\d.]+", python, ours)
        if ours != text:
            path.write_text(ours)


def ensure_build(layout: Layout) -> None:
    """Run colcon where something changed that it copies or compiles. The rest is linked: edits count at once."""
    made_from = ensure_env(layout)
    compiled = [ROOT / name for name in ("CMakeLists.txt", "package.xml", "setup.cfg", "tools/executable.py.in")]
    compiled += [p for folder in ("msg", "srv", "action") for p in sorted((ROOT / folder).iterdir())]
    linked = [p for folder in (PACKAGE, "launch", "config") for p in sorted((ROOT / folder).rglob("*"))]
    names = [str(p.relative_to(ROOT)) for p in linked if "__pycache__" not in p.parts]
    wanted = digest(compiled, [made_from, *names])
    stamp = layout.install / "vstream-stamp"
    if read(stamp) == wanted:
        return
    shutil.rmtree(layout.install, ignore_errors=True)  # or links to files that are gone would stay
    source = link_sources(layout)
    command = ["colcon", "--log-base", str(layout.base / "log"), "build", "--base-paths", str(source), "--merge-install", "--symlink-install"]
    command += ["--build-base", str(layout.base / "build"), "--install-base", str(layout.install)]
    command += ["--cmake-args", f"-DPython3_EXECUTABLE={layout.python}", "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_TESTING=OFF", "--no-warn-unused-cli"]
    run(layout, "colcon", f"building {PACKAGE} with colcon for ROS 2 {layout.distro}", command)
    stamp.write_text(wanted)


def link_sources(layout: Layout) -> Path:
    """A source folder that the environment isn't part of: CMake refuses to export include folders (numpy's) inside it."""
    source = layout.base / "src"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    for path in ROOT.iterdir():
        if not path.name.startswith(".") and path.name not in ("build", "install", "log"):
            (source / path.name).symlink_to(path)
    return source


def environment(layout: Layout) -> dict[str, str]:
    """The variables that sourcing would set, and those that keep a run to itself."""
    variables = {k: v for k, v in os.environ.items() if k not in MAKE and k != MARK}
    if not layout.sourced:
        variables = {k: v for k, v in variables.items() if k not in FOREIGN}
        variables["ROS_DISTRO"] = layout.distro
        variables[GUARD] = "1"
    wheels = [] if layout.sourced else [layout.env]
    libraries = [layout.env / "lib", *sorted(layout.site_packages.glob("ros_*.libs"))] if wheels else []
    # Debian's Python installs into dist-packages, and under local/, for some versions of ament.
    modules = [p for g in ("lib/python3*/*-packages", "local/lib/python3*/*-packages") for p in layout.install.glob(g)]
    prepend(variables, "AMENT_PREFIX_PATH", [layout.install, *wheels])
    prepend(variables, "CMAKE_PREFIX_PATH", [layout.install, *wheels])
    prepend(variables, "PYTHONPATH", modules)
    prepend(variables, "LD_LIBRARY_PATH", [layout.install / "lib", *libraries])
    prepend(variables, "PATH", [layout.install / "bin", layout.env / "bin"])
    variables |= {"VIRTUAL_ENV": str(layout.env), MARK: layout.base.name}
    # Never the robot's own domain: a test must not talk to a running robot. 1 to 101 are the ids that are safe on Linux.
    variables["ROS_DOMAIN_ID"] = os.environ.get("VSTREAM_DOMAIN_ID") or str(1 + os.getpid() % 101)
    if layout.distro == "humble":
        variables["ROS_LOCALHOST_ONLY"] = "1"
    else:  # ROS_LOCALHOST_ONLY would beat it, with a warning
        variables.pop("ROS_LOCALHOST_ONLY", None)
        variables["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    variables.setdefault("ROS_LOG_DIR", str(layout.base / "log" / "ros"))
    return variables


def prepend(variables: dict[str, str], name: str, paths: Iterable[Path]) -> None:
    ours = [str(p) for p in paths]
    rest = [p for p in variables.get(name, "").split(os.pathsep) if p and p not in ours]
    variables[name] = os.pathsep.join([*ours, *rest])


def run(layout: Layout, name: str, what: str, command: list[str]) -> None:
    """One stage: a line that says what, the last line of its log now and then, the end of the log if it fails."""
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
        say(last_lines(log, 30))
        raise CannotContinue(f"This failed: {what} (the end of {log.relative_to(ROOT)} stands above).")
    say(f"   done in {time.monotonic() - start:.0f} s")


def output(layout: Layout, command: list[str]) -> str:
    return subprocess.run(command, env=environment(layout), check=True, capture_output=True, text=True).stdout


def last_lines(log: Path, count: int) -> str:
    return "\n".join(log.read_text(errors="replace").strip().splitlines()[-count:])


def latest_step(log: Path) -> str:
    """Of pip's or colcon's output, without the warnings and details in between."""
    steps = re.findall(r"^ *((?:Collecting|Downloading|Installing|Building|Starting) .{0,80})", log.read_text(errors="replace"), re.M)
    return steps[-1] if steps else ""


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
    parser.add_argument("--distro", help="a ROS 2 distribution as wheels (default: kilted), or the one that is sourced")
    parser.add_argument("action", choices=("env", "build", "exec"))
    parser.add_argument("command", nargs=argparse.REMAINDER, help="for exec")
    arguments = parser.parse_args()
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if arguments.action == "exec" and not command:
        parser.error("exec needs a command")
    try:
        layout = choose(arguments.distro)
        with one_at_a_time():
            ensure_env(layout) if arguments.action == "env" else ensure_build(layout)
    except CannotContinue as problem:
        say(str(problem))
        return 2
    except KeyboardInterrupt:
        return 130
    if arguments.action == "exec":
        variables = environment(layout)
        os.chdir(ROOT)
        program = shutil.which(command[0], path=variables["PATH"])
        if program is None:
            say(f"{command[0]}: no such command in {layout.env.relative_to(ROOT)} or on the PATH")
            return 127
        os.execve(program, command, variables)
    say(f"-- ready: {layout.base.relative_to(ROOT)} (ROS 2 {layout.distro}{', sourced' if layout.sourced else ''})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
