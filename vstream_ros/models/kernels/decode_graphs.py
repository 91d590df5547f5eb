"""Passes over a few tokens as captured CUDA graphs, on keys and values at fixed addresses.

A pass over one token launches hundreds of kernels, each of which takes the host longer than the device: an H100 read
its weights in 2 ms and took 48 for a token. A captured graph is one launch. It needs everything at fixed addresses: so
the clip's keys and values are copied into an arena, once for each batch of questions, and what the questions add stays
there. Without CUDA the same passes run uncaptured, which is how they are tested.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.masking_utils import sdpa_mask

from vstream_ros.models.base import Rows, TubeletFeatures
from vstream_ros.models.kernels.attention import STOCK
from vstream_ros.models.tail import CacheTail

logger = logging.getLogger(__name__)

FEW_ROWS = "few_rows"
ROWS = (1, 8, 16, 32, 64)
"""Of a pass; fewer are filled up. Each has a graph of its own."""
BLOCK = 4096
"""Tokens: the arena takes a multiple of it."""
SPLITS = 16
"""Parts of the tokens that are summed over side by side: a group's few rows alone would leave the device idle."""


def few_rows_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers for a few rows over many tokens: float32 inside, whatever the inputs are.

    Args:
        module: the attention layer.
        query: (1, heads, rows, head size).
        key: (1, key heads, tokens, head size), tokens a multiple of ``SPLITS``.
        value: as ``key``.
        attention_mask: (1, 1, rows, tokens) float32, added to the scores.
        scaling: of the scores.
        kwargs: ignored.

    Returns:
        (1, rows, heads, head size) in the query's dtype, and None for the weights.
    """
    heads, rows, size = query.shape[1:]
    key_heads, tokens = key.shape[1:3]
    groups = heads // key_heads
    folded = query[0].unflatten(0, (key_heads, groups)).flatten(1, 2).float()
    scores = folded @ key[0].float().transpose(1, 2) * (size**-0.5 if scaling is None else scaling)
    scores = scores.unflatten(1, (groups, rows)) + attention_mask[0]
    weights = scores.softmax(-1).flatten(1, 2)
    parts = weights.unflatten(-1, (SPLITS, tokens // SPLITS)).transpose(1, 2)
    mixed = (parts @ value[0].float().unflatten(1, (SPLITS, tokens // SPLITS))).sum(1)
    mixed = mixed.unflatten(1, (groups, rows)).flatten(0, 1)
    return mixed.transpose(0, 1)[None].to(query.dtype), None


AttentionInterface.register(FEW_ROWS, few_rows_attention)
AttentionMaskInterface.register(FEW_ROWS, sdpa_mask)


class _ArenaLayer(CacheLayerMixin):
    """Keys and values of a layer at a fixed address; new ones are written to ``places``."""

    def __init__(self, like: torch.Tensor, capacity: int, places: torch.Tensor) -> None:
        super().__init__()
        shape = (*like.shape[:-2], capacity, like.shape[-1])
        # Zeros: what is masked is multiplied by a weight of 0, and 0 times a stray nan would be one.
        self.keys, self.values = (torch.zeros(shape, dtype=like.dtype, device=like.device) for _ in range(2))
        self.is_initialized = True
        self._places = places

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None: ...

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        places = self._places[: key_states.shape[-2]]
        self.keys.index_copy_(-2, places, key_states)
        self.values.index_copy_(-2, places, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.keys.shape[-2], 0

    def get_seq_length(self) -> int:
        return int(self.keys.shape[-2])

    def get_max_length(self) -> int:
        return int(self.keys.shape[-2])


@dataclass
class _Inputs:
    """What a captured pass reads, at fixed addresses; a pass over fewer rows reads the first ones."""

    token_ids: torch.Tensor
    """(1, rows) int64"""
    position_ids: torch.Tensor
    """(4, 1, rows) int64"""
    places: torch.Tensor
    """(rows,) int64: where in the arena their keys and values go"""
    hidden: torch.Tensor
    """(rows, capacity) bool: which tokens a row does not see"""


class DecodeGraphs:
    """The arena of one model, and the graphs on it. One batch of questions has it at a time."""

    def __init__(self, model: Any, device: torch.device) -> None:
        """``model``: a loaded ``…ForConditionalGeneration`` whose language model is on ``device``."""
        self._model = model
        self._text_config = model.config.get_text_config()
        self._device = device
        self._capacity = 0
        self._cache: Cache | None = None
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        """By rows: the graph, and the (rows, vocabulary) logits that it writes."""
        self.owner: object | None = None
        """Who has the arena."""
        self.broken = ""
        """Why no graph can be captured here."""

    @property
    def nbytes(self) -> int:
        """Bytes of the arena."""
        layers = () if self._cache is None else self._cache.layers
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)

    @property
    def captured(self) -> tuple[int, ...]:
        """The numbers of rows of the passes that are captured."""
        return tuple(self._graphs)

    def take(self, owner: object, cache: Cache, needed: int) -> bool:
        """Copy ``cache`` into the arena for ``owner``, with room for ``needed`` tokens; False where that can't be."""
        if self.owner is not None or not self._has_room(cache, needed):
            return False
        self._copy(cache)
        self.owner = owner
        return True

    def prepare(self, cache: Cache, needed: int) -> None:
        """Have an arena with room for ``needed`` tokens, and every graph on it; ``cache``: like whose layers it is."""
        if self._has_room(cache, needed) and self._device.type == "cuda":
            try:
                with torch.inference_mode():
                    for count in ROWS:
                        self._capture(count)
            except RuntimeError as error:  # out of memory is one, too
                self._give_up(error)

    def _has_room(self, cache: Cache, needed: int) -> bool:
        room = needed + ROWS[-1]  # rows that fill up a pass write behind all others
        if self.broken or room <= self._capacity:
            return not self.broken
        try:
            self._make(cache, -(-room // BLOCK) * BLOCK)
        except torch.OutOfMemoryError as error:
            self._give_up(error)
        return not self.broken

    def _give_up(self, error: RuntimeError) -> None:
        self.release()
        self.broken = str(error).partition("\n")[0]
        logger.warning("answers go on without captured graphs: %s", self.broken)

    @torch.inference_mode()
    def _copy(self, cache: Cache) -> None:
        assert self._cache is not None
        for mine, theirs in zip(self._cache.layers, cache.layers, strict=True):
            held = theirs.keys.shape[-2]
            mine.keys[..., :held, :].copy_(theirs.keys)
            mine.values[..., :held, :].copy_(theirs.values)

    def release(self) -> None:
        """Free the arena and the graphs."""
        self._graphs.clear()
        self._cache, self._capacity, self.owner = None, 0, None

    def grow(self, end: int) -> None:
        """Have room for tokens up to ``end``, whoever has the arena."""
        if end + ROWS[-1] > self._capacity:
            assert self._cache is not None
            old = self._cache
            self._make(old, self._capacity + BLOCK)
            self._copy(old)

    @torch.inference_mode()
    def move(self, start: int, kept: np.ndarray) -> None:
        """Of the tokens from ``start`` on, put those at ``start + kept`` right behind it."""
        assert self._cache is not None
        places = start + torch.from_numpy(kept).to(self._device)
        for layer in self._cache.layers:
            for held in (layer.keys, layer.values):
                held[..., start : start + len(kept), :] = held[..., places, :]  # gathered before it is written

    @torch.inference_mode()
    def forward(self, rows: Rows, visible: np.ndarray, start: int) -> torch.Tensor:
        """(rows, vocabulary) float32 logits, valid until the next pass; the rows stand in the arena from ``start`` on.

        ``visible``: as in ``Rows``; its first column is the arena's token ``start + rows - columns``.
        """
        count = len(rows)
        padded = next(size for size in ROWS if size >= count)
        hidden = np.ones((padded, self._capacity), dtype=bool)
        hidden[count:, 0] = False  # a row must see something
        columns = visible.shape[1]
        hidden[:count, : start + count - columns] = False
        hidden[:count, start + count - columns : start + count] = ~visible
        places = np.arange(self._capacity - padded, self._capacity)
        places[:count] = np.arange(start, start + count)
        inputs = self._inputs
        inputs.token_ids[:, :count].copy_(torch.from_numpy(rows.input_ids[None]), non_blocking=True)
        inputs.position_ids[..., :count].copy_(torch.from_numpy(rows.position_ids[:, None]), non_blocking=True)
        inputs.places[:padded].copy_(torch.from_numpy(places), non_blocking=True)
        inputs.hidden[:padded].copy_(torch.from_numpy(hidden), non_blocking=True)
        if self._device.type != "cuda":
            return self._pass(padded)[:count]
        if padded not in self._graphs:
            self._capture(padded)
        graph, logits = self._graphs[padded]
        graph.replay()
        return logits[:count]

    def _make(self, cache: Cache, capacity: int) -> None:
        """A new arena; graphs of an old one are gone."""
        owner = self.owner
        self.release()
        self.owner = owner
        most, device = ROWS[-1], self._device

        def zeros(*shape: int, dtype: torch.dtype = torch.long) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        with torch.inference_mode(False):
            self._inputs = _Inputs(
                zeros(1, most), zeros(4, 1, most), zeros(most), zeros(most, capacity, dtype=torch.bool)
            )
            self._cache = Cache(layers=[_ArenaLayer(x.keys, capacity, self._inputs.places) for x in cache.layers])
        self._capacity = capacity

    def _pass(self, count: int) -> torch.Tensor:
        """(count, vocabulary) float32 logits of the first ``count`` rows of the inputs."""
        inputs, model = self._inputs, self._model
        mask = torch.zeros(inputs.hidden[:count].shape, device=self._device)
        mask.masked_fill_(inputs.hidden[:count], torch.finfo(torch.float32).min)
        self._text_config._attn_implementation = FEW_ROWS
        try:
            states = model.model.language_model(
                inputs_embeds=model.get_input_embeddings()(inputs.token_ids[:, :count]),
                position_ids=inputs.position_ids[..., :count],
                attention_mask=mask[None, None],
                past_key_values=self._cache,
                use_cache=True,
            ).last_hidden_state
        finally:
            self._text_config._attn_implementation = STOCK
        return model.lm_head(states)[0].float()

    def _capture(self, count: int) -> None:
        """Capture the pass over ``count`` rows. The inputs are set: warming up writes what the pass itself writes."""
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            self._pass(count)  # libraries allocate their workspaces
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = next((g.pool() for g, _ in self._graphs.values()), None)
        # Other threads ask the device about its memory meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            logits = self._pass(count)
        self._graphs[count] = (graph, logits)


class GraphTail(CacheTail):
    """In the arena as soon as the clip is whole and the arena free; until then, or else, in the clip's own cache."""

    def __init__(self, model: Any, cache: Any, graphs: DecodeGraphs, needed: int) -> None:
        """``needed``: tokens of clip, question and answer, about; ``model``: a ``VideoModel``."""
        super().__init__(model, cache)
        self._graphs = graphs
        self._needed = needed
        self._start = -1
        """Tokens of the clip, once the arena has them."""

    def forward(
        self, rows: Rows, clip_rows: int, wanted: np.ndarray, features: Sequence[TubeletFeatures]
    ) -> torch.Tensor:
        if self._start < 0 and not clip_rows and len(rows) <= ROWS[-1]:
            held = self._cache.get_seq_length()
            if self._graphs.take(self, self._cache, max(self._needed, held + len(rows))):
                self._start, self.max_rows = held - self.length, ROWS[-1]
        if self._start < 0:
            return super().forward(rows, clip_rows, wanted, features)
        end = self._start + self.length
        self._graphs.grow(end + len(rows))
        visible = rows.visible
        if visible is None:
            visible = np.tri(len(rows), self.length + len(rows), self.length, dtype=bool)
        logits = self._graphs.forward(rows, visible, end)
        self.length += len(rows)
        return logits[torch.from_numpy(wanted).to(logits.device)]

    def keep(self, kept: np.ndarray) -> None:
        if self._start < 0:
            super().keep(kept)
            return
        if len(kept) and kept[-1] != len(kept) - 1:
            self._graphs.move(self._start, kept)
        self.length = len(kept)

    def close(self) -> None:
        super().close()
        if self._graphs.owner is self:
            self._graphs.owner = None
