"""The vision encoder's first layer as a matrix product: what the convolution gives, and only in our own calls."""

from __future__ import annotations

import pytest
import torch

from vstream_ros.memory.clip import Tubelet
from vstream_ros.models.base import GenerationOptions, Segment
from vstream_ros.models.kernels.patch_embedding import linear_patch_embedding
from vstream_ros.models.qwen.video_model import QwenVideoModel


@pytest.mark.parametrize("bias", [False, True])
def test_it_is_what_the_convolution_gives(bias: bool) -> None:
    torch.manual_seed(0)
    projection = torch.nn.Conv3d(3, 16, (2, 14, 14), stride=(2, 14, 14), bias=bias)
    patches = torch.randn(40, 3, 2, 14, 14)
    with torch.no_grad():
        expected = projection(patches)
        with linear_patch_embedding(projection):
            product = projection(patches)
            wrong = projection(patches.flip(2))  # the frames swapped
        torch.testing.assert_close(product, expected, rtol=1e-4, atol=1e-5)
        assert (wrong - expected).abs().max() > 0.1
        assert torch.equal(projection(patches), expected)  # as before


@pytest.mark.parametrize(
    "projection",
    [
        torch.nn.Conv3d(3, 4, (2, 4, 4), stride=(1, 2, 2)),  # patches that overlap
        torch.nn.Linear(96, 4),
    ],
)
def test_another_layer_is_left_alone(projection: torch.nn.Module) -> None:
    with linear_patch_embedding(projection):
        assert "forward" not in vars(projection)


def test_somebodys_hook_is_left_alone() -> None:
    projection = torch.nn.Conv3d(3, 4, (2, 4, 4), stride=(2, 4, 4))
    hooked = projection.forward
    projection.forward = hooked  # type: ignore[method-assign]  # as accelerate does
    with linear_patch_embedding(projection):
        assert projection.forward is hooked
    assert projection.forward is hooked


def test_only_our_own_calls_use_it(
    any_model: QwenVideoModel, tubelets: tuple[Tubelet, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Native inference convolves, also after a call of ours that failed."""
    model = any_model
    calls = []
    forward = torch.nn.Conv3d.forward

    def counted(self: torch.nn.Conv3d, patches: torch.Tensor) -> torch.Tensor:
        calls.append(patches.shape[0])
        return forward(self, patches)

    monkeypatch.setattr(torch.nn.Conv3d, "forward", counted)
    model.encode(tubelets)
    assert calls == []
    with monkeypatch.context() as patch:
        patch.setattr(model.model.model.visual.blocks[0], "forward", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.encode(tubelets)
    model.native_generate([Segment(tubelets, 1.0, 0)], "what?", GenerationOptions(1), true_time=True)
    assert len(calls) == 1
