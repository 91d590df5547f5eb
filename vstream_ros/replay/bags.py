"""ROS 2 bags as a source, read by rosbags: no ROS installation is needed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader
from rosbags.serde import SerdeError

from vstream_ros.errors import InvalidRequestError
from vstream_ros.images import SensorDepth, SizeRule, decode_compressed, decode_image
from vstream_ros.images.cdr import COMPRESSED_IMAGE, IMAGE, TYPES
from vstream_ros.memory.clip import NANOSECONDS
from vstream_ros.replay.frames import Frame, Source

IMAGE_TYPES = (IMAGE, COMPRESSED_IMAGE)

METADATA_MAX_BYTES = 16 << 20
"""A bag of ten thousand files has 4 MB. YAML takes a hundred times its size in memory, and minutes for a gigabyte."""


class BagFrame(Frame):
    """One message of an image topic: the bytes as recorded, and the message they hold (arrays are views of them)."""

    def __init__(
        self, topic: str, msgtype: str, receive_ns: int, cdr: bytes, message: Any, depth: SensorDepth | None = None
    ) -> None:
        """``depth``: of the topic's camera; frames that share it must be converted in their order."""
        self.topic = topic
        self._depth = depth
        self.msgtype = msgtype
        self.receive_ns = receive_ns
        self.cdr = cdr
        self.message = message
        stamp = message.header.stamp
        self.stamp_ns = stamp.sec * NANOSECONDS + stamp.nanosec or receive_ns

    def rgb(self, size: SizeRule = None) -> np.ndarray:
        return (decode_image if self.msgtype == IMAGE else decode_compressed)(self.message, size, self._depth)


class BagSource(Source):
    """The image topics (Image, CompressedImage) of a rosbag2 folder, or of one of its storage files."""

    def __init__(self, path: Path, topics: Sequence[str]) -> None:
        """Open the bag. ``topics``: which of its image topics to read; empty: all.

        Raises ``InvalidRequestError`` when the bag can't be read or lacks such a topic.
        """
        self.path = path
        self._reader: Reader | None = None
        reader = _open_reader(path)
        try:
            self._connections = _image_connections(path, reader, topics)
        except BaseException:
            _close(reader)
            raise
        self._reader = reader
        self.topics = tuple(dict.fromkeys(c.topic for c in self._connections))
        self.topic_types = {c.topic: c.msgtype for c in self._connections}
        self.frame_count = sum(c.msgcount for c in self._connections)

    def __iter__(self) -> Iterator[Frame]:
        if self._reader is None:
            raise InvalidRequestError(f"{self.path} has been closed")
        self.skipped, self.last_fault = 0, ""
        self._depths = {topic: SensorDepth(topic) for topic in self.topics}
        found = False
        messages = self._reader.messages(self._connections)
        while True:
            try:
                record = next(messages, None)
            # SQLite, zstd, lz4 and the MCAP parser each have a family of their own; here all mean a broken file.
            except Exception as error:
                reason, hint = _reason(error), _repair_hint(self.path)
                raise InvalidRequestError(f"{self.path} breaks off: {reason}; {hint}") from error
            if record is None:
                break
            frame = self._frame(*record)
            if frame is not None:
                found = True
                yield frame
        if not found:
            fault = f" ({self.skipped} are damaged: {self.last_fault})" if self.skipped else ""
            raise InvalidRequestError(f"{self.path} holds no readable message on {_names(self.topics)}{fault}")

    def close(self) -> None:
        if self._reader is not None:
            _close(self._reader)
            self._reader = None

    def _frame(self, connection: Connection, receive_ns: Any, cdr: Any) -> BagFrame | None:
        """Return the message as a frame; None, counted, when the bytes are no such message."""
        # SQLite keeps any type in any column.
        if not isinstance(cdr, (bytes, memoryview)) or not isinstance(receive_ns, int):
            self._count_fault(f"{connection.topic}: a message that is no bytes, or has no time")
            return None
        try:
            message = TYPES.deserialize_cdr(cdr, connection.msgtype)
        except SerdeError as error:
            self._count_fault(f"{connection.topic}: {error}")
            return None
        depth = self._depths[connection.topic]
        return BagFrame(connection.topic, connection.msgtype, receive_ns, bytes(cdr), message, depth)


def _open_reader(path: Path) -> Reader:
    if path.is_dir():
        _check_folder(path)
    reader = None
    try:
        reader = Reader(path)
        reader.open()
        _check_connections(reader.connections)
    except Exception as error:  # see BagSource.__iter__
        if reader is not None and reader.is_open:
            _close(reader)
        raise InvalidRequestError(f"{path} can't be read as a bag: {_reason(error)}; {_repair_hint(path)}") from error
    return reader


def _close(reader: Reader) -> None:
    with contextlib.suppress(AttributeError):  # what rosbags says where the metadata's "files" are no list
        reader.close()


def _check_folder(path: Path) -> None:
    """Refuse what reading would never come back from."""
    for entry in path.iterdir():
        if entry.exists() and not entry.is_file() and not entry.is_dir():
            raise InvalidRequestError(f"{entry} is a pipe, socket or device; a bag's folder holds regular files only")
    if (path / "metadata.yaml").stat().st_size > METADATA_MAX_BYTES:
        raise InvalidRequestError(
            f"{path / 'metadata.yaml'} is larger than {METADATA_MAX_BYTES >> 20} MiB, so it is no bag's; write it anew "
            f"with: ros2 bag reindex {path}"
        )


def _check_connections(connections: Sequence[Connection]) -> None:
    """rosbags takes the values as the metadata, or SQLite's rows, have them. Raises ``TypeError``."""
    for connection in connections:
        for name, kind in (("topic", str), ("msgtype", str), ("msgcount", int)):
            if not isinstance(value := getattr(connection, name), kind):
                raise TypeError(f"a topic's {name} is {value!r} and no {kind.__name__}")


def _image_connections(path: Path, reader: Reader, topics: Sequence[str]) -> list[Connection]:
    """Return the connections of the wanted image topics. Raises ``InvalidRequestError`` naming those there are."""
    images = [c for c in reader.connections if c.msgtype in IMAGE_TYPES]
    if not images:
        others = _names({f"{c.topic} ({c.msgtype})" for c in reader.connections}) or "nothing"
        raise InvalidRequestError(f"{path} has no Image or CompressedImage topic; it holds {others}")
    if not topics:
        return images
    wanted = {"/" + topic.lstrip("/") for topic in topics}
    names = {c.topic for c in images}
    if wanted - names:
        raise InvalidRequestError(
            f"{path} has no image topic {_names(wanted - names)}; it has {_names(names)}"
        )
    return [c for c in images if c.topic in wanted]


def _repair_hint(path: Path) -> str:
    """Say how a damaged bag is repaired, according to its storage."""
    is_mcap = path.suffix == ".mcap" or (path.is_dir() and any(path.glob("*.mcap")))
    return "try: mcap recover" if is_mcap else "try: sqlite3 FILE.db3 .recover, then ros2 bag reindex"


def _names(names: Iterable[str]) -> str:
    """Return names as one list of bounded length."""
    return shorten(", ".join(sorted(names)), 300, placeholder=" ...")


def _reason(error: Exception) -> str:
    """Return a library's words on one line of bounded length: YAML's have several, and may quote the file."""
    return shorten(str(error) or type(error).__name__, 300)
