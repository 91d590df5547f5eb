"""The KV cache, and what it holds."""

from __future__ import annotations

import time
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from vstream_ros.engine.decoder import ClipRows
from vstream_ros.engine.vision_cache import VisionCache
from vstream_ros.models.base import Prompt, TubeletFeatures, VideoModel


@dataclass
class SyncReport:
    """What a timeline found and did to hold a prompt."""

    tokens_reused: int
    tokens_computed: int = 0
    tubelets_encoded: int = 0
    tubelets_prefilled: int = 0
    encoding_s: float = 0.0
    """Seconds in the vision encoder."""


@dataclass
class Plan:
    """How a timeline comes to hold a prompt up to its last video token."""

    prompt: Prompt
    report: SyncReport
    """Of what is done already."""
    chunks: list[list[int]]
    """Indices of the tubelets that are missing yet, by chunk."""


class Timeline:
    """One KV cache with the tokens, positions and tubelets that it holds.

    A cached key or value depends on the tokens before it, their positions and their pixels and on nothing else. So
    the longest common prefix of (token id, positions, tubelet id) of what is cached and what is wanted is exactly
    what may be kept. Owned by the model's thread.
    """

    def __init__(self, model: VideoModel, vision: VisionCache, chunk_tubelets: int) -> None:
        self._model = model
        self._vision = vision
        self._chunk_tubelets = chunk_tubelets
        self.reset()

    def reset(self) -> None:
        """Forget everything and free the cache."""
        self.cache: Any = self._model.new_cache()
        self._tokens = np.empty((6, 0), dtype=np.int64)
        """(6, length): token id, four position rows, tubelet id"""
        self._storages: dict[int, int] | None = None
        """As last walked; None since the model wrote into the cache. A walk over 36 layers costs 0.1 ms."""
        self.tubelet_ids: tuple[int, ...] = ()

    def __len__(self) -> int:
        return int(self._tokens.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of storage: a cropped tensor is a view that keeps the whole of it."""
        return sum(self.storages().values())

    def storages(self) -> Mapping[int, int]:
        """Bytes by address of every tensor's storage; forks share some of them."""
        if self._storages is None:
            self._storages = dict(self._walk_storages())
        return self._storages

    def _walk_storages(self) -> Iterator[tuple[int, int]]:
        for layer in self.cache.layers:
            if layer.is_initialized:
                for tensor in (layer.keys, layer.values):
                    storage = tensor.untyped_storage()
                    yield storage.data_ptr(), storage.nbytes()

    def fork(self, length: int) -> Timeline:
        """Another timeline that holds the first ``length`` tokens of this one, on the same storage.

        Nothing is copied until the fork grows, and neither ever changes what the other holds. Where the model's caches
        don't roll back, the fork is empty.
        """
        length = length if self._model.cache_rolls_back else 0
        forked = Timeline(self._model, self._vision, self._chunk_tubelets)
        forked.cache = self._model.fork_cache(self.cache, length)
        forked._tokens = self._tokens[:, :length]
        forked._name_tubelets()
        return forked

    def common_prefix(self, prompt: Prompt) -> int:
        """Tokens that the cache shares with ``prompt``, cut back to whole tubelets."""
        wanted = _stack(prompt)
        length = min(len(self), prompt.prefix_length)
        differs = np.flatnonzero((self._tokens[:, :length] != wanted[:, :length]).any(axis=0))
        if differs.size:
            length = int(differs[0])
        for start, end in prompt.spans:
            if start < length < end:
                return start
        return length

    def sync(self, prompt: Prompt, *, max_tubelets: int | None = None) -> SyncReport:
        """Make the cache hold ``prompt`` up to its last video token: keep the common prefix, prefill the rest.

        With ``max_tubelets`` it goes no further than that in this call.
        """
        plan = self.begin(prompt, max_tubelets)
        while plan.chunks:
            self.prefill_next(plan)
        return plan.report

    def begin(self, prompt: Prompt, max_tubelets: int | None = None) -> Plan:
        """Crop the cache to what it shares with ``prompt``; the plan is what it lacks, its first ``max_tubelets``."""
        self.rollback(self.common_prefix(prompt))
        todo = [index for index, span in enumerate(prompt.spans) if span[0] >= len(self)][:max_tubelets]
        self._model.reserve(self.cache, len(prompt))
        return Plan(prompt, SyncReport(tokens_reused=len(self)), self._chunks(prompt, todo))

    def prefill_next(self, plan: Plan) -> None:
        """Prefill the plan's next chunk."""
        self._prefill(plan.prompt, plan.chunks[0], plan.report)
        del plan.chunks[0]

    @contextmanager
    def last_chunk(self, plan: Plan) -> Iterator[ClipRows]:
        """The rows of the plan's last chunk, to be computed within the context, and what was asked behind them with
        them: one pass over the model's weights less.

        Whatever is raised there, the cache keeps what all of its layers hold.
        """
        prompt, chunk = plan.prompt, plan.chunks[0]
        features = self._encode(prompt, chunk, plan.report)
        held, end = len(self), prompt.prefix_length
        try:
            yield ClipRows(prompt.input_ids[held:end], prompt.position_ids[:, held:end], features)
        finally:
            if all(layer.is_initialized and layer.get_seq_length() >= end for layer in self.cache.layers):
                self._record(prompt, end)
                plan.report.tubelets_prefilled += len(chunk)
                plan.report.tokens_computed += end - held
                plan.chunks.clear()

    def rollback(self, length: int) -> None:
        """Crop the cache to its first ``length`` tokens, layer by layer, whatever state a failed step left it in.

        Where the model's caches don't roll back (quantized layers ignore ``crop``), one that holds more is emptied.
        """
        self._storages = None  # what was computed behind the clip may have moved them
        if not self._model.cache_rolls_back:
            if any(layer.get_seq_length() > length for layer in self.cache.layers if layer.is_initialized):
                self.reset()
            return
        for layer in self.cache.layers:
            excess = layer.get_seq_length() - length if layer.is_initialized else 0
            if excess > 0:
                layer.crop(-excess)
        self._tokens = self._tokens[:, :length]
        self._name_tubelets()

    def keep_only(self, tubelet_ids: Container[int]) -> bool:
        """Crop the cache to what stands before the first tubelet that is not among ``tubelet_ids``.

        No prompt will have a tubelet again that memory forgot, nor use what was computed behind it. Returns whether any
        tubelet is left; a cache without one is freed.
        """
        forgotten = next((held for held in self.tubelet_ids if held not in tubelet_ids), None)
        if forgotten is not None:
            self.rollback(int(np.argmax(self._tokens[5] == forgotten)))
        if not self.tubelet_ids and self.nbytes:
            self.reset()
        return bool(self.tubelet_ids)

    @property
    def is_intact(self) -> bool:
        """Whether every layer holds as many tokens as the bookkeeping says."""
        return all((layer.get_seq_length() if layer.is_initialized else 0) == len(self) for layer in self.cache.layers)

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` where the bookkeeping and the cache disagree (tests call this)."""
        for layer in self.cache.layers:
            cached = layer.get_seq_length() if layer.is_initialized else 0
            assert cached == len(self), f"a layer holds {cached} tokens, the timeline {len(self)}"
        ids = self._tokens[5]
        starts = ids[np.flatnonzero(np.diff(ids, prepend=-2))]
        tubelets = starts[starts >= 0].tolist()
        assert len(set(tubelets)) == len(tubelets), "a tubelet's tokens are not contiguous"
        assert tuple(tubelets) == self.tubelet_ids
        assert self.storages() == dict(self._walk_storages()), "the cache moved unnoticed"

    def _encode(self, prompt: Prompt, group: Sequence[int], report: SyncReport) -> list[TubeletFeatures]:
        started = time.monotonic()
        features, encoded = self._vision.features([prompt.tubelets[index] for index in group])
        if encoded:
            report.tubelets_encoded += encoded
            report.encoding_s += time.monotonic() - started
        return features

    def _prefill(self, prompt: Prompt, group: Sequence[int], report: SyncReport) -> None:
        features = self._encode(prompt, group, report)
        held, end = len(self), prompt.spans[group[-1]][1]
        try:
            self._model.prefill(prompt, end, features, self.cache)
        except BaseException:
            self.rollback(held)  # layers may have grown unevenly
            raise
        self._record(prompt, end)
        report.tubelets_prefilled += len(group)
        report.tokens_computed += end - held

    def _record(self, prompt: Prompt, end: int) -> None:
        """Note that the cache holds the first ``end`` tokens of ``prompt``."""
        self._tokens = _stack(prompt)[:, :end]
        self._name_tubelets()

    def _name_tubelets(self) -> None:
        held = self._tokens[5]
        self.tubelet_ids = tuple(dict.fromkeys(held[held >= 0].tolist()))

    def _chunks(self, prompt: Prompt, indices: list[int]) -> list[list[int]]:
        """Tubelets to prefill together: at most ``chunk_tubelets``, all of one frame size."""
        groups: list[list[int]] = []
        for index in indices:
            same_size = groups and (prompt.tubelets[groups[-1][-1]].frames.shape == prompt.tubelets[index].frames.shape)
            if same_size and len(groups[-1]) < self._chunk_tubelets:
                groups[-1].append(index)
            else:
                groups.append([index])
        return groups


def _stack(prompt: Prompt) -> np.ndarray:
    return np.concatenate([prompt.input_ids[None], prompt.position_ids, prompt.tubelet_ids[None]])
