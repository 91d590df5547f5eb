"""Batches for stage 2 of the training: clips with their questions as tensors, and what the tokens on the way are told.

The positions are the engine's: true times for the video tokens, text after the video at the greatest position + 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from training.feature_pool import FRAME_GAP_S, PooledClip
from training.tiny_config import CELLS, TOKENS, TOKENS_PER_SECOND
from training.train_vision import IGNORE, MOTIONS, token_at, token_of
from vstream_ros.synthetic.shapes_questions import (
    NONE,
    QA,
    Running,
    answer,
    first_motion,
    from_left_to_right,
    readings,
    running,
)
from vstream_ros.synthetic.shapes_world import DIRECTIONS, MAX_SPEED, MAX_VISITS, PLACES, all_names
from vstream_ros.synthetic.sightings import Sighting

NAMES = all_names()
IDENTITIES = 1 + len(NAMES)
"""Nothing, or a colour together with a shape. As one class of all: what shares its colour is then not half of it."""
TUBELET_TARGETS: dict[int, tuple[int, ...]] = {
    3: (IDENTITIES, 5),
    5: (IDENTITIES, IDENTITIES, IDENTITIES),
    6: (IDENTITIES, IDENTITIES, IDENTITIES, MAX_VISITS + 1),
}
"""What a tubelet's last token tells after so many decoder layers: first what comes in this tubelet and how many objects
are there; what is there, from left to right; then the newest object, the one before it, the first one and how many
there were in all."""
SEEN_LAYER = 4
"""After which it tells of each name whether it has been there. Attention is bad at counting; what is in that set has
been there, and its size is how many there were."""
TOKEN_TARGETS: dict[int, int] = {2: IDENTITIES, 3: 3, 5: IDENTITIES, 6: MAX_VISITS + 1}
"""What the token with an object's centre tells: which object it is; whether it is new, old, or there is none; if it is
new, what came before it, and which in the order of arrival it is. So what came before or after an object is found in
one look, however far away, and how many came in all by the last of them."""
TEXT_LAYER = 2
"""After which a name in a question or an answer tells the same as the object's own token."""
FACTS_LAYER = 6
_NEIGHBOURS = ("nothing", *(f"a {name}" for name in NAMES))
FACTS: dict[str, tuple[str, ...]] = {
    "ever": ("no", "yes"),
    "before": _NEIGHBOURS,
    "after": _NEIGHBOURS,
    "where": PLACES,
    "direction": MOTIONS,
    "describe": MOTIONS,
}
"""By kind of question, what can be answered, or for a description how the object moved when it came: after that layer a
name in a question or an answer tells all of this about its object, whichever was asked. So one question teaches as
much as six."""
AUX_LAYERS = sorted({*TUBELET_TARGETS, *TOKEN_TARGETS, SEEN_LAYER, TEXT_LAYER, FACTS_LAYER})
NOTHING, NEW, OLD = 0, 1, 2
STEP = MAX_SPEED * FRAME_GAP_S
"""Widths that an object moves between a tubelet's frames, at most."""


@dataclass(frozen=True)
class Batch:
    """Clips of equal length with their questions; B clips, V tokens up to the last video token, Q question tokens."""

    prefix_ids: torch.Tensor
    """(B, V)"""
    features: torch.Tensor
    """(B, video tokens, hidden)"""
    positions: torch.Tensor
    """(3, B, V + Q)"""
    question_ids: torch.Tensor
    """(B, Q)"""
    bias: torch.Tensor
    """(B, Q, V + Q) float32 to add to scores: -inf where a question's token (row) must not see another (column)."""
    owner: torch.Tensor
    """(B, Q): number of the question that a token belongs to, -1 for padding."""
    targets: torch.Tensor
    """(B, Q): the token that follows; IGNORE outside of answers."""
    weights: torch.Tensor
    """(B, Q): of each target in the loss."""
    tubelet_targets: dict[int, torch.Tensor]
    """By decoder layer: (B, tubelets, targets) classes."""
    token_targets: dict[int, torch.Tensor]
    """By decoder layer: (B, video tokens) classes."""
    seen_targets: torch.Tensor
    """(B, tubelets, names) float32: 1 for what has been there, 0 for what has not, IGNORE where nobody can tell."""
    text_targets: torch.Tensor
    """(B, Q): identity at the last word of a name, else IGNORE."""
    fact_targets: torch.Tensor
    """(B, Q, kinds of ``FACTS``): number of the answer at the last word of a name; IGNORE where there is none."""


