"""Every encoding that cameras send becomes the same RGB picture; what can't be read is refused with a sentence."""

from __future__ import annotations

import array
import logging
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from support.pictures import HEIGHT, WIDTH, grey, picture, wide
from vstream_ros.errors import FrameError
from vstream_ros.images import ENCODINGS, SensorDepth, decode_compressed, decode_image
from vstream_ros.images import raw as raw_images

BIG = sys.byteorder == "big"


def mosaic(rgb: np.ndarray, pattern: str) -> np.ndarray:
    """What a sensor behind a colour filter would see: ``pattern`` names two rows of two pixels."""
    channel = {"r": 0, "g": 1, "b": 2}
    raw = np.empty(rgb.shape[:2], np.uint8)
    for i, colour in enumerate(pattern):
        raw[i // 2 :: 2, i % 2 :: 2] = rgb[i // 2 :: 2, i % 2 :: 2, channel[colour]]
    return raw


def yuv422(rgb: np.ndarray, order: str) -> np.ndarray:
    yuv = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV).astype(np.float32)
    # Video range, as cameras send it and OpenCV's 4:2:2 conversions expect.
    luma = 16 + yuv[..., 0] * 219 / 255
    u = (0.5 * (rgb[..., 2] - yuv[..., 0]) / (1 - 0.114)) * 224 / 255 + 128
    v = (0.5 * (rgb[..., 0] - yuv[..., 0]) / (1 - 0.299)) * 224 / 255 + 128
    packed = np.empty((*rgb.shape[:2], 2), np.uint8)
    y_at = order.index("y")
    packed[..., y_at] = luma.round()
    packed[:, 0::2, 1 - y_at] = u[:, 0::2].round()
    packed[:, 1::2, 1 - y_at] = v[:, 0::2].round()
    return packed


def encode(rgb: np.ndarray, encoding: str) -> np.ndarray:
    alpha = np.full((*rgb.shape[:2], 1), 7, np.uint8)
    bgr = rgb[..., ::-1]
    if encoding.startswith("bayer_"):
        raw = mosaic(rgb, encoding[6:10])
        return wide(raw) if encoding.endswith("16") else raw
    eight = {
        "rgb": rgb,
        "bgr": bgr,
        "rgba": np.concatenate([rgb, alpha], axis=2),
        "bgra": np.concatenate([bgr, alpha], axis=2),
        "mono": grey(rgb),
    }
    opencv = {"UC1": "mono", "UC3": "bgr", "UC4": "bgra"}
    if encoding[-3:] in opencv:
        image = eight[opencv[encoding[-3:]]]
        return wide(image) if encoding.startswith("16") else image
    if encoding in ("yuv422", "uyvy"):
        return yuv422(rgb, "uy")
    if encoding in ("yuv422_yuy2", "yuyv"):
        return yuv422(rgb, "yu")
    return wide(eight[encoding[:-2]]) if encoding.endswith("16") else eight[encoding[:-1]]


def message(pixels: np.ndarray, encoding: str, *, padding: int = 0, big_endian: bool = BIG, kind: str = "array"):
    if pixels.dtype == np.uint16:
        pixels = pixels.astype(">u2" if big_endian else "<u2")
    rows = np.ascontiguousarray(pixels).reshape(len(pixels), -1).view(np.uint8)
    # Padding that is not zero shows in the picture if it is taken for pixels.
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=255)
    raw = rows.tobytes()
    data = {"array": array.array("B", raw), "numpy": np.frombuffer(raw, np.uint8), "bytes": raw, "list": list(raw)}
    return SimpleNamespace(
        height=len(pixels),
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=int(big_endian),
        step=rows.shape[1],
        data=data[kind],
    )


def expected(rgb: np.ndarray, encoding: str) -> np.ndarray:
    if "mono" in encoding or encoding.endswith("C1"):
        return np.repeat(grey(rgb)[..., None], 3, axis=2)
    return rgb


def assert_close(got: np.ndarray, want: np.ndarray, encoding: str) -> None:
    assert got.dtype == np.uint8
    assert got.shape == want.shape
    assert got.flags.c_contiguous
    error = np.abs(got.astype(int) - want.astype(int))
    if encoding.startswith(("bayer", "yuv", "uyvy", "yuyv")):
        # Interpolated colours: the border of a mosaic has too few neighbours.
        inner = error[2:-2, 2:-2]
        assert inner.mean() < 2.5
        assert inner.max() <= 10
    else:
        assert error.max() == 0


