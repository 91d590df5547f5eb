"""Any number of frames for ever: the process's memory stays flat."""

from __future__ import annotations

import gc

import psutil

from support.memory_frames import noisy, scene
from vstream_ros.memory import SmartFrameManager

FRAMES = 100_000
WARM = 20_000
SLACK_BYTES = 4 << 20
"""The frames of the last 80,000 would be 740 MB, their stamps and ids alone 10 MB."""


def test_100_000_frames_do_not_grow_the_process() -> None:
    """A 25 Hz camera for 67 minutes, with a scene cut every 2 s, a look at the clip too, a rejection every 40 s."""
    frames = [noisy(scene(i // 8, 3 * (i % 8)), i) for i in range(64)]
    memory = SmartFrameManager(sample_rate_hz=25.0)
    process = psutil.Process()
    warm_rss = 0
    for i in range(FRAMES):
        memory.add_frame(frames[i // 50 * 8 % 64 + i % 8], i * 40_000_000)
        if i % 50 == 0:
            memory.clip()
        if i % 1_000 == 0:
            memory.reject_unstamped(f"bad image {i}")
        if i == WARM:
            gc.collect()
            warm_rss = process.memory_info().rss
    gc.collect()
    grown = process.memory_info().rss - warm_rss
    memory.check_integrity()
    state = memory.status()
    assert state.frames_kept == FRAMES
    assert state.nbytes <= (state.star_capacity + state.stream_capacity + 1) * frames[0].nbytes
    assert grown < SLACK_BYTES, f"{grown / 1e6:.1f} MB more than after {WARM} frames"
