"""How much memory a device has and how much of it is ours."""

from __future__ import annotations

import gc
import re
import resource
from collections.abc import Iterable
from pathlib import Path

import psutil
import torch

from vstream_ros.engine.answers import DeviceMemory

_CGROUP = Path("/sys/fs/cgroup")
_PROCESS = Path("/proc/self")
_OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|STATUS_ALLOC_FAILED|DEVICE_ALLOCATION_FAILED"
)
"""How the CPU's allocator, the CUDA runtime, cuBLAS, cuSOLVER and cuDNN say it, each in a plain RuntimeError."""


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
        peak_allocated=max(resident, _peak_resident_bytes()),
    )


def reset_peak(devices: Iterable[torch.device]) -> None:
    """Let ``peak_allocated`` begin anew. Any thread.

    The CPU's is the process's, for everybody in it; where the system can't reset it (not Linux), it stays what it was.
    """
    for device in devices:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif device.type == "cpu":
            try:
                (_PROCESS / "clear_refs").write_text("5")
            except OSError:
                continue


def release_unused_memory() -> None:
    """Collect what nothing refers to any more, and give the allocator's unused blocks back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _peak_resident_bytes() -> int:
    """The highest resident set since ``reset_peak``; where /proc does not tell it, since the process began."""
    try:
        for line in (_PROCESS / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _cgroup_bytes(name: str) -> int | None:
    """A cgroup v2 value in bytes, None where there is no such file or no limit."""
    try:
        text = (_CGROUP / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory left for what was being done."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None
    )
