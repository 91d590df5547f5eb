"""Folders by their descriptors, and new files in them: nothing goes through a symbolic link, or through what somebody
puts in a folder's place later."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def open_folder(path: str | Path, parent: int | None = None) -> int:
    """A descriptor of a folder, which the caller closes. ``parent``: that of the folder that it is looked for in.

    Raises ``OSError``, also where the last part of ``path`` is a symbolic link.
    """
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)


@contextmanager
def new_file(folder: int, name: str, temporary: str, *, sync: bool = False) -> Iterator[IO[bytes]]:
    """A new binary file, for reading and writing, that gets its name at the end of the ``with`` block, in the place of
    one that has it. Where the block raises, or the disk is full, nothing of it stays. Readable by the user alone.

    ``temporary``: its name until then; there must be none of that name. ``sync``: wait until it is on the disk. Raises
    ``OSError``.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(temporary, flags, 0o600, dir_fd=folder), "w+b") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
