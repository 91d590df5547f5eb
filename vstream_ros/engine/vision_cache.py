"""Vision features by tubelet, bounded in bytes, of tubelets that something still holds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence, Set

import torch

from vstream_ros.memory.clip import Tubelet
from vstream_ros.models.base import TubeletFeatures, VideoModel

OnEncoded = Callable[[Tubelet, TubeletFeatures], None]
"""Told of features as the vision encoder made them, on its device; not of a provisional tubelet's."""


class VisionCache:
    """Least recently used features leave first. The vision encoder attends within one tubelet only, so a tubelet's
    features depend on nothing but its pixels. Owned by the model's thread."""

    def __init__(
        self,
        model: VideoModel,
        max_bytes: int,
        device: torch.device | None = None,
        on_encoded: OnEncoded = lambda tubelet, features: None,
    ) -> None:
        """``device``: where features are kept; default: the language model's, which will need them. ``on_encoded`` must
        not raise."""
        self._model = model
        self._max_bytes = max_bytes
        self._on_encoded = on_encoded
        self.device = model.device if device is None else device
        self._features: OrderedDict[int, TubeletFeatures] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._features)

    def __contains__(self, tubelet_id: int) -> bool:
        return tubelet_id in self._features

    def features(self, tubelets: Sequence[Tubelet]) -> tuple[list[TubeletFeatures], int]:
        """Features of tubelets of one frame size, in their order and on any device, and how many had to be encoded.

        Those of a provisional tubelet are not kept: the next frame makes another one of it.
        """
        missing = [tubelet for tubelet in tubelets if tubelet.id not in self._features]
        encoded = self._model.encode(missing) if missing else []
        fresh = {tubelet.id: features for tubelet, features in zip(missing, encoded, strict=True)}
        result = [fresh[t.id] if t.id in fresh else self._features[t.id] for t in tubelets]
        for tubelet, features in zip(tubelets, result, strict=True):
            if not tubelet.provisional:
                if tubelet.id in fresh:
                    self._on_encoded(tubelet, features)
                self._store(tubelet.id, features.to(self.device))
        return result, len(missing)

    def keep_only(self, tubelet_ids: Set[int]) -> None:
        """Forget the features of all other tubelets."""
        for tubelet_id in self._features.keys() - tubelet_ids:
            self.nbytes -= self._features.pop(tubelet_id).nbytes

    def clear(self) -> None:
        self._features.clear()
        self.nbytes = 0

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` where the byte counter is wrong (tests call this)."""
        assert self.nbytes == sum(f.nbytes for f in self._features.values())
        assert self.nbytes <= self._max_bytes

    def _store(self, tubelet_id: int, features: TubeletFeatures) -> None:
        old = self._features.pop(tubelet_id, None)
        self.nbytes += features.nbytes - (old.nbytes if old else 0)
        self._features[tubelet_id] = features
        while self.nbytes > self._max_bytes:
            _, dropped = self._features.popitem(last=False)
            self.nbytes -= dropped.nbytes
