"""Clips for stage 2: tubelets encoded once by the trained vision tower, put together in ever new ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from training.parallel import in_processes
from training.states import save_atomically
from training.tiny_config import FRAME_SIZE
from training.tower import encode_tubelets
from training.train_vision import CAMERAS
from vstream_ros.memory.clip import NANOSECONDS, Tubelet
from vstream_ros.memory.store import StarStream
from vstream_ros.synthetic.shapes_questions import View
from vstream_ros.synthetic.shapes_world import MAX_VISITS, Scene
from vstream_ros.synthetic.sightings import camera_frame, sightings

CAMERA_SHARE = 0.04
"""Of the scenes are drawn as large as a camera's and scaled down by the node's own resize: 20 times the work."""
FRAME_GAP_S, TUBELET_S = 0.5, 1.0
"""The node's default sampling, 2 frames a second."""


@dataclass(frozen=True)
class PooledClip:
    """Features and truth of some tubelets in time order."""

    features: torch.Tensor
    """(tubelets, tokens, hidden) float32."""
    views: tuple[View, ...]
    seconds: tuple[int, ...]
    """When each tubelet begins."""

    def part(self, kept: Sequence[int]) -> PooledClip:
        """The tubelets of these numbers."""
        return PooledClip(self.features[kept], tuple(self.views[k] for k in kept), tuple(self.seconds[k] for k in kept))

    @property
    def names(self) -> set[str]:
        """Of all objects of which anything shows."""
        return {sighting.visit.name for view in self.views for sighting in view}


def join(clips: Sequence[PooledClip], gaps_s: Sequence[int]) -> PooledClip:
    """One clip of several, the next beginning ``gaps_s`` seconds after the last tubelet of the one before."""
    seconds: list[int] = []
    for clip, gap_s in zip(clips, [0, *gaps_s], strict=True):
        start = seconds[-1] + gap_s if seconds else 0
        seconds += [start + s - clip.seconds[0] for s in clip.seconds]
    views = tuple(view for clip in clips for view in clip.views)
    return PooledClip(torch.cat([clip.features for clip in clips]), views, tuple(seconds))


