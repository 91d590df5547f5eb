"""Answers held to a JSON schema: which tokens may come next, for one tokenizer.

``GrammarCompiler`` makes a ``CompiledGrammar`` of a schema, once; each answer under it has a ``Matcher`` of its own,
which follows the tokens and forbids those that no valid answer goes on with. All of it belongs to the model's thread.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import LogitsProcessor

from vstream_ros.errors import InvalidRequestError, ModelFailedError
from vstream_ros.models.json_schema import one_line, schema_grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher

MAX_COMPILED = 32
"""Grammars kept per model, the least recently used go first. One takes 10 kB to a few MB: its schema is bounded."""
MAX_LEXER_STATES = 50_000
"""Of one running answer, 1 to 2 kB each; ordinary schemas take hundreds. The library's own limits hold besides."""
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
BIAS_OF_BYTE = np.where(_BITS, np.float32(0.0), np.float32(-np.inf))
"""(256, 8) float32: what eight bits of the library's mask add to eight scores. A look-up of 19 kB takes 20 µs, where
masking 151,936 scores takes 200."""


class GrammarCompiler:
    """Compiles schemas for one tokenizer."""

    def __init__(self, tokenizer: Any, vocabulary: int, end_tokens: Sequence[int]) -> None:
        """
        Args:
            tokenizer: a fast tokenizer of transformers. Reading 151,665 tokens takes about a second.
            vocabulary: width of the model's logits, which may be more than the tokenizer's.
            end_tokens: ids that end an answer; those beyond the vocabulary can't be generated.

        Raises ``ModelFailedError`` where none is left, or where the library can't read the tokenizer.
        """
        from llguidance import LLParserLimits
        from llguidance.hf import from_tokenizer

        self.vocabulary = vocabulary
        self.end_tokens = tuple(token for token in end_tokens if token < vocabulary)
        if not self.end_tokens:
            raise ModelFailedError(
                "the checkpoint's generation config names no end token, so an answer could not end where its JSON "
                "does; set eos_token_id there, or ask without json_schema"
            )
        try:
            self._tokenizer = from_tokenizer(
                tokenizer, n_vocab=max(vocabulary, len(tokenizer)), eos_token=list(self.end_tokens)
            )
        except (ValueError, RuntimeError) as error:
            raise ModelFailedError(f"json_schema: llguidance can't read the tokenizer: {one_line(error)}") from error
        self._limits = LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)
        self._compiled: OrderedDict[str, CompiledGrammar] = OrderedDict()

    def compile(self, json_schema: str) -> CompiledGrammar:
        """The grammar of the schema, a JSON text, from the cache where it is there.

        Raises ``InvalidRequestError`` with the library's reason. Milliseconds: see ``json_schema`` for what is bounded.
        """
        if json_schema in self._compiled:
            self._compiled.move_to_end(json_schema)
            return self._compiled[json_schema]
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, schema_grammar(json_schema), log_level=0, limits=self._limits)
        if matcher.is_error():
            raise InvalidRequestError(f"json_schema can't be enforced: {one_line(matcher.get_error())}")
        compiled = CompiledGrammar(matcher, self.vocabulary, self.end_tokens)
        self._compiled[json_schema] = compiled
        while len(self._compiled) > MAX_COMPILED:
            self._compiled.popitem(last=False)
        return compiled


class CompiledGrammar:
    """A grammar for one tokenizer, for any number of answers, one after another or together."""

    def __init__(self, initial: LLMatcher, vocabulary: int, end_tokens: tuple[int, ...]) -> None:
        """``initial``: at the beginning of an answer; it is copied and never moved."""
        self._initial = initial
        self._vocabulary = vocabulary
        self._end_tokens = end_tokens

    def start(self) -> Matcher:
        """Follows one answer from its beginning. Microseconds."""
        return Matcher(self._initial.deep_copy(), self._vocabulary, self._end_tokens)

    def accepts(self, token_ids: Sequence[int]) -> bool:
        """Whether these are a whole answer, with or without an end token: one that ``max_new_tokens`` cut is none."""
        matcher = self.start()
        try:
            for token in token_ids:
                matcher.accept(token)
        except ValueError:
            return False
        return matcher.complete