@pytest.mark.parametrize("kind", ["array", "numpy", "bytes", "list"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_gives_the_picture(encoding, kind):
    rgb = picture()
    assert_close(decode_image(message(encode(rgb, encoding), encoding, kind=kind)), expected(rgb, encoding), encoding)


def test_the_promised_encodings_are_there():
    promised = ["rgb8", "bgr8", "rgba8", "bgra8", "mono8", "mono16", "8UC1", "8UC3", "yuv422", "yuv422_yuy2"]
    promised += [f"bayer_{p}{bits}" for p in ("rggb", "bggr", "gbrg", "grbg") for bits in (8, 16)]
    assert set(promised) <= set(ENCODINGS)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_padded_rows(encoding):
    rgb = picture()
    # 10 is divisible by neither 3 nor 4: the real cv_bridge, which divides step by the channels, would shear it.
    for padding in (10, 64):
        msg = message(encode(rgb, encoding), encoding, padding=padding)
        assert_close(decode_image(msg), expected(rgb, encoding), encoding)


def test_the_last_rows_padding_may_be_missing():
    rgb = picture()
    msg = message(rgb, "rgb8", padding=10)
    msg.data = msg.data[:-10]
    assert_close(decode_image(msg), rgb, "rgb8")


@pytest.mark.parametrize("encoding", [e for e in ENCODINGS if "16" in e] + ["rgb8", "mono8", "yuv422"])
@pytest.mark.parametrize("padding", [0, 10])
def test_both_byte_orders(encoding, padding):
    rgb = picture()
    for big_endian in (False, True):
        msg = message(encode(rgb, encoding), encoding, padding=padding, big_endian=big_endian)
        assert_close(decode_image(msg), expected(rgb, encoding), encoding)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_sixteen_bit_images_use_the_bits_that_the_sensor_fills(bits):
    rgb = picture()
    msg = message(wide(grey(rgb), bits), "mono16")
    assert_close(decode_image(msg), expected(rgb, "mono16"), "mono16")


def test_a_camera_keeps_its_depth_and_says_once_that_it_grows(caplog):
    """The brightest pixel of a 12-bit camera goes from 1023 to 1024 and back: the picture stays what it is."""
    depth = SensorDepth("front")
    dull = message(np.full((8, 8), 800, np.uint16), "mono16")
    assert decode_image(dull, depth=depth).mean() == 200  # it may be a 10-bit camera
    lit = np.full((8, 8), 800, np.uint16)
    lit[0, 0] = 1024
    with caplog.at_level(logging.WARNING):
        means = [decode_image(image, depth=depth).mean() for image in (message(lit, "mono16"), dull) * 50]
    assert max(means) - min(means) < 1
    assert [record.getMessage() for record in caplog.records] == [
        "camera front: its 16-bit images fill 12 bits, not 10 as it seemed: pictures are 4 times darker from here on"
    ]
    assert (depth.bits, decode_image(dull, depth=SensorDepth()).mean()) == (12, 200)


def test_depth_grows_to_sixteen_bits_and_is_compressed_images_too():
    depth = SensorDepth()
    for bits in (10, 12, 14, 16, 10):
        value = (1 << bits) - 1
        png = cv2.imencode(".png", np.full((8, 8), value, np.uint16))[1]
        got = decode_compressed(SimpleNamespace(format="png", data=png), depth=depth)
        assert got.max() == value >> (depth.bits - 8)
    assert depth.bits == 16


@pytest.mark.parametrize("what", [None, object(), {"data": None}, {"height": "tall"}, {"data": 5}, {"encoding": None}])
def test_whatever_a_conversion_raises_is_a_frame_error(what):
    msg = message(picture(), "rgb8")
    if isinstance(what, dict):
        vars(msg).update(what)
    with pytest.raises(FrameError) as caught:
        decode_image(msg if isinstance(what, dict) else what)
    assert len(str(caught.value)) < 1500


def test_a_defect_of_opencv_is_a_frame_error_with_its_cause(monkeypatch):
    def broken(*args):
        raise MemoryError("no room\nfor this")

    monkeypatch.setattr(cv2, "cvtColor", broken)
    with pytest.raises(FrameError, match="MemoryError: 'no room'") as caught:
        decode_image(message(picture(), "bgr8"))
    assert isinstance(caught.value.__cause__, MemoryError)


def test_texts_from_outside_are_clipped():
    msg = message(picture(), "rgb8")
    msg.encoding = "x" * 1_000_000
    with pytest.raises(FrameError) as caught:
        decode_image(msg)
    assert len(str(caught.value)) < 600


def test_a_dark_sixteen_bit_image_stays_dark():
    assert decode_image(message(np.full((8, 8), 9, np.uint16), "mono16")).max() <= 2


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_size_gives_the_same_picture_smaller(encoding):
    rgb, small = picture(240, 320), picture(60, 84)
    for size in ((60, 84), lambda height, width: (60, 84)):
        got = decode_image(message(encode(rgb, encoding), encoding), size)
        assert got.shape == (60, 84, 3)
        error = np.abs(got.astype(int) - expected(small, encoding).astype(int))
        assert error[2:-2, 2:-2].mean() < 3


def test_a_size_rule_is_asked_with_the_images_own_size():
    asked = []
    decode_image(message(picture(), "rgb8"), lambda *size: asked.append(size) or (28, 28))
    assert asked == [(HEIGHT, WIDTH)]


def test_the_result_is_the_callers_own():
    msg = message(picture(), "rgb8", kind="array")
    before = bytes(msg.data)
    decode_image(msg)[:] = 0
    assert bytes(msg.data) == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"height": 0, "width": 0, "step": 0, "data": b""}, "empty"),
        ({"height": 0}, "empty"),
        ({"step": WIDTH * 3 - 1}, "step"),
        ({"step": 0}, "step"),
        ({"step": 4 * WIDTH}, "cut short"),
        ({"data": b"\x00" * 100}, "cut short"),
        ({"data": b""}, "cut short"),
        ({"encoding": "rgb9"}, "publish one of"),
        ({"encoding": ""}, "publish one of"),
        ({"encoding": "32FC1"}, "publish one of"),
        ({"height": 2**32 - 1, "width": 2**32 - 1}, "beyond"),
        ({"width": 100_000, "step": 300_000}, "beyond"),
        ({"encoding": "yuv422", "width": 63}, "even width"),
        ({"encoding": "bayer_rggb8", "width": 2}, "too small"),
    ],
)
def test_what_cant_be_read_is_refused_with_a_sentence(change, says):
    msg = message(picture(), "rgb8")
    vars(msg).update(change)
    with pytest.raises(FrameError, match=says):
        decode_image(msg)


