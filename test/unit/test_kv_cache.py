"""The growing KV cache against plain concatenation, over random growth, crops and forks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vstream_ros.models.kernels.kv_cache import SPARE_TOKENS, GrowingLayer

HEADS, WIDTH = 2, 4


def tokens(count: int) -> torch.Tensor:
    return torch.randn(1, HEADS, count, WIDTH)


def held(layer: GrowingLayer) -> tuple[torch.Tensor, torch.Tensor]:
    if not layer.is_initialized:
        return tokens(0), tokens(0)
    assert layer.keys is not None
    assert layer.values is not None
    return layer.keys, layer.values


@pytest.mark.parametrize("seed", range(20))
def test_it_holds_what_concatenation_would(seed):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    layers = [GrowingLayer()]
    expected = [(tokens(0), tokens(0))]
    for _ in range(120):
        k = int(rng.integers(len(layers)))
        keys, values = expected[k]
        length = keys.shape[-2]
        action = rng.random()
        if action < 0.5:
            new = tokens(int(rng.integers(1, 2 * SPARE_TOKENS))), tokens(0)
            new = new[0], torch.randn_like(new[0])
            got = layers[k].update(*new)
            expected[k] = torch.cat([keys, new[0]], -2), torch.cat([values, new[1]], -2)
            assert all(torch.equal(a, b) for a, b in zip(got, expected[k], strict=True))
        elif action < 0.75:
            excess = int(rng.integers(0, length + 1))
            layers[k].crop(-excess)
            expected[k] = keys[..., : length - excess, :], values[..., : length - excess, :]
        elif action < 0.9 and len(layers) < 6:
            kept = int(rng.integers(0, length + 1))
            layers.append(layers[k].fork(kept))
            expected.append((keys[..., :kept, :], values[..., :kept, :]))
        elif action < 0.93:
            layers[k].reset()
            expected[k] = tokens(0), tokens(0)
        for layer, pair in zip(layers, expected, strict=True):
            assert layer.get_seq_length() == pair[0].shape[-2]
            assert all(torch.equal(a, b) for a, b in zip(held(layer), pair, strict=True))


def test_a_question_after_a_rollback_copies_nothing():
    layer = GrowingLayer()
    layer.update(tokens(1000), tokens(1000))
    address = layer.keys.data_ptr()
    for _ in range(3):
        layer.update(tokens(20), tokens(20))
        layer.update(tokens(1), tokens(1))
        layer.crop(-21)
    assert layer.keys.data_ptr() == address


def test_what_is_reserved_is_allocated_once():
    layer = GrowingLayer()
    layer.reserved = 5000
    layer.update(tokens(10), tokens(10))
    address = layer.keys.data_ptr()
    for _ in range(9):
        layer.update(tokens(500), tokens(500))
    assert layer.keys.data_ptr() == address


def test_a_fork_shares_storage_until_it_grows():
    layer = GrowingLayer()
    layer.update(tokens(10), tokens(10))
    fork = layer.fork(6)
    assert fork.keys.data_ptr() == layer.keys.data_ptr()
    fork.update(tokens(1), tokens(1))
    assert fork.keys.data_ptr() != layer.keys.data_ptr()
