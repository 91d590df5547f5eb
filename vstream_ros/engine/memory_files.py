"""Memories of cameras into a file, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vstream_ros.engine.camera_memories import CameraMemories
from vstream_ros.errors import MemoryFileError
from vstream_ros.memory.safe_files import opened_file, replaced_file
from vstream_ros.memory.saved import read_memory, write_memory
from vstream_ros.memory.saved_state import SavedState

MAX_SHRINK = 4
"""Saved frames may have so many times the pixels of those that are kept now; they are scaled down."""


@dataclass(frozen=True)
class MemoryFile:
    """What was saved, or loaded."""

    path: Path
    tubelets: int
    """Complete and sealed ones, of all cameras together."""
    nbytes: int
    """Of the file."""
    summary: str
    """Per camera, in a sentence; what was skipped and what was scaled, too."""


def save_memories(cameras: CameraMemories, path: Path) -> MemoryFile:
    """Write what all memories hold. Any thread; the memories are locked for a moment, not while the file is written.

    Raises ``MemoryFileError``; a file that was there before is then as it was.
    """
    snapshots = cameras.saved_states()
    with replaced_file(path) as file:
        write_memory(file, snapshots)
        nbytes = file.seek(0, 2)
    return _told(path, snapshots, nbytes)


def load_memories(cameras: CameraMemories, path: Path) -> MemoryFile:
    """Put what a file holds in the place of what memories hold. Any thread; the file is read and checked as a whole
    before a memory is touched.

    Cameras of the file that aren't here are skipped, cameras that aren't in the file keep what they hold. Raises
    ``MemoryFileError``, ``NoMemoryFileError``; the memories are then as they were.
    """
    with opened_file(path) as file:
        snapshots, skipped = read_memory(file, cameras.capacities, 3 * MAX_SHRINK * cameras.max_frame_pixels)
        nbytes = file.seek(0, 2)
    if not snapshots:
        raise MemoryFileError(
            f"{path} is of other cameras ({', '.join(skipped)}), here are {', '.join(cameras.names)}; "
            "give the cameras their names of then"
        )
    scaled = cameras.restore(snapshots, f"loaded from {path.name}")
    notes = [f"camera {name} is in the file and not here: skipped" for name in skipped]
    untouched = set(cameras.names) - {snapshot.camera for snapshot in snapshots}
    notes += [f"camera {name} is not in the file: it keeps its frames" for name in sorted(untouched)]
    for saved in snapshots:
        if count := scaled[saved.camera]:
            notes.append(f"camera {saved.camera}: {count} tubelets were scaled to this model's size")
        before, now = saved.sample_rate_hz, cameras.sample_rate_hz(saved.camera)
        if before != now:
            notes.append(f"camera {saved.camera}: was sampled at {_rate(before)}, is now at {_rate(now)}")
    return _told(path, snapshots, nbytes, notes)


def _rate(rate_hz: float | None) -> str:
    return "every frame" if rate_hz is None else f"{rate_hz:g} Hz"


def _told(path: Path, snapshots: Sequence[SavedState], nbytes: int, notes: Sequence[str] = ()) -> MemoryFile:
    held = [f"{s.camera}: {len(s.stamps_ns)} frames in {s.tubelet_count} tubelets" for s in snapshots]
    tubelets = sum(snapshot.tubelet_count for snapshot in snapshots)
    return MemoryFile(path, tubelets, nbytes, "; ".join([*held, *notes]))
