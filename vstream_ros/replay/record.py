"""Turn a video into a ROS 2 bag, so that a recording can stand in for a camera. Needs no ROS installation."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from rosbags.interfaces import Connection
from rosbags.rosbag2 import StoragePlugin, Writer

from vstream_ros.errors import ConfigError, FrameError, InvalidRequestError
from vstream_ros.memory.clip import NANOSECONDS
from vstream_ros.replay.bags import COMPRESSED_IMAGE, IMAGE, TYPES
from vstream_ros.replay.frames import Source
from vstream_ros.replay.sources import find_recording, is_bag, open_source

STORAGES = {"sqlite3": StoragePlugin.SQLITE3, "mcap": StoragePlugin.MCAP}
ENCODINGS = ("bgr8", "rgb8", "mono8")
# The metadata version that Humble still reads; newer distributions read it too.
METADATA_VERSION = 8

_Image = TYPES.types[IMAGE]
_CompressedImage = TYPES.types[COMPRESSED_IMAGE]
_Header = TYPES.types["std_msgs/msg/Header"]
_Time = TYPES.types["builtin_interfaces/msg/Time"]


@dataclass(frozen=True)
class RecordOptions:
    """How a video becomes messages. Raises ``ConfigError`` naming the option and the value."""

    topic: str = ""
    """Empty: /camera/image_raw, or /camera/image_raw/compressed with ``compressed``."""
    storage: str = "sqlite3"
    compressed: bool = False
    """Write sensor_msgs/CompressedImage (JPEG) instead of sensor_msgs/Image."""
    quality: int = 90
    """JPEG quality, 1 to 100."""
    encoding: str = "bgr8"
    rate_hz: float | None = None
    """Frames per second to keep, on a fixed grid of the video's time; None keeps all."""
    size: tuple[int, int] | None = None
    """(width, height) in pixels; None keeps the video's."""
    start_ns: int = 1_704_067_200 * NANOSECONDS
    """Header stamp of the video's start. Fixed (2024-01-01 UTC), so that the same video always gives the same bag."""
    frame_id: str = "camera"

    def __post_init__(self) -> None:
        if self.storage not in STORAGES:
            raise ConfigError(f"storage must be one of {tuple(STORAGES)}, got {self.storage!r}")
        if self.encoding not in ENCODINGS:
            raise ConfigError(f"encoding must be one of {ENCODINGS}, got {self.encoding!r}")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"quality must be in [1, 100], got {self.quality}")
        if self.rate_hz is not None and not 0.0 < self.rate_hz <= 1000.0:
            raise ConfigError(f"rate must be in (0, 1000] frames per second, got {self.rate_hz}")
        if self.size is not None and not all(1 <= edge <= 16384 for edge in self.size):
            raise ConfigError(f"size must be WIDTHxHEIGHT with edges in [1, 16384], got {self.size}")
        # A stamp of zero means "no stamp" in ROS, and the seconds of a stamp are a signed 32-bit number.
        if not 0 < self.start_ns < 2**31 * NANOSECONDS:
            raise ConfigError(f"start stamp must be in (0, 2^31) seconds, got {self.start_ns / NANOSECONDS}")

    @property
    def topic_name(self) -> str:
        return self.topic or "/camera/image_raw" + ("/compressed" if self.compressed else "")


@dataclass(frozen=True)
class RecordSummary:
    """What was written."""

    frames: int
    skipped: int
    """Frames of the video that could not be decoded."""
    first_stamp_ns: int
    last_stamp_ns: int


