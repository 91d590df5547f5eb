"""The rooms of the house: imports go downwards only, each room knows its own libraries, no file is too long."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "vstream_ros"
MAX_LINES = 350
YET_TO_COME = {"client"}
"""Rooms that have their place in the table and need not be there."""

ROS = {
    "action_msgs", "ament_index_python", "builtin_interfaces", "diagnostic_msgs", "lifecycle_msgs", "rcl_interfaces",
    "rclpy", "rosgraph_msgs", "sensor_msgs", "std_msgs", "std_srvs", "interfaces",
}  # fmt: skip
"""``interfaces``: this package's own msg, srv and action."""


@dataclass(frozen=True)
class Room:
    """A folder or module right below ``vstream_ros``."""

    floor: int
    """It imports rooms of lower floors only."""
    libraries: frozenset[str] = frozenset()
    """It imports no others, besides Python's own."""


ROOMS = {
    name: Room(floor, frozenset(libraries))
    for name, floor, libraries in (
        ("errors", 0, set()),
        ("text", 0, set()),
        ("ros_arguments", 1, {"yaml"}),
        ("images", 1, {"numpy", "cv2", "PIL", "cv_bridge", "rosbags"}),
        ("memory", 2, {"numpy", "cv2"}),
        (
            "models", 3,
            {
                "numpy", "torch", "transformers", "tokenizers", "huggingface_hub", "safetensors", "qwen_vl_utils",
                "llguidance",
            },
        ),
        ("engine", 4, {"numpy", "torch", "psutil"}),
        ("node", 5, {"numpy", *ROS}),
        ("replay", 5, {"numpy", "cv2", "av", "rosbags", "rich", *ROS}),
        ("synthetic", 5, {"numpy", "cv2", "torch", "transformers", "tokenizers", "safetensors"}),
        ("client", 6, ROS),
        ("compare", 6, {"numpy", "torch", "rich", "matplotlib"}),
        ("demo", 7, {"numpy", "rich", "matplotlib", "transformers", *ROS}),
        ("cli", 8, {"rich"}),
    )
}
OUTSIDE = {
    "training": {PACKAGE, "training"},
    "benchmarks": {PACKAGE, "training", "benchmarks", "support"},
    "test/support": {PACKAGE, "training", "support"},
}
"""What those that are not installed may import of what is no library."""
NOT_INSTALLED = {"training", "benchmarks", "support", "test"}


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, with full dotted names; "." for a relative import."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield "."
            else:  # what is imported from a module may be a module itself
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def top_level(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


def room_of(path: Path, package: Path) -> str:
    return path.relative_to(package).parts[0].removesuffix(".py")


def trespasses(package: Path) -> list[str]:
    """Every import below ``package``, a folder like ``vstream_ros``, that its room may not have, as a sentence."""
    found = []
    known = {"DEFAULT_MODEL", "__version__"}
    for path in sorted(package.rglob("*.py")):
        room = room_of(path, package)
        if room == "__init__":
            continue
        where = path.relative_to(package.parent)
        if room not in ROOMS:
            found.append(f"{where}: {room} is no room of the table")
            continue
        for name in imported(path):
            top, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if name == ".":
                found.append(f"{where}: a relative import")
            elif top == PACKAGE and target in ("msg", "srv", "action"):
                if "interfaces" not in ROOMS[room].libraries:
                    found.append(f"{where}: {room} imports ROS interfaces")
            elif top == PACKAGE:
                below = target in ROOMS and ROOMS[target].floor < ROOMS[room].floor
                if not below and target != room and target not in known:
                    found.append(f"{where}: {room} imports {target}, which is not below it")
            elif top not in sys.stdlib_module_names and top not in ROOMS[room].libraries:
                found.append(f"{where}: {room} imports {top}")
    return found


def test_imports_go_downwards_only() -> None:
    assert not trespasses(ROOT / PACKAGE)
    assert {room_of(path, ROOT / PACKAGE) for path in (ROOT / PACKAGE).rglob("*.py")} >= ROOMS.keys() - YET_TO_COME


@pytest.mark.parametrize(
    ("file", "line", "sentence"),
    [
        ("memory/manager.py", "import torch", "memory imports torch"),
        ("memory/manager.py", "    import torch.nn as nn", "memory imports torch"),
        ("memory/manager.py", "from vstream_ros.engine.engine_config import EngineConfig", "memory imports engine"),
        ("models/qwen/x.py", "from vstream_ros import engine", "models imports engine"),
        ("models/x.py", "import vstream_ros.node.main", "models imports node"),
        ("engine/x.py", "from transformers import AutoModel", "engine imports transformers"),
        ("node/x.py", "import torch", "node imports torch"),
        ("node/x.py", "from vstream_ros.replay.bags import BagSource", "node imports replay"),
        ("replay/x.py", "from vstream_ros.compare.measure import compare", "replay imports compare"),
        ("synthetic/x.py", "from vstream_ros.demo.scene import CAMERA", "synthetic imports demo"),
        ("images/x.py", "from training.batches import Batch", "images imports training"),
        ("engine/x.py", "from vstream_ros.srv import AskVideo", "engine imports ROS interfaces"),
        ("demo/x.py", "from support.ros_client import Planner", "demo imports support"),
        ("node/x.py", "from . import main", "a relative import"),
        ("kitchen/x.py", "", "kitchen is no room of the table"),
    ],
)
def test_a_trespass_is_seen(tmp_path: Path, file: str, line: str, sentence: str) -> None:
    package = tmp_path / PACKAGE
    allowed = {"memory/ok.py": "import cv2\nfrom vstream_ros.images import resize_rgb\n", "cli.py": "import rich\n"}
    for name, text in allowed.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    assert trespasses(package) == []
    (package / file).parent.mkdir(parents=True, exist_ok=True)
    (package / file).write_text(f"def f():\n{line}\n" if line.startswith(" ") else f"{line}\n")
    (found,) = trespasses(package)
    assert found.startswith(f"vstream_ros/{file}: {sentence}")


@pytest.mark.parametrize("folder", sorted(OUTSIDE))
def test_what_is_not_installed_imports_downwards_too(folder: str) -> None:
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths
    for path in paths:
        wrong = top_level(path) & NOT_INSTALLED - OUTSIDE[folder]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_what_sets_up_a_clone_needs_nothing_that_is_installed() -> None:
    paths = sorted((ROOT / "tools").rglob("*.py"))
    assert len(paths) > 5
    for path in paths:
        wrong = top_level(path) - sys.stdlib_module_names - {"provision"}
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_tests_import_no_benchmark() -> None:
    """They would pull in its arguments and its output with its helpers; what both need stands in test/support."""
    theirs = ("test_eval_memory.py", "test_eval_choices.py", "test_annotations.py", "test_gpu_benchmark.py")
    tests_of_benchmarks = {ROOT / "test" / "unit" / name for name in theirs}
    for path in sorted(set((ROOT / "test").rglob("*.py")) - tests_of_benchmarks):
        names = {name for name in imported(path) if name.partition(".")[0] == "benchmarks"}
        assert not names, f"{path.relative_to(ROOT)} imports {names}"


def test_rclpy_stays_at_the_edge() -> None:
    """In the node, the player, and the demo's client, which is what a planner would be."""
    package = ROOT / PACKAGE
    found = {path.relative_to(package) for path in package.rglob("*.py") if "rclpy" in top_level(path)}
    edge = {Path("replay/bag_player.py"), Path("demo/client.py")}
    assert not {path for path in found if path.parts[0] not in ("node", "client")} - edge


def test_engine_knows_models_only_through_their_interface() -> None:
    families = {path.stem for path in (ROOT / PACKAGE / "models" / "qwen").glob("*.py")}
    assert families
    for path in sorted((ROOT / PACKAGE / "engine").glob("*.py")):
        wrong = {name for name in imported(path) if name.startswith(f"{PACKAGE}.models.qwen")}
        assert not wrong, f"{path.name} imports {wrong}"


def test_no_file_is_longer_than_one_sitting() -> None:
    folders = (PACKAGE, "training", "benchmarks", "test", "launch", "tools")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert len(lines) > 200
    too_long = {name: count for name, count in lines.items() if count > MAX_LINES}
    assert not too_long
