"""What tests of the engine share: frames for it, a hold on its thread, and the error that a question ended with."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import pytest

from support.frames import random_frame
from vstream_ros import errors
from vstream_ros.engine import Answer, DelayedBatchInferenceEngine
from vstream_ros.engine.answerer import ClipAnswerer


def feed(engine: DelayedBatchInferenceEngine, count: int, start: int = 0, camera: str | None = None) -> None:
    """``count`` random frames from frame ``start`` on, half a second apart."""
    rng = np.random.default_rng(start)
    for k in range(start, start + count):
        engine.add_frame(random_frame(rng, 60, 80), k / 2, camera=camera)


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
