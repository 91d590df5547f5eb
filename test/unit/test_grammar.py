"""Which token may come next under a grammar: the matcher by itself, over random walks."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from support.json_answers import EVENTS, SIGHTING, TREE, fault
from vstream_ros.errors import InvalidRequestError, ModelFailedError
from vstream_ros.models import grammar as module
from vstream_ros.models.checkpoint_folder import EMBEDDED
from vstream_ros.models.grammar import CompiledGrammar, GrammarCompiler, GrammarProcessor, Matcher, end_tokens_of
from vstream_ros.synthetic.random_model import byte_tokenizer

BYTES = byte_tokenizer()
MERGED = AutoTokenizer.from_pretrained(EMBEDDED["vstream-tiny"])
"""Byte-pair encoding, as Qwen's own: one text in many tokenizations."""
WIDTH = 600
"""The logits of real checkpoints too are wider than their tokenizer."""
SCHEMAS = {"sighting": SIGHTING, "events": EVENTS, "tree": TREE, "number": {"type": "integer"}, "anything": {}}


def ends_of(tokenizer: Any) -> list[int]:
    return sorted(tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]))


@pytest.fixture(scope="module", params=[BYTES, MERGED], ids=["bytes", "merged"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def ends(tokenizer: Any) -> list[int]:
    return ends_of(tokenizer)


@pytest.fixture(scope="module")
def compiler(tokenizer: Any, ends: list[int]) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, WIDTH, [*ends, 1_000_000])


@pytest.fixture(params=SCHEMAS)
def schema(request: pytest.FixtureRequest) -> dict[str, Any]:
    return SCHEMAS[request.param]


@pytest.fixture
def compiled(compiler: GrammarCompiler, schema: dict[str, Any]) -> CompiledGrammar:
    return compiler.compile(json.dumps(schema))


def allowed(matcher: Matcher) -> list[int]:
    scores = matcher.mask(torch.zeros(WIDTH))
    assert set(scores.unique().tolist()) <= {0.0, -torch.inf}
    return scores.isfinite().nonzero()[:, 0].tolist()  # type: ignore[no-any-return]


def accepts(matcher: Matcher, token: int) -> bool:
    try:
        matcher.accept(token)
    except ValueError as error:
        assert "forbidden" in str(error)  # noqa: PT017
        return False
    return True


def walk(matcher: Matcher, random: torch.Generator, steps: int) -> list[int]:
    """Accept random allowed tokens, until the answer has ended or ``steps`` are done."""
    tokens: list[int] = []
    while len(tokens) < steps:
        choices = allowed(matcher)
        if tokens and matcher.finished and tokens[-1] in choices:  # an end token
            break
        tokens.append(choices[int(torch.randint(len(choices), (1,), generator=random))])
        matcher.accept(tokens[-1])
    return tokens


def test_every_walk_that_ends_is_a_valid_answer(
    tokenizer: Any, ends: list[int], compiled: CompiledGrammar, schema: dict[str, Any]
) -> None:
    ended = 0
    for seed in range(25):
        matcher = compiled.start()
        tokens = walk(matcher, torch.Generator().manual_seed(seed), 250)
        if tokens[-1] in ends:
            ended += 1
            assert not fault(tokenizer.decode(tokens, skip_special_tokens=True), schema)
            assert matcher.complete
            assert matcher.finished
            assert compiled.accepts(tokens)
            assert compiled.accepts(tokens[:-1])
            assert allowed(matcher) == ends
        else:  # a string without a bound
            assert schema == {}
    assert ended >= (25 if schema else 1)


def test_the_end_is_allowed_exactly_where_the_text_is_an_answer(
    tokenizer: Any, ends: list[int], compiled: CompiledGrammar, schema: dict[str, Any]
) -> None:
    for seed in range(3):
        matcher = compiled.start()
        tokens = walk(compiled.start(), torch.Generator().manual_seed(seed), 80)
        for count in range(len(tokens) + 1):
            may_end = set(ends) <= set(allowed(matcher))
            assert may_end == matcher.complete == compiled.accepts(tokens[:count])
            assert may_end == (not fault(tokenizer.decode(tokens[:count], skip_special_tokens=True), schema))
            assert matcher.finished == (set(allowed(matcher)) <= set(ends))
            if count < len(tokens):
                matcher.accept(tokens[count])


def test_tokens_that_were_taken_back_leave_no_trace(compiled: CompiledGrammar) -> None:
    """Accept some, take some back, over and over: masks, ends and completeness are a fresh matcher's."""
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        matcher, tokens = compiled.start(), []
        for _ in range(6):
            tokens += walk(matcher, random, 1 + int(torch.randint(30, (1,), generator=random)))
            back = int(torch.randint(len(tokens) + 1, (1,), generator=random))
            matcher.rollback(back)
            del tokens[len(tokens) - back :]
            fresh = compiled.start()
            for token in tokens:
                fresh.accept(token)
            assert (allowed(matcher), matcher.finished, matcher.complete) == (
                allowed(fresh), fresh.finished, fresh.complete
            )  # fmt: skip


def test_a_token_that_is_refused_changes_nothing(compiled: CompiledGrammar) -> None:
    """What the mask allows is taken; beside it only other tokens for the beginning of a text that must come."""
    matcher = compiled.start()
    refused = 0
    for token in [*walk(compiled.start(), torch.Generator().manual_seed(1), 40), None]:
        may = allowed(matcher)
        for other in sorted(set(range(WIDTH)) - set(may))[::17]:
            if accepts(matcher, other):
                assert len(may) == 1
                matcher.rollback(1)
            else:
                refused += 1
        assert allowed(matcher) == may
        if token is not None:
            matcher.accept(token)
    assert refused > 10
    for count in (-1, 41):
        with pytest.raises(ValueError, match="back"):
            matcher.rollback(count)
    assert allowed(matcher) == may


def test_answers_side_by_side_do_not_see_each_other(compiler: GrammarCompiler) -> None:
    compiled = compiler.compile(json.dumps(SIGHTING))
    one, other = compiled.start(), compiled.start()
    at_start = allowed(other)
    walk(one, torch.Generator().manual_seed(0), 30)
    assert allowed(other) == at_start == allowed(compiled.start())


# -- scores ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_allowed_scores_stay_as_they_are(compiler: GrammarCompiler, dtype: torch.dtype) -> None:
    matcher = compiler.compile('{"type": "string"}').start()
    matcher.accept(allowed(matcher)[0])
    scores = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = scores.clone()
    masked = matcher.mask(scores)
    may = allowed(matcher)
    assert masked.dtype is dtype
    assert torch.equal(scores, before)
    assert torch.equal(masked[may], scores[may])
    assert torch.isneginf(masked[sorted(set(range(WIDTH)) - set(may))]).all()
    with pytest.raises(ValueError, match="scores must be"):
        matcher.mask(scores[:-1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_still_show(compiler: GrammarCompiler, value: float) -> None:
    """Even where they belong to a token that the grammar forbids."""
    matcher = compiler.compile(json.dumps(SIGHTING)).start()
    scores = torch.zeros(WIDTH)
    scores[sorted(set(range(WIDTH)) - set(allowed(matcher)))[5]] = value
    assert not matcher.mask(scores).logsumexp(-1).isfinite()


def test_where_bans_leave_nothing_the_grammar_goes_before_them(compiler: GrammarCompiler) -> None:
    matcher = compiler.compile('{"enum": [1, 2]}').start()
    scores = torch.zeros(WIDTH)
    scores[allowed(matcher)] = -torch.inf  # as no_repeat_ngram_size does
    assert matcher.mask(scores).exp().tolist() == [float(token in allowed(matcher)) for token in range(WIDTH)]


def test_an_end_token_that_is_also_text_ends_only_where_the_answer_may(tokenizer: Any, ends: list[int]) -> None:
    brace, seven = (tokenizer.encode(text)[0] for text in "{7")
    matcher = GrammarCompiler(tokenizer, WIDTH, [brace, *ends]).compile("{}").start()
    assert brace not in allowed(matcher)  # though "{" may come next
    matcher.accept(seven)
    assert {brace, *ends} <= set(allowed(matcher))


# -- generate's processor ----------------------------------------------------------------------------------------------


def test_the_processor_follows_what_generate_shows_it(compiler: GrammarCompiler) -> None:
    """Token by token, several at once, or fewer than before."""
    compiled = compiler.compile(json.dumps(EVENTS))
    tokens = walk(compiled.start(), torch.Generator().manual_seed(2), 60)
    other = walk(compiled.start(), torch.Generator().manual_seed(3), 60)
    assert tokens != other
    processor = GrammarProcessor(compiled, 3)
    scores = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(0))
    for answer in (tokens[:1], tokens[:2], tokens[:9], tokens[:4], tokens, other[:7], [], other):
        fresh = compiled.start()
        for token in answer:
            fresh.accept(token)
        masked = processor(torch.tensor([[5, 6, 7, *answer]]), scores)
        assert torch.equal(masked, fresh.mask(scores[0])[None])


# -- compiling ---------------------------------------------------------------------------------------------------------


def test_a_grammar_is_compiled_once_and_the_least_recently_used_goes_first(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_COMPILED", 3)
    first, second, third = (compiler.compile(json.dumps({"const": k})) for k in range(3))
    assert compiler.compile('{"const": 0}') is first
    compiler.compile('{"const": 3}')
    assert compiler.compile('{"const": 0}') is first
    assert compiler.compile('{"const": 2}') is third
    assert compiler.compile('{"const": 1}') is not second
    assert len(compiler._compiled) == 3


def test_what_can_not_be_compiled_is_refused(tokenizer: Any, compiler: GrammarCompiler) -> None:
    with pytest.raises(InvalidRequestError, match="contains"):
        compiler.compile('{"type": "array", "contains": {}}')
    for named in ([], [1_000_000]):
        with pytest.raises(ModelFailedError, match="no end token"):
            GrammarCompiler(tokenizer, WIDTH, named)


def test_a_schema_that_explodes_while_it_is_followed_is_refused_there(compiler: GrammarCompiler) -> None:
    """It compiles: 900 optional properties, each of which may be the next."""
    schema = {"type": "object", "properties": {f"p{k}": {} for k in range(900)}}
    matcher = compiler.compile(json.dumps(schema)).start()
    (brace,) = allowed(matcher)
    for _ in range(2):
        with pytest.raises(InvalidRequestError, match="too complex") as refused:
            matcher.accept(brace)
        assert len(str(refused.value)) < 500
    with pytest.raises(InvalidRequestError, match="too complex"):
        matcher.mask(torch.zeros(WIDTH))


@pytest.mark.parametrize(("named", "ends"), [(None, []), (7, [7]), ([7, 8], [7, 8])])
def test_end_tokens_of_a_generation_config(named: Any, ends: list[int]) -> None:
    class Config:
        eos_token_id = named

    assert end_tokens_of(Config()) == ends
