"""Tubelets as tables of numbers, and back, where every rule that memory lives by is checked."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vstream_ros.memory.clip import Tubelet
from vstream_ros.memory.forming import ScoredFrame
from vstream_ros.memory.held_frames import HeldState
from vstream_ros.memory.saved_header import CameraHeader
from vstream_ros.memory.stamps import MAX_STAMP_NS

SCENE_CHANGE, KEY = 1, 2
"""The bits of ``flags``."""


@dataclass(frozen=True, eq=False)
class Tables:
    """All but the pixels. A group is a tubelet of star or stream, or one pending frame, in this order."""

    stamps_ns: np.ndarray
    """(frames,) int64: header stamps of the real frames."""
    lengths: np.ndarray
    """(groups,) int64: real frames of each group."""
    times_ns: np.ndarray
    """(groups,) int64: ``Tubelet.time_ns``."""
    importance: np.ndarray
    """(groups,) float64, >= 0."""
    flags: np.ndarray
    """(groups,) uint8: ``SCENE_CHANGE`` | ``KEY``."""


ARRAYS = tuple(Tables.__dataclass_fields__)


def tables_of(held: HeldState) -> Tables:
    """What is to be saved beside the frames."""
    tubelets, pending = held.star + held.stream, held.pending
    groups: list[Tubelet | ScoredFrame] = [*tubelets, *pending]
    stamps = [stamp for tubelet in tubelets for stamp in tubelet.stamps_ns] + [frame.stamp_ns for frame in pending]
    lengths = [len(tubelet.stamps_ns) for tubelet in tubelets] + [1] * len(pending)
    flags = [SCENE_CHANGE * group.scene_change + KEY * getattr(group, "key", False) for group in groups]
    return Tables(
        np.array(stamps, np.int64),
        np.array(lengths, np.int64),
        np.array([group.time_ns for group in groups], np.int64),
        np.array([group.importance for group in groups], np.float64),
        np.array(flags, np.uint8),
    )


def held_state(header: CameraHeader, tables: Tables, fill: Callable[[np.ndarray], None]) -> HeldState:
    """What the tables describe; ``fill`` is called for each group in turn, to read its frames into an array of
    (frames, height, width, 3) uint8. The ids are the places. Raises ``ValueError`` for what no memory can hold."""
    _check(header, tables)
    patch, tubelet_count = header.temporal_patch_size, header.star + header.stream
    stamps = iter(tables.stamps_ns.tolist())
    rows = zip(*(getattr(tables, name).tolist() for name in ARRAYS[1:]), strict=True)
    tubelets: list[Tubelet] = []
    pending: list[ScoredFrame] = []
    for index, (length, time_ns, importance, flags) in enumerate(rows):
        scene_change, key = bool(flags & SCENE_CHANGE), bool(flags & KEY)
        own = tuple(itertools.islice(stamps, length))
        frames = np.empty((patch if index < tubelet_count else 1, header.height, header.width, 3), np.uint8)
        fill(frames[:length])
        frames[length:] = frames[length - 1]  # as a tubelet is sealed
        frames.setflags(write=False)
        if index < tubelet_count:
            tubelets.append(Tubelet(index, header.camera, frames, own, time_ns, importance, scene_change, key))
        else:
            pending.append(ScoredFrame(frames[0], own[0], time_ns, importance, scene_change))
    return HeldState(tubelets[: header.star], tubelets[header.star :], pending)


def _check(header: CameraHeader, tables: Tables) -> None:
    lengths, stamps = tables.lengths, tables.stamps_ns
    if not ((lengths >= 1) & (lengths <= header.temporal_patch_size)).all() or lengths.sum() != header.frames:
        raise ValueError("lengths")
    tubelets = header.star + header.stream
    if (lengths[tubelets:] != 1).any() or (tables.flags > SCENE_CHANGE + KEY).any():
        raise ValueError("pending frames or flags")
    if not (np.isfinite(tables.importance) & (tables.importance >= 0)).all():
        raise ValueError("an importance is no number >= 0")
    for values in (stamps, tables.times_ns):
        if (values < -MAX_STAMP_NS).any():
            raise ValueError("a stamp is out of range")
    starts = np.cumsum(lengths) - lengths
    rising = np.diff(stamps.astype(object)) > 0  # beyond 64 bits no difference wraps around
    rising[starts[1:] - 1] = True  # between tubelets only their first frames' order counts
    if not rising.all() or len(np.unique(stamps)) != len(stamps):
        raise ValueError("stamps are not in order")
    if (np.diff(stamps[starts].astype(object)) <= 0).any() or (np.diff(tables.times_ns.astype(object)) < 0).any():
        raise ValueError("tubelets are not in order")
    if header.pending and stamps.max() != stamps[-1]:
        raise ValueError("pending frames are not the newest")
    grid = header.grid
    if grid is not None and grid.newest_ns < max(grid.origin_ns, grid.kept_ns or grid.origin_ns, int(stamps.max())):
        raise ValueError("the sampling grid ends before its frames")
