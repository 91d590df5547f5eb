"""Fixtures of the unit tier: random-weight models of every family, made once."""

from __future__ import annotations

import pytest
import torch

from vstream_ros.memory.clip import NANOSECONDS, Tubelet
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
