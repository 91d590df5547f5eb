"""``~/save_memory``, ``~/load_memory``, and the same at the node's end and start."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future as ThreadFuture
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node

from vstream_ros.engine import DelayedBatchInferenceEngine
from vstream_ros.engine.memory_files import MemoryFile
from vstream_ros.errors import BusyError, MemoryFileError, NoMemoryFileError
from vstream_ros.memory.safe_files import checked_file_name, put_aside
from vstream_ros.node.callbacks import fill_failure, in_executor
from vstream_ros.node.messages import ros_text
from vstream_ros.node.settings import Settings
from vstream_ros.srv import LoadMemory, SaveMemory

DEFAULT_NAME = "memory"
"""Where a request names none, and at start and shutdown."""
MAX_WAITING = 8
"""Requests that wait for the disk; further ones are refused."""


class MemoryService:
    """Files are written and read one after another in a thread of their own, ``vstream-files``: a slow disk delays no
    image. All else runs in the executor's thread."""

    def __init__(
        self, node: Node, engine: Callable[[], DelayedBatchInferenceEngine], settings: Callable[[], Settings]
    ) -> None:
        """
        Args:
            engine: the engine whose memory it is; raises ``NotReadyError`` with a sentence where there is none.
            settings: the current parameters.
        """
        self._node = node
        self._engine = engine
        self._settings = settings
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vstream-files")
        self._jobs: set[ThreadFuture[Any]] = set()
        """Those that are not through. Each removes itself, in any thread: adding and removing are one step each."""
        self._restored = False
        self._refused: Path | None = None
        """The file that could not be restored at the start. Set and read in ``vstream-files``."""
        group = ReentrantCallbackGroup()  # both await the disk
        node.create_service(SaveMemory, "~/save_memory", self._on_save, callback_group=group)
        node.create_service(LoadMemory, "~/load_memory", self._on_load, callback_group=group)

    @property
    def busy(self) -> bool:
        """A file is being written or read, or waits for it."""
        return bool(self._jobs)

    def restore_at_start(self, engine: DelayedBatchInferenceEngine) -> None:
        """Begin to load the memory of before, the first time this is called. Returns at once."""
        settings, first = self._settings(), not self._restored
        self._restored = True
        if first and settings.restore_memory_at_start:
            self._start(self._restore, engine, self._path(""))

    def save_at_shutdown(self, engine: DelayedBatchInferenceEngine) -> None:
        """Begin to save, if the parameters say so; the engine may be closed meanwhile. Returns at once."""
        if self._settings().save_memory_at_shutdown:
            self._start(self._save_last, engine, self._path(""))

    def wait(self, timeout_s: float | None = None) -> None:
        """Until every file is written or read."""
        wait(list(self._jobs), timeout_s)

    def close(self) -> None:
        """Begin nothing more; what was begun goes on."""
        self._thread.shutdown(wait=False)

    # -- services ----------------------------------------------------------------------------------------------------

    async def _on_save(self, request: SaveMemory.Request, response: SaveMemory.Response) -> SaveMemory.Response:
        return await self._serve(request, response, "saved", DelayedBatchInferenceEngine.save_memory)

    async def _on_load(self, request: LoadMemory.Request, response: LoadMemory.Response) -> LoadMemory.Response:
        return await self._serve(request, response, "loaded", DelayedBatchInferenceEngine.load_memory)

    async def _serve(
        self, request: Any, response: Any, done: str, work: Callable[[DelayedBatchInferenceEngine, Path], MemoryFile]
    ) -> Any:
        try:
            engine, path = self._engine(), self._path(request.name)
            if len(self._jobs) >= MAX_WAITING:
                raise BusyError(f"{MAX_WAITING} files wait to be written or read; ask again when one is through")
            job = self._start(work, engine, path)
            await in_executor(self._node, job)
            file = job.result()
            response.success, response.message = True, ros_text(f"{done}: {file.summary}")
            response.path, response.tubelets, response.bytes = ros_text(str(file.path)), file.tubelets, file.nbytes
        except Exception as error:  # noqa: BLE001
            fill_failure(self._node, response, error)
        return response

    def _path(self, name: str) -> Path:
        """The file of that name; raises ``MemoryFileError`` for one that can't be, or where there is no folder."""
        folder = self._settings().memory_folder
        if not folder:
            raise MemoryFileError("memories are saved nowhere: set the parameter memory_folder to a folder first")
        return Path(folder) / checked_file_name(name or DEFAULT_NAME)

    def _start(self, work: Callable[..., Any], *args: Any) -> ThreadFuture[Any]:
        job = self._thread.submit(work, *args)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        return job

    # -- in vstream-files --------------------------------------------------------------------------------------------

    def _restore(self, engine: DelayedBatchInferenceEngine, path: Path) -> None:
        logger = self._node.get_logger()
        try:
            logger.info(f"the memory was restored from {path}: {engine.load_memory(path).summary}")
        except NoMemoryFileError:
            logger.info(f"there is no saved memory ({path}); the node starts with an empty one")
        except Exception as error:  # noqa: BLE001
            self._refused = path
            logger.warning(f"the memory was not restored, the node starts with an empty one: {path}: {error}")

    def _save_last(self, engine: DelayedBatchInferenceEngine, path: Path) -> None:
        logger = self._node.get_logger()
        try:
            if path == self._refused and (aside := put_aside(path)):
                logger.warning(f"the saved memory that could not be restored is now {aside}")
            logger.info(f"the memory was saved: {path}: {engine.save_memory(path).summary}")
        except Exception as error:  # noqa: BLE001
            logger.error(f"the memory was not saved: {error}")
