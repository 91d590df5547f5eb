"""What tests of the engine share: frames for it, a hold on its thread, and the error that a question ended with."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from support.frames import random_frame
from vstream_ros import errors
from vstream_ros.engine import Answer, DelayedBatchInferenceEngine
from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.memory import MemoryConfig
from vstream_ros.synthetic.random_model import random_model

SLIDING_MEMORY = MemoryConfig(star_memory_size=8, stream_window_size=12, stream_slide=4, scene_threshold=1.0)
"""It slides with every fourth tubelet, once it is full."""


def feed(
    engine: DelayedBatchInferenceEngine,
    count: int,
    start: int = 0,
    camera: str | None = None,
    size: tuple[int, int] = (60, 80),
) -> None:
    """``count`` random frames, (height, width) in size, from frame ``start`` on, half a second apart."""
    rng = np.random.default_rng(start)
    for k in range(start, start + count):
        engine.add_frame(random_frame(rng, *size), k / 2, camera=camera)


def feed_tubelets(engine: DelayedBatchInferenceEngine, count: int, start: int = 0) -> None:
    """``count`` random tubelets from tubelet ``start`` on, a second apart."""
    feed(engine, 2 * count, 2 * start, size=(84, 84))


def sliding_engine(**options: Any) -> DelayedBatchInferenceEngine:
    """An engine of its own model, whose memory is ``SLIDING_MEMORY``. ``options``: more of its parameters."""
    model, processor = random_model("qwen2_5_vl")
    return DelayedBatchInferenceEngine(
        model, processor, "cpu", memory=SLIDING_MEMORY, max_pixels=84 * 84, max_new_tokens=4, **options
    )


def answerer_of(engine: DelayedBatchInferenceEngine) -> ClipAnswerer:
    """What computes its answers, once a model is loaded."""
    answerer = engine._host.answerer
    assert answerer is not None
    return answerer


def fails_with(future: Future[Answer], error: type[errors.VStreamError]) -> errors.VStreamError:
    """The error of exactly this type that the question ends with."""
    with pytest.raises(error) as caught:
        future.result(timeout=60)
    assert type(caught.value) is error
    return caught.value


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Until what other threads do has made it true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.005)


def hold_thread(engine: DelayedBatchInferenceEngine) -> threading.Event:
    """Keeps the model's thread busy until the event is set; returns when it is."""
    begun, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert go_on.wait(60)

    engine._thread.run(wait)
    assert begun.wait(60)
    return go_on


class Gate:
    """Holds the model's thread at the first token of an answer until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()

    def __call__(self, text: str, tokens: int) -> None:
        self.reached.set()
        assert self._open.wait(60)

    def open(self) -> None:
        self._open.set()
