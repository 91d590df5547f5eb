"""A saved memory may come from anybody: whatever is in the file, it is refused in a sentence, or is a good memory."""

from __future__ import annotations

import copy
import io
import json
import random
import re
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from support.memory_frames import SECOND, noisy, scene
from vstream_ros.errors import MemoryFileError
from vstream_ros.memory import SmartFrameManager
from vstream_ros.memory.saved import read_memory, write_memory

FRAME_BYTES = 4 * 48 * 64 * 3
SLACK = 2_000_000
"""Bytes that reading may take besides the frames: the directory, the header, the tables."""


@pytest.fixture(scope="module")
def good() -> bytes:
    memory = SmartFrameManager(sample_rate_hz=2.0, stream_slide=2, star_memory_size=8, stream_window_size=8)
    for k in range(31):
        memory.add_frame(noisy(scene(k // 12), k), k * SECOND // 2)
    file = io.BytesIO()
    write_memory(file, [memory.saved_state()])
    return file.getvalue()


def target() -> SmartFrameManager:
    memory = SmartFrameManager(sample_rate_hz=2.0, stream_slide=2, star_memory_size=8, stream_window_size=8)
    memory.add_frame(scene(5), 0)
    return memory


def outcome(data: bytes) -> str:
    """Load into a memory: "" where that went well, else why it was refused; nothing may have changed then."""
    memory = target()
    held = [tubelet.id for tubelet in memory.clip().tubelets]
    try:
        snapshots, _ = read_memory(io.BytesIO(data), {"camera": memory.capacity}, FRAME_BYTES)
        for snapshot in snapshots:
            memory.restore(snapshot, memory.scorer_after(snapshot))
    except MemoryFileError as error:
        assert [tubelet.id for tubelet in memory.clip().tubelets] == held
        assert memory.epoch == 0
        return str(error)
    memory.check_integrity()
    newest = memory.status().newest_stamp_ns
    if newest < 2**62:
        memory.add_frame(scene(5), newest + SECOND)
        memory.check_integrity()
    return ""


def parts_of(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(parts: dict[str, bytes] | list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in parts.items() if isinstance(parts, dict) else parts:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return file.getvalue()


def npy(array: np.ndarray, **kwargs: Any) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **kwargs)
    return file.getvalue()


def with_header(data: bytes, change: Callable[[dict], None]) -> bytes:
    parts = parts_of(data)
    header = json.loads(parts["header.json"])
    change(header)
    return packed({**parts, "header.json": json.dumps(header).encode()})


def with_array(data: bytes, name: str, change: Callable[[np.ndarray], np.ndarray | None]) -> bytes:
    parts = parts_of(data)
    array = np.load(io.BytesIO(parts[f"camera0_{name}.npy"]))
    changed = change(array)
    return packed({**parts, f"camera0_{name}.npy": npy(array if changed is None else changed)})


def put(index: int, value: Any) -> Callable[[np.ndarray], None]:
    def change(array: np.ndarray) -> None:
        array[index] = value

    return change


def test_the_good_one_is_good_and_repacked_too(good: bytes) -> None:
    assert outcome(good) == ""
    assert outcome(packed(parts_of(good))) == ""


def test_two_thousand_damaged_files(good: bytes) -> None:
    rng = random.Random(11)
    parts = parts_of(good)
    small = len(good) - len(parts["camera0_frames.npy"])
    assert small > 0
    refused = 0
    tracemalloc.start()
    try:
        for k in range(2000):
            outcome_of = outcome(mutated(rng, good, parts, k))
            refused += bool(outcome_of)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(good) + SLACK
    assert refused > 1500  # the others hit bytes that mean nothing, such as a date


def mutated(rng: random.Random, good: bytes, parts: dict[str, bytes], k: int) -> bytes:
    """Damage of many kinds: bytes of the file, bytes of a part under a right checksum, numbers of the header."""
    kind = k % 8
    if kind == 0:
        return good[: rng.randrange(len(good))]
    if kind == 1:
        return good[: (at := rng.randrange(len(good)))] + rng.randbytes(rng.randrange(1, 100)) + good[at:]
    if kind in (2, 3):  # the end of the file, or anywhere
        data = bytearray(good)
        for _ in range(rng.randrange(1, 5)):
            at = rng.randrange(len(data) - 800, len(data)) if kind == 2 else rng.randrange(len(data))
            data[at] = rng.randrange(256)
        return bytes(data)
    changed = dict(parts)
    name = rng.choice([part for part in parts if part != "camera0_frames.npy"])
    if kind == 4:
        data = bytearray(parts[name])
        data[rng.randrange(len(data))] = rng.choice([0, 255, 128, ord("9"), ord("-"), rng.randrange(256)])
        changed[name] = bytes(data)
    elif kind == 5:
        changed[name] = parts[name][: rng.randrange(len(parts[name]))] if rng.random() < 0.5 else parts[name] * 2
    elif kind == 6:
        header = json.loads(parts["header.json"])
        camera = header["cameras"][0]
        where = camera["grid"] if rng.random() < 0.3 else camera
        key = rng.choice(sorted(where))
        where[key] = rng.choice([-1, 0, 1, 2, 7, 2**31, 2**63, 2**70, 1e308, float("nan"), None, "x", [], {}, True])
        changed["header.json"] = json.dumps(header).encode()
    else:
        name = rng.choice([part for part in parts if part.endswith(".npy") and "frames" not in part])
        array = np.load(io.BytesIO(parts[name]))
        at = rng.randrange(len(array))
        extremes = [0, 1, 3, 255, array[at - 1]] + ([-1, 2**63 - 1, -(2**63)] if array.dtype.itemsize == 8 else [])
        array[at] = rng.choice(extremes)
        changed[name] = npy(array)
    return packed(changed)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda h: h.update(version=2), "by vstream_ros '0.1.0', this package reads version 1"),
        (lambda h: h.update(format="other"), "no saved memory"),
        (lambda h: h.update(cameras=[]), "no cameras"),
        (lambda h: h["cameras"].append(copy.deepcopy(h["cameras"][0])), "a camera twice"),
        (lambda h: h["cameras"][0].update(star=10**9), "must be|do(es)?n't fit|pending or frames"),
        (lambda h: h["cameras"][0].update(temporal_patch_size=4), "same family"),
        (lambda h: h["cameras"][0].update(height=32767, width=32767), "far larger"),
        (lambda h: h["cameras"][0].update(height=-1), "height must be"),
        (lambda h: h["cameras"][0].update(frames=2**31 - 1, star=4, stream=5), "pending or frames"),
        (lambda h: h["cameras"][0].update(source_size=[1, 10**7]), "must be a whole number"),
        (lambda h: h["cameras"][0].update(sample_rate_hz=float("nan")), "sample_rate_hz"),
        (lambda h: h["cameras"][0].update(extra=1), "other fields"),
        (lambda h: h["cameras"][0].update(grid=None), "grid"),
        (lambda h: h["cameras"][0]["grid"].update(newest_ns=0), "sampling grid"),
    ],
)
def test_headers_that_lie(good: bytes, change: Callable[[dict], None], says: str) -> None:
    assert re.search(says, outcome(with_header(good, change)))


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("importance", put(3, np.nan), "importance"),
        ("importance", put(3, np.inf), "importance"),
        ("importance", put(3, -0.5), "importance"),
        ("stamps_ns", put(3, 0), "in order"),
        ("stamps_ns", put(3, -(2**63)), "out of range"),
        ("stamps_ns", put(-1, 1), "in order|newest"),
        ("times_ns", put(0, 2**63 - 1), "in order"),
        ("lengths", put(0, 0), "lengths"),
        ("lengths", put(0, 2**62), "lengths"),
        ("flags", put(0, 9), "flags"),
        ("stamps_ns", lambda a: a.astype(">i8"), "another array"),
        ("stamps_ns", lambda a: a.astype(np.float64), "another array"),
        ("stamps_ns", lambda a: a[:-1], "another array"),
        ("stamps_ns", lambda a: np.tile(a, 20), "another size"),
        ("times_ns", lambda a: a.reshape(1, -1), "another array"),
        ("frames", lambda a: np.asfortranarray(a), "another array"),
        ("frames", lambda a: a.reshape(-1), "another array"),
    ],
)
def test_arrays_that_no_memory_holds(good: bytes, name: str, change: Callable, says: str) -> None:
    assert re.search(says, outcome(with_array(good, name, change)))


