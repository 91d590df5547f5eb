"""The format of a saved memory: plain numpy arrays in a ZIP file, as docs/saved_memory.md describes it.

The file may come from anybody. So nothing in it is executed (no pickle), nothing is decompressed (its parts are stored
as they are), and nothing is allocated before the sizes that it claims are compared with what the memory holds and with
what the file has.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

import numpy as np

from vstream_ros import __version__
from vstream_ros.errors import MemoryFileError
from vstream_ros.images.conversion import quoted
from vstream_ros.memory.saved_header import FORMAT, VERSION, CameraHeader, parsed_cameras
from vstream_ros.memory.saved_state import Capacity, SavedState
from vstream_ros.memory.saved_tubelets import ARRAYS, Tables, held_state, tables_of
from vstream_ros.text import clipped

HEADER = "header.json"
MAX_FILE_BYTES = 2**31 - 1
"""Beyond that a ZIP file needs extensions, which are not read either."""
MAX_HEADER_BYTES = 65_536
MAX_DIRECTORY_BYTES = 65_536
"""Of the ZIP file's list of parts: 64 cameras have half of it."""
_MAX_NPY_HEADER = 256
_END, _END_MAGIC = struct.Struct("<4s4H2LH"), b"PK\5\6"
_ZIP64_LOCATOR_MAGIC, _ZIP64_LOCATOR_SIZE = b"PK\6\7", 20
_UTF8_NAMES = 0x800
"""The one flag of a part that is accepted; the others mean encryption, or sizes that come later."""
_FOREIGN = (zipfile.BadZipFile, ValueError, EOFError, OverflowError, NotImplementedError, RuntimeError, struct.error)
"""What Python's ZIP reader raises for a damaged file (RecursionError is a RuntimeError)."""


def write_memory(file: IO[bytes], snapshots: Sequence[SavedState]) -> None:
    """Write what memories hold to a binary file that can seek. The same memory makes the same bytes.

    Raises ``MemoryFileError`` where it is too large, ``OSError`` of the file.
    """
    headers = [CameraHeader.of(snapshot) for snapshot in snapshots]
    header = {"format": FORMAT, "version": VERSION, "package": __version__, "cameras": [h.as_dict() for h in headers]}
    text = json.dumps(header, indent=1).encode()
    nbytes = sum(header.nbytes for header in headers)
    if nbytes + MAX_HEADER_BYTES + MAX_DIRECTORY_BYTES > MAX_FILE_BYTES or len(text) > MAX_HEADER_BYTES:
        raise MemoryFileError(
            f"a memory of {len(headers)} cameras and {nbytes} bytes is too large to be saved (2 GiB, 64 cameras); "
            "lower max_pixels, star_memory_size or stream_window_size"
        )
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=False) as archive:
        with archive.open(zipfile.ZipInfo(HEADER), "w") as part:
            part.write(text)
        for index, (snapshot, camera) in enumerate(zip(snapshots, headers, strict=True)):
            tables = tables_of(snapshot.held)
            for name, (dtype, shape) in camera.arrays.items():
                with archive.open(zipfile.ZipInfo(_part_name(index, name)), "w") as part:
                    np.lib.format.write_array_header_1_0(part, _npy_header(dtype, shape))
                    for array in [getattr(tables, name)] if name in ARRAYS else _frames(snapshot):
                        part.write(_bytes_of(np.ascontiguousarray(array, dtype=dtype)))


def read_memory(
    file: IO[bytes], capacities: Mapping[str, Capacity], max_frame_bytes: int
) -> tuple[list[SavedState], list[str]]:
    """Read a file of ``write_memory``: the memories of the cameras in ``capacities``, and the names of all others.

    ``max_frame_bytes``: of one frame. Besides some hundred kilobytes, no more is allocated than the frames of full
    memories take, nor more than the file has. Raises ``MemoryFileError`` for a file that is damaged, foreign, or does
    not fit; a ``read`` that fails raises ``OSError``.
    """
    with _only_memory_file_errors():
        size = _check_end(file)
        with zipfile.ZipFile(file) as archive:
            parts = _checked_parts(archive, size)
            headers = _checked_header(archive, parts)
            wanted = {i: header for i, header in enumerate(headers) if header.camera in capacities}
            for index, header in wanted.items():
                sizes = {"star": header.star, "stream": header.stream}
                patch = header.temporal_patch_size
                capacities[header.camera].check(header.camera, temporal_patch_size=patch, **sizes)
                _check_sizes(header, index, parts, max_frame_bytes)
            snapshots = [_snapshot(archive, index, header) for index, header in wanted.items()]
    return snapshots, [header.camera for header in headers if header.camera not in capacities]


def _frames(snapshot: SavedState) -> Iterator[np.ndarray]:
    """Every real frame, in the order of the tables."""
    for tubelet in snapshot.held.star + snapshot.held.stream:
        yield tubelet.frames[: len(tubelet.stamps_ns)]
    for frame in snapshot.held.pending:
        yield frame.pixels


def _bytes_of(array: np.ndarray) -> memoryview:
    """The same memory as bytes. ``array``: C-contiguous."""
    return array.reshape(-1).view(np.uint8).data


def _part_name(index: int, array: str) -> str:
    return f"camera{index}_{array}.npy"


