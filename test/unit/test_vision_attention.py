"""Windows of one length attended to together: what transformers' own loop gives, and only in our own calls."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from support.frames import random_frame
from vstream_ros.memory.clip import Tubelet
from vstream_ros.models.base import GenerationOptions, Segment
from vstream_ros.models.kernels import vision_attention
from vstream_ros.models.kernels.vision_attention import SHAPES, BatchedVision, SegmentGroup, group_segments
from vstream_ros.models.loader import wrap_model
from vstream_ros.models.qwen.video_model import QwenVideoModel
from vstream_ros.synthetic.random_model import FAMILIES, random_model

CPU = torch.device("cpu")
CELLS = ((1, 1), (2, 3), (4, 4), (9, 16), (5, 8), (11, 3))
"""Rows and columns of tokens: a window of Qwen2.5-VL has four of each, so all but one have partial ones."""


@functools.cache
def deep_model(family: str) -> QwenVideoModel:
    """Four layers of vision, the last of which attends to whole frames."""
    model, processor = random_model(family, vision_depth=4)
    return wrap_model(model, processor, name=family, min_pixels=28 * 28, max_pixels=2**20)


def some_tubelets(model: QwenVideoModel, cells: tuple[int, int], count: int) -> list[Tubelet]:
    rng = np.random.default_rng([*cells, count])
    size = [model.frame_spec.factor * n for n in cells]
    return [
        Tubelet(k, "camera", np.stack([random_frame(rng, *size) for _ in range(2)]), (k,), k, 0.0)
        for k in range(count)
    ]


@torch.inference_mode()
def stock_features(model: QwenVideoModel, tubelets: Sequence[Tubelet]) -> list[torch.Tensor]:
    """By transformers alone; of Qwen3-VL also what goes to the decoder's layers."""
    output = model.model.model.get_video_features(*model.pixel_values(tubelets), return_dict=True)
    return flat(model.split_features(output))


def flat(features: Sequence[Any]) -> list[torch.Tensor]:
    return [tensor for item in features for tensor in (item.embeds, *item.deepstack)]


def difference(ours: Sequence[torch.Tensor], native: Sequence[torch.Tensor]) -> float:
    """Greatest, in units of the greatest value."""
    scale = max(tensor.abs().max().item() for tensor in native)
    return max((a - b).abs().max().item() for a, b in zip(ours, native, strict=True)) / scale


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cells", CELLS)
def test_features_are_the_stock_towers(family: str, cells: tuple[int, int]) -> None:
    model = deep_model(family)
    for count in (1, 2, 5):
        tubelets = some_tubelets(model, cells, count)
        assert difference(flat(model.encode(tubelets)), stock_features(model, tubelets)) < 5e-6


def test_windows_that_are_cut_elsewhere_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: each length's windows one patch further on, as a wrong index would have it."""
    model = deep_model("qwen2_5_vl")
    model._vision._plan.cache_clear()

    def shifted(boundaries: Sequence[int], device: torch.device) -> tuple[SegmentGroup, ...]:
        groups = group_segments(boundaries, device)
        return tuple(SegmentGroup(g.length, None if g.rows is None else g.rows.roll(1)) for g in groups)

    tubelets = some_tubelets(model, (5, 8), 2)
    monkeypatch.setattr(vision_attention, "group_segments", shifted)
    wrong = flat(model.encode(tubelets))
    model._vision._plan.cache_clear()
    assert difference(wrong, stock_features(model, tubelets)) > 1e-2


def test_segments_are_grouped_by_length() -> None:
    groups = group_segments([0, 4, 6, 10, 12, 15], CPU)
    rows = {group.length: group.rows.tolist() for group in groups if group.rows is not None}
    assert rows == {4: [0, 1, 2, 3, 6, 7, 8, 9], 2: [4, 5, 10, 11], 3: [12, 13, 14]}
    states = torch.arange(15 * 2 * 3).reshape(15, 2, 3)
    taken = groups[0].take(states)
    assert taken.shape == (2, 2, 4, 3)
    assert torch.equal(taken[1, 0], states[6:10, 0])
    (equal,) = group_segments([0, 4, 8], CPU)
    assert equal.rows is None
    assert equal.take(states[:8]).shape == (2, 2, 4, 3)


