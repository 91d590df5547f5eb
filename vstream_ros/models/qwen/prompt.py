"""Frames and a question to a prompt, from the parts of the installed processor, without touching a pixel.

The text and its layout come from the processor and positions from the model, changed by the rules of ``positions``
alone; a check at load (``NativeInference.check_layout``) compares the result with a full call of the processor, so that
a version that lays out its prompt in another way is refused instead of being answered wrongly.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vstream_ros.errors import ModelFailedError
from vstream_ros.memory.clip import Tubelet
from vstream_ros.models.base import Prompt, Segment
from vstream_ros.models.qwen.positions import PositionRules, Positions, video_metadata
from vstream_ros.models.qwen.token_cache import TokenCache

_ZERO_WIDTH_SPACE = "\u200b"
PREFIXES = 4
"""Prompts whose video part is kept: for memory, for what it will be after the next slide, and for parts of it."""


@dataclass(frozen=True)
class _Prefix:
    """The part of a prompt up to its last video token: arrays as in ``Prompt``, and how text goes on behind it."""

    input_ids: np.ndarray
    position_ids: np.ndarray
    tubelet_ids: np.ndarray
    spans: tuple[tuple[int, int], ...]
    closing: str
    """What the processor puts between the last video token and the template's own text."""
    next_position: np.ndarray
    """(4, 1): of the first token behind."""

    @classmethod
    def of(cls, prompt: Prompt, closing: str) -> _Prefix | None:
        """``prompt``'s; None where its text does not count on by one, so that nothing can be foretold."""
        end = prompt.prefix_length
        behind = prompt.position_ids[:, end:]
        if not np.array_equal(behind, behind[:, :1] + np.arange(behind.shape[1])):
            return None
        return cls(
            prompt.input_ids[:end].copy(),
            prompt.position_ids[:, :end].copy(),
            prompt.tubelet_ids[:end].copy(),
            prompt.spans,
            closing,
            behind[:, :1].copy(),
        )

    def ask(self, tubelets: tuple[Tubelet, ...], behind: np.ndarray) -> Prompt:
        """The prompt whose tokens after the video are ``behind``."""
        count = len(behind)
        return Prompt(
            np.concatenate([self.input_ids, behind]),
            np.concatenate([self.position_ids, self.next_position + np.arange(count)], axis=1),
            np.concatenate([self.tubelet_ids, np.full(count, -1, dtype=np.int64)]),
            tubelets,
            self.spans,
        )


def _identity(segment: Segment) -> Hashable:
    """All of a segment that its prompt depends on, besides the label, without its pixels."""
    tubelets = tuple((t.id, t.time_ns, t.frames.shape) for t in segment.tubelets)
    return segment.second_per_grid, segment.origin_ns, tubelets


