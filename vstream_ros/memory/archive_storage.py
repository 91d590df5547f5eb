"""Where an archive's bytes are: in RAM, or in files that a thread of their own writes."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from vstream_ros.memory.run_folder import RunFolder

logger = logging.getLogger(__name__)

BLOCK_BYTES = 4096
"""What a file takes of a disk is counted in whole blocks."""
MAX_WAITING_BYTES = 16 << 20
"""Not yet written; what comes while more waits is not stored: the disk stands still, or can't keep up."""
RETRY_S = 10.0
"""After a failure; what comes until then is not stored."""


class Storage(Protocol):
    """Bytes by a key that is never used again. Thread-safe. Nothing raises: what can't be stored or read is lost."""

    error: str
    """Why bytes could not be stored lately ("" where they can)."""

    def size(self, data: bytes) -> int:
        """What these bytes take up."""

    def put(self, key: int, data: bytes) -> bool:
        """Store; False where that can't be. Waits for no disk."""

    def get(self, key: int) -> bytes | None:
        """What was stored; None where it is gone. May wait for the disk."""

    def delete(self, key: int) -> None:
        """Forget one; nothing where it is not there. Waits for no disk."""

    def take_lost(self) -> list[int]:
        """Keys that were taken and could not be written after all, each once."""

    def clear(self) -> None:
        """Forget all. Waits for no disk."""

    def close(self) -> None:
        """Forget all and store nothing more; waits for files to be deleted, some seconds at most."""


class RamStorage:
    """A dictionary."""

    error = ""

    def __init__(self) -> None:
        self._data: dict[int, bytes] = {}
        """No lock: each access is one step."""

    def size(self, data: bytes) -> int:
        return len(data)

    def put(self, key: int, data: bytes) -> bool:
        self._data[key] = data
        return True

    def get(self, key: int) -> bytes | None:
        return self._data.get(key)

    def delete(self, key: int) -> None:
        self._data.pop(key, None)

    def take_lost(self) -> list[int]:
        return []

    def clear(self) -> None:
        self._data = {}

    def close(self) -> None:
        self.clear()


class FolderStorage:
    """One file a key, in a folder of this run below a given one.

    Files of their own, not one that grows: forgetting one is an ``unlink``, which frees its bytes at once, whatever
    was stored around it; a single file would need compaction, and room for its own copy. The thread
    ``vstream-archive`` begins with the first bytes and is the only one that writes; until they are written they are
    read from RAM.
    """

    def __init__(self, folder: str, clock: Callable[[], float] = time.monotonic) -> None:
        """``folder`` must exist when the first bytes come, and be no symbolic link. ``clock``: steady seconds."""
        self._run = RunFolder(folder)
        self._clock = clock
        self.error = ""
        """Set by the storage's thread, and by ``put``. One assignment is one step."""
        self._retry_at = float("-inf")
        """The storage's thread only."""
        self._changed = threading.Condition()
        """Guards everything below; never held while a file is touched."""
        self._waiting: dict[int, bytes] = {}
        """Not yet written."""
        self._waiting_bytes = 0
        self._jobs: deque[tuple[Callable[[int], None], int]] = deque()
        self._lost: list[int] = []
        self._closed = False
        self._thread: threading.Thread | None = None

    def size(self, data: bytes) -> int:
        return -(-len(data) // BLOCK_BYTES) * BLOCK_BYTES

    def put(self, key: int, data: bytes) -> bool:
        with self._changed:
            if self._closed:
                return False
            if self._waiting_bytes + len(data) > MAX_WAITING_BYTES:
                self.error = "the disk can't keep up with the archive"
                return False
            self._waiting[key] = data
            self._waiting_bytes += len(data)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="vstream-archive", daemon=True)
                self._thread.start()
            self._add_job(self._write, key)
        return True

    def get(self, key: int) -> bytes | None:
        with self._changed:
            waiting = self._waiting.get(key)
        if waiting is not None:
            return waiting
        try:
            return self._run.read(key)
        except OSError as error:
            logger.warning("an archived tubelet can't be read: %s", error)
            return None

    def delete(self, key: int) -> None:
        with self._changed:
            self._drop_waiting(key)
            self._add_job(self._run.delete, key)

    def take_lost(self) -> list[int]:
        with self._changed:
            lost, self._lost = self._lost, []
        return lost

    def clear(self) -> None:
        with self._changed:
            self._waiting, self._waiting_bytes, self._lost = {}, 0, []
            self._jobs.clear()
            self._add_job(lambda _: self._run.remove(), 0)

    def close(self) -> None:
        self.clear()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(5.0)

    def wait_written(self) -> None:
        """Wait until every job is done; for tests."""
        with self._changed:
            self._changed.wait_for(lambda: not self._jobs)

    def _add_job(self, work: Callable[[int], None], key: int) -> None:
        """Under ``_changed``. Without a thread nothing was ever written, and nothing is to be done."""
        if self._thread is not None and not self._closed:
            self._jobs.append((work, key))
            self._changed.notify_all()

    def _work(self) -> None:
        """In the storage's thread. A job leaves the list when it is done."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if not self._jobs:
                    return
                job = self._jobs[0]
            job[0](job[1])
            with self._changed:
                if self._jobs and self._jobs[0] is job:  # else all was cleared meanwhile
                    self._jobs.popleft()
                self._changed.notify_all()

    def _write(self, key: int) -> None:
        with self._changed:
            data = self._waiting.get(key)
        if data is None:
            return
        written = self._clock() >= self._retry_at and self._written(key, data)
        with self._changed:
            if self._drop_waiting(key) and not written:
                self._lost.append(key)

    def _written(self, key: int, data: bytes) -> bool:
        try:
            self._run.write(key, data)
        except OSError as error:
            if not self.error:
                logger.warning("an archived tubelet can't be written: %s", error)
            self._retry_at = self._clock() + RETRY_S
            self.error = f"{error}; archive_folder must be a folder that exists, no symbolic link, with room to write"
            return False
        self.error = ""
        return True

    def _drop_waiting(self, key: int) -> bool:
        """Under ``_changed``; whether it was waiting."""
        data = self._waiting.pop(key, b"")
        self._waiting_bytes -= len(data)
        return bool(data)
