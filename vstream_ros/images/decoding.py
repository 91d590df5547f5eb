"""ROS image messages to RGB arrays, at the size that the model wants.

Used by the node (rclpy messages, ``data`` is an ``array.array``) and by replay (rosbags messages, ``data`` is a numpy
array): everything here needs only the fields of ``sensor_msgs/Image`` and ``sensor_msgs/CompressedImage``. No rclpy.

Pixels are taken through cv_bridge where it is right. The cv_bridge of PyPI (the ROS 1 Python code) ignores ``step``,
fails on big-endian data under numpy 2, and knows neither yuv422_yuy2 nor the type of 16UC1; a cv_bridge that was built
for numpy 1 does not import under numpy 2. All those go through a strided view of our own, so that what a camera sends
does not depend on which cv_bridge is installed.
"""

from __future__ import annotations

import functools
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from vstream_ros.errors import FrameError
from vstream_ros.images.resize import resize_rgb

Size = tuple[int, int]
"""(height, width)"""

SizeRule = Size | Callable[[int, int], Size] | None
"""A size, or a function from the image's own (height, width) to it (``engine.frame_size``), or None: as it is."""

MAX_SIDE = 16384
MAX_PIXELS = 100_000_000
"""Beyond any camera: a header that claims more is damaged, and believing it would cost gigabytes."""


@dataclass(frozen=True)
class _Layout:
    """How one encoding lies in memory, and how it becomes RGB."""

    channels: int
    dtype: str = "uint8"
    code: int | None = None
    """cv2.cvtColor code to RGB; None: it is RGB."""
    colour_first: bool = False
    """Convert at full size: neighbouring pixels carry different colours (Bayer) or share one (YUV 4:2:2)."""
    pair: bool = False
    """Two neighbouring pixels share their colour: the width must be even."""

    @property
    def pixel_bytes(self) -> int:
        return self.channels * np.dtype(self.dtype).itemsize


def _layouts() -> dict[str, _Layout]:
    layouts = {
        "rgb8": _Layout(3),
        "bgr8": _Layout(3, code=cv2.COLOR_BGR2RGB),
        "rgba8": _Layout(4, code=cv2.COLOR_RGBA2RGB),
        "bgra8": _Layout(4, code=cv2.COLOR_BGRA2RGB),
        "mono8": _Layout(1, code=cv2.COLOR_GRAY2RGB),
        "rgb16": _Layout(3, "uint16"),
        "bgr16": _Layout(3, "uint16", cv2.COLOR_BGR2RGB),
        "rgba16": _Layout(4, "uint16", cv2.COLOR_RGBA2RGB),
        "bgra16": _Layout(4, "uint16", cv2.COLOR_BGRA2RGB),
        "mono16": _Layout(1, "uint16", cv2.COLOR_GRAY2RGB),
        # OpenCV's own types name no colours; its convention is blue first.
        "8UC1": _Layout(1, code=cv2.COLOR_GRAY2RGB),
        "8UC3": _Layout(3, code=cv2.COLOR_BGR2RGB),
        "8UC4": _Layout(4, code=cv2.COLOR_BGRA2RGB),
        "16UC1": _Layout(1, "uint16", cv2.COLOR_GRAY2RGB),
        "16UC3": _Layout(3, "uint16", cv2.COLOR_BGR2RGB),
        "16UC4": _Layout(4, "uint16", cv2.COLOR_BGRA2RGB),
        "yuv422": _Layout(2, code=cv2.COLOR_YUV2RGB_UYVY, colour_first=True, pair=True),
        "yuv422_yuy2": _Layout(2, code=cv2.COLOR_YUV2RGB_YUY2, colour_first=True, pair=True),
    }
    layouts["uyvy"] = layouts["yuv422"]  # the newer names of the same two
    layouts["yuyv"] = layouts["yuv422_yuy2"]
    # OpenCV names a Bayer pattern by the second row's second and third pixel, ROS by the first two of two rows.
    bayer = {
        "rggb": cv2.COLOR_BayerBG2RGB,
        "bggr": cv2.COLOR_BayerRG2RGB,
        "gbrg": cv2.COLOR_BayerGR2RGB,
        "grbg": cv2.COLOR_BayerGB2RGB,
    }
    for pattern, code in bayer.items():
        layouts[f"bayer_{pattern}8"] = _Layout(1, "uint8", code, colour_first=True)
        layouts[f"bayer_{pattern}16"] = _Layout(1, "uint16", code, colour_first=True)
    return layouts


