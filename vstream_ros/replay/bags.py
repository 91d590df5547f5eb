"""ROS 2 bags as a source, read by rosbags: no ROS installation is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader
from rosbags.serde import SerdeError

from vstream_ros.errors import InvalidRequestError
from vstream_ros.images import SizeRule, decode_compressed, decode_image
from vstream_ros.images.cdr import COMPRESSED_IMAGE, IMAGE, TYPES
from vstream_ros.memory.clip import NANOSECONDS
from vstream_ros.replay.frames import Frame, Source

IMAGE_TYPES = (IMAGE, COMPRESSED_IMAGE)


class BagFrame(Frame):
    """One message of an image topic: the bytes as recorded, and the message they hold (arrays are views of them)."""

    def __init__(self, topic: str, msgtype: str, receive_ns: int, cdr: bytes, message: Any) -> None:
        self.topic = topic
        self.msgtype = msgtype
        self.receive_ns = receive_ns
        self.cdr = cdr
        self.message = message
        stamp = message.header.stamp
        self.stamp_ns = stamp.sec * NANOSECONDS + stamp.nanosec or receive_ns

    def rgb(self, size: SizeRule = None) -> np.ndarray:
        return (decode_image if self.msgtype == IMAGE else decode_compressed)(self.message, size)


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
            reader.close()
            raise
        self._reader = reader
        self.topics = tuple(dict.fromkeys(c.topic for c in self._connections))
        self.topic_types = {c.topic: c.msgtype for c in self._connections}
        self.frame_count = sum(c.msgcount for c in self._connections)

    def __iter__(self) -> Iterator[Frame]:
        if self._reader is None:
            raise InvalidRequestError(f"{self.path} has been closed")
        self.skipped, self.last_fault = 0, ""
        found = False
        messages = self._reader.messages(self._connections)
        while True:
            try:
                record = next(messages, None)
            # SQLite, zstd, lz4 and the MCAP parser each have a family of their own; here all mean a broken file.
            except Exception as error:
                raise InvalidRequestError(f"{self.path} breaks off: {error}; {_repair_hint(self.path)}") from error
            if record is None:
                break
            frame = self._frame(*record)
            if frame is not None:
                found = True
                yield frame
        if not found:
            fault = f" ({self.skipped} are damaged: {self.last_fault})" if self.skipped else ""
            raise InvalidRequestError(f"{self.path} holds no readable message on {', '.join(self.topics)}{fault}")

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _frame(self, connection: Connection, receive_ns: int, cdr: bytes) -> BagFrame | None:
        """Return the message as a frame; None, counted, when the bytes are no such message."""
        try:
            message = TYPES.deserialize_cdr(cdr, connection.msgtype)
        except SerdeError as error:
            self._count_fault(f"{connection.topic}: {error}")
            return None
        return BagFrame(connection.topic, connection.msgtype, receive_ns, bytes(cdr), message)


def _open_reader(path: Path) -> Reader:
    if path.is_dir() and not (path / "metadata.yaml").is_file():
        raise InvalidRequestError(
            f"{path} is no rosbag2 folder: it has no metadata.yaml; pass a bag's folder or one of its .mcap or .db3 "
            f"files (an interrupted recording can be repaired: ros2 bag reindex {path})"
        )
    try:
        reader = Reader(path)
        reader.open()
    except Exception as error:  # see BagSource.__iter__
        raise InvalidRequestError(f"{path} can't be read as a bag: {error}; {_repair_hint(path)}") from error
    return reader


def _image_connections(path: Path, reader: Reader, topics: Sequence[str]) -> list[Connection]:
    """Return the connections of the wanted image topics. Raises ``InvalidRequestError`` naming those there are."""
    images = [c for c in reader.connections if c.msgtype in IMAGE_TYPES]
    if not images:
        others = ", ".join(sorted({f"{c.topic} ({c.msgtype})" for c in reader.connections})) or "nothing"
        raise InvalidRequestError(f"{path} has no Image or CompressedImage topic; it holds {others}")
    if not topics:
        return images
    wanted = {"/" + topic.lstrip("/") for topic in topics}
    names = {c.topic for c in images}
    if wanted - names:
        raise InvalidRequestError(
            f"{path} has no image topic {', '.join(sorted(wanted - names))}; it has {', '.join(sorted(names))}"
        )
    return [c for c in images if c.topic in wanted]


def _repair_hint(path: Path) -> str:
    """Say how a damaged bag is repaired, according to its storage."""
    is_mcap = path.suffix == ".mcap" or (path.is_dir() and any(path.glob("*.mcap")))
    return "try: mcap recover" if is_mcap else "try: sqlite3 FILE.db3 .recover, then ros2 bag reindex"