def test_only_our_own_calls_are_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call for each length in each layer; native attends to window by window, also after a call that failed."""
    model = deep_model("qwen2_5_vl")
    layers = len(model.model.model.visual.blocks)
    tubelets = some_tubelets(model, (9, 16), 3)
    native = stock_features(model, tubelets)
    batches: list[tuple[int, int]] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def counted(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        batches.append((query.shape[0], query.shape[2]))
        return attend(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    model.encode(tubelets)
    windows = [(3 * 8, 64), (3 * 4, 16)]
    assert batches == windows * (layers - 1) + [(3, 576)]
    with monkeypatch.context() as patch:
        patch.setattr(model.model.model.visual.blocks[1], "forward", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.encode(tubelets)
    batches.clear()
    assert all(torch.equal(a, b) for a, b in zip(stock_features(model, tubelets), native, strict=True))
    model.native_generate([Segment(tuple(tubelets), 1.0, 0)], "what?", GenerationOptions(1), true_time=True)
    assert {batch for batch, _ in batches} == {1}
    assert sum(rows in (16, 64) for _, rows in batches) == 2 * 3 * 12 * (layers - 1)


def test_what_follows_from_the_grids_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = random_model("qwen2_5_vl")
    video_model = wrap_model(model, processor, name="a", min_pixels=28 * 28, max_pixels=2**20)
    made = []
    windows = vision_attention.get_vision_window_index

    def counted(grids: torch.Tensor, **kwargs: Any) -> Any:
        made.append(len(grids))
        return windows(grids, **kwargs)

    monkeypatch.setattr(vision_attention, "get_vision_window_index", counted)
    for _ in range(3):
        for count in (1, 2):
            video_model.encode(some_tubelets(video_model, (2, 3), count))
    assert made == [1, 2]
    for rows in range(1, SHAPES + 9):
        video_model._vision.plan(torch.tensor([[1, 2 * rows, 2]]))
    assert video_model._vision._plan.cache_info().currsize == SHAPES


@pytest.mark.parametrize("family", FAMILIES)
def test_the_encoder_waits_for_no_device(family: str) -> None:
    """On the meta device, which has no values to read and refuses tensors of another one."""
    model, _ = random_model(family)
    visual = model.to("meta").model.visual
    pixels, grids = deep_model(family).pixel_values(some_tubelets(deep_model(family), (5, 8), 3))
    pixels = pixels.to("meta")
    vision = BatchedVision(visual)
    plan = vision.plan(grids)
    with torch.inference_mode(), vision.attention(plan):
        output = model.model.get_video_features(pixels, grids, return_dict=True, **plan.inputs)
        assert [tuple(part.shape) for part in output.pooler_output] == [(40, 64)] * 3
        with pytest.raises(RuntimeError):  # the control: as transformers does it
            model.model.get_video_features(pixels, grids.to("meta"), return_dict=True)


def test_another_implementation_is_left_alone() -> None:
    model, processor = random_model("qwen2_5_vl")
    model.model.visual.set_attn_implementation("eager")
    video_model = wrap_model(model, processor, name="eager", min_pixels=28 * 28, max_pixels=2**20)
    tubelets = some_tubelets(video_model, (5, 8), 2)
    assert model.model.visual.config._attn_implementation == "eager"
    plan = video_model._vision.plan(video_model.pixel_values(tubelets)[1])
    with video_model._vision.attention(plan):
        assert "forward" not in vars(model.model.visual.blocks[0].attn)
    assert difference(flat(video_model.encode(tubelets)), stock_features(video_model, tubelets)) < 5e-6
