"""Results of single scenes on disk, so that a run that was broken off goes on, and a changed program starts anew."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def code_of(paths: Iterable[str]) -> str:
    """A short digest of source files, and of all Python files below folders, given relative to the repository."""
    digest = hashlib.sha256()
    for path in sorted(ROOT / path for path in paths):
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def weights_of(model: str) -> str:
    """A short digest that changes with a checkpoint, by its files' names, sizes and times; "" for one of a hub."""
    folder = ROOT / "vstream_ros" / "models" / "vstream_tiny" if model == "vstream-tiny" else Path(model)
    found = sorted((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in folder.glob("*.safetensors"))
    return hashlib.sha256(repr(found).encode()).hexdigest()[:16] if found else ""


class ResultCache:
    """JSON files, one for each scene, with entries each of which knows the code that made it. One process writes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, name: str, entry: str, code: str) -> Any:
        """What was put, if it was made by the same code; else None."""
        found = self._read(name).get(entry, {})
        return found.get("result") if found.get("code") == code else None

    def put(self, name: str, results: dict[str, Any], codes: dict[str, str]) -> None:
        """Keep results by entry, each made by the code of that entry, beside the file's other entries. Atomic."""
        stored = self._read(name)
        stored |= {entry: {"code": codes[entry], "result": result} for entry, result in results.items()}
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".tmp")
        beside.write_text(json.dumps(stored))
        os.replace(beside, path)

    def _read(self, name: str) -> dict[str, Any]:
        try:
            stored = json.loads(self._path(name).read_text())
        except (FileNotFoundError, ValueError):  # a damaged file is measured again
            return {}
        return stored if isinstance(stored, dict) else {}

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"
