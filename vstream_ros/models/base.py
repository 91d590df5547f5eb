"""What the engine knows of a model: tubelets in, tokens out. One subclass per family."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vstream_ros.memory.clip import NANOSECONDS, Tubelet
from vstream_ros.models.frame_spec import FrameSpec
from vstream_ros.models.tail import Tail
from vstream_ros.models.token_chooser import TokenChooser

if TYPE_CHECKING:
    from vstream_ros.models.grammar import CompiledGrammar

TEXT_POSITIONS = ("checkpoint", "transformers")
"""Where the text behind a video may go on; see ``VideoModel.build_prompt``."""


@dataclass(frozen=True, eq=False)
class TubeletFeatures:
    """What the vision encoder makes of one tubelet."""

    embeds: torch.Tensor
    """(tokens, hidden), on the vision encoder's device or wherever ``to`` moved it."""
    deepstack: tuple[torch.Tensor, ...] = ()
    """Qwen3-VL adds these, (tokens, hidden) each, to the first decoder layers' outputs."""

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.embeds, *self.deepstack))

    def to(self, device: torch.device) -> TubeletFeatures:
        """The same on ``device``; nothing is copied where it is there already."""
        return TubeletFeatures(self.embeds.to(device), tuple(t.to(device) for t in self.deepstack))


@dataclass(frozen=True, eq=False)
class Segment:
    """One video block of the prompt: consecutive tubelets of one camera, equal in size."""

    tubelets: tuple[Tubelet, ...]
    second_per_grid: float
    """Nominal seconds between tubelets."""
    origin_ns: int
    """Where the times that the prompt spells out start counting: the clip's first tubelet."""
    label: str = ""
    """Text before the block; empty before the first one where there is one camera only."""

    def grid_steps(self, origin_ns: int | None = None) -> list[float]:
        """Time of each tubelet in units of ``second_per_grid`` since ``origin_ns`` (default: the first tubelet).

        Whole numbers where the spacing is even, so that true-time positions reduce exactly to native's there.
        """
        start = self.tubelets[0].time_ns if origin_ns is None else origin_ns
        steps = [(t.time_ns - start) / (self.second_per_grid * NANOSECONDS) for t in self.tubelets]
        return [float(round(k)) if abs(k - round(k)) <= 1e-6 * max(1.0, abs(k)) else k for k in steps]


@dataclass(frozen=True, eq=False)
class Prompt:
    """The tokens of a whole question, and which of them stand for which tubelet."""

    input_ids: np.ndarray
    """(length,) int64"""
    position_ids: np.ndarray
    """(4, length) int64: text, temporal, height, width"""
    tubelet_ids: np.ndarray
    """(length,) int64: ``Tubelet.id`` of a video token, -1 for text"""
    tubelets: tuple[Tubelet, ...]
    """In prompt order."""
    spans: tuple[tuple[int, int], ...]
    """Token range of each tubelet, [start, end)."""

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])

    @property
    def prefix_length(self) -> int:
        """Tokens up to the last video token: what the next question about the same clip can reuse."""
        return self.spans[-1][1] if self.spans else 0


@dataclass(frozen=True, eq=False)
class Rows:
    """Tokens for one pass of the model behind what a KV cache holds."""

    input_ids: np.ndarray
    """(rows,) int64"""
    position_ids: np.ndarray
    """(4, rows) int64, as in ``Prompt``"""
    visible: np.ndarray | None = None
    """(rows, tail + rows) bool: which of the cache's last ``tail`` tokens, and of the rows, each row sees; all of what
    stands before that is seen by every row. None: each row sees everything up to itself."""

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])


@dataclass(frozen=True)
class GenerationOptions:
    """How to decode one answer."""

    max_new_tokens: int
    temperature: float = 0.0
    """0: greedy."""
    seed: int = 0
    on_token: Callable[[int, float], bool] | None = field(default=None, compare=False)
    """Of native inference: called after each token with its id and log-probability; a true value ends the answer. What
    ``generate`` returns is the answer: this may have been called for one token behind it."""
    grammar: CompiledGrammar | None = field(default=None, compare=False)
    """What the answer is held to; none: free text."""