def remembered(scene: Scene, end_s: int, rng: np.random.Generator) -> list[int]:
    """Seconds of the tubelets that a memory of the default sizes, or a little less, holds after ``end_s`` seconds.

    The node's own store decides, on an importance guessed from what moves instead of from pixels: an object that
    stands is background.
    """
    store = StarStream(star=int(rng.integers(10, 16)), window=int(rng.integers(4, 7)), slide=8)
    nothing = np.zeros((0,), dtype=np.uint8)
    vivid = {visit.name: float(np.exp(rng.uniform(np.log(0.02), np.log(0.3)))) for visit in scene.visits}
    for second in range(end_s):
        seen = sightings(scene, second, second + FRAME_GAP_S)
        moving = sum(vivid[s.visit.name] for s in seen if s.motion not in ("nowhere", None))
        importance = moving * float(rng.uniform(0.5, 1.0)) + float(rng.uniform(0.0, 0.004))
        store.append(Tubelet(second, "", nothing, (), second * NANOSECONDS, importance))
    return [tubelet.time_ns // NANOSECONDS for tubelet in store.star + store.stream]


def draw_scene(seed: int, long: bool) -> tuple[np.ndarray, tuple[View, ...], tuple[int, ...]]:
    """30 tubelets of a dense scene, or what memory holds of a long one.

    Returns (tubelets, 2, height, width, 3) uint8 frames, what each tubelet shows, and the second it begins at.
    """
    rng = np.random.default_rng([seed, 200])
    if long:
        scene = Scene(seed, float(np.exp(rng.uniform(np.log(20.0), np.log(3600.0)))))
        end_s = int(scene.duration_s)
        if rng.random() < 0.5:
            end_s = int(rng.integers(min(20, end_s), end_s + 1))
        seconds = remembered(scene, end_s, rng)
    else:
        visits = int(rng.integers(1, MAX_VISITS + 1))
        scene = Scene(seed, 30.0, gap_s=float(rng.uniform(2.0, 8.0)), visits=visits)
        seconds = list(range(30))
    camera = CAMERAS[int(rng.integers(3))] if rng.random() < CAMERA_SHARE else None
    times = [(float(second), second + FRAME_GAP_S) for second in seconds]
    frames = np.stack([[camera_frame(scene, t, FRAME_SIZE, camera) for t in pair] for pair in times])
    return frames, tuple(sightings(scene, *pair) for pair in times), tuple(seconds)


def _thinned(clip: PooledClip, tubelets: int, rng: np.random.Generator) -> PooledClip:
    """What a smaller memory might hold: the first tubelet, the newest ones, and any of those between.

    The moment is one of the last that leave enough to choose from; what was far apart may have been nearer.
    """
    end = int(rng.integers(tubelets, len(clip.views) + 1))
    newest = int(rng.integers(0, tubelets))
    between = rng.choice(np.arange(1, end - newest), tubelets - 1 - newest, replace=False)
    thin = clip.part([0, *sorted(map(int, between)), *range(end - newest, end)])
    gaps = np.diff(thin.seconds)
    gaps[gaps > 1] = np.maximum(gaps[gaps > 1] * rng.uniform(0.5, 1.0), 1)
    return PooledClip(thin.features, thin.views, (0, *np.cumsum(gaps).tolist()))


class FeaturePool:
    """Encoded scenes to make clips of: short dense ones, and what memory holds of long ones."""

    def __init__(self, tower: torch.nn.Module, seed: int) -> None:
        """``tower``: trained; it is only read."""
        self._tower = tower
        self._seed = seed * 1_000_003 + 500_000_000
        self.dense: list[PooledClip] = []
        self.long: list[PooledClip] = []

    @torch.no_grad()
    def grow(self, dense: int, long: int, report: Callable[[], None]) -> None:
        """Render and encode that many scenes; ``report`` is called after each."""
        calls = [(self._seed + k, k >= dense) for k in range(dense + long)]
        for (_, is_long), (frames, views, seconds) in zip(
            calls, in_processes(draw_scene, calls, processes=2), strict=True
        ):
            clip = PooledClip(encode_tubelets(self._tower, frames), views, seconds)
            (self.long if is_long else self.dense).append(clip)
            report()

    def load_or_grow(self, path: Path, dense: int, long: int, report: Callable[[], None]) -> None:
        """``grow``, unless ``path`` holds a pool of that size; then that one, and ``report`` is not called."""
        if path.exists():
            # Written by this class in this folder: its views are objects of this package.
            stored = torch.load(path, weights_only=False)
            if (len(stored["dense"]), len(stored["long"])) == (dense, long):
                self.dense, self.long = stored["dense"], stored["long"]
                return
        self.grow(dense, long, report)
        save_atomically({"dense": self.dense, "long": self.long}, path)

    def clip(self, tubelets: int, rng: np.random.Generator, long_share: float) -> PooledClip:
        """A random clip of exactly ``tubelets`` tubelets.

        A piece of one scene, what memory holds of a long one, or pieces of several scenes whose objects all differ,
        one after another as an eviction leaves them.
        """
        draw = rng.random()
        if draw < long_share:
            clip = self.long[int(rng.integers(len(self.long)))]
            if len(clip.views) >= tubelets:
                return _thinned(clip, tubelets, rng)
        pieces: list[PooledClip] = []
        names: set[str] = set()
        left = tubelets
        for _ in range(40):
            source = self.dense[int(rng.integers(len(self.dense)))]
            most = min(left, len(source.views))
            length = most if draw > 0.75 else int(rng.integers(1, most + 1))
            start = int(rng.integers(len(source.views) - length + 1))
            piece = source.part(range(start, start + length))
            if piece.names & names or len(names | piece.names) > MAX_VISITS:
                continue
            pieces.append(piece)
            names |= piece.names
            left -= length
            if left == 0:
                scale = float(rng.choice([1.0, 3.0, 30.0]))
                gaps = [1 + int(rng.exponential(scale)) for _ in pieces[1:]]
                return join(pieces, gaps)
        return self.clip(tubelets, rng, 0.0)