_LAYOUTS = _layouts()
ENCODINGS = tuple(_LAYOUTS)
"""Encodings of ``sensor_msgs/Image`` that ``decode_image`` reads."""


def decode_image(msg: Any, size: SizeRule = None) -> np.ndarray:
    """An image message as RGB: (height, width, 3) uint8, a new contiguous array.

    Where it is right the image is resized first and its colours converted afterwards, on far fewer pixels. 16-bit
    images become 8-bit by a shift that depends on the brightest pixel (see ``_to_uint8``).

    Raises ``FrameError`` with a sentence for whatever can't be read. Does not change ``msg``.
    """
    layout = _LAYOUTS.get(msg.encoding)
    if layout is None:
        raise FrameError(
            f"encoding {msg.encoding!r} can't be read: have the camera publish one of {', '.join(ENCODINGS)}"
        )
    height, width = _checked_size(msg.height, msg.width)
    if layout.pair and width % 2:
        raise FrameError(f"a {msg.encoding} image needs an even width, got {width}: two pixels share their colour")
    if layout.colour_first and not layout.pair and min(height, width) < 3:
        raise FrameError(f"a {msg.encoding} image of {width}x{height} is too small to interpolate its colours")
    target = _target(size, height, width)
    image = _pixels(msg, layout)
    if image.dtype != np.uint8:
        image = _to_uint8(image)
    if layout.colour_first:
        assert layout.code is not None
        image = cv2.cvtColor(image, layout.code)
    if target != (height, width):
        image = resize_rgb(image, target)
    if not layout.colour_first and layout.code is not None:
        image = cv2.cvtColor(image, layout.code)
    # rgb8 at its own size is still the message's memory, which is not ours to hand out.
    return image if image.flags.owndata and image.flags.c_contiguous else image.copy()


