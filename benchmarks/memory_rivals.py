"""What others keep of a stream, behind our interface: baselines, published memories, and what the truth would keep."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np

from benchmarks.memory_interface import Kept, Sizes, Strategy
from vstream_ros.memory import Tubelet

LAYOUT_CELLS = (9, 12)
FINEST_CELLS = 6
"""Of a layout: as many differ where a small object comes."""


class Newest(Strategy):
    """The last tubelets. Two of them are the last four frames: SimpleStream, the strongest published baseline."""

    def __init__(self, tubelets: int) -> None:
        self._held: deque[Tubelet] = deque(maxlen=tubelets)

    def add(self, tubelet: Tubelet) -> None:
        self._held.append(tubelet)

    def kept(self) -> Kept:
        return Kept((), tuple(self._held))


class Uniform(Strategy):
    """Evenly spaced over a stream whose length is known beforehand, first and last included."""

    def __init__(self, tubelets: int, of: int) -> None:
        self._wanted = {round(place) for place in np.linspace(0, of - 1, min(tubelets, of))}
        self._seen = 0
        self._held: list[Tubelet] = []

    def add(self, tubelet: Tubelet) -> None:
        if self._seen in self._wanted:
            self._held.append(tubelet)
        self._seen += 1

    def kept(self) -> Kept:
        return Kept(tuple(self._held), ())


class _WithNewest(Strategy):
    """Something for the past, and the newest tubelet, which tells what is there now."""

    def __init__(self) -> None:
        self._newest: Tubelet | None = None
        self._held: list[Tubelet] = []

    def add(self, tubelet: Tubelet) -> None:
        if self._newest is not None:
            self._remember(self._newest)
        self._newest = tubelet

    def kept(self) -> Kept:
        return Kept(tuple(self._held), () if self._newest is None else (self._newest,))

    @abstractmethod
    def _remember(self, tubelet: Tubelet) -> None:
        """Take a tubelet that is no longer the newest."""


class StreamingUniform(_WithNewest):
    """Every n-th tubelet; where they become too many every second one goes, and n doubles."""

    def __init__(self, tubelets: int) -> None:
        super().__init__()
        self._most = tubelets - 1
        self._stride, self._seen = 1, 0

    def _remember(self, tubelet: Tubelet) -> None:
        if self._seen % self._stride == 0:
            self._held.append(tubelet)
        if len(self._held) > self._most:
            self._held = self._held[::2]
            self._stride *= 2
        self._seen += 1


class Reservoir(_WithNewest):
    """A uniform random sample of everything so far (Vitter's algorithm R), and the newest tubelet."""

    def __init__(self, tubelets: int, seed: int) -> None:
        super().__init__()
        self._most = tubelets - 1
        self._seen = 0
        self._rng = np.random.default_rng([seed, 1])

    def _remember(self, tubelet: Tubelet) -> None:
        self._seen += 1
        if len(self._held) == self._most:
            place = int(self._rng.integers(self._seen))
            if place >= self._most:
                return
            del self._held[place]
        self._held.append(tubelet)


class _Windowed(Strategy):
    """The most recent tubelets, and a choice of those that have left the window."""

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self._window: deque[Tubelet] = deque()
        self._star: list[Tubelet] = []

    def add(self, tubelet: Tubelet) -> None:
        self._window.append(tubelet)
        if len(self._window) > self._sizes.window:
            self._promote(self._window.popleft())

    def kept(self) -> Kept:
        return Kept(tuple(self._star), tuple(self._window))

    @abstractmethod
    def _promote(self, tubelet: Tubelet) -> None:
        """Take a tubelet that has left the window."""


class TrueImportance(_Windowed):
    """Importance by the truth, times the gap that a tubelet would leave: what our rule of forgetting could do."""

    def __init__(self, sizes: Sizes, importance: Callable[[Tubelet], float]) -> None:
        super().__init__(sizes)
        self._importance = importance

    def _promote(self, tubelet: Tubelet) -> None:
        self._star.append(replace(tubelet, importance=self._importance(tubelet)))
        if len(self._star) <= self._sizes.star:
            return
        times = [held.time_ns for held in self._star] + [self._window[0].time_ns]

        def value(k: int) -> float:
            return self._star[k].importance * (times[k + 1] - times[k - 1])

        del self._star[min(range(1, len(self._star)), key=value)]  # never the first


class Novelty(_Windowed):
    """Keeps what differs: of the two that are most alike the later one goes. Differences are local and free of gain."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self._layouts: list[np.ndarray] = []
        self._distances = np.full((sizes.star + 1, sizes.star + 1), np.inf)

    def _promote(self, tubelet: Tubelet) -> None:
        new, layout = len(self._star), _gain_free_layout(tubelet)
        for k, other in enumerate(self._layouts):
            self._distances[k, new] = local_difference(other, layout)
        self._star.append(tubelet)
        self._layouts.append(layout)
        if len(self._star) <= self._sizes.star:
            return
        _, later = np.unravel_index(int(np.argmin(self._distances)), self._distances.shape)
        del self._star[later], self._layouts[later]
        kept = [k for k in range(self._sizes.star + 1) if k != later]
        self._distances[:-1, :-1] = self._distances[np.ix_(kept, kept)]
        self._distances[:, -1] = np.inf


class MergedNeighbours(_Windowed):
    """MovieChat's way: the two neighbours in time that are most alike become one, which the larger one stands for."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self._features: list[np.ndarray] = []
        self._weights: list[int] = []

    def _promote(self, tubelet: Tubelet) -> None:
        self._star.append(tubelet)
        self._features.append(pooled_features(tubelet))
        self._weights.append(1)
        if len(self._star) <= self._sizes.star:
            return
        features = np.array(self._features)
        unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
        k = int(np.argmax((unit[1:] * unit[:-1]).sum(1)))
        one, other = self._weights[k], self._weights[k + 1]
        self._features[k] = (one * features[k] + other * features[k + 1]) / (one + other)
        self._star[k] = self._star[k] if one >= other else self._star[k + 1]
        self._weights[k] = one + other
        del self._star[k + 1], self._features[k + 1], self._weights[k + 1]


class WeightedClusters(_Windowed):
    """Flash-VStream's way: weighted k-means over the clusters so far and what left the window.

    Lloyd's algorithm starts from the clusters with the two merged that cost least (random starts kept half as much). A
    cluster is shown by the tubelet nearest to its centre; the original keeps the centre's features.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self._centres = np.zeros((0, 192))
        self._weights = np.zeros(0)

    def _promote(self, tubelet: Tubelet) -> None:
        points = np.vstack([self._centres, pooled_features(tubelet)])
        weights = np.append(self._weights, 1.0)
        held = [*self._star, tubelet]
        if len(held) > self._sizes.star:
            points, weights, nearest = _clustered(points, weights)
            held = [held[k] for k in nearest]
        self._star, self._centres, self._weights = held, points, weights


def _clustered(points: np.ndarray, weights: np.ndarray, rounds: int = 5) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """n weighted points in n - 1 clusters: their centres, weights, and the numbers of the nearest points, rising."""
    squares = ((points[:, None] - points[None]) ** 2).sum(2)
    cost = squares * weights[:, None] * weights / (weights[:, None] + weights)
    np.fill_diagonal(cost, np.inf)
    one, other = np.unravel_index(int(cost.argmin()), cost.shape)
    start = np.arange(len(points))
    start[other] = one
    owners = np.unique(start)
    member = owners[:, None] == start
    for _ in range(rounds):
        share = member * weights
        centres = share @ points / share.sum(1, keepdims=True)
        distances = ((points[None] - centres[:, None]) ** 2).sum(2)
        distances[np.arange(len(owners)), owners] = -1.0  # so that no cluster runs empty
        member = distances.argmin(0) == np.arange(len(owners))[:, None]
    share = member * weights
    centres = share @ points / share.sum(1, keepdims=True)
    nearest = np.where(member, ((points[None] - centres[:, None]) ** 2).sum(2), np.inf).argmin(1)
    order = np.argsort(nearest)
    return centres[order], share.sum(1)[order], nearest[order].tolist()


def pooled_features(tubelet: Tubelet) -> np.ndarray:
    """(192,) float64 in [0, 1]: the colours of an 8 x 8 grid, where a vision encoder's features would stand."""
    return _grid(tubelet, (8, 8)).ravel() / 255.0


def _gain_free_layout(tubelet: Tubelet) -> np.ndarray:
    """(9, 12, 3) float64: the colours of a grid, each channel over its median, so that the light's level cancels."""
    layout = _grid(tubelet, LAYOUT_CELLS)
    return layout / np.maximum(np.median(layout, axis=(0, 1)), 1.0)


def _grid(tubelet: Tubelet, cells: tuple[int, int]) -> np.ndarray:
    small = cv2.resize(tubelet.frames[-1], cells[::-1], interpolation=cv2.INTER_AREA)
    return small.astype(np.float64)


def local_difference(one: np.ndarray, other: np.ndarray) -> float:
    """Mean difference of two layouts in the few cells that differ most: a small object is enough."""
    cells = np.abs(one - other).mean(2).ravel()
    return float(np.partition(cells, -FINEST_CELLS)[-FINEST_CELLS:].mean())
