"""Linear layers on a few rows, filled up to 16: what they give without, and only in our own calls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from vstream_ros.memory.clip import Tubelet
from vstream_ros.models.base import GenerationOptions, Rows, Segment
from vstream_ros.models.kernels import padded_linear
from vstream_ros.models.kernels.padded_linear import FEWEST, LARGE, TILE, paddable, padded_linears
from vstream_ros.models.qwen.video_model import QwenVideoModel


@pytest.fixture
def rows_computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of every linear layer from here on."""
    seen: list[int] = []
    linear = nn.functional.linear

    def counted(states: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
        seen.append(states.shape[-2])
        return linear(states, *args)

    monkeypatch.setattr(nn.functional, "linear", counted)
    return seen


@pytest.mark.parametrize("bias", [False, True])
def test_rows_are_what_they_are_without(bias: bool, rows_computed: list[int]) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(40, 30, bias=bias)
    for rows in (1, FEWEST - 1, FEWEST, 14, TILE - 1, TILE, 40):
        states = torch.randn(1, rows, 40)
        with torch.no_grad():
            expected = layer(states)
            rows_computed.clear()
            with padded_linears([layer]):
                padded = layer(states)
        assert padded.shape == expected.shape
        assert padded.is_contiguous()
        torch.testing.assert_close(padded, expected)
        assert rows_computed == [TILE if FEWEST <= rows < TILE else rows]
    assert "forward" not in vars(layer)


def test_batches_and_vectors_pass(rows_computed: list[int]) -> None:
    layer = nn.Linear(4, 3)
    with padded_linears([layer]):
        for shape in ((2, 14, 4), (14, 4), (4, 14, 2, 4)):
            assert torch.equal(layer(torch.ones(shape)), nn.Linear.forward(layer, torch.ones(shape)))
    assert TILE not in rows_computed


def test_only_large_plain_layers_are_padded() -> None:
    class Special(nn.Linear):
        """Such as a quantised layer."""

    size = 512
    others = LARGE // size
    layers = nn.ModuleList(
        [
            nn.Linear(size, others, bias=False),
            nn.Linear(size, others - 1, bias=False),
            nn.Linear(size, others, bias=False, dtype=torch.bfloat16),
            nn.Linear(size, others, bias=False, device="meta"),
            Special(size, others, bias=False),
            nn.Conv1d(size, others, 1, bias=False),
        ]
    )
    assert paddable(layers) == [layers[0]]


def test_somebodys_hook_is_left_alone() -> None:
    layer = nn.Linear(4, 3)
    hooked = layer.forward
    layer.forward = hooked  # type: ignore[method-assign]  # as accelerate does
    with padded_linears([layer]):
        assert layer.forward is hooked
    assert layer.forward is hooked


def test_only_our_own_calls_use_it(
    any_model: QwenVideoModel,
    tubelets: tuple[Tubelet, ...],
    rows_computed: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same tokens as native inference, which is left as it is; also after a call of ours that failed."""
    model = any_model
    monkeypatch.setattr(padded_linear, "LARGE", 0)
    layers = paddable(model.model.model.language_model)
    monkeypatch.setattr(model, "_paddable", layers)
    segments = [Segment(tubelets, 1.0, 0)]
    prompt = model.build_prompt(segments, "what?", true_time=True)
    cache = model.new_cache()
    end = len(prompt) - 10
    model.prefill(prompt, end, model.encode(tubelets), cache)
    rows_computed.clear()
    logits = model.forward(Rows(prompt.input_ids[end:], prompt.position_ids[:, end:]), cache, np.array([9]))
    assert len(layers) > 0
    assert rows_computed.count(TILE) == len(layers)
    assert 10 not in rows_computed
    with monkeypatch.context() as patch:
        patch.setattr(model.model.model.language_model.layers[0], "forward", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.prefill(prompt, end, model.encode(tubelets), model.new_cache())
    rows_computed.clear()
    assert model.native_generate(segments, "what?", GenerationOptions(1), true_time=True) == logits.argmax(-1).tolist()
    assert TILE not in rows_computed
