"""Our memory and its rivals by name. No model, no torch, but for those that say so.

Every strategy gets the same tubelets one after another and holds at most as many of them as our memory ever does
(star, window, and those that wait for the next slide). Our memory holds fewer most of the time, so a comparison errs
in the rivals' favour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks import memory_rivals as rivals
from benchmarks.memory_interface import Kept, Oracle, Sizes, Strategy
from vstream_ros.memory import MemoryConfig, SmartFrameManager, Tubelet


class Ours(Strategy):
    """The package's memory with its defaults, through its public API."""

    def __init__(self, config: MemoryConfig) -> None:
        self._memory = SmartFrameManager(config)

    def add(self, tubelet: Tubelet) -> None:
        for frame, stamp_ns in zip(tubelet.frames, tubelet.stamps_ns, strict=False):
            self._memory.add_frame(frame, stamp_ns)

    def kept(self) -> Kept:
        held = self._memory.clip().tubelets
        star_frames, star = self._memory.status().star_frames, 0
        while star_frames > 0:
            star_frames -= len(held[star].stamps_ns)
            star += 1
        return Kept(held[:star], held[star:])


def make_strategies(names: Sequence[str], oracle: Oracle, seed: int, config: MemoryConfig) -> dict[str, Strategy]:
    """New ones by name, each empty. Raises ``KeyError`` for a name of neither ``STRATEGIES`` nor ``WITH_A_MODEL``."""
    sizes, known = Sizes.of(config), STRATEGIES | WITH_A_MODEL
    return {name: known[name](sizes, oracle, seed, config) for name in names}


def _by_features(config: MemoryConfig, *, combined: bool) -> Strategy:
    from benchmarks.memory_semantic import OursByFeatures  # the only one that needs torch

    return OursByFeatures(config, combined=combined)


Make = Callable[[Sizes, Oracle, int, MemoryConfig], Strategy]

STRATEGIES: dict[str, Make] = {
    "ours": lambda sizes, oracle, seed, config: Ours(config),
    "last_n": lambda sizes, oracle, seed, config: rivals.Newest(sizes.total),
    "last_4": lambda sizes, oracle, seed, config: rivals.Newest(2),
    "uniform": lambda sizes, oracle, seed, config: rivals.Uniform(sizes.total, oracle.tubelets),
    "streaming_uniform": lambda sizes, oracle, seed, config: rivals.StreamingUniform(sizes.total),
    "reservoir": lambda sizes, oracle, seed, config: rivals.Reservoir(sizes.total, seed),
    "clusters": lambda sizes, oracle, seed, config: rivals.WeightedClusters(sizes),
    "novelty": lambda sizes, oracle, seed, config: rivals.Novelty(sizes),
    "merging": lambda sizes, oracle, seed, config: rivals.MergedNeighbours(sizes),
    "true_importance": lambda sizes, oracle, seed, config: rivals.TrueImportance(sizes, oracle.importance),
}
"""By the name that stands in the report."""
WITH_A_MODEL: dict[str, Make] = {
    "ours_semantic": lambda sizes, oracle, seed, config: _by_features(config, combined=False),
    "ours_combined": lambda sizes, oracle, seed, config: _by_features(config, combined=True),
}
"""The same; these encode every tubelet, and are compared on request only."""