class _OldBridge:
    """cv_bridges that are wrong in every way they are known to be, and one more."""

    def __init__(self, outcome):
        self.outcome = outcome

    def imgmsg_to_cv2(self, msg, desired_encoding="passthrough"):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.mark.parametrize("outcome", [TypeError("x"), KeyError("x"), AttributeError("x"), np.zeros((4, 4), np.uint8)])
@pytest.mark.parametrize("encoding", ["bgr8", "mono16", "yuv422_yuy2", "16UC1"])
def test_a_broken_cv_bridge_changes_nothing(monkeypatch, encoding, outcome):
    monkeypatch.setattr(raw_images, "_cv_bridge", lambda: _OldBridge(outcome))
    rgb = picture()
    assert_close(decode_image(message(encode(rgb, encoding), encoding)), expected(rgb, encoding), encoding)


def test_no_cv_bridge_changes_nothing(monkeypatch):
    monkeypatch.setattr(raw_images, "_cv_bridge", lambda: None)
    assert_close(decode_image(message(picture()[..., ::-1], "bgr8")), picture(), "bgr8")


def test_cv_bridge_is_used_where_it_is_right(monkeypatch):
    pytest.importorskip("cv_bridge")
    used = []
    real = raw_images._cv_bridge()

    class Watched:
        def imgmsg_to_cv2(self, msg, desired_encoding):
            used.append(msg.encoding)
            return real.imgmsg_to_cv2(msg, desired_encoding)

    monkeypatch.setattr(raw_images, "_cv_bridge", lambda: Watched())
    assert_close(decode_image(message(picture()[..., ::-1], "bgr8")), picture(), "bgr8")
    assert used == ["bgr8"]
