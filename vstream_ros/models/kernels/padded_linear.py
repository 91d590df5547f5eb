"""Linear layers on a few rows, padded to a number of rows that the CPU's matrix kernels are made for.

A question's own tokens are few rows against large weights. MKL takes for 7 to 15 rows of float32 up to 2.6 times as
long as for 16 (14 rows by 2048 x 11008; 1.5 times as long by 512 x 2048).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import nn

from vstream_ros.models.kernels.forwards import replaced_forwards

FEWEST, TILE = 7, 16
"""Rows: from the first on it pays to fill up to the second."""
LARGE = 2**19
"""Weights of a layer; in smaller ones the padding takes as long as it saves."""


def paddable(module: nn.Module) -> list[nn.Linear]:
    """The layers in ``module`` that padding makes quicker: large, plain ``nn.Linear`` in float32 on a CPU."""
    return [
        layer
        for layer in module.modules()
        if type(layer) is nn.Linear
        and layer.weight.dtype == torch.float32
        and layer.weight.device.type == "cpu"
        and layer.weight.numel() >= LARGE
    ]


def padded_linears(layers: Sequence[nn.Linear]) -> AbstractContextManager[None]:
    """Within it ``layers``, as ``paddable`` gives them, fill up a few rows with zeros and drop what comes of these.

    As ``replaced_forwards``.
    """
    return replaced_forwards((layer, functools.partial(_padded, layer)) for layer in layers)


def _padded(layer: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    """(1, rows, in) to (1, rows, out), or any other shape that a linear layer takes."""
    rows = states.shape[-2] if states.dim() == 3 and states.shape[0] == 1 else 0
    if not FEWEST <= rows < TILE:
        return nn.functional.linear(states, layer.weight, layer.bias)
    filled = nn.functional.pad(states, (0, 0, 0, TILE - rows))
    return nn.functional.linear(filled, layer.weight, layer.bias)[:, :rows]