def test_objects_are_not_unpickled(good: bytes) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("unpickled",))

    objects = np.array([Bomb()] * 10, dtype=object)
    assert outcome(packed({**parts_of(good), "camera0_stamps_ns.npy": npy(objects, allow_pickle=True)}))


def test_parts_that_are_compressed_doubled_missing_or_foreign(good: bytes) -> None:
    parts = parts_of(good)
    bomb = packed({**parts, "camera0_frames.npy": bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 1_000_000
    with pytest.warns(UserWarning, match="Duplicate"):
        doubled = packed([*parts.items(), ("header.json", parts["header.json"])])
    tracemalloc.start()
    try:
        assert "compressed" in outcome(bomb) or "larger than the file" in outcome(bomb)
        assert "twice" in outcome(doubled)
        assert "foreign" in outcome(packed({**parts, "../../evil": b""}))
        assert "foreign" in outcome(packed({name: data for name, data in parts.items() if "flags" not in name}))
        assert "header.json" in outcome(packed({"a.txt": b"hello"}))
        assert "no saved memory" in outcome(packed({"header.json": b"{}"}))
        for text in (b"[" * 60_000, b"\xff", b"1" * 5000, b"null", b'{"format": NaN}'):
            assert outcome(packed({"header.json": text}))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(good) + SLACK


@pytest.mark.parametrize("zip64", [False, True])
def test_a_directory_that_claims_millions_of_parts(zip64: bool) -> None:
    """Python's reader would build an object of each of them."""
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", *[0] * 6, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    directory = entry * 300_000
    if zip64:
        at = len(directory)
        end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 0, 0, 0, 0, 300_000, 300_000, at, 0)
        tail = end64 + struct.pack("<4sLQL", b"PK\6\7", 0, at, 1)
        end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 76, at, 0)
        data = directory + tail + end
    else:
        data = directory + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, len(directory), 0, 0)
    tracemalloc.start()
    try:
        assert outcome(data)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(data) + SLACK
    finally:
        tracemalloc.stop()


def test_what_is_no_file_of_ours_at_all() -> None:
    for data in (b"", b"PK\5\6", bytes(22), bytes(10_000), b"\x93NUMPY" + bytes(500), b"\x89PNG\r\n\x1a\n" * 30):
        assert "no saved memory" in outcome(data)
