"""Questions about the shapes world, and the answers that the frames shown to a model support.

A clip is a sequence of tubelets' sightings. What it supports is read in several ways: an object of which a corner
shows may count as seen or not, and of two that are first seen together either may be the first. A question is asked
only where all readings agree on its answer; so every answer is right or wrong, never a matter of taste.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vstream_ros.synthetic.shapes_world import COLOURS, OPPOSITE, SHAPES, Visit, all_names
from vstream_ros.synthetic.sightings import GLIMPSED, SEEN, Sighting

View = tuple[Sighting, ...]
"""What one tubelet shows."""

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ORIGINS = {"right": "from the left", "left": "from the right", "down": "from above", "up": "from below"}
"""Where an object comes from that moves in a direction."""

PHRASINGS: dict[str, tuple[str, ...]] = {
    "now": ("What is there now?", "What do you see now?", "Which objects are there now?", "What is in the image now?"),
    "colour": ("What colour is the {}?", "Which colour does the {} have?", "What is the colour of the {}?"),
    "shape": ("What shape is the {} object?", "Which shape does the {} object have?", "What is the {} object?"),
    "direction": ("Which way does the {} move?", "Where does the {} move to?", "In which direction does the {} move?"),
    "where": ("Where is the {}?", "Where is the {} now?", "In which part of the image is the {}?"),
    "first": ("What was the first object?", "What came first?", "Which object was there first?"),
    "last": ("What was the last object to come?", "What came last?", "Which object is the newest?"),
    "ever": ("Was there ever a {}?", "Did you see a {}?", "Has a {} been there?", "Was there a {}?"),
    "before": ("What came before the {}?", "Which object came just before the {}?", "What was there before the {}?"),
    "after": ("What came after the {}?", "Which object came just after the {}?", "What followed the {}?"),
    "count": ("How many objects are there now?", "How many objects do you see now?", "Count the objects now."),
    "total": (
        "How many objects came in all?", "How many objects have you seen?", "How many objects were there in all?",
    ),
    "describe": ("Describe what happened.", "What happened?", "Tell me what happened.", "Describe the video."),
}
KINDS = tuple(PHRASINGS)
ONE_WORD = ("colour", "shape", "direction", "where", "ever", "count", "total")
"""Kinds whose answer is one word."""


@dataclass(frozen=True)
class QA:
    """One question with the only right answer."""

    kind: str
    question: str
    answer: str


@dataclass(frozen=True)
class Facts:
    """One reading of a clip."""

    order: tuple[Visit, ...]
    """Objects by the tubelet that shows them first."""
    first_motion: dict[str, str | None]
    """By name, in the tubelet that shows the object first."""
    now: View
    """What is there at the end."""


def readings(views: Sequence[View]) -> list[Facts]:
    """All readings of a clip (see the module): 4, of which most clips make one and the same.

    Where an object's name returns it may be the same object again or another one like it: 8 readings. So "ever" and
    "now" can be asked of every clip, the rest only where it makes no difference.
    """
    visits = {(s.visit.name, s.visit.index) for view in views for s in view}
    identities: list[Callable[[Visit], Hashable]] = [lambda visit: visit.name]
    if len({name for name, _ in visits}) < len(visits):
        identities.append(lambda visit: visit.index)
    return [reading for identity in identities for reading in _readings(views, identity)]


def _readings(views: Sequence[View], identity: Callable[[Visit], Hashable]) -> list[Facts]:
    """The readings if objects are told apart by ``identity``."""
    facts = []
    for certain in (True, False):
        first: dict[Hashable, tuple[int, Sighting]] = {}
        for k, view in enumerate(views):
            for sighting in view:
                if (sighting.seen if certain else sighting.glimpsed) and identity(sighting.visit) not in first:
                    first[identity(sighting.visit)] = (k, sighting)
        last = views[-1]
        now = tuple(s for s in last if (s.here if certain else s.glimpsed))
        motions = {sighting.visit.name: sighting.motion for _, sighting in reversed(first.values())}
        for sign in (1, -1):
            ordered = sorted(first.values(), key=lambda item: (item[0], sign * item[1].visit.index))
            facts.append(Facts(tuple(sighting.visit for _, sighting in ordered), motions, now))
    return facts


def _listed(names: Sequence[str]) -> str:
    """``a red circle, a blue square and a green cross``"""
    named = [f"a {name}" for name in names]
    return named[0] if len(named) == 1 else ", ".join(named[:-1]) + " and " + named[-1]


def from_left_to_right(view: Sequence[Sighting]) -> list[Sighting] | None:
    """None where objects stand one above the other: they have no such order."""
    ordered = sorted(view, key=lambda s: s.x)
    return None if any(b.x - a.x < 0.06 for a, b in itertools.pairwise(ordered)) else ordered


def _now(facts: Facts, subject: str) -> str | None:
    if not facts.now:
        return "nothing"
    ordered = from_left_to_right(facts.now)
    return None if ordered is None else _listed([s.visit.name for s in ordered])


def _present(facts: Facts, subject: str) -> Sighting | None:
    """The one object there now that a subject such as ``object``, ``square``, ``red`` or ``red square`` means."""
    found = [s for s in facts.now if subject in ("object", s.visit.shape, s.visit.colour, s.visit.name)]
    return found[0] if len(found) == 1 else None


def _colour(facts: Facts, subject: str) -> str | None:
    sighting = _present(facts, subject)
    return sighting.visit.colour if sighting else None


def _shape(facts: Facts, subject: str) -> str | None:
    sighting = _present(facts, subject)
    return sighting.visit.shape if sighting else None


def _direction(facts: Facts, subject: str) -> str | None:
    sighting = _present(facts, subject)
    return sighting.motion if sighting else None


def _where(facts: Facts, subject: str) -> str | None:
    sighting = _present(facts, subject)
    return sighting.place if sighting else None


def _first(facts: Facts, subject: str) -> str | None:
    return _listed([facts.order[0].name]) if facts.order else "nothing"


def _last(facts: Facts, subject: str) -> str | None:
    return _listed([facts.order[-1].name]) if facts.order else "nothing"


def _ever(facts: Facts, subject: str) -> str | None:
    return "yes" if any(visit.name == subject for visit in facts.order) else "no"


def _neighbour(facts: Facts, subject: str, step: int) -> str | None:
    names = [visit.name for visit in facts.order]
    if names.count(subject) != 1:
        return None
    place = names.index(subject) + step
    return _listed([names[place]]) if 0 <= place < len(names) else "nothing"


def _describe(facts: Facts, subject: str) -> str | None:
    if not facts.order:
        return "nothing happened"
    parts = []
    for visit in facts.order:
        motion = facts.first_motion[visit.name]
        if motion is None:
            return None
        parts.append(f"a {visit.name} " + ("stood there" if motion == "nowhere" else f"came {ORIGINS[motion]}"))
    return ", then ".join(parts)


_ANSWERS: dict[str, Callable[[Facts, str], str | None]] = {
    "now": _now,
    "colour": _colour,
    "shape": _shape,
    "direction": _direction,
    "where": _where,
    "first": _first,
    "last": _last,
    "ever": _ever,
    "before": lambda facts, subject: _neighbour(facts, subject, -1),
    "after": lambda facts, subject: _neighbour(facts, subject, 1),
    "count": lambda facts, subject: NUMBERS[len(facts.now)],
    "total": lambda facts, subject: NUMBERS[len(facts.order)] if len(facts.order) < len(NUMBERS) else None,
    "describe": _describe,
}


def answer(kind: str, subject: str, facts: Sequence[Facts]) -> str | None:
    """The answer that all readings agree on; None where they don't or the question makes no sense.

    ``subject``: what the question is about, such as ``red circle``; empty for the kinds without one.
    """
    return _agreed(_ANSWERS[kind](reading, subject) for reading in facts)


def first_motion(name: str, facts: Sequence[Facts]) -> str | None:
    """How an object came, by the motion that all readings agree on; None where they don't, or it never came."""
    return _agreed(reading.first_motion.get(name) for reading in facts)


