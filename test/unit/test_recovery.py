"""Out of memory: it is known whatever says it, and after it nothing holds what the failed step had computed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from support.engines import feed
from vstream_ros import errors
from vstream_ros.engine import DelayedBatchInferenceEngine, Question
from vstream_ros.engine.device_memory import is_out_of_memory
from vstream_ros.engine.recovery import forget_frames, recover_from_out_of_memory
from vstream_ros.synthetic.random_model import random_model

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other call"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to …"),
    MemoryError(),
]


@pytest.fixture(params=["off", "full"])
def engine(request: pytest.FixtureRequest) -> Iterator[DelayedBatchInferenceEngine]:
    with DelayedBatchInferenceEngine(
        *random_model(), "cpu", max_pixels=84 * 84, max_new_tokens=2, scene_threshold=1.0,
        background_encoding=request.param,
    ) as made:  # fmt: skip
        yield made


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_out_of_memory_is_known_whatever_says_it(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("shapes don't match"), ValueError("out of memory"), KeyError("memory")])
def test_other_errors_are_not_out_of_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)


class FailingForward:
    """Fails in the last layer; knows by weak references which of that pass's tensors are still there."""

    def __init__(
        self, engine: DelayedBatchInferenceEngine, error: type[Exception], patch: pytest.MonkeyPatch
    ) -> None:
        self._error = error
        self._patch = patch
        self._activations: list[weakref.ref[torch.Tensor]] = []
        self.alive_at_recovery: list[int] = []
        answerer = engine._host.answerer
        assert answerer is not None
        layer = answerer.model.model.model.language_model.layers[-1]  # type: ignore[attr-defined]
        self._hook = layer.register_forward_pre_hook(self._fail, with_kwargs=True)

    def _fail(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        fresh = hidden * 2.0
        self._activations += [weakref.ref(hidden), weakref.ref(fresh)]
        self._patch.setattr(torch.cuda, "is_available", lambda: True)
        self._patch.setattr(torch.cuda, "empty_cache", lambda: self.alive_at_recovery.append(self.alive))
        raise self._error("CUDA out of memory")

    @property
    def alive(self) -> int:
        return sum(ref() is not None for ref in self._activations)

    @property
    def passes(self) -> int:
        return len(self._activations) // 2

    def end(self) -> None:
        self._hook.remove()


@pytest.mark.parametrize("engine", ["off"], indirect=True)
@pytest.mark.parametrize(("error", "code"), [(torch.OutOfMemoryError, "OUT_OF_MEMORY"), (KeyError, "INTERNAL")])
def test_a_failed_question_holds_nothing_of_its_forward_pass(
    engine: DelayedBatchInferenceEngine, monkeypatch: pytest.MonkeyPatch, error: type[Exception], code: str
) -> None:
    feed(engine, 4, size=(84, 84))
    with monkeypatch.context() as patch:
        forward = FailingForward(engine, error, patch)
        pending = engine.submit(Question("what?"))
        failure = pending.future.exception(timeout=60)
        assert isinstance(failure, errors.VStreamError)
        assert failure.code == code
        assert "CUDA out of memory" in str(failure)  # the text is kept
        assert forward.passes == 1
        gc.collect()
        assert forward.alive == 0  # though the future and its error are still held
        assert forward.alive_at_recovery == ([0] if code == "OUT_OF_MEMORY" else [])
        forward.end()
    assert engine.ask("what?")[1]["frames"] == 4


@pytest.mark.parametrize("engine", ["full"], indirect=True)
def test_failed_work_ahead_holds_nothing_of_its_forward_pass(
    engine: DelayedBatchInferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine._thread.close("the test takes the steps itself")
    feed(engine, 4, size=(84, 84))
    with monkeypatch.context() as patch:
        forward = FailingForward(engine, torch.OutOfMemoryError, patch)
        engine._work_ahead.step()
        assert forward.passes == 1
        assert forward.alive_at_recovery == [0]
        forward.end()


@pytest.mark.parametrize("engine", ["off"], indirect=True)
def test_recovery_keeps_what_is_intact_where_it_may(engine: DelayedBatchInferenceEngine) -> None:
    feed(engine, 6, size=(84, 84))
    engine.ask("what?")
    engine.ask("then?", start_ns=10**9)
    answerer = engine._host.answerer
    assert answerer is not None
    current, fork = answerer.timelines
    fork.cache.layers[0].crop(-1)  # as after a step that failed between two layers
    held = len(current)
    recover_from_out_of_memory(answerer, keep_intact=True)
    assert (len(current), len(fork)) == (held, 0)
    answerer.timelines.check_integrity()
    assert len(answerer.vision) > 0
    assert engine.ask("what?")[1]["cache_hit"] is True
    recover_from_out_of_memory(answerer, keep_intact=False)
    assert len(current) == len(answerer.vision) == 0


def test_forgetting_frames_reaches_the_causes_and_keeps_the_text() -> None:
    class Big:
        pass

    held: list[weakref.ref[Big]] = []

    def inner() -> None:
        big = Big()
        held.append(weakref.ref(big))
        raise KeyError("inner")

    def outer() -> None:
        big = Big()
        held.append(weakref.ref(big))
        try:
            inner()
        except KeyError as error:
            raise ValueError("outer") from error

    with pytest.raises(ValueError, match="outer") as caught:
        outer()
    assert [ref() is None for ref in held] == [False, False]
    assert "in inner" in forget_frames(caught.value)
    assert [ref() is None for ref in held] == [True, True]
    assert isinstance(caught.value.__cause__, KeyError)
