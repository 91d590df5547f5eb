"""What is said in more than one file says the same. Who may import whom: test_borders.py."""

import ast
import configparser
import os
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import vstream_ros

ROOT = Path(__file__).resolve().parents[2]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def entry_points() -> dict[str, str]:
    lines = SETUP["options.entry_points"]["console_scripts"].split("\n")
    return dict(re.fullmatch(r"(\w+) = ([\w.]+:\w+)", line).groups() for line in lines if line)  # type: ignore[union-attr]


def test_entry_points_exist() -> None:
    assert set(entry_points()) == {"vstream", "qa_node", "bag_player"}
    for target in entry_points().values():
        module, _, function = target.partition(":")
        tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, target


def test_installed_executables_are_the_entry_points() -> None:
    prefix = install_prefix()
    installed = {p.name: p for p in [prefix / "bin" / "vstream", *(prefix / "lib" / "vstream_ros").iterdir()]}
    assert set(installed) == set(entry_points())
    for name, target in entry_points().items():
        module, _, function = target.partition(":")
        assert f"from {module} import {function}\n" in installed[name].read_text()
        assert os.access(installed[name], os.X_OK)


def test_share_is_installed() -> None:
    share = install_prefix() / "share" / "vstream_ros"
    for folder in ("launch", "config"):
        wanted = {p.name for p in (ROOT / folder).iterdir() if p.is_file()}
        assert {p.name for p in (share / folder).iterdir() if p.is_file()} == wanted


def install_prefix() -> Path:
    ament = pytest.importorskip("ament_index_python.packages", reason="needs ROS 2")
    try:
        return Path(ament.get_package_prefix("vstream_ros"))
    except ament.PackageNotFoundError:
        pytest.skip("the package isn't built: make build")


def test_versions_agree() -> None:
    package = ElementTree.parse(ROOT / "package.xml").getroot()
    assert package.findtext("version") == SETUP["metadata"]["version"] == vstream_ros.__version__
    assert package.findtext("license") == SETUP["metadata"]["license"] == "Apache-2.0"


def test_the_optional_library_for_grammars_is_one_version_everywhere() -> None:
    from vstream_ros.models.json_schema import LIBRARY

    assert SETUP["options.extras_require"]["grammar"] == LIBRARY
    development = (ROOT / "requirements-dev.txt").read_text().splitlines()
    assert LIBRARY in [line.partition("#")[0].strip() for line in development]
    assert f"pip install '{LIBRARY}'" in (ROOT / "README.md").read_text()


def test_action_asks_the_same_as_the_service() -> None:
    request, response = (ROOT / "srv" / "AskVideo.srv").read_text().split("\n---\n")
    goal, result, _ = (ROOT / "action" / "AskVideo.action").read_text().split("\n---\n")
    assert declarations(goal) == declarations(request)
    assert declarations(result) == declarations(response)


def test_every_interface_is_generated() -> None:
    cmake = (ROOT / "CMakeLists.txt").read_text()
    for folder in ("msg", "srv", "action"):
        for path in (ROOT / folder).iterdir():
            assert f"{folder}/{path.name}" in cmake


def test_every_field_is_documented() -> None:
    bare = re.compile(r"^\w\S* +[a-z]\w*( -?\d+)?$")
    obvious = {"uint8 error_code", "uint8 model_state", "uint32 star_capacity", "std_msgs/Header header"}
    for path in [p for folder in ("msg", "srv", "action") for p in (ROOT / folder).iterdir()]:
        lines = {re.sub(r" +", " ", line) for line in path.read_text().splitlines() if bare.match(line)}
        assert lines <= obvious, path.name


def declarations(text: str) -> list[str]:
    lines = [line.partition("#")[0].split() for line in text.splitlines()]
    return [" ".join(words) for words in lines if words]
