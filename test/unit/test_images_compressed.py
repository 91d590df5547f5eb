"""JPEG, PNG and WebP become the picture; everything else is refused before a decoder sees it."""

from __future__ import annotations

import array
import struct
import time
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from support.pictures import HEIGHT, WIDTH, grey, picture, wide
from vstream_ros.errors import FrameError
from vstream_ros.images import compressed as compressed_images
from vstream_ros.images import decode_compressed

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def png(width: int, height: int, idat: bytes = b"", depth: int = 8) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
    return PNG_MAGIC + header + chunk(b"IDAT", idat) + chunk(b"IEND", b"")


def compressed(image: np.ndarray, extension: str, kind: str = "array", **fields):
    """``image`` in OpenCV's channel order."""
    raw = cv2.imencode(f".{extension}", image)[1].tobytes()
    data = array.array("B", raw) if kind == "array" else np.frombuffer(raw, np.uint8)
    return SimpleNamespace(**{"format": f"bgr8; {extension} compressed bgr8", "data": data, **fields})


@pytest.mark.parametrize("kind", ["array", "numpy"])
@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_compressed_images(extension, kind):
    rgb = picture()
    got = decode_compressed(compressed(rgb[..., ::-1], extension, kind))
    assert got.dtype == np.uint8
    assert got.shape == rgb.shape
    assert np.abs(got.astype(int) - rgb).mean() < (0.1 if extension == "png" else 3)


@pytest.mark.parametrize("size", [(270, 480), (252, 448), (130, 250), (700, 1000), (540, 961)])
def test_a_large_jpeg_at_a_small_size(size):
    rgb = picture(540, 960)
    got = decode_compressed(compressed(rgb[..., ::-1], "jpg"), size)
    assert got.shape == (*size, 3)
    assert np.abs(got.astype(int) - picture(*size)).mean() < 3


@pytest.mark.parametrize(("target", "factor"), [((540, 960), 2), ((541, 960), 1), ((270, 480), 4), ((20, 30), 8)])
def test_a_jpeg_is_reduced_as_far_as_the_target_allows(target, factor):
    assert compressed_images._reduction((1080, 1920), target) == factor


def test_grey_and_sixteen_bit_compressed_images():
    rgb = picture()
    want = np.repeat(grey(rgb)[..., None], 3, axis=2)
    for image in (grey(rgb), wide(grey(rgb)), wide(grey(rgb), 12)):
        got = decode_compressed(compressed(image, "png"))
        assert np.abs(got.astype(int) - want).max() == 0


