"""How sure a share is. No torch, so that a process which only draws and counts starts at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000


def wilson(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; (0, 1) where nothing was counted."""
    if n == 0:
        return 0.0, 1.0
    share = right / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max((centre - spread) / (1 + z * z / n), 0.0), min((centre + spread) / (1 + z * z / n), 1.0)


def bootstrap(counts: Sequence[tuple[int, int]], seed: int = 0) -> tuple[float, float]:
    """95 % interval of a share by resampling scenes, whose questions are not independent of each other.

    ``counts``: (right, asked) of each scene. (0, 1) where fewer than two scenes asked anything; a single share where
    all of them have the same.
    """
    pairs = np.array(counts, dtype=float).reshape(-1, 2)
    if np.count_nonzero(pairs[:, 1]) < 2:
        return 0.0, 1.0
    drawn = np.random.default_rng(seed).integers(0, len(pairs), (RESAMPLES, len(pairs)))
    sums = pairs[drawn].sum(1)
    sums = sums[sums[:, 1] > 0]
    low, high = np.percentile(sums[:, 0] / sums[:, 1], [2.5, 97.5])
    return float(low), float(high)
