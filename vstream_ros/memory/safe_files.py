"""Files that are written as a whole or not at all, in one folder, and through no symbolic link."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from vstream_ros.errors import MemoryFileError, NoMemoryFileError
from vstream_ros.images.conversion import quoted
from vstream_ros.memory.folder_files import new_file, open_folder

SUFFIX = ".npz"
MAX_NAME = 100
ABANDONED_S = 3600.0
"""A temporary file that is older was left by a process that was killed while it wrote."""


def checked_file_name(name: str) -> str:
    """A plain name with the suffix of saved memories. Raises ``MemoryFileError``."""
    plain = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) is not None
    if not plain or ".." in name or len(name) > MAX_NAME:
        raise MemoryFileError(
            f"the name must be of letters, digits, _, - and ., no dot first and no two in a row, {MAX_NAME} characters "
            f"at most, got {quoted(name)}"
        )
    return name if name.endswith(SUFFIX) else name + SUFFIX


@contextmanager
def replaced_file(path: Path) -> Iterator[IO[bytes]]:
    """A new binary file, for reading and writing, that takes the place of ``path`` at the end of the ``with`` block.

    Until then, and where the block raises, the file of before stays. Readable by the user alone. The folder is made
    where only its last part is missing. Raises ``MemoryFileError`` where the path is not an ordinary file's, or where
    the file can't be written.
    """
    temporary = f".{path.name}.{secrets.token_hex(6)}.tmp"
    with _told(f"{path} can't be written"), _opened_folder(path.parent, make=True) as folder:
        _check_ordinary(path, folder)
        _remove_abandoned(path.name, folder)
        with new_file(folder, path.name, temporary, sync=True) as file:
            yield file
        with contextlib.suppress(OSError):  # not every file system knows it; the file itself is on the disk
            os.fsync(folder)


@contextmanager
def opened_file(path: Path) -> Iterator[IO[bytes]]:
    """An ordinary file, for reading. Raises ``MemoryFileError`` where it is none or can't be read,
    ``NoMemoryFileError`` where it isn't there."""
    with _told(f"{path} can't be read"), _opened_folder(path.parent) as folder:
        # O_NONBLOCK: a pipe of that name must not make us wait for its writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        _check_ordinary(path, folder)
        with os.fdopen(os.open(path.name, flags, dir_fd=folder), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise MemoryFileError(f"{path} is no ordinary file")
            yield file


def put_aside(path: Path) -> Path | None:
    """Rename a file, so that another one can have its name; None where there is none. One that was put aside before is
    lost. Raises ``MemoryFileError``."""
    aside = path.with_name(f"{path.name.removesuffix(SUFFIX)}.refused{SUFFIX}")
    with _told(f"{path} can't be renamed"), _opened_folder(path.parent) as folder:
        try:
            os.replace(path.name, aside.name, src_dir_fd=folder, dst_dir_fd=folder)
        except FileNotFoundError:
            return None
    return aside


@contextmanager
def _opened_folder(folder: Path, make: bool = False) -> Iterator[int]:
    """A descriptor of the folder: whoever renames it meanwhile leads nobody elsewhere."""
    if make:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
    descriptor = open_folder(folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _check_ordinary(path: Path, folder: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        mode = os.stat(path.name, dir_fd=folder, follow_symlinks=False).st_mode
        if not stat.S_ISREG(mode):
            what = "a symbolic link" if stat.S_ISLNK(mode) else "no ordinary file"
            raise MemoryFileError(f"{path} is {what}; use another name or remove it")


def _remove_abandoned(name: str, folder: int) -> None:
    for entry in os.listdir(folder):
        if not (entry.startswith(f".{name}.") and entry.endswith(".tmp")):
            continue
        with contextlib.suppress(OSError):
            if time.time() - os.stat(entry, dir_fd=folder, follow_symlinks=False).st_mtime > ABANDONED_S:
                os.unlink(entry, dir_fd=folder)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Let what the operating system says be a ``MemoryFileError``."""
    try:
        yield
    except FileNotFoundError as error:
        raise NoMemoryFileError(f"{what}: there is no such file or folder; see the parameter memory_folder") from error
    except OSError as error:
        hint = "is a symbolic link or no folder on its way? " if isinstance(error, NotADirectoryError) else ""
        raise MemoryFileError(
            f"{what}: {error.strerror or type(error).__name__}; {hint}check its folder, its permissions and the "
            "room on the disk"
        ) from error
