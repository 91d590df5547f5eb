"""``sensor_msgs/CompressedImage`` to RGB: JPEG, PNG and WebP, looked through before a decoder believes their headers.

Decoders allocate what a header claims: 35 bytes of GIF took OpenCV 1.8 GB, one flipped byte in a PNG's chunk length
3.7 GB, a small TIFF 5.4 GB. So a format is told by its first bytes, and what cameras do not send is refused by name;
lengths are checked against the data; the size is read by Pillow, which decodes nothing for it.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from PIL import Image

from vstream_ros.errors import FrameError
from vstream_ros.images.conversion import (
    Size,
    SizeRule,
    checked_size,
    message_bytes,
    only_frame_errors,
    quoted,
    target_size,
)
from vstream_ros.images.depth import SensorDepth
from vstream_ros.images.resize import resize_rgb

MAX_DECODED_BYTES = 300_000_000
"""Of one image after decoding, 8 or 16 bits a channel."""
CREDIBLE_BYTES = 64_000_000
MAX_RATIO = 1032
"""Deflate's greatest ratio, and more than JPEG reaches. What is decoded to more than ``CREDIBLE_BYTES`` must have at
least the decoded size over this as data: an empty image of 20 million pixels may be a few bytes, no larger one."""
MAX_PNG_CHUNKS = 65_536
MAX_JPEG_SCANS = 100
"""A progressive JPEG has about ten; each goes over the whole picture, however short it is."""

REFUSED = {
    b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF", b"BM": "BMP",
    b"#?": "Radiance HDR", b"PF": "PFM", b"Pf": "PFM", b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cjP  ": "JPEG 2000", b"\x76\x2f\x31\x01": "OpenEXR", b"\x59\xa6\x6a\x95": "Sun Raster",
    b"\xff\x0a": "JPEG XL", b"\0\0\0\x0cJXL ": "JPEG XL", **{b"P%d" % n: "PNM" for n in range(1, 8)},
}  # fmt: skip
"""Formats by their first bytes, for the sentence that refuses them."""

_JPEG_MAGIC, _PNG_MAGIC = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_JPEG_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_SOF, _NO_SOF, _SOF_PROGRESSIVE = range(0xC0, 0xD0), (0xC4, 0xC8, 0xCC), 0xC2
_SOS = 0xDA
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")


@only_frame_errors
def decode_compressed(msg: Any, size: SizeRule = None, depth: SensorDepth | None = None) -> np.ndarray:
    """A compressed image message (JPEG, PNG or WebP) as RGB: (height, width, 3) uint8.

    A JPEG that is much larger than ``size`` is decoded at 1/2, 1/4 or 1/8 of its size, which is why cv_bridge, whose
    ``compressed_imgmsg_to_cv2`` always decodes everything, is not used here. The orientation in EXIF data is ignored:
    the size must not depend on it. ``depth``: of the camera, for 16-bit PNG; None: judged from this image alone.
    Raises ``FrameError`` with a sentence, and nothing else. Does not change ``msg``.
    """
    if "compressedDepth" in msg.format:
        raise FrameError(f"format {quoted(msg.format)} is a depth image: point image_topic at a colour image")
    data = message_bytes(msg.data)
    if data.size == 0:
        raise FrameError("the compressed image holds no data")
    start = data[:16].tobytes()
    flags, factor = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH, 1
    if start.startswith(_JPEG_MAGIC):
        height, width = _checked_jpeg(data.data)
        target = target_size(size, height, width)
        factor = _reduction((height, width), target)
        flags = _JPEG_FLAGS[factor]
    elif start.startswith(_PNG_MAGIC):
        data, (height, width) = _checked_png(data)
        target = target_size(size, height, width)
    elif start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        height, width = _checked_webp(data)
        target = target_size(size, height, width)
    else:
        raise FrameError(_unknown(start, msg.format))
    image = cv2.imdecode(data, flags | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None or image.shape[:2] != (-(-height // factor), -(-width // factor)):
        raise FrameError(f"the {quoted(msg.format)} data can't be decoded: it is damaged")
    if image.dtype != np.uint8:
        image = (depth or SensorDepth()).to_uint8(image)
    if target != image.shape[:2]:
        image = resize_rgb(image, target)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _unknown(start: bytes, claimed: str) -> str:
    for magic, name in REFUSED.items():
        if start.startswith(magic):
            return f"format {name} is not accepted: publish JPEG or PNG"
    if start[4:8] == b"ftyp":
        return "format AVIF or HEIF is not accepted: publish JPEG or PNG"
    return f"the {quoted(claimed)} data can't be decoded: it is neither JPEG nor PNG nor WebP; publish one of them"


def _checked_decoded(height: int, width: int, *, sample_bytes: int, data_bytes: int) -> Size:
    """The size, if so many bytes of data can be an image of it that we are willing to hold; else ``FrameError``."""
    height, width = checked_size(height, width)
    decoded = height * width * 3 * sample_bytes
    if decoded > MAX_DECODED_BYTES:
        raise FrameError(
            f"an image of {width}x{height} takes {decoded} bytes decoded, beyond {MAX_DECODED_BYTES}: "
            "have the camera publish a smaller one, or 8 bits a channel"
        )
    if decoded > max(CREDIBLE_BYTES, MAX_RATIO * data_bytes):
        raise FrameError(f"so little data can't hold an image of {width}x{height}: its header is damaged")
    return height, width


def _header_size(header: bytes, kind: str) -> Size:
    """(height, width) from a file's header, read by Pillow without decoding."""
    try:
        with Image.open(io.BytesIO(header), formats=(kind,)) as image:
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise FrameError(f"the {kind.lower()} data claims to be beyond any camera's size: {error}") from error
    except Exception as error:
        raise FrameError(f"the {kind.lower()} data can't be decoded: its header is damaged") from error
    return height, width