class Matcher:
    """Where one answer stands in its grammar. Tokens can be taken back, as a draft needs it."""

    def __init__(self, matcher: LLMatcher, vocabulary: int, end_tokens: tuple[int, ...]) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._end_tokens = list(end_tokens)
        self._accepted = 0
        self._ends = 0
        """End tokens among the accepted. The library is never shown one: it counts some of them and others not."""

    @property
    def complete(self) -> bool:
        """Whether what was accepted is a whole answer, though it might go on."""
        return self._ends > 0 or bool(self._matcher.is_accepting())

    @property
    def finished(self) -> bool:
        """Whether what was accepted is a whole answer that can't go on: only an end token may follow."""
        return self._ends > 0 or (bool(self._matcher.is_accepting()) and bool(self._matcher.is_stopped()))

    def mask(self, scores: torch.Tensor) -> torch.Tensor:
        """The scores of the next token, those of forbidden ones at -inf.

        Args:
            scores: (vocabulary,) logits of any float dtype on any device; not changed.

        Of a text that must come as it is, only the tokenizer's own tokens are allowed, as a model learned to write it.
        What is not finite stays so, even where it is forbidden: a broken model must show. A grammar comes after the
        checkpoint's own bans (n-grams, suppressed tokens) and goes before them: where these leave nothing of what it
        allows, that is equally likely. On an accelerator nothing is waited for.

        Raises ``InvalidRequestError`` where following the grammar goes beyond the library's limits.
        """
        if scores.shape != (self._vocabulary,):
            raise ValueError(f"scores must be ({self._vocabulary},), got {tuple(scores.shape)}")
        bias = torch.from_numpy(self._bias()).to(scores.device, scores.dtype)
        masked = scores + bias
        nothing_left = masked.amax() == -torch.inf
        if nothing_left.is_cpu:
            return bias if nothing_left else masked
        return torch.where(nothing_left, bias, masked)

    def _bias(self) -> np.ndarray:
        """(vocabulary,) float32: 0 for what may come next, -inf for the rest."""
        if self._ends:
            bias = np.full(self._vocabulary, -np.inf, dtype=np.float32)
        else:
            allowed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            self._check()
            bias = BIAS_OF_BYTE.take(allowed, axis=0).reshape(-1)[: self._vocabulary]
        bias[self._end_tokens] = 0.0 if self.complete else -np.inf
        return bias

    def accept(self, token_id: int) -> None:
        """Go on by this token; ``ValueError`` where no answer goes on so, which changes nothing.

        Raises ``InvalidRequestError`` as ``mask`` does.
        """
        if token_id in self._end_tokens:
            allowed = self.complete
            self._ends += allowed
        else:
            allowed = not self._ends and self._matcher.try_consume_tokens([token_id]) == 1
            self._check()
        if not allowed:
            raise ValueError(f"token {token_id} is forbidden by the grammar after {self._accepted} tokens")
        self._accepted += 1

    def rollback(self, count: int) -> None:
        """Take the last ``count`` accepted tokens back; ``ValueError`` where there are fewer."""
        if not 0 <= count <= self._accepted:
            raise ValueError(f"can't take {count} of {self._accepted} accepted tokens back")
        ends = min(count, self._ends)
        self._ends -= ends
        if count > ends and not self._matcher.rollback(count - ends):
            raise ValueError(f"can't take {count - ends} tokens back: {one_line(self._matcher.get_error())}")
        self._accepted -= count

    def _check(self) -> None:
        """The library raises nothing: beyond its limits it takes no token more, for good, and would offer the end."""
        if self._matcher.is_error():
            raise InvalidRequestError(
                "json_schema is too complex to be followed; make it smaller, or its strings and patterns shorter: "
                f"{one_line(self._matcher.get_error())}"
            )


class GrammarProcessor(LogitsProcessor):
    """A grammar as transformers' ``generate`` takes it, for a batch of one: what native inference is held by."""

    def __init__(self, grammar: CompiledGrammar, prompt_length: int) -> None:
        """``prompt_length``: tokens of ``input_ids`` before the answer."""
        self._matcher = grammar.start()
        self._prompt_length = prompt_length
        self._tokens: list[int] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self._follow(input_ids[0, self._prompt_length :].tolist())
        return self._matcher.mask(scores[0])[None]

    def is_whole(self, answer: Sequence[int]) -> bool:
        """Whether ``answer`` is valid as it stands, though it might go on."""
        self._follow(list(answer))
        return self._matcher.complete

    def admitted(self, answer: Sequence[int], draft: Sequence[int]) -> int:
        """How many of the first tokens of ``draft`` may follow ``answer``."""
        self._follow(list(answer))
        count = 0
        try:
            for token in draft:
                self._matcher.accept(token)
                count += 1
        except ValueError:
            pass
        self._matcher.rollback(count)
        return count

    def _follow(self, tokens: list[int]) -> None:
        """To the answer so far, which may have lost tokens since: a draft of ``generate``'s own that was rejected."""
        same = shared_length(self._tokens, tokens)
        self._matcher.rollback(len(self._tokens) - same)
        for token in tokens[same:]:
            self._matcher.accept(token)
        self._tokens = tokens


def shared_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two answers begin with alike."""
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return sum(1 for _ in alike)


def end_tokens_of(generation_config: Any) -> list[int]:
    """The end tokens that a checkpoint's generation config names: none, one or several."""
    named = generation_config.eos_token_id
    return [] if named is None else [named] if isinstance(named, int) else [int(token) for token in named]