class BatchMaker:
    """Turns clips and questions into tensors, by the tokenizer and chat template of the checkpoint."""

    def __init__(self, processor: Any, video_token_id: int) -> None:
        self._tokenizer = processor.tokenizer
        text = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "?"}]}],
            tokenize=False,
            add_generation_prompt=True,
        )
        before, after = text.split("<|video_pad|>")
        self.before = self._ids(before)
        self._opening, self._closing = (self._ids(part) for part in after.split("?"))
        self._video_token_id = video_token_id
        self._end = self._tokenizer.convert_tokens_to_ids("<|im_end|>")
        self._cache: dict[str, list[int]] = {}
        self._names = {tuple(self._ids(f" {name}")): _class(name) for name in NAMES}

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _known(self, text: str) -> list[int]:
        if text not in self._cache:
            self._cache[text] = self._ids(text)
        return self._cache[text]

    def batch(self, clips: Sequence[PooledClip], questions: Sequence[Sequence[QA]]) -> Batch:
        """``clips`` of equal length, each with its questions."""
        rows, columns = CELLS
        tokens, tubelets = rows * columns, len(clips[0].views)
        start = len(self.before)
        prefix = self.before + [self._video_token_id] * (tokens * tubelets)
        packed = [self._pack(qas) for qas in questions]
        longest = max(len(ids) for ids, *_ in packed)
        size = len(clips)
        ids = torch.zeros((size, longest), dtype=torch.long)
        owner = torch.full((size, longest), -1)
        targets = torch.full((size, longest), IGNORE)
        weights = torch.zeros((size, longest))
        positions = np.zeros((3, size, len(prefix) + longest), dtype=np.int64)
        positions[:, :, :start] = np.arange(start)
        row, column = np.divmod(np.arange(tokens), columns)
        for k, (clip, (q_ids, q_owner, q_targets, q_weights, q_offsets)) in enumerate(zip(clips, packed, strict=True)):
            times = TOKENS_PER_SECOND * (np.asarray(clip.seconds) - clip.seconds[0])
            positions[0, k, start : len(prefix)] = start + np.repeat(times, tokens)
            positions[1, k, start : len(prefix)] = start + np.tile(row, tubelets)
            positions[2, k, start : len(prefix)] = start + np.tile(column, tubelets)
            length = len(q_ids)
            greatest = max(int(times[-1]), rows - 1, columns - 1)
            positions[:, k, len(prefix) : len(prefix) + length] = start + greatest + 1 + np.asarray(q_offsets)
            ids[k, :length], owner[k, :length] = torch.tensor(q_ids), torch.tensor(q_owner)
            targets[k, :length], weights[k, :length] = torch.tensor(q_targets), torch.tensor(q_weights)
        causal = torch.ones(longest, longest, dtype=torch.bool).tril()
        sees = (owner[:, :, None] == owner[:, None, :]) & causal
        bias = torch.zeros(size, longest, len(prefix) + longest)
        bias[:, :, len(prefix) :].masked_fill_(~sees, float("-inf"))
        states = [running(clip.views) for clip in clips]
        of_tubelets = [_tubelet_labels(clip, state) for clip, state in zip(clips, states, strict=True)]
        of_tokens = [_token_labels(clip, state) for clip, state in zip(clips, states, strict=True)]
        of_text = [[self._names.get(pair, IGNORE) for pair in itertools.pairwise([0, *line])] for line in ids.tolist()]
        return Batch(
            prefix_ids=torch.tensor([prefix] * size),
            features=torch.stack([clip.features for clip in clips]).flatten(1, 2),
            positions=torch.from_numpy(positions),
            question_ids=ids,
            bias=bias,
            owner=owner,
            targets=targets,
            weights=weights,
            tubelet_targets={k: torch.tensor([labels[k] for labels in of_tubelets]) for k in TUBELET_TARGETS},
            token_targets={k: torch.from_numpy(np.stack([labels[k] for labels in of_tokens])) for k in TOKEN_TARGETS},
            seen_targets=torch.from_numpy(np.stack([_seen_labels(state) for state in states])),
            text_targets=torch.tensor(of_text),
            fact_targets=torch.tensor([_fact_labels(clip, line) for clip, line in zip(clips, of_text, strict=True)]),
        )

    def _pack(self, qas: Sequence[QA]) -> tuple[list[int], list[int], list[int], list[float], list[int]]:
        ids: list[int] = []
        owner: list[int] = []
        targets: list[int] = []
        weights: list[float] = []
        offsets: list[int] = []
        for number, qa in enumerate(qas):
            asked = self._opening + self._known(qa.question) + self._closing
            said = [*self._known(qa.answer), self._end]
            line = asked + said[:-1]
            ids += line
            owner += [number] * len(line)
            offsets += list(range(len(line)))
            targets += [IGNORE] * (len(asked) - 1) + said
            weights += [0.0] * (len(asked) - 1) + [len(said) ** -0.5] * len(said)
        return ids, owner, targets, weights, offsets