# -- JPEG --------------------------------------------------------------------------------------------------------------


def _reduction(size: Size, target: Size) -> int:
    """The largest of 8, 4, 2, 1 by which a JPEG may be divided without falling below ``target``."""
    return next(
        n for n in (8, 4, 2, 1) if n == 1 or all(-(-have // n) >= want for have, want in zip(size, target, strict=True))
    )


def _checked_jpeg(data: memoryview) -> Size:
    """(height, width) of a JPEG whose header is whole and which has an end; else ``FrameError``.

    Segments must follow each other without a gap up to the first scan: libjpeg searches for the next marker wherever
    there is none, and would find another header than we do. Without an end OpenCV fills what is missing with grey and
    only prints a warning, and half a picture must not be stored.
    """
    frame, header = None, b""
    for marker, at, end in _jpeg_segments(data):
        if marker in _SOF and marker not in _NO_SOF:
            if frame is not None or marker > _SOF_PROGRESSIVE:
                raise FrameError("the jpeg data can't be decoded: it is damaged, or neither baseline nor progressive")
            frame, header = marker, bytes(data[at - 2 : end])
        if marker == _SOS:
            if frame is None:
                raise FrameError("the jpeg data can't be decoded: its frame header is missing; it is damaged")
            height, width = _header_size(b"\xff\xd8" + header + bytes(data[at - 2 : end]), "JPEG")
            _check_jpeg_scans(data[end:], many=frame == _SOF_PROGRESSIVE or data[at + 2] != header[9])
            return _checked_decoded(height, width, sample_bytes=1, data_bytes=len(data))
    raise FrameError("the jpeg data can't be decoded: it was cut short before its first scan")


def _jpeg_segments(data: memoryview) -> Iterator[tuple[int, int, int]]:
    """Marker, start (of the length field) and end of each segment, until the data ends; ``FrameError`` for a gap."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise FrameError("the jpeg data can't be decoded: a segment does not follow the one before; it is damaged")
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker < 0xC0 or 0xD0 <= marker <= 0xD9 or length < 2:
            raise FrameError("the jpeg data can't be decoded: its header holds what is no segment; it is damaged")
        yield marker, at + 2, min(at + 2 + length, len(data))
        at += 2 + length


def _check_jpeg_scans(scans: memoryview, *, many: bool) -> None:
    if not many and bytes(scans[-2:]) == b"\xff\xd9":
        return
    raw = bytes(scans)  # some cameras fill the buffer behind the end
    if raw.rfind(b"\xff\xd9") < 0:
        raise FrameError("the jpeg data can't be decoded: it has no end; the message was cut short")
    if raw.count(bytes((0xFF, _SOS))) > MAX_JPEG_SCANS:
        raise FrameError(f"the jpeg data has more than {MAX_JPEG_SCANS} scans: publish baseline JPEG")


# -- PNG ---------------------------------------------------------------------------------------------------------------


def _checked_png(data: np.ndarray) -> tuple[np.ndarray, Size]:
    """A PNG's chunks that make pixels, and (height, width); ``FrameError`` where chunks do not fill the data."""
    raw = data.data
    size = _header_size(bytes(raw[:33]) + b"\0\0\0\0IDAT", "PNG")
    checked_size(*size)
    chunks = list(_png_chunks(raw))
    order = b"".join(kind for kind, _, _ in chunks if kind in _PIXEL_CHUNKS)
    middle = order.removeprefix(b"IHDR").removeprefix(b"PLTE").removeprefix(b"tRNS").removesuffix(b"IEND")
    if chunks[0][0] != b"IHDR" or not middle or middle.replace(b"IDAT", b""):
        raise FrameError("the png data can't be decoded: chunks are missing or out of order; it is damaged")
    pixels = sum(end - at - 12 for kind, at, end in chunks if kind == b"IDAT")
    height, width = _checked_decoded(*size, sample_bytes=2 if raw[24] == 16 else 1, data_bytes=pixels)
    if all(kind in _PIXEL_CHUNKS for kind, _, _ in chunks):
        return data, (height, width)
    # Texts and profiles are compressed, too, and say nothing to us; an animation has frames of sizes of their own.
    kept = _PNG_MAGIC + b"".join(raw[at:end] for kind, at, end in chunks if kind in _PIXEL_CHUNKS)
    return np.frombuffer(kept, np.uint8), (height, width)


def _png_chunks(raw: memoryview) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of each chunk, with its length and checksum; ``FrameError`` where one exceeds the data."""
    at = len(_PNG_MAGIC)
    for _ in range(MAX_PNG_CHUNKS):
        if at + 12 > len(raw):
            raise FrameError("the png data can't be decoded: it was cut short")
        length, kind = struct.unpack_from(">I4s", raw, at)
        end = at + 12 + length
        critical = not kind[0] & 0x20
        if end > len(raw) or not kind.isalpha() or (critical and kind not in _PIXEL_CHUNKS):
            raise FrameError("the png data can't be decoded: a chunk was cut short or is damaged")
        yield kind, at, end
        if kind == b"IEND":
            return
        at = end
    raise FrameError(f"the png data can't be decoded: it has more than {MAX_PNG_CHUNKS} chunks")


# -- WebP --------------------------------------------------------------------------------------------------------------


def _checked_webp(data: np.ndarray) -> Size:
    """(height, width) of a WebP still; ``FrameError`` for one that moves or is cut short.

    Pillow is not asked: it makes a whole canvas to open a WebP.
    """
    raw = data[:30].tobytes()
    if len(raw) < 30 or data.size < 8 + int.from_bytes(raw[4:8], "little"):
        raise FrameError("the webp data can't be decoded: it was cut short")
    kind, bits = raw[12:16], int.from_bytes(raw[21:25], "little")
    if kind == b"VP8 " and raw[23:26] == b"\x9d\x01\x2a":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", raw, 26))
    elif kind == b"VP8L" and raw[20] == 0x2F:
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif kind == b"VP8X" and not raw[20] & 0x02:
        width, height = (1 + int.from_bytes(raw[at : at + 3], "little") for at in (24, 27))
    else:
        raise FrameError("the webp data can't be decoded: it is damaged, or an animation")
    return _checked_decoded(height, width, sample_bytes=1, data_bytes=data.size)
