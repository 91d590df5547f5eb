"""A question that can't be answered is refused in its caller's thread, before anything is touched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from support.engines import Gate, fails_with, feed
from vstream_ros import errors
from vstream_ros.engine import DelayedBatchInferenceEngine, Question
from vstream_ros.synthetic.random_model import random_model

START_NS = 1_000_000_000


@pytest.fixture(scope="module")
def engine() -> Iterator[DelayedBatchInferenceEngine]:
    """With a warm timeline, a warm fork and six tubelets' features."""
    model, processor = random_model("qwen2_5_vl")
    with DelayedBatchInferenceEngine(
        model, processor, "cpu", max_pixels=84 * 112, max_new_tokens=2, scene_threshold=1.0
    ) as made:
        feed(made, 12)
        made.ask("warm up")
        made.ask("warm up", start_ns=START_NS)
        yield made


BAD_FIELDS = [
    ({"text": 5}, "question must be text"),
    ({"text": None}, "question must be text"),
    ({"text": b"what?"}, "question must be text"),
    ({"text": "what\ud800?"}, "not valid Unicode"),
    ({"text": "a" * 20_000}, "max_question_bytes"),
    ({"text": "\N{SNOWMAN}" * 6_000}, "max_question_bytes"),
    ({"max_new_tokens": -1}, "max_new_tokens"),
    ({"max_new_tokens": 2**32}, "max_new_tokens"),
    ({"max_new_tokens": 10**5000}, "max_new_tokens"),
    ({"max_new_tokens": 1.5}, "max_new_tokens"),
    ({"max_new_tokens": True}, "max_new_tokens"),
    ({"max_new_tokens": "8"}, "max_new_tokens"),
    ({"seed": -1, "temperature": 1.0}, "seed"),
    ({"seed": 2**64, "temperature": 1.0}, "seed"),
    ({"seed": None}, "seed"),
    ({"temperature": 1e-38}, "temperature"),
    ({"temperature": 9e-4}, "temperature"),
    ({"temperature": float("inf")}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"temperature": 10**400}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"timeout_s": float("nan")}, "timeout"),
    ({"timeout_s": -0.1}, "timeout"),
    ({"timeout_s": "1"}, "timeout"),
    ({"start_ns": -1}, "start_time"),
    ({"start_ns": 2**63}, "start_time"),
    ({"start_ns": 1.5}, "start_time"),
    ({"end_ns": -1}, "end_time"),
    ({"end_ns": "now"}, "end_time"),
    ({"cameras": "camera"}, "cameras must be a list"),
    ({"cameras": None}, "cameras must be a list"),
    ({"cameras": (5,)}, "cameras must be text"),
    ({"cameras": ("\udfff",)}, "not valid Unicode"),
    ({"cameras": ("a" * 20_000,)}, "max_question_bytes"),
    ({"cameras": ("",) * 20_000}, "max_question_bytes"),
    ({"choices": "yes"}, "choices must be a list"),
    ({"choices": ("yes" * 5_000, "no" * 5_000)}, "max_question_bytes"),
    ({"choices": None}, "choices must be a list"),
    ({"choices": {"yes", "no"}}, "choices must be a list"),
    ({"choices": ("yes", 5)}, "choices must be text"),
    ({"choices": ("yes", b"no")}, "choices must be text"),
    ({"choices": ("yes", "n\ud800")}, "not valid Unicode"),
    ({"choices": ("",)}, "one of choices is empty"),
    ({"choices": ("yes", " \n\t")}, "one of choices is empty"),
    ({"choices": ("yes", "no", "yes")}, "'yes' twice"),
    ({"choices": ("yes", "no", "yes ")}, "'yes' twice"),
    ({"choices": tuple(map(str, range(101)))}, "101 texts; give 100 at most"),
]


