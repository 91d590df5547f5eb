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
import os
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent))  # Python does so itself, but not where PYTHONSAFEPATH is set

from provision.colcon import ensure_build
from provision.installation import ensure_env
from provision.layout import ROOT, Layout, SetupError, choose
from provision.stages import one_at_a_time, say
from provision.variables import environment


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
            made_from = ensure_env(layout)
            if arguments.action != "env":
                ensure_build(layout, made_from)
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
