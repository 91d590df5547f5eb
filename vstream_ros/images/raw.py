"""``sensor_msgs/Image`` to RGB arrays, at the size that the model wants.

Used by the node (rclpy messages, ``data`` is an ``array.array``) and by replay (rosbags messages, ``data`` is a numpy
array): everything here needs only the fields of the message. No rclpy.

Pixels are taken through cv_bridge where it is right. The cv_bridge of PyPI (the ROS 1 Python code) ignores ``step``,
fails on big-endian data under numpy 2, and knows neither yuv422_yuy2 nor the type of 16UC1; a cv_bridge that was built
for numpy 1 does not import under numpy 2. All those go through a strided view of our own, so that what a camera sends
does not depend on which cv_bridge is installed.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from vstream_ros.errors import FrameError
from vstream_ros.images.conversion import (
    SizeRule,
    checked_size,
    message_bytes,
    only_frame_errors,
    quoted,
    target_size,
)
from vstream_ros.images.depth import SensorDepth
from vstream_ros.images.resize import resize_rgb


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


@only_frame_errors
def decode_image(msg: Any, size: SizeRule = None, depth: SensorDepth | None = None) -> np.ndarray:
    """An image message as RGB: (height, width, 3) uint8, a new contiguous array.

    Where it is right the image is resized first and its colours converted afterwards, on far fewer pixels. ``depth``:
    of the camera, by which its 16-bit images become 8-bit; None: judged from this image alone.

    Raises ``FrameError`` with a sentence for whatever can't be read, and nothing else. Does not change ``msg``.
    """
    layout = _LAYOUTS.get(msg.encoding)
    if layout is None:
        raise FrameError(
            f"encoding {quoted(msg.encoding)} can't be read: have the camera publish one of {', '.join(ENCODINGS)}"
        )
    height, width = checked_size(msg.height, msg.width)
    if layout.pair and width % 2:
        raise FrameError(f"a {msg.encoding} image needs an even width, got {width}: two pixels share their colour")
    if layout.colour_first and not layout.pair and min(height, width) < 3:
        raise FrameError(f"a {msg.encoding} image of {width}x{height} is too small to interpolate its colours")
    target = target_size(size, height, width)
    image = _pixels(msg, layout)
    if image.dtype != np.uint8:
        image = (depth or SensorDepth()).to_uint8(image)
    if layout.colour_first:
        assert layout.code is not None
        image = cv2.cvtColor(image, layout.code)
    if target != (height, width):
        image = resize_rgb(image, target)
    if not layout.colour_first and layout.code is not None:
        image = cv2.cvtColor(image, layout.code)
    # rgb8 at its own size is still the message's memory, which is not ours to hand out.
    return image if image.flags.owndata and image.flags.c_contiguous else image.copy()


def _pixels(msg: Any, layout: _Layout) -> np.ndarray:
    """(height, width[, channels]) in the machine's byte order; a view of the message wherever that is possible."""
    height, width, step = int(msg.height), int(msg.width), int(msg.step)
    data = message_bytes(msg.data)
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