def _tubelet_labels(clip: PooledClip, states: Sequence[Running]) -> dict[int, list[list[int]]]:
    """By decoder layer, by tubelet: classes of ``TUBELET_TARGETS``."""
    labels: dict[int, list[list[int]]] = {layer: [] for layer in TUBELET_TARGETS}
    for view, state in zip(clip.views, states, strict=True):
        here, perhaps = sum(s.here for s in view), sum(s.glimpsed for s in view)
        total = IGNORE if state.total is None else state.total
        labels[3].append([_class(state.arrived), here if here == perhaps else IGNORE])
        ordered = from_left_to_right([s for s in view if s.here]) if here == perhaps else None
        present = [None] * 3 if ordered is None else [*(s.visit.name for s in ordered), *[NONE] * 3][:3]
        labels[5].append([_class(name) for name in present])
        labels[6].append([*(_class(name) for name in (state.newest, state.previous, state.first)), total])
    return labels


def _token_labels(clip: PooledClip, states: Sequence[Running]) -> dict[int, np.ndarray]:
    """By decoder layer: classes of ``TOKEN_TARGETS``, (video tokens,) int64."""
    identity = np.full((len(states), TOKENS), NOTHING)
    novelty = np.full((len(states), TOKENS), NOTHING)
    previous = np.full((len(states), TOKENS), IGNORE)
    place = np.full((len(states), TOKENS), IGNORE)
    seen: frozenset[str] = frozenset()
    doubtful: frozenset[str] = frozenset()
    for k, (view, state) in enumerate(zip(clip.views, states, strict=True)):
        for sighting in view:
            token, around = token_of(sighting), _around(sighting)
            taken = novelty[k, token] != NOTHING
            identity[k, around] = novelty[k, around] = previous[k, token] = IGNORE
            name = sighting.visit.name
            if taken or not sighting.seen:
                continue
            identity[k, token] = _class(name)
            if name in seen:
                novelty[k, token] = OLD
            elif name not in doubtful and min(around) == token:  # of those that may have it the first is new
                novelty[k, token] = NEW
                if name == state.arrived:
                    previous[k, token] = _class(state.previous)
                    place[k, token] = IGNORE if state.total is None else state.total
        seen, doubtful = state.seen, state.doubtful
    return {2: identity.ravel(), 3: novelty.ravel(), 5: previous.ravel(), 6: place.ravel()}


def _seen_labels(states: Sequence[Running]) -> np.ndarray:
    """(tubelets, names) float32; see ``Batch``."""
    labels = np.zeros((len(states), len(NAMES)), dtype=np.float32)
    for row, state in zip(labels, states, strict=True):
        row[[_class(name) - 1 for name in state.seen]] = 1.0
        row[[_class(name) - 1 for name in state.doubtful]] = IGNORE
    return labels


def _fact_labels(clip: PooledClip, identities: Sequence[int]) -> list[list[int]]:
    """For each token of the questions, of which identity or IGNORE is given: as ``Batch.fact_targets``."""
    facts = readings(clip.views)

    def told(identity: int) -> list[int]:
        name = NAMES[identity - 1]
        answers = {kind: answer(kind, name, facts) for kind in FACTS if kind != "describe"}
        answers["describe"] = first_motion(name, facts)
        return [IGNORE if answers[kind] is None else of.index(answers[kind]) for kind, of in FACTS.items()]

    known = {identity: told(identity) for identity in set(identities) if identity != IGNORE}
    return [known.get(identity, [IGNORE] * len(FACTS)) for identity in identities]


def _class(name: str | None) -> int:
    """Of ``IDENTITIES``; IGNORE for None."""
    if name is None:
        return IGNORE
    return NOTHING if name == NONE else 1 + NAMES.index(name)


def _around(sighting: Sighting) -> list[int]:
    """The tokens with the object's centre, or nearly, in one of the frames: nobody can tell which it is."""
    dx, dy = DIRECTIONS.get(sighting.motion or "", (0.0, 0.0))
    way = [(sighting.x - back * dx, sighting.y - back * dy) for back in (0.0, 0.5 * STEP, STEP)]
    near = 0.1 / CELLS[1]
    return [token_at(x + i * near, y + j * near) for x, y in way for i in (-1, 0, 1) for j in (-1, 0, 1)]