class PromptBuilder:
    """Builds the prompts of one model, and remembers the video parts of the last ones. The model's thread owns it."""

    def __init__(self, model: Any, processor: Any, positions: Positions, name: str) -> None:
        """``model``: a loaded ``…ForConditionalGeneration``; ``positions``: its family's; ``name``: for errors.

        Raises ``ModelFailedError`` where the tokenizer is not the model's.
        """
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._positions = positions
        vision = model.config.vision_config
        self._frames_per_tubelet = vision.temporal_patch_size
        self._patch_size = vision.patch_size
        self._merge_size = vision.spatial_merge_size
        self._video_token: str = processor.video_token
        self._video_token_id: int = model.config.video_token_id
        if self._tokenizer.convert_tokens_to_ids(self._video_token) != self._video_token_id:
            raise ModelFailedError(
                f"the tokenizer of {name} does not know the model's video token: its tokenizer.json is missing or "
                "belongs to another checkpoint; fetch the checkpoint again"
            )
        self._video_runs = re.compile(f"((?:{re.escape(self._video_token)})+)")
        # Text a user could write that the tokenizer would take for control tokens or visual placeholders.
        special = [str(token) for token in self._tokenizer.added_tokens_decoder.values() if token.special]
        self._control_tokens = re.compile("|".join(map(re.escape, special)))
        self._token_cache = TokenCache(self.tokenize)
        self._prefixes: OrderedDict[Hashable, _Prefix] = OrderedDict()
        """Of the prompts that were built last; the next question changes only what stands behind."""

    def build(self, segments: Sequence[Segment], question: str, rules: PositionRules) -> Prompt:
        """See ``VideoModel.build_prompt``."""
        template = self.template_text(segments, question)
        video_end = template.rindex(self._video_token) + len(self._video_token)
        key = (rules, template[:video_end], tuple(map(_identity, segments)))
        tubelets = tuple(tubelet for segment in segments for tubelet in segment.tubelets)
        prefix = self._prefixes.pop(key, None)
        if prefix is not None:
            self._prefixes[key] = prefix
            return prefix.ask(tubelets, self._token_cache.ids(prefix.closing + template[video_end:]))
        grids = [self._grid(segment) for segment in segments]
        text = self._expand(template, segments, grids, rules)
        input_ids = self._token_ids(text)
        spans = self.spans(input_ids, segments)
        positions = self._positions.stock(input_ids, segments, grids)
        self._positions.apply_rules(positions, segments, spans, rules)
        tubelet_ids = np.full(input_ids.shape, -1, dtype=np.int64)
        for tubelet, (start, end) in zip(tubelets, spans, strict=True):
            tubelet_ids[start:end] = tubelet.id
        prompt = Prompt(input_ids, positions, tubelet_ids, tubelets, tuple(spans))
        closing = text[text.rindex(self._video_token) + len(self._video_token) :].removesuffix(template[video_end:])
        if (prefix := _Prefix.of(prompt, closing)) is not None:
            self._prefixes[key] = prefix
            while len(self._prefixes) > PREFIXES:
                self._prefixes.popitem(last=False)
        return prompt

    def template_text(self, segments: Sequence[Segment], question: str) -> str:
        """The chat template's text with one placeholder per segment; control tokens in user text are neutralised."""
        content: list[dict[str, str]] = []
        for segment in segments:
            if segment.label:
                content.append({"type": "text", "text": self.neutralise(segment.label)})
            content.append({"type": "video"})
        content.append({"type": "text", "text": self.neutralise(question)})
        text: str = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        return text

    def spans(self, input_ids: np.ndarray, segments: Sequence[Segment]) -> list[tuple[int, int]]:
        """Token range of each tubelet in a whole prompt's ``input_ids``.

        A run of video tokens covers one tubelet (Qwen3) or all tubelets of a segment (Qwen2); both are cut by the
        tubelets' sizes.
        """
        sizes = [self._tokens_per_tubelet(segment) for segment in segments for _ in segment.tubelets]
        places = np.split(np.flatnonzero(input_ids == self._video_token_id), np.cumsum(sizes)[:-1])
        return [(int(place[0]), int(place[-1]) + 1) for place in places]

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, as part of a prompt."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _grid(self, segment: Segment) -> tuple[int, int, int]:
        """(tubelets, patch rows, patch columns) of a segment."""
        height, width = segment.tubelets[0].frames.shape[1:3]
        return len(segment.tubelets), height // self._patch_size, width // self._patch_size

    def _tokens_per_tubelet(self, segment: Segment) -> int:
        _, rows, columns = self._grid(segment)
        return rows * columns // self._merge_size**2

    def neutralise(self, text: str) -> str:
        """``text`` with a zero-width space inside every control token, so that it stays text."""
        return self._control_tokens.sub(lambda match: match[0][0] + _ZERO_WIDTH_SPACE + match[0][1:], text)

    def _expand(
        self, text: str, segments: Sequence[Segment], grids: Sequence[tuple[int, int, int]], rules: PositionRules
    ) -> str:
        """``text`` with every placeholder expanded by the installed processor."""
        patch = self._frames_per_tubelet
        inputs = {
            "video_grid_thw": torch.tensor(grids),
            "video_metadata": [video_metadata(s, patch, true_time=rules.true_time) for s in segments],
        }
        expanded = [self._processor.replace_video_token(inputs, index) for index in range(len(segments))]
        return str(self._processor.get_text_with_replacements([text], videos_replacements=expanded)[0][0])

    def _token_ids(self, text: str) -> np.ndarray:
        """(length,) int64 of an expanded text.

        Special tokens always part the text before it is tokenized, so the pieces between runs of the video token
        may be tokenized apart (and once).
        """
        pieces = []
        for piece in self._video_runs.split(text):
            if piece.startswith(self._video_token):
                pieces.append(np.full(len(piece) // len(self._video_token), self._video_token_id, dtype=np.int64))
            elif piece:
                pieces.append(self._token_cache.ids(piece))
        return np.concatenate(pieces)
