"""Our memory where importance is measured by vision features, through the engine's own parts. Needs torch and a model.

    python -m benchmarks.memory_semantic      # what the measuring costs beside the vision encoder
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.memory_answers import load
from benchmarks.memory_strategies import Ours
from vstream_ros.engine.feature_importance import FeatureImportance
from vstream_ros.engine.vision_cache import VisionCache
from vstream_ros.memory import MemoryConfig, Tubelet
from vstream_ros.memory.clip import NANOSECONDS
from vstream_ros.models.loader import wrap_model
from vstream_ros.models.qwen.video_model import QwenVideoModel
from vstream_ros.synthetic.random_model import FAMILIES, random_model

MODEL = "vstream-tiny"
FEATURES_MAX_BYTES = 1 << 30


class OursByFeatures(Ours):
    """Each tubelet is encoded as soon as it is complete, as work ahead does it on a machine that keeps up."""

    def __init__(self, config: MemoryConfig, *, combined: bool = False) -> None:
        """``combined``: the novelty of the features is added to what pixels say, instead of taking its place."""
        super().__init__(config)
        self._combined = combined
        self._importance = FeatureImportance({self._memory.camera}, self._reweigh)
        self._vision = VisionCache(load(MODEL), FEATURES_MAX_BYTES, on_encoded=self._importance.observe)

    def add(self, tubelet: Tubelet) -> None:
        super().add(tubelet)
        settled = [held for held in self._memory.clip().tubelets if not held.provisional]
        held_ids = {held.id for held in settled}
        self._vision.keep_only(held_ids)
        self._importance.keep_only(held_ids)
        self._vision.features(settled)

    def _reweigh(self, camera: str, tubelet_id: int, novelty: float) -> None:
        by_pixels = next(held.importance for held in self._memory.clip().tubelets if held.id == tubelet_id)
        self._memory.reweigh(tubelet_id, novelty + by_pixels if self._combined else novelty)


def costs(model: QwenVideoModel, size: tuple[int, int], runs: int) -> tuple[int, float, float]:
    """Tokens of a tubelet of images of ``size``, and the median seconds of CPU time of encoding and of judging one."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (runs + 2, 2, *model.frame_spec.fit(*size), 3), dtype=np.uint8)
    importance = FeatureImportance({"camera"}, lambda camera, tubelet_id, value: None)
    encoding, judging, tokens = [], [], 0
    for k, pixels in enumerate(frames):
        tubelet = Tubelet(k, "camera", pixels, (k * NANOSECONDS,), k * NANOSECONDS, importance=0.0)
        seconds, (features,) = _timed(lambda: model.encode([tubelet]))  # noqa: B023  (called at once)
        encoding.append(seconds)
        judging.append(_timed(lambda: importance.observe(tubelet, features))[0])  # noqa: B023
        tokens = len(features.embeds)
    return tokens, statistics.median(encoding[2:]), statistics.median(judging[2:])


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.thread_time()
    result = call()
    return time.thread_time() - started, result


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="What importance by vision features costs beside the vision encoder.")
    parser.add_argument("--runs", type=int, default=100, help="tubelets each (default %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("model", "image", "tokens", "encode, ms", "judge, ms", "share")
    models = {MODEL: load(MODEL)}
    for family in FAMILIES:
        model, processor = random_model(family)
        models[f"random {family}"] = wrap_model(
            model, processor, name=family, min_pixels=56 * 56, max_pixels=4 * 224 * 224
        )
    for name, wrapped in models.items():
        for size in ((84, 112), (224, 224), (480, 640)):
            tokens, encode_s, judge_s = costs(wrapped, size, args.runs)
            table.add_row(
                name, f"{size[1]}x{size[0]}", str(tokens), f"{1000 * encode_s:.2f}", f"{1000 * judge_s:.3f}",
                f"{100 * judge_s / encode_s:.1f} %",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
