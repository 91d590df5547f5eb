"""A memory as a robot has it, filled slot by slot."""

from __future__ import annotations

from typing import Any

from support.memory_frames import SECOND, flat
from vstream_ros.memory import Clip, FrameStatus, SmartFrameManager

PERIOD = SECOND // 2
START = 1_700_000_000 * SECOND


def manager(**overrides: Any) -> SmartFrameManager:
    """Sampling at 2 Hz, as on a robot, unless told otherwise."""
    return SmartFrameManager(**{"sample_rate_hz": 2.0, **overrides})


def add(memory: SmartFrameManager, count: int, first: int = 0, value: int = 100) -> list[FrameStatus]:
    """``count`` equal frames on the 2 Hz grid, from slot ``first`` on."""
    return [memory.add_frame(flat(value), START + slot * PERIOD) for slot in range(first, first + count)]


def stamps(clip: Clip) -> list[tuple[int, ...]]:
    """The slots of each tubelet's real frames."""
    return [tuple((stamp - START) // PERIOD for stamp in tubelet.stamps_ns) for tubelet in clip.tubelets]