def _agreed(answers: Iterable[str | None]) -> str | None:
    different = set(answers)
    return different.pop() if len(different) == 1 else None


def _subjects(kind: str, facts: Sequence[Facts], rng: np.random.Generator) -> list[str]:
    """What a question of a kind may be about, the first to try first."""
    here = [s.visit for s in facts[0].now]
    seen = [visit.name for visit in facts[0].order]
    if kind == "colour":
        subjects = [visit.shape for visit in here] + ["object"]
    elif kind == "shape":
        subjects = [visit.colour for visit in here]
    elif kind in ("direction", "where"):
        subjects = [visit.name for visit in here] + ["object"]
    elif kind in ("before", "after"):
        subjects = list(seen)
    elif kind == "ever":
        if seen and rng.random() < 0.5:
            subjects = list(seen)
        else:
            subjects = [name for name in all_names() if name not in seen]
            colours, shapes = {n.split()[0] for n in seen}, {n.split()[1] for n in seen}
            # Half of them are made of a colour and a shape that were both there, but not together.
            near = [n for n in subjects if n.split()[0] in colours and n.split()[1] in shapes]
            subjects = near if near and rng.random() < 0.5 else subjects
    else:
        return [""]
    rng.shuffle(subjects)
    return subjects


def subject_of(kind: str, facts: Sequence[Facts], rng: np.random.Generator) -> tuple[str, str] | None:
    """A random subject that a question of a kind can be about, with its only right answer; None where there is none."""
    for subject in _subjects(kind, facts, rng):
        right = answer(kind, subject, facts)
        if right is not None:
            return subject, right
    return None


