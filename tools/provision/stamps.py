"""What tells that a step is done already: a file with what it was made from."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

STAMP = "vstream-stamp"


def digest(files: Iterable[Path], words: Iterable[str]) -> str:
    """Of the files' names and bytes, and of the words."""
    state = hashlib.sha256()
    for path in files:
        state.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    for word in words:
        state.update(word.encode() + b"\0")
    return state.hexdigest()


def read(path: Path) -> str | None:
    """The file's text, None where it is not there."""
    return path.read_text() if path.exists() else None
