"""Answers under a JSON schema: are they all valid, and what does a token cost beside free text?

    python -m benchmarks.grammar [--answers 1000] [--pairs 200] [--out build/bench_grammar.json]

``vstream-tiny``, which was never trained on JSON, over clips of the shapes world; greedy once a clip and schema, else
sampled. Each answer is judged by the package jsonschema. For the cost, an answer under a schema and free text of as
many tokens (its end tokens taken away) follow each other over the same cached clip, in turns; all of a follow-up
counts, the matcher's start and the last check too. One thread; ten minutes on an idle machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from support.json_answers import EVENTS, SIGHTING, TREE, fault
from support.machine import machine
from support.shapes_accuracy import load, moments
from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.engine.answers import Answer, Question
from vstream_ros.errors import IncompleteAnswerError
from vstream_ros.memory import Clip
from vstream_ros.models.qwen.video_model import QwenVideoModel

SCHEMAS = {"sighting": SIGHTING, "events": EVENTS, "tree": TREE}
"""``tree`` may grow for ever: what max_new_tokens cuts is an error, and counted as such."""
MAX_NEW_TOKENS = 400
QUESTION = "What is there now?"
TEMPERATURE = 1.0
SEED = 9_500_000_000


def clips(model: QwenVideoModel) -> Iterator[tuple[ClipAnswerer, Clip]]:
    """Without end; each scene with an answerer of its own."""
    for number in itertools.count():
        for moment in moments(SEED + number, model):
            # A draft would answer the second of a pair in a pass or two.
            moment.answerer.config = dataclasses.replace(moment.answerer.config, drafts="off")
            yield moment.answerer, moment.clip


def question(schema: dict[str, Any], seed: int) -> Question:
    """Greedy for seed 0."""
    temperature = TEMPERATURE if seed else 0.0
    return Question(
        QUESTION, max_new_tokens=MAX_NEW_TOKENS, temperature=temperature, seed=seed, json_schema=json.dumps(schema)
    )


def validity(model: QwenVideoModel, answers: int, seeds: int = 5) -> list[dict[str, Any]]:
    """A row for each schema; ``answers`` in all."""
    rows: dict[str, dict[str, Any]] = {
        name: {"schema": name, "answers": 0, "valid": 0, "cut": 0, "tokens": 0, "faults": []} for name in SCHEMAS
    }
    asked = ((pair, name, seed) for pair in clips(model) for name in SCHEMAS for seed in range(seeds))
    for (answerer, clip), name, seed in track(itertools.islice(asked, answers), "asking", total=answers):
        row = rows[name]
        try:
            answer = answerer.answer([clip], question(SCHEMAS[name], seed))
        except IncompleteAnswerError:
            row["cut"] += 1
            continue
        why = fault(answer.text, SCHEMAS[name])
        row["answers"] += 1
        row["valid"] += not why
        row["tokens"] += len(answer.token_ids)
        row["faults"] += [why] if why else []
    return list(rows.values())


def cost(model: QwenVideoModel, pairs: int) -> dict[str, Any]:
    """Seconds a token, schema and free text of equal length in turns."""
    seconds: dict[str, list[float]] = {"json": [], "free": []}
    ratios = []
    for number, (answerer, clip) in track(enumerate(itertools.islice(clips(model), pairs)), "timing", total=pairs):
        under = question(SCHEMAS["events" if number % 2 else "sighting"], 0)
        length = len(answerer.answer([clip], under).token_ids)  # and the clip is cached
        taken = {}
        for kind in ("json", "free") if number % 4 < 2 else ("free", "json"):
            started = time.perf_counter()
            answer = answerer.answer([clip], under) if kind == "json" else free_text(answerer, clip, length)
            taken[kind] = (time.perf_counter() - started) / length
            assert len(answer.token_ids) == length
            seconds[kind].append(taken[kind])
        ratios.append(taken["json"] / taken["free"])
    return {
        "pairs": pairs,
        **{f"{kind}_token_s": float(np.median(values)) for kind, values in seconds.items()},
        "ratio": float(np.median(ratios)),
        "ratio_p95": float(np.percentile(ratios, 95)),
    }


def free_text(answerer: ClipAnswerer, clip: Clip, length: int) -> Answer:
    """An answer of exactly ``length`` tokens."""
    config = answerer.model.model.generation_config  # type: ignore[attr-defined]
    ends, config.eos_token_id = config.eos_token_id, None
    try:
        return answerer.answer([clip], Question(QUESTION, max_new_tokens=length))
    finally:
        config.eos_token_id = ends


def main() -> None:
    """Write ``build/bench_grammar.json``; exit 1 where an answer is not valid."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--answers", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("build/bench_grammar.json"))
    args = parser.parse_args()
    model = load("vstream-tiny")
    figures = {"machine": machine(), "cost": cost(model, args.pairs), "validity": validity(model, args.answers)}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(figures, indent=2) + "\n")
    console = Console()
    table = Table("schema", "answers", "valid", "cut by max_new_tokens", "tokens each")
    for row in figures["validity"]:
        each = row["tokens"] / max(row["answers"], 1)
        table.add_row(row["schema"], str(row["answers"]), str(row["valid"]), str(row["cut"]), f"{each:.0f}")
    console.print(table)
    measured = figures["cost"]
    console.print(
        f"a token: {measured['json_token_s'] * 1e3:.2f} ms under a schema, {measured['free_token_s'] * 1e3:.2f} ms "
        f"free, ratio {measured['ratio']:.3f} (p95 {measured['ratio_p95']:.3f}, {measured['pairs']} pairs); written to "
        f"{args.out}"
    )
    sys.exit(any(row["valid"] < row["answers"] for row in figures["validity"]))


if __name__ == "__main__":
    main()
