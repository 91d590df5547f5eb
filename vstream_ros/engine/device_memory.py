"""How much memory a device has and how much of it is ours."""

from __future__ import annotations

import resource
from pathlib import Path

import psutil
import torch

from vstream_ros.engine.answers import DeviceMemory

_CGROUP = Path("/sys/fs/cgroup")


def read_device_memory(device: torch.device) -> DeviceMemory:
    """Bytes on ``device``; for the CPU the process's resident set against RAM or the cgroup's limit. Any thread."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return DeviceMemory(
            device=str(device),
            total=total,
            free=free,
            allocated=torch.cuda.memory_allocated(device),
            reserved=torch.cuda.memory_reserved(device),
            peak_allocated=torch.cuda.max_memory_allocated(device),
        )
    virtual = psutil.virtual_memory()
    total, free = virtual.total, virtual.available
    limit, used = _cgroup_bytes("memory.max"), _cgroup_bytes("memory.current")
    if limit is not None and limit < total:
        total, free = limit, min(free, max(0, limit - (used or 0)))
    resident = psutil.Process().memory_info().rss
    return DeviceMemory(
        device="cpu",
        total=total,
        free=free,
        allocated=resident,
        reserved=resident,
        peak_allocated=max(resident, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024),
    )


def _cgroup_bytes(name: str) -> int | None:
    """A cgroup v2 value in bytes, None where there is no such file or no limit."""
    try:
        text = (_CGROUP / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA's own error, or the CPU allocator's, which is a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
