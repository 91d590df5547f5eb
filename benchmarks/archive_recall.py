"""What an archive adds to questions about a time range, without a model, and what it costs.

``python -m benchmarks.archive_recall [--scenes 4] [--minutes 60] [--kilobytes 256 1024 4096]``

Held-out shapes-world scenes of the busy world are played at 2 frames a second through our memory with its defaults,
whose tubelets go to archives of several sizes when they leave. At the end each minute of the past is asked about: of
the objects that were seen in it, those count as recalled that a tubelet shows which a question about that minute gets.
Then the milliseconds that it takes to archive a tubelet of 448x252, in RAM and on disk, and to take a range from it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.memory_recall import FRAME_SIZE, make_scene, tubelets_of, view_of
from support.intervals import bootstrap
from vstream_ros.memory import NANOSECONDS, Archive, Clip, MemoryConfig, SmartFrameManager, Tubelet
from vstream_ros.synthetic.shapes_world import Scene

FIRST_SEED = 7_000_000
MINUTE_NS = 60 * NANOSECONDS
LARGE = (252, 448)
NONE = "no archive"


class _Several(Archive):
    """Hands what it is told to each of several archives, so that one memory feeds them all."""

    def __init__(self, archives: list[Archive]) -> None:
        super().__init__(0)
        self._archives = archives

    def add(self, tubelet: Tubelet) -> None:
        for archive in self._archives:
            archive.add(tubelet)
            archive.store_one()


def recall(scene: Scene, kilobytes: list[int]) -> dict[str, tuple[int, int, int]]:
    """By size of the archive: objects recalled, objects seen (each once a minute), and tubelets archived."""
    config = MemoryConfig(sample_rate_hz=2.0, include_pending=False)
    archives = [Archive(1024 * size) for size in kilobytes]
    memory = SmartFrameManager(config, archive=_Several(archives))
    shown: dict[int, set[int]] = {}
    for tubelet in tubelets_of(scene, None, FRAME_SIZE):
        for frame, stamp_ns in zip(tubelet.frames, tubelet.stamps_ns, strict=True):
            memory.add_frame(frame, stamp_ns)
        shown.setdefault(tubelet.stamps_ns[0] // MINUTE_NS, set()).update(_seen(scene, tubelet))
    most = (config.star_memory_size + config.stream_window_size) // 2
    found = dict.fromkeys([NONE, *map(str, kilobytes)], 0)
    for minute, there in shown.items():
        # Stamp 0 would mean unbounded, and the first minute's first tubelet is star's in any case.
        start_ns, end_ns = max(minute * MINUTE_NS, 1), (minute + 1) * MINUTE_NS - 1
        held = memory.clip(start_ns, end_ns)
        clips = [held, *(archive.joined(held, start_ns, end_ns, most) for archive in archives)]
        for name, clip in zip(found, clips, strict=True):
            found[name] += len(there & {index for tubelet in clip.tubelets for index in _seen(scene, tubelet)})
    counts = [0, *(archive.status.archive_frames // 2 for archive in archives)]
    seen = sum(map(len, shown.values()))
    return {name: (right, seen, count) for (name, right), count in zip(found.items(), counts, strict=True)}


def _seen(scene: Scene, tubelet: Tubelet) -> set[int]:
    return {sighting.visit.index for sighting in view_of(scene, tubelet) if sighting.seen}


def costs(folder: str, tubelets: int = 400, max_bytes: int = 8 << 20) -> dict[str, float]:
    """Milliseconds; medians and p95 where there are many."""
    scene = make_scene("textured", 2, FIRST_SEED)
    frames = [np.stack([scene.frame(k / 2, LARGE), scene.frame(k / 2 + 0.5, LARGE)]) for k in range(16)]
    archive = Archive(max_bytes, folder)
    took = []
    for k in range(tubelets):
        stamps = (k * NANOSECONDS + 1, k * NANOSECONDS + NANOSECONDS // 2)
        archive.add(Tubelet(k, "camera", frames[k % 16], stamps, k * NANOSECONDS, importance=0.1))
        began = time.perf_counter()
        archive.store_one()
        took.append(1e3 * (time.perf_counter() - began))
    began = time.perf_counter()
    clip = archive.joined(Clip((), 1.0), 1, 0, most=20)
    once = time.perf_counter()
    archive.joined(Clip((), 1.0), 1, 0, most=20)
    again = time.perf_counter()
    held = archive.status
    archive.close()
    return {
        "store_ms": float(np.median(took)),
        "store_p95_ms": float(np.percentile(took, 95)),
        "take_20_ms": 1e3 * (once - began),
        "take_again_ms": 1e3 * (again - once),
        "tubelets_taken": len(clip),
        "bytes_a_tubelet": held.archive_bytes / max(held.archive_frames // 2, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--kilobytes", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--out", type=Path, default=Path("build/archive.json"))
    args = parser.parse_args()
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        cost = {"ram": costs(""), "disk": costs(folder)}
    for where, values in cost.items():
        console.print(where, ", ".join(f"{name} {value:.2f}" for name, value in values.items()))
    scores = []
    for seed in range(FIRST_SEED, FIRST_SEED + args.scenes):
        scores.append(recall(make_scene("busy", args.minutes, seed), args.kilobytes))
        console.print(seed, scores[-1])
    rows = []
    for name in scores[0]:
        counts = [score[name][:2] for score in scores]
        right, n = np.sum(counts, axis=0).tolist()
        archived = float(np.mean([score[name][2] for score in scores]))
        rows.append({"kilobytes": name, "recall": right / n, "n": n, "ci95": bootstrap(counts), "archived": archived})
        console.print(f"{name:>10}: {right / n:.3f} of {n}, 95 % {rows[-1]['ci95']}, {archived:.0f} archived")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"cost": cost, "recall": rows, "minutes": args.minutes, "scenes": args.scenes}))


if __name__ == "__main__":
    main()
