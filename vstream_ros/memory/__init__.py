"""Frames in, a bounded clip out. numpy and OpenCV; no torch, no rclpy."""

from vstream_ros.memory.config import SELECTION_METHODS, MemoryConfig
from vstream_ros.memory.manager import SmartFrameManager
from vstream_ros.memory.resize import resize_rgb
from vstream_ros.memory.types import NANOSECONDS, Clip, FrameStatus, MemoryStatus, Tubelet, Verdict

__all__ = [
    "NANOSECONDS",
    "SELECTION_METHODS",
    "Clip",
    "FrameStatus",
    "MemoryConfig",
    "MemoryStatus",
    "SmartFrameManager",
    "Tubelet",
    "Verdict",
    "resize_rgb",
]