def _npy_header(dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"descr": dtype, "fortran_order": False, "shape": shape}


# -- reading ----------------------------------------------------------------------------------------------------------


@contextmanager
def _only_memory_file_errors() -> Iterator[None]:
    try:
        yield
    except MemoryFileError:
        raise
    except _FOREIGN as error:
        raise damaged(clipped(str(error) or type(error).__name__)) from error


def damaged(why: str) -> MemoryFileError:
    return MemoryFileError(f"this is no saved memory, or it is damaged ({why}); save the memory again")


def _check_end(file: IO[bytes]) -> int:
    """The file's size. Python's own reader allocates what the directory at the end of the file claims to be: that is
    bounded here first."""
    size = file.seek(0, 2)
    if not _END.size <= size <= MAX_FILE_BYTES:
        raise damaged(f"{size} bytes")
    file.seek(max(size - _END.size - _ZIP64_LOCATOR_SIZE, 0))
    tail = file.read(_END.size + _ZIP64_LOCATOR_SIZE)
    magic, disk, first_disk, here, count, directory, offset, comment = _END.unpack(tail[-_END.size :])
    if magic != _END_MAGIC or tail.startswith(_ZIP64_LOCATOR_MAGIC):
        raise damaged("it does not end as such a file: was it written or copied as a whole?")
    if disk or first_disk or comment or here != count or offset + directory + _END.size != size:
        raise damaged("the directory at its end")
    if directory > MAX_DIRECTORY_BYTES:
        raise damaged(f"a directory of {directory} bytes")
    return size


def _checked_parts(archive: zipfile.ZipFile, file_size: int) -> dict[str, int]:
    """The sizes of the file's parts by name: what is stored here, once and as it is."""
    parts = archive.infolist()
    sizes = {part.filename: part.file_size for part in parts}
    if len(sizes) != len(parts):
        raise damaged("a part is there twice")
    if sum(sizes.values()) > file_size:
        raise damaged("its parts are larger than the file")
    for part in parts:
        stored = part.compress_type == zipfile.ZIP_STORED and part.compress_size == part.file_size
        if not stored or part.flag_bits & ~_UTF8_NAMES:
            raise damaged(f"the part {quoted(part.filename)} is compressed or encrypted")
    return sizes


def _checked_header(archive: zipfile.ZipFile, parts: Mapping[str, int]) -> list[CameraHeader]:
    if not 0 < parts.get(HEADER, 0) <= MAX_HEADER_BYTES:
        raise damaged(f"without {HEADER}")
    headers = parsed_cameras(archive.read(HEADER))
    wanted = {HEADER} | {_part_name(i, name) for i, header in enumerate(headers) for name in header.arrays}
    if wanted != parts.keys():
        raise damaged(f"parts that are missing or foreign: {quoted(sorted(wanted ^ parts.keys()))}")
    return headers


def _check_sizes(header: CameraHeader, index: int, parts: Mapping[str, int], max_frame_bytes: int) -> None:
    """That every array has the bytes that its shape takes, and no frame too many."""
    if header.height * header.width * 3 > max_frame_bytes:
        raise MemoryFileError(
            f"camera {header.camera}: frames of {header.width}x{header.height} are far larger than this "
            "configuration's; raise max_pixels to what it was when the memory was saved"
        )
    for name, nbytes in header.array_bytes.items():
        if not nbytes < parts[_part_name(index, name)] <= nbytes + _MAX_NPY_HEADER:
            raise damaged(f"{_part_name(index, name)} has another size than its header tells")


def _snapshot(archive: zipfile.ZipFile, index: int, header: CameraHeader) -> SavedState:
    small = {name: np.empty(shape, dtype) for name, (dtype, shape) in header.arrays.items() if name in ARRAYS}
    for name, array in small.items():
        with _array_part(archive, index, name, header) as part:
            _fill(part, array)
    with _array_part(archive, index, "frames", header) as part:
        held = held_state(header, Tables(**small), lambda frames: _fill(part, frames))
    return SavedState(
        header.camera, header.temporal_patch_size, header.sample_rate_hz, header.source_size, header.grid, held
    )


@contextmanager
def _array_part(archive: zipfile.ZipFile, index: int, name: str, header: CameraHeader) -> Iterator[IO[bytes]]:
    """A part behind its npy header, which says what ``header.json`` says. At the end all of it must have been read."""
    dtype, shape = header.arrays[name]
    with archive.open(_part_name(index, name)) as part:
        start = part.read(10)
        length = int.from_bytes(start[8:], "little")
        told = part.read(min(length, _MAX_NPY_HEADER)).rstrip().decode("latin-1")
        expected = repr(_npy_header(dtype, shape)).removesuffix("}") + ", }"  # as numpy writes it
        if start[:8] != b"\x93NUMPY\x01\x00" or told != expected:
            raise damaged(f"{_part_name(index, name)} is another array than {expected}")
        yield part
        if part.read(1):
            raise damaged(f"{_part_name(index, name)} goes on behind its array")


def _fill(part: IO[bytes], array: np.ndarray) -> None:
    """Read a C-contiguous array; the part's checksum is compared with its last byte."""
    view = _bytes_of(array)
    while len(view):
        count = part.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise damaged("a part ends early")
        view = view[count:]