def record(
    video: Path | Source,
    bag: Path,
    options: RecordOptions | None = None,
    *,
    force: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> RecordSummary:
    """Write the frames of ``video``, a file or any other source, into the new rosbag2 folder ``bag``.

    Header stamps are ``start_ns`` + the frame's time in the video, backward steps included; the bag's own times never
    go back, so that the order is kept. ``force`` replaces a bag that stands there (but never a folder that is not a
    bag). ``on_progress(frames read, frames expected or 0)`` is called for each frame.
    The bag appears under its name only when it is complete. Raises ``InvalidRequestError``.
    """
    options = options or RecordOptions()
    bag = Path(bag)
    _check_target(bag, force)
    source = video if isinstance(video, Source) else _open_video(Path(video))
    try:
        bag.absolute().parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that the last step is a rename. The draft has the target's name: its files are named so.
        workspace = Path(tempfile.mkdtemp(prefix=f".{bag.name}.", dir=bag.absolute().parent))
    except OSError as error:
        raise InvalidRequestError(f"{bag} can't be written: {error.strerror}") from error
    try:
        draft = workspace / bag.name
        with Writer(draft, version=METADATA_VERSION, storage_plugin=STORAGES[options.storage]) as writer:
            summary = _Recorder(writer, options).write(source, on_progress)
        if bag.exists():
            shutil.rmtree(bag)
        os.replace(draft, bag)
    except (OSError, sqlite3.Error) as error:  # a full disk shows as either
        raise InvalidRequestError(f"{bag} can't be written: {error}") from error
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    return summary


def _open_video(video: Path) -> Source:
    found = find_recording(video)
    if is_bag(found):
        raise InvalidRequestError(f"{found} is a bag already; pass a video file")
    return open_source(found)


def _check_target(bag: Path, force: bool) -> None:
    if not bag.exists() and not bag.is_symlink():
        return
    if not force:
        raise InvalidRequestError(f"{bag} exists already; pass another name, or --force to replace it")
    if bag.is_symlink() or not (bag / "metadata.yaml").is_file():
        raise InvalidRequestError(f"{bag} exists and is not a rosbag2 folder, so --force does not replace it")


class _Recorder:
    """Converts frames into messages and writes them."""

    def __init__(self, writer: Writer, options: RecordOptions) -> None:
        self._writer = writer
        self._options = options
        self._msgtype = COMPRESSED_IMAGE if options.compressed else IMAGE
        self._connection: Connection = writer.add_connection(options.topic_name, self._msgtype, typestore=TYPES)
        self._slot = -1

    def write(self, source: Source, on_progress: Callable[[int, int], None] | None) -> RecordSummary:
        stamps: list[int] = []
        undecodable = 0
        receive_ns = 0
        for read, frame in enumerate(source, start=1):
            if on_progress is not None:
                on_progress(read, source.frame_count)
            if not self._wanted(frame.stamp_ns):
                continue
            try:
                pixels = frame.rgb(self._options.size and self._options.size[::-1])
            except FrameError:
                undecodable += 1
                continue
            stamp_ns = self._options.start_ns + frame.stamp_ns
            receive_ns = max(receive_ns + 1, self._options.start_ns + frame.receive_ns)
            message = self._message(pixels, stamp_ns)
            self._writer.write(self._connection, receive_ns, TYPES.serialize_cdr(message, self._msgtype))
            stamps.append(stamp_ns)
        if not stamps:
            raise InvalidRequestError(f"{source.path} holds no frame that can be decoded; pass another video")
        return RecordSummary(len(stamps), source.skipped + undecodable, stamps[0], stamps[-1])

    def _wanted(self, stamp_ns: int) -> bool:
        """Whether the frame is the first of a new slot of the grid."""
        if self._options.rate_hz is None:
            return True
        # Containers round times, Matroska to whole milliseconds: the frame at 0.033 s of a 30 Hz film is in slot 1.
        tolerance_ns = min(1e6, 0.25 * NANOSECONDS / self._options.rate_hz)
        slot = int((stamp_ns + tolerance_ns) * self._options.rate_hz // NANOSECONDS)
        if slot <= self._slot:
            return False
        self._slot = slot
        return True

    def _message(self, pixels: np.ndarray, stamp_ns: int) -> object:
        seconds, nanoseconds = divmod(stamp_ns, NANOSECONDS)
        header = _Header(stamp=_Time(sec=seconds, nanosec=nanoseconds), frame_id=self._options.frame_id)
        encoding = self._options.encoding
        if encoding != "rgb8":
            pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR if encoding == "bgr8" else cv2.COLOR_RGB2GRAY)
        if self._options.compressed:
            # JPEG holds its own colour order; OpenCV's encoder expects BGR.
            picture = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if encoding == "rgb8" else pixels
            _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, self._options.quality])
            # image_transport's spelling: the camera's encoding, then what is compressed and how.
            compressed_encoding = "mono8" if encoding == "mono8" else "bgr8"
            return _CompressedImage(
                header=header, format=f"{encoding}; jpeg compressed {compressed_encoding}", data=data.reshape(-1)
            )
        height, width = pixels.shape[:2]
        return _Image(
            header=header, height=height, width=width, encoding=encoding, is_bigendian=0, step=pixels.strides[0],
            data=pixels.reshape(-1),
        )
