"""The header of a saved memory: JSON to checked numbers and back."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

from vstream_ros.errors import MemoryFileError
from vstream_ros.images.conversion import quoted
from vstream_ros.images.resize import MAX_SIDE
from vstream_ros.memory.sampling import Grid
from vstream_ros.memory.saved_state import SavedState
from vstream_ros.memory.slot import Size
from vstream_ros.memory.stamps import MAX_STAMP_NS

FORMAT = "vstream_ros memory"
VERSION = 1
"""Of the format. It rises where an older package would misunderstand a file."""
MAX_COUNT = 2**31 - 1
MAX_PATCH = 64

ArraySpec = tuple[str, tuple[int, ...]]
"""(dtype, shape)"""


@dataclass(frozen=True)
class CameraHeader:
    """What the header says of one camera. The fields' names are the JSON's."""

    camera: str
    temporal_patch_size: int
    sample_rate_hz: float | None
    height: int
    width: int
    """Of the frames; 0: there are none."""
    source_size: Size | None
    grid: Grid | None
    star: int
    stream: int
    """Tubelets."""
    pending: int
    """Frames that are no tubelet yet."""
    frames: int
    """Real ones, of all tubelets and pending ones together."""

    @classmethod
    def of(cls, snapshot: SavedState) -> CameraHeader:
        """Of what is to be saved."""
        held, (height, width) = snapshot.held, snapshot.frame_size or (0, 0)
        return cls(
            snapshot.camera, snapshot.temporal_patch_size, snapshot.sample_rate_hz, height, width,
            snapshot.source_size, snapshot.grid, len(held.star), len(held.stream), len(held.pending),
            len(snapshot.stamps_ns),
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)

    @property
    def arrays(self) -> dict[str, ArraySpec]:
        """Every array of this camera, by name."""
        groups = self.star + self.stream + self.pending
        return {
            "stamps_ns": ("<i8", (self.frames,)),
            "lengths": ("<i8", (groups,)),
            "times_ns": ("<i8", (groups,)),
            "importance": ("<f8", (groups,)),
            "flags": ("|u1", (groups,)),
            "frames": ("|u1", (self.frames, self.height, self.width, 3)),
        }

    @property
    def array_bytes(self) -> dict[str, int]:
        """The bytes of their elements."""
        return {name: int(dtype[-1]) * math.prod(shape) for name, (dtype, shape) in self.arrays.items()}

    @property
    def nbytes(self) -> int:
        """Of all of them."""
        return sum(self.array_bytes.values())


def parsed_cameras(text: bytes) -> list[CameraHeader]:
    """The cameras of ``header.json``. Raises ``MemoryFileError``, or ``ValueError`` for what is no JSON."""
    header = json.loads(text.decode())
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise MemoryFileError("this is no saved memory; give the name of a file that ~/save_memory has made")
    version, package = header.get("version"), header.get("package")
    if version != VERSION:
        raise MemoryFileError(
            f"the memory was saved in version {quoted(version)} of the format by vstream_ros {quoted(package)}, this "
            f"package reads version {VERSION}; load it with that package"
        )
    cameras = header.get("cameras")
    if not isinstance(cameras, list) or not cameras:
        raise ValueError("the header names no cameras")
    parsed = [_parsed(camera) for camera in cameras]
    if len({camera.camera for camera in parsed}) != len(parsed):
        raise ValueError("the header names a camera twice")
    return parsed


def _parsed(given: Any) -> CameraHeader:
    """One camera's header, with every number in its range; raises ``ValueError``."""
    if not isinstance(given, dict) or given.keys() != {field.name for field in dataclasses.fields(CameraHeader)}:
        raise ValueError("a camera's header has other fields")
    name, rate_hz, source, grid = given["camera"], given["sample_rate_hz"], given["source_size"], given["grid"]
    if not isinstance(name, str):
        raise ValueError("a camera's name is no text")
    if rate_hz is not None and not (type(rate_hz) in (int, float) and 0 < rate_hz < math.inf):
        raise ValueError("sample_rate_hz")
    if source is not None and not (isinstance(source, list) and len(source) == 2):
        raise ValueError("source_size")
    counts = {key: _whole(given, key, 0, MAX_COUNT) for key in ("star", "stream", "pending", "frames")}
    smallest = 1 if counts["frames"] else 0
    sides = {key: _whole(given, key, smallest, MAX_SIDE if smallest else 0) for key in ("height", "width")}
    header = CameraHeader(
        camera=name,
        temporal_patch_size=_whole(given, "temporal_patch_size", 1, MAX_PATCH),
        sample_rate_hz=None if rate_hz is None else float(rate_hz),
        source_size=None if source is None else (_whole(source, 0, 1, MAX_SIDE), _whole(source, 1, 1, MAX_SIDE)),
        grid=None if grid is None else _parsed_grid(grid),
        **counts,
        **sides,
    )
    tubelets = header.star + header.stream
    most = tubelets * header.temporal_patch_size + header.pending
    if header.pending >= header.temporal_patch_size or not tubelets + header.pending <= header.frames <= most:
        raise ValueError("pending or frames")
    if (header.grid is None) != (header.frames == 0):
        raise ValueError("grid")
    return header


def _parsed_grid(given: Any) -> Grid:
    if not isinstance(given, dict) or given.keys() != {field.name for field in dataclasses.fields(Grid)}:
        raise ValueError("grid")
    return Grid(
        origin_ns=_whole(given, "origin_ns", -MAX_STAMP_NS, MAX_STAMP_NS),
        newest_ns=_whole(given, "newest_ns", -MAX_STAMP_NS, MAX_STAMP_NS),
        kept_ns=None if given["kept_ns"] is None else _whole(given, "kept_ns", -MAX_STAMP_NS, MAX_STAMP_NS),
        spacing_ns=None if given["spacing_ns"] is None else _whole(given, "spacing_ns", 1, 2 * MAX_STAMP_NS),
    )


def _whole(given: Any, key: Any, low: int, high: int) -> int:
    """A whole number in a range."""
    value = given[key]
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{key} must be a whole number in [{low}, {high}], got {quoted(value)}")
    return value
