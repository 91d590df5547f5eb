"""Recordings for the tests of replay: lossless videos with any timestamps, and bags with any messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer

from vstream_ros.memory.clip import NANOSECONDS
from vstream_ros.replay.bags import COMPRESSED_IMAGE, IMAGE, TYPES

MILLISECOND = 1_000_000
TOPIC = "/camera/image_raw"

_Header = TYPES.types["std_msgs/msg/Header"]
_Time = TYPES.types["builtin_interfaces/msg/Time"]


def pictures(count: int, height: int = 24, width: int = 32) -> list[np.ndarray]:
    """``count`` different RGB images of noise."""
    rng = np.random.default_rng(7)
    return list(rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def write_video(path: Path, frames: Sequence[np.ndarray], times_ms: Sequence[int]) -> Path:
    """A Matroska file with FFV1 video, bit for bit ``frames``. The times may step back, as in damaged files."""
    unit = Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "bgr0"
        stream.codec_context.time_base = unit
        packets = []
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="bgr0")
            picture.pts, picture.time_base = index, unit
            packets += stream.encode(picture)
        packets += stream.encode(None)
        for index, (packet, time_ms) in enumerate(zip(packets, times_ms, strict=True)):
            # The decoding order is the packets'; what FFmpeg shows as time is free.
            packet.dts, packet.pts, packet.time_base = index, time_ms, unit
            container.mux(packet)
    return path


def image_cdr(pixels: np.ndarray, stamp_ns: int, encoding: str = "rgb8") -> bytes:
    """A serialised sensor_msgs/Image."""
    message = TYPES.types[IMAGE](
        header=_header(stamp_ns), height=pixels.shape[0], width=pixels.shape[1], encoding=encoding, is_bigendian=0,
        step=pixels.strides[0], data=pixels.reshape(-1),
    )
    return bytes(TYPES.serialize_cdr(message, IMAGE))


def compressed_cdr(data: bytes, stamp_ns: int) -> bytes:
    """A serialised sensor_msgs/CompressedImage."""
    message = TYPES.types[COMPRESSED_IMAGE](
        header=_header(stamp_ns), format="jpeg", data=np.frombuffer(data, np.uint8)
    )
    return bytes(TYPES.serialize_cdr(message, COMPRESSED_IMAGE))


def write_bag(
    folder: Path, messages: Iterable[tuple[str, str, int, bytes]], storage: StoragePlugin = StoragePlugin.SQLITE3
) -> Path:
    """A rosbag2 folder of (topic, message type, receive time in ns, serialised message)."""
    with Writer(folder, version=8, storage_plugin=storage) as writer:
        connections = {}
        for topic, msgtype, receive_ns, cdr in messages:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, msgtype, typestore=TYPES)
            writer.write(connections[topic], receive_ns, cdr)
    return folder


def image_bag(folder: Path, frames: Sequence[np.ndarray], storage: StoragePlugin = StoragePlugin.SQLITE3) -> Path:
    """A bag of raw images at 10 Hz from 100 s on; each header stamp is 1 ms before the receive time."""
    times = [100 * NANOSECONDS + i * 100 * MILLISECOND for i in range(len(frames))]
    return write_bag(
        folder,
        ((TOPIC, IMAGE, t, image_cdr(f, t - MILLISECOND)) for t, f in zip(times, frames, strict=True)),
        storage,
    )


def storage_file(folder: Path) -> Path:
    """The one storage file of a bag."""
    (path,) = (p for p in folder.iterdir() if p.suffix in (".db3", ".mcap"))
    return path


def _header(stamp_ns: int) -> object:
    seconds, nanoseconds = divmod(stamp_ns, NANOSECONDS)
    return _Header(stamp=_Time(sec=seconds, nanosec=nanoseconds), frame_id="front")
