"""Token ids of texts that come again: kept within a number of bytes, whatever is asked."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from vstream_ros.memory.clip import Tubelet
from vstream_ros.models.base import Segment
from vstream_ros.models.qwen.token_cache import LARGEST_SHARE, MAX_BYTES, TokenCache
from vstream_ros.models.qwen.video_model import QwenVideoModel


class Bytes:
    """A tokenizer of bytes that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, text: str) -> list[int]:
        self.calls += 1
        return list(text.encode())


@pytest.fixture
def tokenizer() -> Bytes:
    return Bytes()


def kept_bytes(cache: TokenCache) -> int:
    return sum(sys.getsizeof(text) + sys.getsizeof(ids) for text, ids in cache._kept.items())


def test_a_text_that_comes_again_is_tokenized_once(tokenizer: Bytes) -> None:
    cache = TokenCache(tokenizer)
    for _ in range(3):
        ids = cache.ids("<1.0 seconds>")
        assert ids.dtype == np.int64
        assert ids.tolist() == list(b"<1.0 seconds>")
    assert tokenizer.calls == 1
    assert cache.ids("").tolist() == []


def test_bytes_are_bounded_and_the_least_recently_used_goes(tokenizer: Bytes) -> None:
    one = sys.getsizeof("label 000") + sys.getsizeof(np.zeros(9, dtype=np.int64))
    cache = TokenCache(tokenizer, max_bytes=100 * one)
    for k in range(250):
        cache.ids(f"label {k:03d}")
        cache.ids("label 000")
        assert cache.nbytes == kept_bytes(cache) <= 100 * one
    assert len(cache) == 100
    calls = tokenizer.calls
    cache.ids("label 249")
    cache.ids("label 000")
    assert tokenizer.calls == calls
    cache.ids("label 001")
    assert tokenizer.calls == calls + 1


def test_a_large_text_is_not_kept_and_pushes_nothing_out(tokenizer: Bytes) -> None:
    cache = TokenCache(tokenizer)
    cache.ids("label")
    for k in range(40):
        large = str(k) * (MAX_BYTES // LARGEST_SHARE)
        assert len(cache.ids(large)) == len(large)
    assert len(cache) == 1
    assert cache.nbytes == kept_bytes(cache)


def test_a_model_keeps_no_long_question(any_model: QwenVideoModel, tubelets: tuple[Tubelet, ...]) -> None:
    segments = [Segment(tubelets, 1.0, 0)]
    any_model.build_prompt(segments, "why?", true_time=True)
    cache = any_model.prompts._token_cache
    assert len(cache) > 0
    kept, nbytes = len(cache), cache.nbytes
    for k in range(3):
        any_model.build_prompt(segments, f"{k} " + "why " * (MAX_BYTES // LARGEST_SHARE // 4), true_time=True)
        assert (len(cache), cache.nbytes) == (kept, nbytes)
