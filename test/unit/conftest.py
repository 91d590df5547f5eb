"""Fixtures of the unit tier: random-weight models of every family, made once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from support.asking import Asking, asking
from support.decoding import random_clip
from support.model_loads import StandInLoader
from vstream_ros.engine import DelayedBatchInferenceEngine
from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.engine.engine_config import EngineConfig
from vstream_ros.memory.clip import NANOSECONDS, Clip, Tubelet
from vstream_ros.models import checkpoint_size, loader
from vstream_ros.models.loader import wrap_model
from vstream_ros.models.qwen.video_model import QwenVideoModel
from vstream_ros.synthetic.random_model import FAMILIES, random_model

MAX_PIXELS = 112 * 112


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Small models gain nothing from two threads, and sums come out the same on every machine.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def models() -> dict[str, QwenVideoModel]:
    made = {}
    for family in FAMILIES:
        model, processor = random_model(family)
        made[family] = wrap_model(model, processor, name=family, min_pixels=56 * 56, max_pixels=MAX_PIXELS)
    return made


@pytest.fixture(params=FAMILIES)
def any_model(request: pytest.FixtureRequest, models: dict[str, QwenVideoModel]) -> QwenVideoModel:
    """Each supported family in turn."""
    return models[request.param]


@pytest.fixture
def tubelets(any_model: QwenVideoModel) -> tuple[Tubelet, ...]:
    """Two small ones, a second apart."""
    frames = torch.randint(0, 256, (2, *any_model.frame_spec.fit(56, 56), 3), dtype=torch.uint8).numpy()
    return tuple(
        Tubelet(id=k, camera="", frames=frames, stamps_ns=(), time_ns=k * NANOSECONDS, importance=0.0) for k in range(2)
    )


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    """A model and its processor, as transformers has them."""
    return random_model("qwen2_5_vl")


@pytest.fixture
def engine(loaded: tuple[Any, Any]) -> Iterator[DelayedBatchInferenceEngine]:
    """With one camera and what is usual; many files have one of their own."""
    model, processor = loaded
    with DelayedBatchInferenceEngine(
        model=model, processor=processor, device="cpu", max_pixels=84 * 112, max_new_tokens=8, scene_threshold=1.0
    ) as made:
        yield made


@pytest.fixture
def models_by_name(monkeypatch: pytest.MonkeyPatch) -> StandInLoader:
    """What ``load_model`` and the size of a checkpoint are for this test."""
    stand_in = StandInLoader()
    monkeypatch.setattr(loader, "load_model", stand_in.load)
    monkeypatch.setattr(checkpoint_size, "checkpoint_bytes", lambda name, dtype: stand_in.size)
    return stand_in


@pytest.fixture
def full_length(any_model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer ends before its ``max_new_tokens``."""
    monkeypatch.setattr(any_model.model.generation_config, "eos_token_id", None)


@pytest.fixture
def clips(any_model: QwenVideoModel) -> tuple[Clip, ...]:
    """Of one camera: five tubelets."""
    return (random_clip(any_model, 5),)


@pytest.fixture
def answerer(any_model: QwenVideoModel) -> ClipAnswerer:
    """Of one camera, in chunks of two tubelets."""
    return ClipAnswerer(any_model, EngineConfig(prefill_chunk_tubelets=2), ["camera"])


@pytest.fixture
def desk(answerer: ClipAnswerer) -> Iterator[Asking]:
    """Where several questions are asked at a time."""
    with asking(answerer) as made:
        yield made
