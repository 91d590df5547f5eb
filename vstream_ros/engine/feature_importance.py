"""Importance by what the vision encoder sees: how new a tubelet's features are to its camera."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Set

import torch

from vstream_ros.engine.engine_config import EngineConfig
from vstream_ros.errors import ConfigError
from vstream_ros.memory.clip import NANOSECONDS, Tubelet
from vstream_ros.memory.memory_config import MemoryConfig
from vstream_ros.memory.novelty import NoveltyMeter
from vstream_ros.models.base import TubeletFeatures

Reweigh = Callable[[str, int, float], object]
"""Camera, tubelet id, importance: hands the importance to the camera's memory."""


def cameras_by_features(config: EngineConfig, cameras: Mapping[str, MemoryConfig]) -> frozenset[str]:
    """The cameras whose tubelets are judged by vision features.

    Raises ``ConfigError`` where nothing would compute these while frames come.
    """
    named = {name: memory.selection_method for name, memory in cameras.items() if memory.selection_method != "pixel"}
    if named and config.background_encoding == "off":
        name, method = next(iter(named.items()))
        raise ConfigError(
            f"selection_method {method!r} (camera {name}) needs background_encoding 'vision' or 'full', got 'off': it "
            "looks at vision features while frames come; set one of these, or selection_method 'pixel'"
        )
    return frozenset(named)


class FeatureImportance:
    """Judges each tubelet once, when its features are there: until then, and where they come too late, what pixels said
    stands.

    One for each model that is loaded, since features of two models can't be compared. Belongs to the model's thread;
    bounded in memory: an array of one tubelet's features for each camera, on the CPU.
    """

    def __init__(self, cameras: Container[str], reweigh: Reweigh) -> None:
        """``cameras``: whose tubelets are judged. ``reweigh`` is called in the model's thread."""
        self._cameras = cameras
        self._reweigh = reweigh
        self._meters: dict[str, NoveltyMeter] = {}
        self._newest: dict[str, tuple[int, int]] = {}
        """By camera: id and stamp of the tubelet that its meter has seen last."""
        self._judged: set[int] = set()
        """Of the tubelets that are still held."""

    def observe(self, tubelet: Tubelet, features: TubeletFeatures) -> None:
        """Judge a tubelet by its features, wherever they are. Each tubelet counts once, however often it is encoded.

        One that is older than another one before it (a question about a time range may have encoded that first) is
        compared, too, and changes nothing of what is usual.
        """
        if tubelet.camera not in self._cameras or tubelet.id in self._judged:
            return
        self._judged.add(tubelet.id)
        meter = self._meters.setdefault(tubelet.camera, NoveltyMeter())
        vectors = features.embeds.detach().to("cpu", torch.float32).numpy()
        newest = self._newest.get(tubelet.camera)
        if newest is not None and tubelet.stamps_ns[0] < newest[1]:
            novelty = meter.compare(vectors)
        else:
            novelty = meter.observe(vectors, tubelet.time_ns / NANOSECONDS)
            self._newest[tubelet.camera] = tubelet.id, tubelet.stamps_ns[0]
        if novelty is not None:
            self._reweigh(tubelet.camera, tubelet.id, novelty)

    def keep_only(self, held: Set[int]) -> None:
        """Forget what is not held any more.

        The newest tubelet that was seen leaves its memory where that is cleared, or where work ahead lags behind by all
        that memory holds: what is usual is forgotten then, too.
        """
        self._judged &= held
        for camera in [camera for camera, (tubelet_id, _) in self._newest.items() if tubelet_id not in held]:
            del self._meters[camera], self._newest[camera]
