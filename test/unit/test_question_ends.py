"""How a question ends that is not simply answered: too late, canceled, voided, refused, failed."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

from support.engines import Gate, fails_with, feed
from vstream_ros import errors
from vstream_ros.engine import DelayedBatchInferenceEngine, Question
from vstream_ros.models.qwen.video_model import QwenVideoModel


def test_a_timeout_keeps_the_text_so_far(engine: DelayedBatchInferenceEngine) -> None:
    feed(engine, 4)

    def slow(text: str, tokens: int) -> None:
        time.sleep(1.1)  # longer than it has, so that the first token is the last one on any machine

    pending = engine.submit(Question("talk", max_new_tokens=4000, timeout_s=1.0), on_text=slow)
    error = fails_with(pending.future, errors.QuestionTimeoutError)
    assert error.answer
    assert error.code == "TIMEOUT"
    assert engine.ask("and now?")[1]["cache_hit"] is True  # what was prefilled stays


def test_a_waiting_question_times_out_while_another_is_answered(engine: DelayedBatchInferenceEngine) -> None:
    feed(engine, 2)
    ended: list[str] = []

    gate = Gate()  # holds the long answer until the short one's time is over, however quick the machine
    long = engine.submit(Question("talk", max_new_tokens=200), on_text=gate)
    long.future.add_done_callback(lambda _: ended.append("long"))
    assert gate.reached.wait(60)
    short = engine.submit(Question("wait", timeout_s=0.05))
    short.future.add_done_callback(lambda _: ended.append("short"))
    time.sleep(0.1)
    gate.open()
    fails_with(short.future, errors.QuestionTimeoutError)
    long.future.result(timeout=60)
    assert ended == ["short", "long"]


def test_cancel_ends_a_running_and_a_waiting_question(engine: DelayedBatchInferenceEngine) -> None:
    feed(engine, 2)
    gate = Gate()
    running = engine.submit(Question("talk", max_new_tokens=4000), on_text=gate)
    waiting = engine.submit(Question("wait"))
    assert gate.reached.wait(60)
    running.cancel()
    waiting.cancel("not needed any more")
    gate.open()
    assert fails_with(running.future, errors.CanceledError).answer
    assert "not needed" in str(fails_with(waiting.future, errors.CanceledError))
    assert engine.status().queued_questions == 0


def test_clearing_voids_the_answer_in_flight(engine: DelayedBatchInferenceEngine) -> None:
    feed(engine, 4)
    gate = Gate()
    running = engine.submit(Question("talk", max_new_tokens=4000), on_text=gate)
    assert gate.reached.wait(60)
    epoch = engine.status().memory_epoch
    engine.clear("test")
    gate.open()
    assert "cleared" in str(fails_with(running.future, errors.CanceledError))
    status = engine.status()
    assert status.memory_epoch == epoch + 1
    assert status.clip_frames == 0
    assert "test" in status.announcements
    fails_with(engine.submit(Question("what?")).future, errors.NoFramesError)


def test_clearing_forgets_also_what_was_computed(engine: DelayedBatchInferenceEngine) -> None:
    for clear in (lambda: engine.clear("test"), lambda: engine.add_frame(np.zeros((80, 60, 3), np.uint8), 99.0)):
        feed(engine, 4)
        engine.ask("what?")
        assert engine.device_memory()[0].kv_cache > 0
        clear()
        deadline = time.monotonic() + 60
        while engine.device_memory()[0].kv_cache or engine.device_memory()[0].features:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert engine._desk._shared.clips == ()
        engine.clear("between")


def test_a_full_queue_answers_busy(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    with DelayedBatchInferenceEngine(model, processor, "cpu", max_queued_questions=3, max_pixels=84 * 84) as engine:
        feed(engine, 2)
        gate = Gate()
        first = engine.submit(Question("talk", max_new_tokens=2), on_text=gate)
        assert gate.reached.wait(60)
        more = [engine.submit(Question("more", max_new_tokens=2)) for _ in range(9)]
        busy = [p for p in more if p.future.done()]
        assert len(busy) == 7
        for pending in busy:
            fails_with(pending.future, errors.BusyError)
        gate.open()
        for pending in [first, *(p for p in more if p not in busy)]:
            assert pending.future.result(timeout=60).metrics.new_tokens


def test_the_status_tells_waiting_questions_from_the_running_one(engine: DelayedBatchInferenceEngine) -> None:
    feed(engine, 2)
    gate = Gate()
    first = engine.submit(Question("talk", max_new_tokens=2), on_text=gate)
    assert gate.reached.wait(60)
    assert (engine.status().queued_questions, engine.status().running_question) == (0, True)
    more = [engine.submit(Question("more", max_new_tokens=2)) for _ in range(2)]
    assert (engine.status().queued_questions, engine.status().running_question) == (2, True)
    gate.open()
    for pending in (first, *more):
        pending.future.result(timeout=60)
    assert (engine.status().queued_questions, engine.status().running_question) == (0, False)


def test_a_defect_is_an_error_of_one_question(
    engine: DelayedBatchInferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(engine, 4)
    host = engine._host
    assert host.answerer is not None
    model = host.answerer.model
    assert isinstance(model, QwenVideoModel)

    def broken(*args: object) -> None:
        raise KeyError("boom")

    def out_of_memory(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    for failure, code in ((broken, "INTERNAL"), (out_of_memory, "OUT_OF_MEMORY")):
        with monkeypatch.context() as patch:
            patch.setattr(model, "encode", failure)
            engine.clear()
            feed(engine, 4)
            with pytest.raises(errors.VStreamError) as caught:
                engine.ask("what?")
            assert caught.value.code == code
        _, metrics = engine.ask("what?")
        assert metrics["frames"] == 4
        assert engine.status().last_failure