def ask(kind: str, views: Sequence[View], rng: np.random.Generator, facts: Sequence[Facts] | None = None) -> QA | None:
    """A random question of a kind about a clip; None where the clip supports none.

    ``facts``: ``readings(views)`` where they are known already.
    """
    facts = readings(views) if facts is None else facts
    found = subject_of(kind, facts, rng)
    if found is None:
        return None
    phrasing = PHRASINGS[kind][int(rng.integers(len(PHRASINGS[kind])))]
    return QA(kind, phrasing.format(found[0]), found[1])


def ask_all(views: Sequence[View], rng: np.random.Generator) -> list[QA]:
    """One question of every kind that the clip supports."""
    facts = readings(views)
    return [qa for kind in KINDS if (qa := ask(kind, views, rng, facts)) is not None]


NONE = ""
"""In ``Running``: there is no such object."""


@dataclass(frozen=True)
class Running:
    """What has happened up to and with one tubelet; names, ``NONE``, or None where readings disagree."""

    arrived: str | None
    """First seen in this tubelet."""
    newest: str | None
    previous: str | None
    """Came before the newest."""
    first: str | None
    total: int | None
    """How many objects have been seen."""
    seen: frozenset[str]
    doubtful: frozenset[str]
    """Whether they have been seen readings disagree."""


def running(views: Sequence[View]) -> list[Running]:
    """The state after each tubelet: the targets of stage 2's auxiliary heads."""
    states = []
    for one, two in zip(_running(views, SEEN), _running(views, GLIMPSED), strict=True):
        agreed = {
            field: getattr(one, field) if getattr(one, field) == getattr(two, field) else None
            for field in ("arrived", "newest", "previous", "first", "total")
        }
        states.append(Running(**agreed, seen=one.seen, doubtful=two.seen - one.seen))
    return states


def _running(views: Sequence[View], threshold: float) -> list[Running]:
    groups: list[list[str]] = []
    """Objects that arrived in the same tubelet, whose order nobody can tell."""
    states = []

    def only(group: list[str]) -> str | None:
        return group[0] if len(group) == 1 else None

    for view in views:
        known = {name for group in groups for name in group}
        seen = [s.visit.name for s in view if max(s.before, s.after) >= threshold]
        new = [name for name in seen if name not in known]
        if new:
            groups.append(new)
        newest = only(groups[-1]) if groups else NONE
        before = None if newest is None else only(groups[-2]) if len(groups) > 1 else NONE
        states.append(
            Running(
                arrived=only(new) if new else NONE,
                newest=newest,
                previous=before,
                first=only(groups[0]) if groups else NONE,
                total=sum(map(len, groups)),
                seen=frozenset(known.union(new)),
                doubtful=frozenset(),
            )
        )
    return states


def right(predicted: str, expected: str) -> bool:
    """Whether an answer is right: every fact of it, in the right order."""
    return predicted.strip().rstrip(".").lower() == expected


def corpus() -> list[str]:
    """Texts with every word of the questions and answers, for the tokenizer."""
    names = all_names()
    texts = [p.format(name) for ps in PHRASINGS.values() for p in ps for name in (*names, "object", *COLOURS, *SHAPES)]
    texts += [_listed(names[k : k + 3]) for k in range(len(names))]
    texts += [f"a {n} came {origin}, then a {n} stood there" for n in names for origin in ORIGINS.values()]
    words = [*NUMBERS, *OPPOSITE, *COLOURS, *SHAPES]
    return [*texts, *words, "middle", "nowhere", "nothing", "nothing happened", "yes", "no"]
