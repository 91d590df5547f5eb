"""Frames on their way into the cameras' memories, and why none has arrived."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vstream_ros.images.resize import check_rgb, resize_rgb
from vstream_ros.memory import FrameSlot, MemoryStatus, SmartFrameManager
from vstream_ros.memory.clip import NANOSECONDS
from vstream_ros.memory.slot import Size
from vstream_ros.models.frame_spec import FrameSpec


def fitted(frame: np.ndarray, slot: FrameSlot, spec: FrameSpec) -> np.ndarray:
    """The frame at the size that ``spec`` wants for the camera's own image; raises ``FrameError`` for what is none."""
    check_rgb(frame)
    size: Size = frame.shape[:2]
    if slot.source_size is None or size != slot.decoded_size:
        slot.source_size = size
    return resize_rgb(frame, spec.fit(*slot.source_size))


def next_stamp(memory: SmartFrameManager) -> int:
    """One sampling period after the newest frame, for callers without a clock."""
    status = memory.status()
    return status.newest_stamp_ns + round(memory.period_s * NANOSECONDS) if status.stream_frames else 0


def causes_of_emptiness(states: Mapping[str, MemoryStatus], clears: Mapping[str, tuple[float, str]], now: float) -> str:
    """Why memories hold nothing, by camera, and what to do about it. ``clears``: when, in seconds, and why those that
    were cleared were cleared last; ``now``: on the same clock."""
    causes = []
    for name, state in states.items():
        if name in clears and state.frames_offered:
            at, reason = clears[name]
            causes.append(
                f"the memory of {name} was cleared {now - at:.0f} s ago ({reason}) and no frame was kept since; "
                "ask again when one was"
            )
        elif state.frames_offered:
            causes.append(f"no frame of {name} could be used: {state.last_rejection}")
    if silent := [name for name, state in states.items() if not state.frames_offered]:
        causes.append(f"no frame came yet from: {', '.join(silent)}; check the image topics and the camera drivers")
    return "; ".join(causes)