def test_exif_orientation_does_not_turn_the_size_around():
    msg = compressed(picture()[..., ::-1], "jpg")
    tiff = b"II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00\x00"
    body = b"Exif\x00\x00" + tiff
    raw = bytes(msg.data)
    msg.data = raw[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + raw[2:]
    assert decode_compressed(msg).shape == (HEIGHT, WIDTH, 3)
    assert decode_compressed(msg, (24, 32)).shape == (24, 32, 3)


def test_damaged_compressed_images_are_refused_with_a_sentence():
    whole = compressed(picture(480, 640)[..., ::-1], "jpg")
    cut = bytes(whole.data)[: len(whole.data) // 2]
    # A thumbnail's end in the metadata must not be taken for the picture's.
    thumbnail = b"\xff\xe1\x00\x06\xff\xd8\xff\xd9"
    bomb = png(60_000, 60_000)
    for data, says in [
        (b"", "no data"),
        (b"nothing like an image", "can't be decoded"),
        (cut, "cut short"),
        (cut[:2] + thumbnail + cut[2:], "cut short"),
        (bytes(whole.data)[:2], "can't be decoded"),
        (bomb, "beyond"),
        (bomb[:29] + b"\x00" * 20, "can't be decoded"),
        (compressed(picture(), "png").data[:200].tobytes(), "can't be decoded"),
    ]:
        with pytest.raises(FrameError, match=says):
            decode_compressed(SimpleNamespace(format="jpeg", data=data))
    with pytest.raises(FrameError, match="depth"):
        decode_compressed(SimpleNamespace(format="16UC1; compressedDepth png", data=b"1234"))


# ---- what must never reach a decoder ----


def encoded(extension: str, size: tuple[int, int] = (48, 64)) -> bytes:
    return cv2.imencode(f".{extension}", picture(*size)[..., ::-1])[1].tobytes()


def jpeg_of(height: int, width: int) -> bytes:
    """A small JPEG whose frame header claims another size."""
    raw = bytearray(encoded("jpg"))
    at = raw.index(b"\xff\xc0")
    raw[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(raw)


def gif(width: int, height: int) -> bytes:
    """The 35 bytes that took 1.8 GB and 7 s."""
    screen, image = struct.pack("<HHBBB", width, height, 0x80, 0, 0), struct.pack("<HHHHB", 0, 0, width, height, 0)
    return b"GIF89a" + screen + b"\0" * 6 + b"," + image + b"\x02\x02\x4c\x01\x00;"


def damaged_length(raw: bytes) -> bytes:
    """One flipped byte in the length of a PNG's IDAT."""
    at = raw.index(b"IDAT") - 4
    return raw[:at] + b"\x60" + raw[at + 1 :]


def animated(raw: bytes) -> bytes:
    """An APNG: the decoder would believe the size of a frame that the header does not name."""
    at = raw.index(b"IDAT") - 4
    control = struct.pack(">IIIIIHHBB", 0, 50_000, 50_000, 0, 0, 1, 10, 0, 0)
    return raw[:at] + chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", control) + raw[at:]


def webp_of(kind: bytes, body: bytes) -> bytes:
    inner = b"WEBP" + kind + len(body).to_bytes(4, "little") + body
    return b"RIFF" + len(inner).to_bytes(4, "little") + inner + b"\0" * 16


HUGE = (16_000, 16_000)
FRAME_HEADER = b"\xff\xc0\0\x0b\x08\0\x08\0\x08\1\1\x11\0"
NEVER_DECODED = {
    "GIF": (gif(30_000, 20_000), "format GIF is not accepted: publish JPEG or PNG"),
    "TIFF": (encoded("tiff"), "format TIFF is not accepted"),
    "big-endian TIFF": (b"MM\0*" + b"\0" * 40, "format TIFF"),
    "BMP": (encoded("bmp"), "format BMP"),
    "HDR": (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 8 +X 8\n", "format Radiance HDR"),
    "PFM": (b"PF\n8 8\n-1.0\n", "format PFM"),
    "PNM": (b"P6\n20000 20000\n255\n", "format PNM"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0" * 40, "format JPEG 2000"),
    "OpenEXR": (b"\x76\x2f\x31\x01" + b"\0" * 40, "format OpenEXR"),
    "AVIF": (b"\0\0\0\x1cftypavif" + b"\0" * 40, "format AVIF"),
    "PNG with a damaged length": (damaged_length(encoded("png")), "cut short or is damaged"),
    "PNG without an end": (encoded("png")[:-12], "cut short"),
    "PNG of one chunk": (png(8, 8)[:33] + chunk(b"IEND", b""), "out of order"),
    "PNG with parted pixels": (png(8, 8)[:-12] + chunk(b"PLTE", b"abc") + png(8, 8)[33:], "out of order"),
    "PNG with an unknown critical chunk": (png(8, 8)[:33] + chunk(b"ABCD", b"") + png(8, 8)[33:], "damaged"),
    "PNG with too little data": (png(9_000, 9_000, zlib.compress(b"\0" * 99)), "so little data"),
    "PNG of 16 bits beyond the budget": (png(9_000, 9_000, b"\0" * 500_000, depth=16), "486000000 bytes decoded"),
    "JPEG with bytes after SOI": (jpeg_of(*HUGE)[:2] + b"\0" * 7 + jpeg_of(*HUGE)[2:], "can't be decoded"),
    "JPEG with a gap": (jpeg_of(*HUGE)[:20] + b"\0" * 7 + jpeg_of(*HUGE)[20:], "does not follow"),
    "JPEG with a stuffed byte": (jpeg_of(*HUGE)[:20] + b"\xff\0" + jpeg_of(*HUGE)[20:], "no segment"),
    "JPEG of too many pixels": (jpeg_of(*HUGE), "beyond"),
    "JPEG of no pixels": (jpeg_of(0, 64), "can't be decoded|empty"),
    "JPEG with too little data": (jpeg_of(8_000, 8_000), "so little data"),
    "JPEG with two frame headers": (encoded("jpg").replace(b"\xff\xc0", FRAME_HEADER + b"\xff\xc0", 1), "damaged"),
    "lossless JPEG": (encoded("jpg").replace(b"\xff\xc0", b"\xff\xc3", 1), "neither baseline nor progressive"),
    "JPEG that is all header": (encoded("jpg")[:300], "cut short"),
    "WebP that is cut": (encoded("webp")[:-9], "cut short"),
    "WebP beyond": (webp_of(b"VP8X", b"\0" * 4 + b"\xff\xff\xff" * 2), "beyond"),
    "WebP with too little data": (webp_of(b"VP8L", b"\x2f" + (9_000 | 9_000 << 14).to_bytes(4, "little")), "so little"),
    "WebP that moves": (webp_of(b"VP8X", b"\x02\0\0\0" + b"\7\0\0" * 2), "an animation"),
    "WebP of nothing known": (webp_of(b"ABCD", b"\0" * 20), "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", NEVER_DECODED)
def test_what_would_cost_gigabytes_never_reaches_a_decoder(name, monkeypatch):
    data, says = NEVER_DECODED[name]
    reached = []
    monkeypatch.setattr(cv2, "imdecode", lambda data, flags: reached.append(len(data)))
    with pytest.raises(FrameError, match=says):
        decode_compressed(SimpleNamespace(format="jpeg", data=data))
    assert reached == []


def test_only_the_chunks_that_make_pixels_reach_a_decoder(monkeypatch):
    """Texts and profiles are compressed bombs of their own, and an animation has frames of sizes of their own."""
    seen = []
    real = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda data, flags: seen.append(bytes(data)) or real(data, flags))
    plain = encoded("png")
    at = plain.index(b"IDAT") - 4
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 10_000_000))
    with_text = plain[:at] + text + plain[at:], plain[:-12] + text + plain[-12:]
    for raw in (plain, plain + b"behind the end", *with_text, animated(plain)):
        assert np.array_equal(decode_compressed(SimpleNamespace(format="png", data=raw)), picture())
    assert seen == [plain, plain + b"behind the end", plain, plain, plain]


def test_metadata_of_a_jpeg_is_not_looked_at():
    plain = encoded("jpg")
    exif = b"\xff\xe1\x00\x20Exif\0\0" + b"\xff" * 24
    mpo = b"\xff\xe2\x00\x20MPF\0" + b"\xff" * 26
    raw = plain[:2] + exif + mpo + b"\xff\xff\xff" + plain[2:]  # fill bytes may stand before a marker
    assert np.array_equal(
        decode_compressed(SimpleNamespace(format="jpeg", data=raw)),
        decode_compressed(SimpleNamespace(format="jpeg", data=plain)),
    )


def test_progressive_jpegs_are_read_and_endless_scans_refused():
    progressive = cv2.imencode(".jpg", picture()[..., ::-1], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    got = decode_compressed(SimpleNamespace(format="jpeg", data=progressive))
    assert np.abs(got.astype(int) - picture()).mean() < 3
    last = progressive.rindex(b"\xff\xda")
    endless = progressive[:-2] + progressive[last:-2] * 200 + b"\xff\xd9"
    with pytest.raises(FrameError, match="more than 100 scans"):
        decode_compressed(SimpleNamespace(format="jpeg", data=endless))
    with pytest.raises(FrameError, match="no end"):
        decode_compressed(SimpleNamespace(format="jpeg", data=progressive[:-2]))


def test_a_buffer_that_is_filled_behind_the_end_is_read():
    assert decode_compressed(SimpleNamespace(format="jpeg", data=encoded("jpg") + b"\0" * 5_000)).shape == (48, 64, 3)


def mutated(raw: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(raw)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, len(data) if rng.random() < 0.5 else min(64, len(data))))  # headers above all
        kind = rng.integers(0, 5)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            data[at] = int(rng.integers(0, 256))
        elif kind == 2:
            data[at:at] = rng.bytes(int(rng.integers(1, 9)))
        elif kind == 3:
            del data[at : at + int(rng.integers(1, 9))]
        else:
            del data[at:]
        if not data:
            return b""
    return bytes(data)


@pytest.mark.parametrize("kind", ["jpg", "progressive", "png", "png16", "webp", "garbage"])
def test_damaged_data_ends_in_a_frame_error_or_a_picture_of_its_header(kind):
    rng = np.random.default_rng(17)
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1] if kind == "progressive" else []
    extension = {"progressive": "jpg", "png16": "png", "garbage": "png"}.get(kind, kind)
    image = wide(picture()) if kind == "png16" else picture()
    whole = cv2.imencode(f".{extension}", image, options)[1].tobytes()
    decoded, longest_s, sentences = 0, 0.0, set()
    for _ in range(1_000):
        data = rng.bytes(int(rng.integers(0, 200))) if kind == "garbage" else mutated(whole, rng)
        started = time.process_time()
        try:
            decoded += decode_compressed(SimpleNamespace(format=kind, data=data)).size > 0
        except FrameError as error:
            sentences.add(str(error))
        longest_s = max(longest_s, time.process_time() - started)
    assert sentences
    assert max(map(len, sentences)) < 400
    assert decoded > 0 or kind not in ("jpg", "progressive", "webp")  # checksums give every damage to a PNG away
    assert longest_s < 1.0  # of this thread's processor: 64 MB at most are decoded from so little data
