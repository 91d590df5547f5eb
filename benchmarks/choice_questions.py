"""Questions about held-out scenes of the shapes world, answered in free text and as choices by vstream-tiny.

Of each choice the log-probabilities are kept, so that every way to make a score of them can be looked at afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from support.shapes_accuracy import Moment, load, moments
from vstream_ros.engine.answers import Question
from vstream_ros.engine.choices import Choices
from vstream_ros.synthetic.shapes_questions import NUMBERS, QA, ask, right
from vstream_ros.synthetic.shapes_world import COLOURS, DIRECTIONS, SHAPES, all_names

ONE_TOKEN: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "where": ("left", "middle", "right"),
    "direction": (*DIRECTIONS, "nowhere"),
    "count": NUMBERS,
    "ever": ("yes", "no"),
}
"""Kinds whose choices are words of one token each: all there are."""
MANY_TOKENS = ("before", "now")
"""Kinds whose choices differ in length, some the beginning of another."""
KINDS = (*ONE_TOKEN, *MANY_TOKENS)
TRIES = 2
"""Questions of a kind at a moment, as long as they differ."""
MAX_NEW_TOKENS = 48
MOST_OBJECTS = 4
"""Of a choice for ``now``."""


@dataclass(frozen=True)
class Scored:
    """One question with what came of it."""

    kind: str
    right_in_free_text: bool
    free_text: int
    """Which of the choices the free text is; -1: none."""
    truth: int
    """Which of them is right."""
    log_probabilities: list[float]
    """Of each choice: of its tokens and of the end, summed."""
    lengths: list[int]
    """Tokens of each choice, the end among them."""


def choices_for(qa: QA, rng: np.random.Generator) -> tuple[str, ...]:
    """What may be answered, the truth among them, in random order."""
    if qa.kind in ONE_TOKEN:
        options = list(ONE_TOKEN[qa.kind])
    elif qa.kind == "before":
        others = [f"a {name}" for name in all_names() if f"a {name}" != qa.answer]
        options = [*{qa.answer, "nothing"}, *rng.choice(others, 6, replace=False)]
    else:
        options = list(_views_like(qa.answer, rng))
    return tuple(str(option) for option in rng.permutation(sorted(set(options))))


def _views_like(truth: str, rng: np.random.Generator) -> set[str]:
    """Answers to what is there now: the truth, its beginnings, longer ones, and others as long."""
    there = [] if truth == "nothing" else truth.replace(" and ", ", ").split(", ")
    others = [f"a {name}" for name in rng.permutation(all_names()) if f"a {name}" not in there]
    views = [there[:k] for k in range(len(there) + 1)]
    views += [[*there, *others[:k]] for k in range(1, 3)]
    views += [[*there[:k], others[-1 - k], *there[k + 1 :]] for k in range(len(there))]
    return {truth} | {_listed(view) for view in views if len(view) <= MOST_OBJECTS}


def _listed(names: Sequence[str]) -> str:
    if not names:
        return "nothing"
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def score(moment: Moment, qa: QA, choices: Sequence[str]) -> Scored:
    """Ask one question in both ways; the clip is computed once and cached for both."""
    answerer, clips = moment.answerer, [moment.clip]
    free = answerer.answer(clips, Question(qa.question, max_new_tokens=MAX_NEW_TOKENS)).text.strip()
    running = answerer.begin(clips, Question(qa.question, choices=tuple(choices)))
    answerer.finish([running])
    assert isinstance(running.continuation, Choices)
    parts = running.continuation.token_log_probabilities
    return Scored(
        kind=qa.kind,
        right_in_free_text=right(free, qa.answer),
        free_text=choices.index(free) if free in choices else -1,
        truth=choices.index(qa.answer),
        log_probabilities=[sum(p) for p in parts],
        lengths=[len(p) for p in parts],
    )


def ask_scene(model: str, seed: int) -> list[dict[str, Any]]:
    """Play one scene and ask all kinds of questions at its moments: the fields of ``Scored`` for each."""
    found = []
    for number, moment in enumerate(moments(seed, load(model))):
        for kind in KINDS:
            rng = np.random.default_rng([seed, number, KINDS.index(kind)])
            asked: dict[str, QA] = {}
            for _ in range(TRIES):
                if (qa := ask(kind, moment.views, rng)) is not None:
                    asked[qa.question] = qa
            found += [vars(score(moment, qa, choices_for(qa, rng))) for qa in asked.values()]
    return found
