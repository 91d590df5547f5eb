"""Image messages as they travel, in CDR: their stamp alone, read or replaced, or the message as a view that copies no
pixels."""

from __future__ import annotations

import struct
from typing import Any

from rosbags.typesys import Stores, get_typestore

from vstream_ros.errors import FrameError

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"

# Both types are the same in every ROS 2 distribution, so the definitions that a bag brings along (bags from before
# Iron bring none) are not needed, and an odd definition of an unrelated topic can't stop us.
TYPES = get_typestore(Stores.ROS2_HUMBLE)

_STAMP = {b"\x00\x00": struct.Struct(">iI"), b"\x00\x01": struct.Struct("<iI")}
"""By encapsulation (OMG DDS-XTYPES 7.4): plain CDR, big and little endian; ROS 2 sends no other."""
_STAMP_AT = 4
"""Behind the encapsulation: both types begin with their header, and that with its stamp."""


def read_stamp_ns(message: bytes) -> int:
    """Nanoseconds of the header's stamp, without a look at the rest. Raises ``FrameError``."""
    layout = _STAMP.get(message[:2])
    if layout is None or len(message) < _STAMP_AT + layout.size:
        raise FrameError(f"the {len(message)} bytes of the message are no CDR with a header; check the publisher")
    sec, nanosec = layout.unpack_from(message, _STAMP_AT)
    return int(sec) * 1_000_000_000 + int(nanosec)


def restamped(message: bytes, stamp_ns: int) -> bytes:
    """The message with another stamp in its header. ``message``: CDR, of a type that begins with its header."""
    layout = _STAMP[b"\x00\x01" if message[1] & 1 else b"\x00\x00"]
    stamp = layout.pack(*divmod(stamp_ns, 1_000_000_000))
    return message[:_STAMP_AT] + stamp + message[_STAMP_AT + layout.size :]


def read_image(message: bytes, msg_type: str) -> Any:
    """The message (``IMAGE`` or ``COMPRESSED_IMAGE``); its ``data`` is a read-only numpy view of ``message``.

    Raises ``FrameError`` for bytes that are no such message.
    """
    try:
        return TYPES.deserialize_cdr(memoryview(message), msg_type)
    except Exception as error:  # a SerdeError in recent versions of rosbags, anything in older ones
        raise FrameError(f"the message is no {msg_type} ({error}); check the publisher") from error