@pytest.mark.parametrize(
    ("fields", "says"), BAD_FIELDS, ids=[f"{n}-{next(iter(fields))}" for n, (fields, _) in enumerate(BAD_FIELDS)]
)
def test_a_bad_question_is_one_sentence_and_costs_nobody_a_cache(
    engine: DelayedBatchInferenceEngine, fields: dict[str, Any], says: str
) -> None:
    refused = engine.submit(Question(**{"text": "what?", **fields}))
    assert refused.future.done(), "it was not refused at once"
    error = fails_with(refused.future, errors.InvalidRequestError)
    assert says in str(error)
    assert len(str(error)) < 400
    assert engine.ask("still warm?")[1]["cache_hit"] is True
    assert engine.ask("still warm?", start_ns=START_NS)[1]["cache_hit"] is True


def test_what_is_no_question_at_all_is_refused_too(engine: DelayedBatchInferenceEngine) -> None:
    error = fails_with(engine.submit("what?").future, errors.InvalidRequestError)  # type: ignore[arg-type]
    assert "Question" in str(error)
    with pytest.raises(errors.InvalidRequestError, match="must be text"):
        engine.ask(5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [
        {"max_new_tokens": np.int64(3), "timeout_s": np.float32(30.0), "start_ns": np.int64(5)},
        {"temperature": float(np.float32(0.001)), "seed": 2**64 - 1},  # a request's float32
        {"temperature": 10, "seed": 1},
        {"timeout_s": float("inf")},
        {"cameras": ["camera"]},
        {"text": "\N{SNOWMAN}" * 10},
    ],
)
def test_everything_else_is_answered(engine: DelayedBatchInferenceEngine, fields: dict[str, Any]) -> None:
    assert engine.ask(**{"question": fields.pop("text", "what?"), **fields})[1]["new_tokens"] > 0


def test_a_long_question_is_refused_while_the_models_thread_is_busy_and_never_tokenized(
    engine: DelayedBatchInferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    answerer = engine._host.answerer
    assert answerer is not None
    asked: list[str] = []
    build = answerer.model.build_prompt

    def counted(segments: Any, question: str, **kwargs: Any) -> Any:
        asked.append(question)
        return build(segments, question, **kwargs)

    monkeypatch.setattr(answerer.model, "build_prompt", counted)
    gate = Gate()
    running = engine.submit(Question("hold"), on_text=gate)
    assert gate.reached.wait(60)
    for _ in range(3):
        assert engine.submit(Question("word " * 200_000)).future.done()
    gate.open()
    running.future.result(timeout=60)
    assert engine.ask("x" * engine.config.max_question_bytes)[1]["new_tokens"] > 0  # so many it may have
    assert [len(text) for text in asked] == [4, engine.config.max_question_bytes]


def test_a_callback_that_raises_ends_its_own_question_and_nothing_else(engine: DelayedBatchInferenceEngine) -> None:
    def broken(text: str, tokens: int) -> None:
        raise KeyError("boom")

    error = fails_with(engine.submit(Question("what?"), on_text=broken).future, errors.VStreamError)
    assert error.code == "INTERNAL"
    assert "on_text" in str(error)
    assert "KeyError: 'boom'" in str(error)
    assert isinstance(error.__cause__, KeyError)
    assert engine.ask("still warm?")[1]["cache_hit"] is True
    assert engine.ask("still warm?", start_ns=START_NS)[1]["cache_hit"] is True


def test_a_timeout_of_any_length_is_said_as_it_was(engine: DelayedBatchInferenceEngine) -> None:
    for timeout_s, said in ((1e-9, "1e-09 s"), (0.002, "0.002 s")):
        gate = Gate()
        running = engine.submit(Question("hold"), on_text=gate)
        assert gate.reached.wait(60)
        late = engine.submit(Question("too late", timeout_s=timeout_s))
        gate.open()
        running.future.result(timeout=60)
        assert f"within {said}" in str(fails_with(late.future, errors.QuestionTimeoutError))
