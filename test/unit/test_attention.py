"""Attention that leaves the cache where it is: transformers' own result, and only where the engine asks for it."""

from __future__ import annotations

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from vstream_ros.engine.clip_batch import answer_alone
from vstream_ros.engine.timeline import Timeline
from vstream_ros.engine.vision_cache import VisionCache
from vstream_ros.memory.clip import NANOSECONDS, Tubelet
from vstream_ros.models.base import GenerationOptions, Segment
from vstream_ros.models.kernels.attention import (
    GROUPED,
    STOCK,
    additive_mask,
    folded_sdpa,
    grouped_attention,
    grouped_sdpa,
)
from vstream_ros.models.qwen.video_model import QwenVideoModel

SIZE = 8


class Layer(torch.nn.Module):
    is_causal = True

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups


def masks(rows: int, tokens: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Of ``rows`` new tokens behind a cache: transformers' and ours."""
    arguments = {"batch_size": 1, "q_length": rows, "kv_length": tokens, "q_offset": tokens - rows}
    return sdpa_mask(**arguments), additive_mask(**arguments)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (1, 40), (14, 14), (14, 300), (55, 56), (64, 256)])
def test_it_is_what_repeated_heads_give(groups, rows, tokens):
    torch.manual_seed(rows)
    query = torch.randn(1, 4, rows, SIZE)
    key, value = torch.randn(2, 1, 4 // groups, tokens, SIZE)
    theirs, ours = masks(rows, tokens)
    expected, _ = sdpa_attention_forward(Layer(groups), query, key, value, theirs, scaling=0.4)
    got, weights = grouped_sdpa(Layer(groups), query, key, value, ours, scaling=0.4)
    assert weights is None
    torch.testing.assert_close(got, expected)
    if ours is None:
        return
    folded = folded_sdpa(query, key, value, ours, 0.4).transpose(1, 2)
    torch.testing.assert_close(folded, expected)
    if tokens > rows:
        # With another order of the heads, or with the mask one token off, it is something else.
        for wrong in (
            folded_sdpa(query.flip(1), key, value, ours, 0.4),
            folded_sdpa(query, key, value, ours.roll(1, -1), 0.4),
        ):
            assert (wrong.transpose(1, 2) - expected).abs().max() > 0.01


def test_only_our_own_calls_use_it(any_model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch):
    """What answers are compared with is transformers as it is, also after a call of ours that failed."""
    from transformers import AttentionInterface

    calls = []

    def counted(*args, **kwargs):
        calls.append(args[1].shape[2])
        return grouped_sdpa(*args, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, GROUPED, counted)
    model = any_model
    height, width = model.frame_spec.fit(56, 56)
    frames = torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8).numpy()
    tubelets = tuple(
        Tubelet(id=k, camera="", frames=frames, stamps_ns=(), time_ns=k * NANOSECONDS, importance=0.0) for k in range(3)
    )
    segments = [Segment(tubelets, 1.0, 0)]
    native = model.native_generate(segments, "what?", GenerationOptions(4), true_time=True)
    assert calls == []
    prompt = model.build_prompt(segments, "what?", true_time=True)
    timeline = Timeline(model, VisionCache(model, 1 << 30), 8)
    timeline.sync(prompt)
    assert answer_alone(model, timeline, prompt, GenerationOptions(4)).token_ids == native
    assert len(prompt) - prompt.prefix_length in calls
    count = len(calls)
    with pytest.raises(RuntimeError), grouped_attention(model.model.config.get_text_config()):
        raise RuntimeError
    assert model.model.config.get_text_config()._attn_implementation == STOCK
    assert model.native_generate(segments, "what?", GenerationOptions(4), true_time=True) == native
    assert len(calls) == count


def test_another_implementation_is_left_alone(any_model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch):
    config = any_model.model.config.get_text_config()
    monkeypatch.setattr(config, "_attn_implementation_internal", "eager")
    with grouped_attention(config):
        assert config._attn_implementation == "eager"
