"""A folder of files that live as long as this process: made, filled and deleted here, never through a symbolic link."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import secrets
import threading

from vstream_ros.memory.folder_files import new_file, open_folder

logger = logging.getLogger(__name__)

PREFIX = "vstream-archive-"
OURS = re.compile(PREFIX + r"[0-9a-f]{16}")
OUR_FILE = re.compile(r"\d+\.jpegs(\.part)?")


class RunFolder:
    """``PREFIX`` and 16 hexadecimal digits, below a folder that exists; made at the first write, private to its user.

    It is locked (``flock``) while this process lives, so that another one which finds it later can tell a leftover
    from a folder in use. Everything goes through descriptors of the folders: what is put in their place later is never
    followed. One thread writes, deletes and removes; any may read.
    """

    def __init__(self, parent: str) -> None:
        """Touches nothing yet."""
        self._parent = parent
        self._lock = threading.Lock()
        """Guards ``_fd`` where it is closed: a reader must not find another file's descriptor under its number."""
        self._name = ""
        self._parent_fd = -1
        self._fd = -1

    def write(self, key: int, data: bytes) -> None:
        """Make the file of ``key``: whole, or not at all. Raises ``OSError``."""
        if self._fd < 0:
            self._make()
        name = _file_name(key)
        try:
            with new_file(self._fd, name, name + ".part") as file:
                file.write(data)
        except OSError as error:
            if error.errno == errno.ENOENT:  # somebody removed the folder: another one is made next time
                self._close()
            raise

    def read(self, key: int) -> bytes:
        """The file's bytes. Raises ``OSError``."""
        with self._lock:
            if self._fd < 0:
                raise FileNotFoundError(errno.ENOENT, "the archive's folder is gone", self._parent)
            descriptor = os.open(_file_name(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        with open(descriptor, "rb") as file:
            return file.read()

    def delete(self, key: int) -> None:
        """Delete a file, where it is there."""
        with contextlib.suppress(OSError):
            os.unlink(_file_name(key), dir_fd=self._fd)

    def remove(self) -> None:
        """Delete the folder with its files."""
        if self._fd >= 0:
            _delete(self._parent_fd, self._name, self._fd)
            self._close()

    def _make(self) -> None:
        parent = open_folder(self._parent)
        try:
            _remove_leftovers(parent)
            name = PREFIX + secrets.token_hex(8)
            os.mkdir(name, 0o700, dir_fd=parent)
            folder = open_folder(name, parent)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Between the two a process that began just now may have taken it for a leftover.
                if os.stat(name, dir_fd=parent, follow_symlinks=False).st_ino != os.fstat(folder).st_ino:
                    raise FileNotFoundError(errno.ENOENT, "the new folder of the archive was removed", self._parent)
            except OSError:
                os.close(folder)
                raise
        except OSError:
            os.close(parent)
            raise
        self._name, self._parent_fd, self._fd = name, parent, folder

    def _close(self) -> None:
        with self._lock:
            for descriptor in (self._fd, self._parent_fd):  # the lock goes with it
                os.close(descriptor)
            self._fd = self._parent_fd = -1


def _file_name(key: int) -> str:
    return f"{key}.jpegs"


def _remove_leftovers(parent: int) -> None:
    """Delete the run folders of processes that ended without doing it: named as ours, of our user, not locked."""
    for name in os.listdir(parent):
        if not OURS.fullmatch(name):
            continue
        try:
            folder = open_folder(name, parent)
        except OSError:  # no folder but a link or a file; or not ours to look into
            continue
        try:
            if os.fstat(folder).st_uid == os.getuid():
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where its process lives
                _delete(parent, name, folder)
                logger.info("the archive of a run that had crashed was removed: %s", name)
        except OSError:
            continue
        finally:
            os.close(folder)


def _delete(parent: int, name: str, folder: int) -> None:
    """Delete a run folder and the files that are ours in it; with anything else in it, it stays."""
    with contextlib.suppress(OSError):
        for file in os.listdir(folder):
            if OUR_FILE.fullmatch(file):
                os.unlink(file, dir_fd=folder)
        os.rmdir(name, dir_fd=parent)
