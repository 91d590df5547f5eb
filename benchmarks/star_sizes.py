"""More of the past in smaller frames: is it worth it at equal tokens? No model, no torch.

    python -m benchmarks.star_sizes [--scenes 6] [--minutes 10 60] [--worlds plain busy]

Scenes of the tuning seeds through our memory with star as it is, and with twice and four times as many star tubelets,
whose frames have half and a quarter of the pixels: the tokens are the same (but for the texts between tubelets of
Qwen3-VL). Past and visits are those of ``memory_recall``, which knows what a tubelet shows and takes it for legible at
any size. So this is what smaller frames can win at most; what they lose in detail only a model could tell.

Beside them what the KV cache costs: tokens prefilled and tubelets encoded per new tubelet, a question after each.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.eval_memory import FIRST_SEEDS
from benchmarks.memory_recall import FRAME_SIZE, WORLDS, Score, make_scene, score, tubelets_of, view_of
from benchmarks.memory_strategies import Ours
from vstream_ros.memory import MemoryConfig, Tubelet

SHARES = (1, 2, 4)
"""Star tubelets in the place of one, each of as many times fewer tokens."""


@dataclass
class Played:
    """Our memory with one share of star, and what the KV cache of a question after each tubelet costs."""

    share: int
    memory: Ours
    prefilled: float = 0.0
    """In tokens of a full-size tubelet."""
    encoded: int = 0
    new: int = 0
    """Tubelets shown."""
    _held: list[tuple[int, bool]] = field(default_factory=list)

    @classmethod
    def of(cls, share: int) -> Played:
        # Without a provisional tubelet, as in the node: each question would encode it anew.
        config = MemoryConfig(include_pending=False)
        return cls(share, Ours(replace(config, star_memory_size=share * config.star_memory_size)))

    def add(self, tubelet: Tubelet) -> None:
        """Show a tubelet, and ask."""
        self.memory.add(tubelet)
        kept = self.memory.kept()
        # As the engine's identities are: a tubelet that is smaller in star is another one than in the window.
        small = self.share > 1
        held = [(t.id, small) for t in kept.star] + [(t.id, False) for t in kept.stream]
        pairs = zip(self._held, held, strict=False)
        common = next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(self._held), len(held)))
        self.prefilled += sum(1.0 / self.share if is_small else 1.0 for _, is_small in held[common:])
        self.encoded += len(set(held) - set(self._held))
        self._held = held
        self.new += 1


def measure(world: str, minutes: int, seed: int) -> list[tuple[Played, Score]]:
    """One scene, all shares."""
    scene = make_scene(world, minutes, seed)
    played = [Played.of(share) for share in SHARES]
    shown = []
    for tubelet in tubelets_of(scene, None, FRAME_SIZE):
        shown.append(view_of(scene, tubelet))
        for memory in played:
            memory.add(tubelet)
    results = []
    for memory in played:
        kept = memory.memory.kept()
        views = [view_of(scene, tubelet) for tubelet in kept.tubelets]
        results.append((memory, score(views, views[: len(kept.star)], shown, seed)))
    return results


def row_of(world: str, minutes: int, share: int, results: Sequence[tuple[Played, Score]]) -> dict[str, Any]:
    """Shares over all scenes' questions and objects, and cost per new tubelet."""
    past = [right for _, result in results for _, right, _ in result.past]
    visits = [seen for _, result in results for seen, _ in result.visits]
    new = sum(memory.new for memory, _ in results)
    return {
        "world": world, "minutes": minutes, "scenes": len(results),
        "star_tubelets": results[0][0].share * MemoryConfig().star_memory_size // 2, "pixels": 1.0 / share,
        "past": float(np.mean(past)), "visits": float(np.mean(visits)), "n": {"past": len(past), "visits": len(visits)},
        "prefilled_per_new": sum(memory.prefilled for memory, _ in results) / new,
        "encoded_per_new": sum(memory.encoded for memory, _ in results) / new,
    }


def main() -> None:
    """Play, print a table, write ``build/bench_star_sizes.json``."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scenes", type=int, default=6, help="of each world and length")
    parser.add_argument("--minutes", type=int, nargs="+", default=[10, 60], help="lengths")
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=["plain", "busy"], help="of memory_recall")
    parser.add_argument("--out", type=Path, default=Path("build/bench_star_sizes.json"))
    args = parser.parse_args()
    table = Table("minutes", "world", "star", "pixels", "past", "visits", "prefilled / new", "encoded / new")
    rows = []
    for minutes in args.minutes:
        for world in args.worlds:
            first = FIRST_SEEDS["tuning"] + 1_000_000 * (1 + WORLDS.index(world)) + 10_000 * minutes
            seeds = track(range(first, first + args.scenes), f"{world}, {minutes} min")
            scenes = [measure(world, minutes, seed) for seed in seeds]
            for share, results in zip(SHARES, zip(*scenes, strict=True), strict=True):
                row = row_of(world, minutes, share, results)
                rows.append(row)
                table.add_row(
                    str(minutes), world, str(row["star_tubelets"]), f"{row['pixels']:.2f}",
                    f"{100 * row['past']:.0f} %", f"{100 * row['visits']:.0f} %",
                    f"{row['prefilled_per_new']:.2f}", f"{row['encoded_per_new']:.2f}",
                )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"rows": rows}, indent=2) + "\n")
    Console().print(table)


if __name__ == "__main__":
    main()
