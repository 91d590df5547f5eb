"""Frames in, a bounded clip out. numpy and OpenCV; no torch, no rclpy."""

from vstream_ros.memory.archive import Archive
from vstream_ros.memory.clip import NANOSECONDS, Clip, FrameStatus, MemoryStatus, Tubelet, Verdict
from vstream_ros.memory.contact_sheet import draw_contact_sheet
from vstream_ros.memory.manager import SmartFrameManager
from vstream_ros.memory.memory_config import SELECTION_METHODS, MemoryConfig
from vstream_ros.memory.slot import FrameSlot
from vstream_ros.memory.snapshot import MemorySnapshot

__all__ = [
    "NANOSECONDS",
    "SELECTION_METHODS",
    "Archive",
    "Clip",
    "FrameSlot",
    "FrameStatus",
    "MemoryConfig",
    "MemorySnapshot",
    "MemoryStatus",
    "SmartFrameManager",
    "Tubelet",
    "Verdict",
    "draw_contact_sheet",
]
