"""Answers under a schema, whole way: native's own, valid, and a clear error where they can't be."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from support.engines import answerer_of, fails_with, feed
from support.equality import cached_answer, compare, native_answer
from support.frames import random_frame
from support.json_answers import EVENTS, SIGHTING, fault
from vstream_ros import errors
from vstream_ros.engine import DelayedBatchInferenceEngine, Question
from vstream_ros.engine.answerer import ClipAnswerer, Interrupts
from vstream_ros.engine.engine_config import EngineConfig
from vstream_ros.memory.clip import NANOSECONDS, Clip, Tubelet
from vstream_ros.models.loader import load_model
from vstream_ros.models.qwen.video_model import QwenVideoModel
from vstream_ros.synthetic.random_model import random_model
from vstream_ros.synthetic.shapes_world import Scene


def random_clip(model: QwenVideoModel, seed: int) -> tuple[Clip]:
    rng = np.random.default_rng(seed)
    frames = [np.stack([random_frame(rng, *model.frame_spec.fit(56, 84)) for _ in range(2)]) for _ in range(3)]
    return (Clip(tuple(Tubelet(k, "camera", f, (k,), k * NANOSECONDS, 0.0) for k, f in enumerate(frames)), 1.0),)


@pytest.fixture
def answerer(any_model: QwenVideoModel) -> ClipAnswerer:
    return ClipAnswerer(any_model, EngineConfig(), ["camera"])


# -- native's ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", [SIGHTING, EVENTS, {"type": "string", "maxLength": 30}, {"type": "integer"}])
def test_greedy_answers_equal_natives_under_the_same_grammar(answerer: ClipAnswerer, schema: dict[str, Any]) -> None:
    for seed in range(2):
        clips = random_clip(answerer.model, seed)
        question = Question("what is there?", max_new_tokens=250, json_schema=json.dumps(schema))
        native = native_answer(answerer, clips, question)
        for _ in range(2):  # cold, and from the cache
            assert compare(cached_answer(answerer, clips, question), native).equal
            answerer.timelines.check_integrity()
        answerer.drop_caches()


def test_sampling_under_a_grammar_draws_what_native_draws(answerer: ClipAnswerer) -> None:
    clips = random_clip(answerer.model, 0)
    texts = set()
    for seed in range(1, 5):
        question = Question(
            "what is there?", max_new_tokens=60, temperature=1.5, seed=seed, json_schema=json.dumps(SIGHTING)
        )
        cached, native = (answer(answerer, clips, question) for answer in (cached_answer, native_answer))
        assert compare(cached, native).equal
        texts.add(answerer.model.decode_text(cached.tokens))
        assert not fault(answerer.model.decode_text(cached.tokens), SIGHTING)
    assert len(texts) > 1


def test_penalties_and_bans_hold_within_the_grammar(answerer: ClipAnswerer, any_model: QwenVideoModel) -> None:
    """Also bans that would make an answer impossible: n-grams, and an end that is not allowed before 50 tokens."""
    clips = random_clip(any_model, 1)
    question = Question("what is there?", max_new_tokens=60, json_schema=json.dumps(SIGHTING))
    plain = native_answer(answerer, clips, question)
    saved = any_model.model.generation_config
    any_model.model.generation_config = copy.deepcopy(saved)
    try:
        config = any_model.model.generation_config
        config.repetition_penalty = 1.3
        assert compare(cached_answer(answerer, clips, question), native_answer(answerer, clips, question)).equal
        config.no_repeat_ngram_size, config.min_new_tokens = 1, 50
        banned = native_answer(answerer, clips, question)
        assert banned.tokens != plain.tokens  # or nothing would be tested
        assert compare(cached_answer(answerer, clips, question), banned).equal
        assert not fault(any_model.decode_text(banned.tokens), SIGHTING)
    finally:
        any_model.model.generation_config = saved


def test_another_grammar_is_another_answer(answerer: ClipAnswerer) -> None:
    """The control: what the comparison above would see."""
    clips = random_clip(answerer.model, 0)
    one = Question("what is there?", max_new_tokens=60, json_schema=json.dumps(SIGHTING))
    other = Question("what is there?", max_new_tokens=60, json_schema='{"enum": ["red", "green"]}')
    assert not compare(cached_answer(answerer, clips, one), native_answer(answerer, clips, other)).equal


# -- whole and cut -----------------------------------------------------------------------------------------------------


def test_an_answer_that_max_new_tokens_cut_is_an_error_with_the_text_so_far(answerer: ClipAnswerer) -> None:
    clips = random_clip(answerer.model, 0)
    whole = answerer.answer(clips, Question("what?", max_new_tokens=60, json_schema=json.dumps(SIGHTING)))
    length = len(whole.token_ids)
    last = Question("what?", max_new_tokens=length - 1, json_schema=json.dumps(SIGHTING))
    assert answerer.answer(clips, last).text == whole.text  # all but the end token
    told: list[str] = []
    cut = Question("what?", max_new_tokens=length - 2, json_schema=json.dumps(SIGHTING))
    with pytest.raises(errors.IncompleteAnswerError, match="max_new_tokens") as caught:
        answerer.answer(clips, cut, interrupts=Interrupts(on_text=lambda text, _: told.append(text)))
    assert caught.value.answer == told[-1] == whole.text[:-1]
    assert answerer.answer(clips, last).metrics.cache_hit  # it cost nobody the cache


def test_confidence_is_among_what_the_schema_allows(answerer: ClipAnswerer) -> None:
    clips = random_clip(answerer.model, 0)
    forced = answerer.answer(clips, Question("what?", max_new_tokens=60, json_schema='{"const": "one thing only"}'))
    assert forced.text == '"one thing only"'
    assert forced.confidence ** len(forced.token_ids) >= 0.499  # one of two end tokens was the only choice


# -- the engine --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine() -> Iterator[DelayedBatchInferenceEngine]:
    model, processor = random_model("qwen2_5_vl")
    with DelayedBatchInferenceEngine(
        model, processor, "cpu", max_pixels=84 * 112, max_new_tokens=80, scene_threshold=1.0
    ) as made:
        feed(made, 6)
        made.ask("warm up", max_new_tokens=2)
        yield made


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"json_schema": "nonsense"}, "JSON"),
        ({"json_schema": "[]"}, "object"),
        ({"json_schema": '{"not": {}}'}, "not"),
        ({"json_schema": '{"$ref": "#"}'}, "without end"),
        ({"json_schema": '{"type": "integer", "multipleOf": 999983}'}, "multiple"),
        ({"json_schema": " " * 20_000}, "max_question_bytes"),
        ({"json_schema": {"type": "object"}}, "must be text"),
        ({"json_schema": None}, "must be text"),
        ({"json_schema": '{"const": "\ud800"}'}, "not valid Unicode"),
        ({"json_schema": "{}", "choices": ("yes", "no")}, "exclude each other"),
    ],
)
def test_a_bad_schema_is_refused_at_once(
    engine: DelayedBatchInferenceEngine, fields: dict[str, Any], says: str
) -> None:
    refused = engine.submit(Question("what?", **fields))
    assert refused.future.done(), "it was not refused at once"
    error = fails_with(refused.future, errors.InvalidRequestError)
    assert says in str(error)
    assert len(str(error)) < 600
    assert engine.ask("still warm?", max_new_tokens=1)[1]["cache_hit"] is True


def test_a_schema_that_explodes_on_the_way_ends_its_own_question(engine: DelayedBatchInferenceEngine) -> None:
    schema = json.dumps({"type": "object", "properties": {f"p{k}": {} for k in range(900)}})
    error = fails_with(engine.submit(Question("what?", json_schema=schema)).future, errors.InvalidRequestError)
    assert "too complex" in str(error)
    answerer_of(engine).timelines.check_integrity()
    assert engine.ask("still warm?", max_new_tokens=1)[1]["cache_hit"] is True


def test_a_checkpoint_without_an_end_token_says_so(
    engine: DelayedBatchInferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = answerer_of(engine).model
    monkeypatch.setattr(model.model.generation_config, "eos_token_id", None)  # type: ignore[attr-defined]
    vars(model).pop("_grammars", None)
    error = fails_with(engine.submit(Question("what?", json_schema="{}")).future, errors.ModelFailedError)
    assert "no end token" in str(error)
    assert engine.ask("still warm?", max_new_tokens=1)[1]["cache_hit"] is True


def test_free_text_is_as_it_was(engine: DelayedBatchInferenceEngine) -> None:
    before = engine.ask("what?", max_new_tokens=12)[0]
    text, _ = engine.ask("what?", json_schema=json.dumps(SIGHTING))
    assert not fault(text, SIGHTING)
    assert engine.ask("what?", max_new_tokens=12)[0] == before


# -- vstream-tiny ------------------------------------------------------------------------------------------------------


def test_every_answer_of_vstream_tiny_is_valid() -> None:
    """Trained on words, never on JSON; greedy and sampled."""
    tiny = load_model(
        "vstream-tiny", device="cpu", torch_dtype="float32", local_files_only=True, min_pixels=3136, max_pixels=200_704
    )
    answerer = ClipAnswerer(tiny, EngineConfig(), [""])
    scene = Scene(7_100_000_000, 20.0, gap_s=3.0)
    tubelets = tuple(
        Tubelet(k, "", np.stack([scene.frame(t, (84, 112)) for t in (8.0 + k, 8.5 + k)]), (k,), k * NANOSECONDS, 0.5)
        for k in range(3)
    )
    texts = []
    for schema, count in ((SIGHTING, 90), (EVENTS, 12)):
        for seed in range(count):
            question = Question(
                "What is there now?", max_new_tokens=200, temperature=1.3 if seed else 0.0, seed=seed,
                json_schema=json.dumps(schema),
            )  # fmt: skip
            texts.append(answerer.answer((Clip(tubelets, 1.0),), question).text)
            assert not fault(texts[-1], schema)
    assert len(texts) >= 100
    assert len(set(texts)) > 30
