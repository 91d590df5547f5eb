"""Frames that must be remembered: which may stand beside the others, and which make a tubelet together."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable

import numpy as np

from vstream_ros.errors import FrameError
from vstream_ros.images.resize import owned_rgb
from vstream_ros.memory.clip import Tubelet
from vstream_ros.memory.forming import ScoredFrame
from vstream_ros.memory.importance import FrameScorer
from vstream_ros.memory.stamps import checked_stamp_ns


def checked_key_frames(
    frames: Iterable[tuple[np.ndarray, int]], shape: tuple[int, ...] | None
) -> list[tuple[np.ndarray, int]]:
    """Own copies with their stamps. ``shape``: of the frames that are held, (height, width, 3), None: none are.

    Raises ``FrameError`` where an image is none or has another shape, or where stamps do not rise.
    """
    checked = [(owned_rgb(frame), checked_stamp_ns(stamp_ns)) for frame, stamp_ns in frames]
    for (_, earlier_ns), (_, later_ns) in itertools.pairwise(checked):
        if later_ns <= earlier_ns:
            raise FrameError(f"stamps must rise, got {earlier_ns} ns before {later_ns} ns; sort the frames by time")
    for pixels, _ in checked:
        shape = shape or pixels.shape
        if pixels.shape != shape:
            raise FrameError(
                f"the frame is {pixels.shape[1]}x{pixels.shape[0]}, the memory's are {shape[1]}x{shape[0]}; scale "
                "it, or clear the memory first"
            )
    return checked


def scored(frames: list[tuple[np.ndarray, int]], scorer: FrameScorer) -> list[ScoredFrame]:
    """Checked frames with their scores, each at its own time instead of a slot's."""
    scores = [(pixels, stamp_ns, scorer.score(pixels, stamp_ns)) for pixels, stamp_ns in frames]
    return [ScoredFrame(pixels, ns, ns, score.importance, score.scene_change) for pixels, ns, score in scores]


def grouped(frames: list[ScoredFrame], held: list[Tubelet], most: int, gap_ns: float) -> list[list[ScoredFrame]]:
    """Frames that make a tubelet together, at most ``most``: no cut, no gap and no tubelet of ``held`` parts them."""
    starts = [tubelet.stamps_ns[0] for tubelet in held]
    groups: list[list[ScoredFrame]] = []
    for frame in frames:
        last = groups[-1][-1] if groups and len(groups[-1]) < most else None
        near = last is not None and frame.stamp_ns - last.stamp_ns <= gap_ns and not frame.scene_change
        if near and last and bisect.bisect(starts, last.stamp_ns) == bisect.bisect(starts, frame.stamp_ns):
            groups[-1].append(frame)
        else:
            groups.append([frame])
    return groups
