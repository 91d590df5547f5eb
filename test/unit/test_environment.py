"""tools/environment.py: which ROS 2 it takes, what makes it install or build again, what its commands inherit."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from provision import colcon, installation, layout, stages
from provision.layout import MARK, Layout, SetupError, choose
from provision.variables import environment

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "environment.py"
KILTED = Layout("kilted", sourced=False)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what a clone has, instead of this one."""
    for module in (colcon, layout, stages):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    for folder in ("msg", "srv", "action", "launch", "config", "tools", "vstream_ros", "build"):
        (tmp_path / folder).mkdir()
    files = ("CMakeLists.txt", "package.xml", "setup.cfg", "tools/executable.py.in", "msg/A.msg", "vstream_ros/a.py")
    for name in files:
        (tmp_path / name).write_text(name)
    for name in ("ros-kilted", "ros-jazzy", "base", "dev"):
        (tmp_path / f"requirements-{name}.txt").write_text(f"{name} == 1  # because\n")
    (tmp_path / "requirements.txt").write_text("torch == 2\n")
    return tmp_path


def test_the_script_needs_no_package_and_no_directory_of_its_own(tmp_path: Path) -> None:
    """Isolated and without site-packages, as on a machine where nothing is installed yet."""
    command = [sys.executable, "-I", "-S", str(SCRIPT)]
    for words, status, says in (
        (["--distro", "nowhere", "build"], 2, "wheels of jazzy and kilted only"),
        (["exec"], 2, "exec takes a command"),
        (["build", "ls"], 2, "the others take none"),
    ):
        done = subprocess.run(
            [*command, *words], cwd=tmp_path, env={"PATH": os.defpath}, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, says in done.stderr) == (status, True), done
        assert "Traceback" not in done.stderr


# -- which ROS 2 ------------------------------------------------------------------------------------------------------


def test_without_a_sourced_ros_2_the_wheels_are_taken(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    assert choose(None) == KILTED
    assert choose("jazzy") == Layout("jazzy", sourced=False)
    with pytest.raises(SetupError, match="wheels of jazzy and kilted only"):
        choose("foxy")


def test_a_sourced_ros_2_is_taken_and_no_other_one(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = clone / "opt" / "share" / "ros_environment" / "environment" / "1.ros_distro.sh"
    hook.parent.mkdir(parents=True)
    hook.write_text("export ROS_DISTRO=jazzy\n")
    (clone / "python" / "rclpy").mkdir(parents=True)
    (clone / "python" / "rclpy" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(clone / "python"))
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(clone / "opt"))
    monkeypatch.setenv("ROS_DISTRO", "kilted")  # make's, not the installation's
    monkeypatch.delenv(MARK, raising=False)
    assert choose(None) == choose("jazzy") == Layout("jazzy", sourced=True)
    with pytest.raises(SetupError, match="jazzy is sourced"):
        choose("kilted")
    monkeypatch.setenv(MARK, "ours")  # make inside make: those are our own wheels
    assert choose(None) == KILTED


# -- again, or not ----------------------------------------------------------------------------------------------------


def test_what_is_installed_depends_on_requirements_and_not_on_their_comments(clone: Path) -> None:
    before = installation.made_of(KILTED)
    path = clone / "requirements-ros-kilted.txt"
    path.write_text("# a word more\n\nros-kilted == 1  # because of that\n")
    assert installation.made_of(KILTED) == before
    assert installation.made_of(Layout("jazzy", sourced=False)) != before
    assert installation.made_of(Layout("kilted", sourced=True)) != before
    path.write_text("ros-kilted == 2  # because\n")
    assert installation.made_of(KILTED) != before


def test_the_package_is_built_where_something_changed_that_is_copied_or_compiled(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(colcon, "check_machine", lambda layout: None)
    program = KILTED.env / "bin" / "colcon"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nmkdir -p "{KILTED.install}"\necho "$*" >> "{clone}/calls"\n')
    program.chmod(0o755)

    def builds(made_from: str = "environment 1") -> int:
        before = len(calls.read_text().splitlines()) if (calls := clone / "calls").exists() else 0
        colcon.ensure_build(KILTED, made_from)
        return len(calls.read_text().splitlines()) - before

    assert (builds(), builds()) == (1, 0)
    assert "--symlink-install" in (clone / "calls").read_text()
    assert (KILTED.base / "src" / "msg" / "A.msg").read_text() == "msg/A.msg"
    assert not (KILTED.base / "src" / "build").exists()
    changes: list[tuple[Callable[[], object], int]] = [
        (lambda: (clone / "vstream_ros" / "a.py").write_text("an edit of what is linked"), 0),
        (lambda: (clone / "vstream_ros" / "b.py").write_text("a new file"), 1),
        (lambda: (clone / "msg" / "A.msg").write_text("what is compiled"), 1),
        (lambda: (clone / "README.md").write_text("what is not installed"), 0),
    ]
    for change, expected in changes:
        change()
        assert (builds(), builds()) == (expected, 0)
    assert builds("environment 2") == 1


# -- stages and commands ----------------------------------------------------------------------------------------------


def test_a_stage_that_fails_shows_the_end_of_its_log(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "print('much'); print('\\n' * 40); print('the reason'); raise SystemExit(3)"
    with pytest.raises(SetupError, match=r"^Failed: trying \(the end of build/kilted-py\d+-try.log stands above\).$"):
        stages.run(KILTED, "try", "trying", [sys.executable, "-c", code])
    told = capsys.readouterr().err
    assert "the reason" in told
    assert "much" not in told


def test_a_second_make_waits_for_the_first(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = threading.Event()
    monkeypatch.setattr(stages, "say", lambda text: waits.set())
    order: list[str] = []

    def second() -> None:
        with stages.one_at_a_time():
            order.append("second")

    thread = threading.Thread(target=second)
    with stages.one_at_a_time():
        thread.start()
        assert waits.wait(60)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]


def test_a_command_inherits_nothing_of_another_ros_2_and_a_domain_of_its_own(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = {"AMENT_PREFIX_PATH": "/opt/other", "PYTHONPATH": "/opt/other", "MAKEFLAGS": "-j9", "ROS_DOMAIN_ID": "0"}
    for name, value in {**others, "PATH": "/bin", "ROS_LOCALHOST_ONLY": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("VSTREAM_DOMAIN_ID", raising=False)
    variables = environment(KILTED)
    assert not {name for name, value in variables.items() if "/opt/other" in value}
    assert variables.keys().isdisjoint({"MAKEFLAGS", "ROS_LOCALHOST_ONLY"})
    assert variables["PATH"] == f"{KILTED.install / 'bin'}:{KILTED.env / 'bin'}:/bin"
    assert variables["ROS_DISTRO"] == "kilted"
    assert variables["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
    assert 1 <= int(variables["ROS_DOMAIN_ID"]) <= 101
    monkeypatch.setenv("VSTREAM_DOMAIN_ID", "7")
    assert environment(KILTED)["ROS_DOMAIN_ID"] == "7"
    assert "/opt/other" in environment(Layout("jazzy", sourced=True))["AMENT_PREFIX_PATH"]