class VideoModel(abc.ABC):
    """A vision-language model in video mode. Not thread-safe: one thread owns it (``frame_spec`` is immutable)."""

    name: str
    frame_spec: FrameSpec
    device: torch.device
    """Of the language model: where tokens go in and the KV cache is."""
    context_length: int
    """Tokens of prompt and answer together."""
    max_tokens_per_tubelet: int
    """At ``frame_spec.max_pixels``, with the text that may stand between tubelets."""
    weight_bytes: int
    weight_bytes_by_device: Mapping[torch.device, int]
    cache_rolls_back: bool
    """Whether a KV cache can be cropped and forked; one that can't serves a single question."""
    takes_masks: bool
    """Whether rows of one pass can be hidden from each other: several answers, or a tree of them, at once."""

    @abc.abstractmethod
    def max_tokens(self, max_pixels: int) -> int:
        """``max_tokens_per_tubelet`` for frames of at most ``max_pixels`` instead."""

    @property
    @abc.abstractmethod
    def arena_bytes(self) -> int:
        """Bytes of keys and values that are held beside all caches."""

    @abc.abstractmethod
    def build_prompt(
        self, segments: Sequence[Segment], question: str, *, true_time: bool, text_positions: str = "checkpoint"
    ) -> Prompt:
        """The prompt that the installed processor makes of these frames and this question.

        No pixel is touched. ``true_time``: temporal positions from the tubelets' times, not from their order.
        ``text_positions``: where the text behind a video goes on, as the checkpoint was trained ("checkpoint") or as
        the installed "transformers" has it; the same where a family has one rule only.
        """

    @abc.abstractmethod
    def encode(self, tubelets: Sequence[Tubelet]) -> list[TubeletFeatures]:
        """Vision features of tubelets of one frame size, on the vision encoder's device; computed on return."""

    @abc.abstractmethod
    def new_cache(self) -> Any:
        """An empty KV cache; it can be cropped where ``cache_rolls_back``."""

    @abc.abstractmethod
    def fork_cache(self, cache: Any, length: int) -> Any:
        """A cache with the first ``length`` tokens of ``cache``, on the same storage; nothing is copied."""

    @abc.abstractmethod
    def reserve(self, cache: Any, length: int) -> None:
        """Say that ``cache`` will hold ``length`` tokens, so that it need not grow more than once."""

    @abc.abstractmethod
    def prefill(self, prompt: Prompt, end: int, features: Sequence[TubeletFeatures], cache: Any) -> None:
        """Extend ``cache`` to the first ``end`` tokens of ``prompt``, done on return; ``features``: of the tubelets
        newly covered, wherever they are."""

    @abc.abstractmethod
    def forward(
        self, rows: Rows, cache: Any, wanted: np.ndarray, features: Sequence[TubeletFeatures] = ()
    ) -> torch.Tensor:
        """One pass over ``rows``, by which ``cache`` grows.

        Args:
            rows: ``visible`` only where the model ``takes_masks``.
            cache: of this model; where this raises, its layers may have grown unevenly.
            wanted: (count,) indices of rows.
            features: of the tubelets whose video tokens are among the rows, in order.

        Returns:
            (count, vocabulary) float32 logits on ``device``, of what follows the wanted rows.
        """

    @abc.abstractmethod
    def keep_rows(self, cache: Any, start: int, kept: np.ndarray) -> None:
        """Of the tokens that ``cache`` holds from ``start`` on, keep those at ``start + kept`` (rising) and no others.
        Only where ``cache_rolls_back``."""

    @abc.abstractmethod
    def open_tail(self, cache: Any, needed: int, *, graphs: bool) -> Tail:
        """For what is computed behind the clip that ``cache`` holds, or all but the last tokens of.

        Args:
            needed: tokens of clip, question and answer, about.
            graphs: pass captured graphs to the device, where that is possible, instead of single operations.
        """

    @abc.abstractmethod
    def prepare(self, tokens: int) -> None:
        """Do now what the first questions would pay for; ``tokens``: of prompt and answer at most. Never fails."""

    @abc.abstractmethod
    def free_scratch(self) -> None:
        """Give back what open tails work on, and what can be built again."""

    @abc.abstractmethod
    def token_chooser(self, prompt: Prompt, options: GenerationOptions) -> TokenChooser:
        """What chooses the tokens of one answer, as native ``generate`` does."""

    @abc.abstractmethod
    def text_stream(self) -> Callable[[int], str]:
        """What turns the tokens of one answer, one by one, into pieces of its text. A piece may be empty: a character
        of several tokens comes with its last one. Without special tokens."""

    @abc.abstractmethod
    def compile_grammar(self, json_schema: str) -> CompiledGrammar:
        """What holds an answer to a JSON schema, for this model's tokenizer; kept for the next time.

        Raises:
            InvalidRequestError: the schema can't be enforced, or the library for it is not installed.
            ModelFailedError: this model has no end token, or a tokenizer that the library can't read.
        """

    @abc.abstractmethod
    def decode_text(self, token_ids: Sequence[int]) -> str:
        """Text of generated tokens, without special tokens."""

    @abc.abstractmethod
    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text as the model would write it at the beginning of an answer. What looks like a control
        token stays text, as it does in a prompt."""

    @abc.abstractmethod
    def count_text_tokens(self, text: str) -> int:
        """Length of a text in tokens."""
