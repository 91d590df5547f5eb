"""Serialized image messages: the stamp alone, the whole as a view, and whatever else may come in."""

from __future__ import annotations

import contextlib
import random
import struct

import numpy as np
import pytest

from vstream_ros.errors import FrameError
from vstream_ros.images.cdr import COMPRESSED_IMAGE, IMAGE, TYPES, read_image, read_stamp_ns, restamped

_Header = TYPES.types["std_msgs/msg/Header"]
_Time = TYPES.types["builtin_interfaces/msg/Time"]
STAMP_NS = 1_700_000_000_123_456_789


def image(stamp_ns=STAMP_NS, little_endian=True):
    header = _Header(stamp=_Time(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9), frame_id="camera")
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8)
    message = TYPES.types[IMAGE](
        header=header, height=2, width=3, encoding="rgb8", is_bigendian=0, step=9, data=pixels
    )
    return bytes(TYPES.serialize_cdr(message, IMAGE, little_endian=little_endian))


@pytest.mark.parametrize("little_endian", [True, False])
@pytest.mark.parametrize("stamp_ns", [STAMP_NS, 0, -5 * 10**9, 2**31 * 10**9 - 1])
def test_the_stamp(stamp_ns, little_endian):
    assert read_stamp_ns(image(stamp_ns, little_endian)) == stamp_ns


@pytest.mark.parametrize("little_endian", [True, False])
def test_restamping_changes_the_stamp_and_nothing_else(little_endian):
    other_ns = 1_700_000_000_999_999_999
    assert restamped(image(STAMP_NS, little_endian), other_ns) == image(other_ns, little_endian)


@pytest.mark.parametrize("little_endian", [True, False])
def test_the_message(little_endian):
    message = read_image(image(little_endian=little_endian), IMAGE)
    assert (message.height, message.width, message.encoding, message.step) == (2, 3, "rgb8", 9)
    assert message.header.frame_id == "camera"
    assert message.data.tolist() == list(range(18))


def test_the_pixels_are_a_view():
    data = image()
    assert np.shares_memory(read_image(data, IMAGE).data, np.frombuffer(data, np.uint8))


def test_a_compressed_message():
    header = _Header(stamp=_Time(sec=7, nanosec=8), frame_id="")
    message = TYPES.types[COMPRESSED_IMAGE](header=header, format="jpeg", data=np.arange(5, dtype=np.uint8))
    data = bytes(TYPES.serialize_cdr(message, COMPRESSED_IMAGE))
    assert read_stamp_ns(data) == 7_000_000_008
    assert read_image(data, COMPRESSED_IMAGE).format == "jpeg"
    assert read_image(data, COMPRESSED_IMAGE).data.tolist() == list(range(5))


@pytest.mark.parametrize("length", range(12))
def test_too_short_for_a_stamp(length):
    with pytest.raises(FrameError, match=f"{length} bytes"):
        read_stamp_ns(image()[:length])


@pytest.mark.parametrize("encapsulation", [b"\x00\x02", b"\x00\x06", b"\x00\x07", b"\x01\x01", b"\xff\xff"])
def test_another_encapsulation(encapsulation):
    with pytest.raises(FrameError, match="no CDR"):
        read_stamp_ns(encapsulation + image()[2:])


def test_a_length_beyond_the_message_costs_nothing():
    data = image()
    at = len(data) - 18 - 4  # the length of the pixels
    assert struct.unpack_from("<I", data, at) == (18,)
    with pytest.raises(FrameError):
        read_image(data[:at] + struct.pack("<I", 2**32 - 1) + data[at + 4 :], IMAGE)


def test_damaged_messages_are_frame_errors_or_messages():
    rng = random.Random(7)
    good = image()
    read_well = 0
    for _ in range(5_000):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        data = bytes(data[: rng.randrange(len(data))] if rng.random() < 0.3 else data)
        for read in (read_stamp_ns, lambda data: read_image(data, IMAGE)):
            with contextlib.suppress(FrameError):
                read(data)
                read_well += 1
    assert 1_000 < read_well < 9_000