def decode_compressed(msg: Any, size: SizeRule = None) -> np.ndarray:
    """A compressed image message (JPEG, PNG and what else OpenCV reads) as RGB: (height, width, 3) uint8.

    A JPEG that is much larger than ``size`` is decoded at 1/2, 1/4 or 1/8 of its size, which is why cv_bridge, whose
    ``compressed_imgmsg_to_cv2`` always decodes everything, is not used here. The orientation in EXIF data is ignored:
    the size must not depend on it. Raises ``FrameError`` with a sentence. Does not change ``msg``.
    """
    if "compressedDepth" in msg.format:
        raise FrameError(f"format {msg.format!r} is a depth image: point image_topic at a colour image")
    data = _bytes(msg.data)
    if data.size == 0:
        raise FrameError("the compressed image holds no data")
    jpeg = _jpeg_size(data)
    header = jpeg or _png_size(data)
    if header is not None:
        _checked_size(*header)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
    if jpeg is not None:
        flags = _JPEG_FLAGS[_reduction(jpeg, _target(size, *jpeg))]
    try:
        image = cv2.imdecode(data, flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise FrameError(f"OpenCV can't decode the {msg.format!r} image: {str(error).strip()}") from error
    if image is None:
        raise FrameError(
            f"the {msg.format!r} data can't be decoded: it is damaged, or not an image format that OpenCV reads"
        )
    height, width = header or _checked_size(*image.shape[:2])
    target = _target(size, height, width)
    if image.dtype != np.uint8:
        image = _to_uint8(image)
    if target != image.shape[:2]:
        image = resize_rgb(image, target)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _checked_size(height: int, width: int) -> Size:
    height, width = int(height), int(width)
    if height < 1 or width < 1:
        raise FrameError(f"the image is empty ({width}x{height}): check the camera driver")
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise FrameError(
            f"an image of {width}x{height} is beyond {MAX_SIDE} pixels a side or {MAX_PIXELS} in all: "
            "its header is damaged, or the camera must publish a smaller one"
        )
    return height, width


def _target(size: SizeRule, height: int, width: int) -> Size:
    if size is None:
        return height, width
    wanted = size(height, width) if callable(size) else size
    return int(wanted[0]), int(wanted[1])


def _bytes(data: Any) -> np.ndarray:
    """The message's bytes as a flat uint8 array, without a copy where ``data`` is a buffer."""
    if isinstance(data, np.ndarray):
        return np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    if isinstance(data, list):  # a message that was filled by hand
        return np.array(data, dtype=np.uint8)
    return np.frombuffer(data, dtype=np.uint8)


def _pixels(msg: Any, layout: _Layout) -> np.ndarray:
    """(height, width[, channels]) in the machine's byte order; a view of the message wherever that is possible."""
    height, width, step = int(msg.height), int(msg.width), int(msg.step)
    data = _bytes(msg.data)
    row = width * layout.pixel_bytes
    if step < row:
        raise FrameError(
            f"step is {step}, but a row of {width} {msg.encoding} pixels takes {row} bytes: "
            "the driver must set step to the bytes of one row, or the encoding is another"
        )
    # Some drivers leave the padding of the last row away.
    needed = step * (height - 1) + row
    if data.size < needed:
        raise FrameError(
            f"data holds {data.size} bytes, but {width}x{height} {msg.encoding} with step {step} takes {needed}: "
            "the message was cut short, or its height, step or encoding is wrong"
        )
    dtype = np.dtype(layout.dtype)
    foreign = dtype.itemsize > 1 and bool(msg.is_bigendian) != (sys.byteorder == "big")
    if step == row and not msg.is_bigendian and sys.byteorder == "little":
        image = _cv_bridge_pixels(msg)
        if image is not None and image.dtype == dtype and image.size == height * width * layout.channels:
            return image
    if foreign:
        dtype = dtype.newbyteorder("S")
    image = np.ndarray(
        (height, width, layout.channels),
        dtype,
        buffer=data,
        strides=(step, layout.pixel_bytes, np.dtype(layout.dtype).itemsize),
    )
    if layout.channels == 1:
        image = image[:, :, 0]
    return image.astype(dtype.newbyteorder("=")) if foreign else image


def _cv_bridge_pixels(msg: Any) -> np.ndarray | None:
    """What cv_bridge makes of the message; None where it is not installed or does not know the encoding."""
    bridge = _cv_bridge()
    if bridge is None:
        return None
    try:
        return bridge.imgmsg_to_cv2(msg, "passthrough")
    except (TypeError, KeyError, ValueError, AttributeError):  # CvBridgeError is a TypeError; PyPI's raises KeyError
        return None


@functools.cache
def _cv_bridge() -> Any:
    try:
        from cv_bridge import CvBridge
    except (ImportError, AttributeError):  # not installed, or its C++ part was built for another numpy
        return None
    return CvBridge()


def _to_uint8(image: np.ndarray) -> np.ndarray:
    """16-bit pixels to 8 bits by a shift.

    The message does not say how many bits the sensor fills. The brightest pixel decides among those that sensors have
    (10, 12, 14, 16): a 12-bit camera is not shown black, and the picture does not pump with its content as it would
    with minimum and maximum.
    """
    needed = int(image.max()).bit_length()
    bits = next(b for b in (10, 12, 14, 16) if b >= needed)
    return (image >> (bits - 8)).astype(np.uint8)


_JPEG_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def _reduction(size: Size, target: Size) -> int:
    """The largest of 8, 4, 2, 1 by which a JPEG may be divided without falling below ``target``."""
    return next(
        n for n in (8, 4, 2, 1) if n == 1 or all(-(-have // n) >= want for have, want in zip(size, target, strict=True))
    )


def _jpeg_size(data: np.ndarray) -> Size | None:
    """(height, width) from a JPEG's frame header; None if it is no JPEG or holds no such header.

    Raises ``FrameError`` for a JPEG without an end: OpenCV fills what is missing with grey and only prints a warning,
    and half a picture must not be stored.
    """
    if data[:2].tobytes() != b"\xff\xd8":
        return None
    raw = data.tobytes()
    at = 2
    while at + 9 <= len(raw) and raw[at] == 0xFF:
        marker = raw[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # SOF0..15 but for the tables among them
            if raw.rfind(b"\xff\xd9", at) < 0:
                raise FrameError(f"the JPEG of {len(raw)} bytes has no end: the message was cut short")
            height, width = struct.unpack(">HH", raw[at + 5 : at + 9])
            return height, width
        else:
            at += 2 + struct.unpack(">H", raw[at + 2 : at + 4])[0]
    return None


def _png_size(data: np.ndarray) -> Size | None:
    raw = data[:24].tobytes()
    if len(raw) < 24 or raw[:8] != b"\x89PNG\r\n\x1a\n":
        return None
    width, height = struct.unpack(">II", raw[16:24])
    return height, width
