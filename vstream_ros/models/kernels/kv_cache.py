"""The KV cache's layers: room to grow in place, and prefixes that several caches share."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

SPARE_TOKENS = 256
"""Room for a question and the beginning of its answer, at least."""


class GrowingLayer(DynamicLayer):
    """Keys and values in storage with room behind them: appending writes the new tokens and copies nothing else.

    transformers' own layer copies the whole cache for every chunk and for every token of an answer. ``keys`` and
    ``values``, (1, heads, tokens, head size), are views of the storage; cropping, as inherited, makes shorter views.
    Batches of one, without gradients.
    """

    def __init__(self) -> None:
        super().__init__()
        self._key_storage = self._value_storage = torch.empty(0)
        self._capacity = 0
        """Tokens that the storage takes; 0 where it is another layer's, so that any update moves away."""
        self._shared = 0
        """Tokens that another cache reads from the same storage: never overwritten."""
        self.reserved = 0
        """Tokens that are expected in all: the next storage takes as many, so that it is the last one."""

    def fork(self, length: int) -> GrowingLayer:
        """Another layer of the first ``length`` tokens on the same storage; whoever changes them moves away first."""
        forked = GrowingLayer()
        if length and self.is_initialized:
            self._shared = max(self._shared, length)
            forked.dtype, forked.device = self.dtype, self.device
            forked.keys, forked.values = self.keys[..., :length, :], self.values[..., :length, :]
            forked.is_initialized = True
        return forked

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        if end > self._capacity or start < self._shared:
            self._move(max(end + max(end // 8, SPARE_TOKENS), self.reserved))
        self._key_storage[..., start:end, :] = key_states
        self._value_storage[..., start:end, :] = value_states
        self.keys, self.values = self._key_storage[..., :end, :], self._value_storage[..., :end, :]
        return self.keys, self.values

    def keep(self, start: int, kept: torch.Tensor) -> None:
        """Of the tokens from ``start`` on keep those at ``start + kept``, (count,) int64 and rising, and no others."""
        keys, values = (held[..., start + kept, :] for held in (self.keys, self.values))
        self.crop(start - self.keys.shape[-2])
        if len(kept):
            self.update(keys, values)

    def reset(self) -> None:
        super().reset()
        self._key_storage = self._value_storage = torch.empty(0)
        self._capacity = self._shared = 0

    def _move(self, capacity: int) -> None:
        """Copy what is held into storage of its own that takes ``capacity`` tokens."""
        assert self.keys is not None
        assert self.values is not None
        length = self.keys.shape[-2]
        # One after the other, so that no more than one of the old storages is there beside the new ones.
        self._key_storage = _roomier(self.keys, capacity)
        self.keys = self._key_storage[..., :length, :]
        self._value_storage = _roomier(self.values, capacity)
        self.values = self._value_storage[..., :length, :]
        self._capacity, self._shared = capacity, 0


def _roomier(held: torch.Tensor, capacity: int) -> torch.Tensor:
    """A copy of ``held`` at the beginning of storage that takes ``capacity`` tokens."""
    with torch.inference_mode(False):  # an inference tensor could be written to in inference mode only
        storage = torch.empty((*held.shape[:-2], capacity, held.shape[-1]), dtype=held.dtype, device=held.device)
    storage[..., : held.shape[-2], :] = held
    return storage
