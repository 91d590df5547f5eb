"""Stage 2 of training vstream-tiny: the language model on cached features, several isolated questions a clip."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from training.auxiliary_heads import AuxHeads
from training.batches import Batch, BatchMaker
from training.feature_pool import FeaturePool
from training.packed_forward import decoder_layer, forward
from training.states import load_state, save_state, schedule
from training.tiny_config import TOKENS
from vstream_ros.synthetic.shapes_questions import KINDS, ask, ask_all, readings

HARD = ("before", "after", "total", "describe", "last", "ever")
"""Kinds that take the longest to learn; asked twice as often."""
ODDS = np.array([2.0 if kind in HARD else 1.0 for kind in KINDS])
ODDS /= ODDS.sum()
FULL = (20, 27)
"""Tubelets of a memory of the default sizes just after its window has slid, and just before."""


@dataclass(frozen=True)
class LanguagePlan:
    """How long and how stage 2 trains. What the shipped checkpoint was trained with stands in its model card."""

    steps: int = 7_500
    batches: int = 2
    """In a step; each has clips of one length and, where there are threads, one of its own."""
    token_budget: int = 2400
    """Of video and question tokens in a batch, roughly: decides how many clips are in it."""
    questions: int = 8
    """For each clip."""
    stages: tuple[tuple[float, int, float], ...] = (
        (0.0, 4, 0.0), (0.06, 8, 0.2), (0.15, 20, 0.5), (0.4, 40, 0.5), (0.6, 28, 0.6),
    )
    """(from this part of the steps on, most tubelets, share of long memories); at the end as many as a memory has."""
    full_share: float = 0.0
    """Of the batches have clips as long as a full memory hands out, ``FULL``."""
    learning_rate: float = 2e-3
    aux_weight: float = 1.0
    seed: int = 12

    @classmethod
    def continued(cls) -> LanguagePlan:
        """For a model that has been trained: clips as a memory has them, and smaller steps."""
        return cls(steps=3_300, stages=((0.0, 28, 0.8),), full_share=0.5, learning_rate=1e-3, seed=13)

    def clips(self, tubelets: int) -> int:
        """How many clips of that length are in a batch."""
        return max(self.token_budget // (TOKENS * tubelets + 20 * self.questions), 4)


def draw_batch(
    maker: BatchMaker, pool: FeaturePool, plan: LanguagePlan, most: int, long_share: float, rng: np.random.Generator
) -> Batch:
    """Random clips of one random length with random questions."""
    shortest, longest = FULL if rng.random() < plan.full_share else (2, most)
    tubelets = int(rng.integers(shortest, longest + 1))
    clips = [pool.clip(tubelets, rng, long_share) for _ in range(plan.clips(tubelets))]
    questions = []
    for clip in clips:
        facts = readings(clip.views)
        kinds = rng.choice(list(KINDS), size=2 * plan.questions, p=ODDS)
        asked = [qa for kind in kinds if (qa := ask(str(kind), clip.views, rng, facts)) is not None]
        questions.append(asked[: plan.questions])
    return maker.batch(clips, questions)


def train_language(
    model: Any,
    processor: Any,
    pool: FeaturePool,
    folder: Path,
    plan: LanguagePlan,
    report: Callable[[int, dict[str, float]], None],
    *,
    compiled: bool = False,
    threads: int = 1,
) -> None:
    """Train the language model in place, going on from ``folder/language.pt`` where that exists.

    ``compiled``: the layers, which takes a C++ compiler and makes a step a third shorter. ``threads``: that a step's
    batches are computed in, side by side; they decide nothing but the time.
    """
    torch.manual_seed(plan.seed)
    layer = torch.compile(decoder_layer, dynamic=True) if compiled else decoder_layer
    heads = AuxHeads()
    optimizers = make_optimizers(model.model.language_model, heads, plan)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    parts = {"text": model.model.language_model, "heads": heads, "matrices": optimizers[0], "rest": optimizers[1]}
    start = load_state(folder / "language.pt", parts)
    maker = BatchMaker(processor, model.config.video_token_id)

    def compute(step: int, number: int) -> _Gradients:
        _, most, long_share = [stage for stage in plan.stages if step >= stage[0] * plan.steps][-1]
        rng = np.random.default_rng([plan.seed, step, number])
        return _gradients(model, heads, draw_batch(maker, pool, plan, most, long_share, rng), plan, layer)

    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as workers:
        for step in range(start, plan.steps):
            for optimizer, rate in zip(optimizers, rates, strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = rate * schedule(step, plan.steps, warmup=150)
            computed = list(workers.map(functools.partial(compute, step), range(plan.batches)))
            report(step, _update(model, heads, optimizers, computed))
            if (step + 1) % 100 == 0 or step + 1 == plan.steps:
                save_state(folder / "language.pt", step + 1, parts)


@torch.no_grad()
def measure_language(model: Any, processor: Any, pool: FeaturePool, batches: int, most: int = 28) -> dict[str, float]:
    """Share of right answers by kind (``n:kind``: how many) on clips of a held-out pool, in float32.

    An answer is right if every token is the likeliest after the right ones before it: what greedy decoding gives.
    """
    maker = BatchMaker(processor, model.config.video_token_id)
    rng = np.random.default_rng(9)
    plan = LanguagePlan(questions=len(KINDS), token_budget=5000)
    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for _ in range(batches):
        tubelets = int(rng.integers(2, most + 1))
        clips = [pool.clip(tubelets, rng, 0.4) for _ in range(plan.clips(tubelets))]
        questions = [ask_all(clip.views, rng) for clip in clips]
        batch = maker.batch(clips, questions)
        hidden, _ = forward(model, batch)
        predicted = nn.functional.linear(hidden, model.model.language_model.embed_tokens.weight).argmax(-1)
        wrong = ((predicted != batch.targets) & (batch.targets >= 0)).numpy()
        owner = batch.owner.numpy()
        for k, qas in enumerate(questions):
            for number, qa in enumerate(qas):
                right[qa.kind].append(not wrong[k, owner[k] == number].any())
    shares = {kind: float(np.mean(values)) for kind, values in right.items() if values}
    return shares | {f"n:{kind}": float(len(values)) for kind, values in right.items()}


def make_optimizers(text: nn.Module, heads: AuxHeads, plan: LanguagePlan) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the embedding, norms, biases and heads."""
    matrices = [p for name, p in text.named_parameters() if p.ndim == 2 and "embed" not in name]
    chosen = {id(p) for p in matrices}
    rest = [p for p in (*text.parameters(), *heads.parameters()) if id(p) not in chosen]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(
            matrices, lr=1.5 * plan.learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=plan.learning_rate, weight_decay=0.0, betas=(0.9, 0.98)),
    ]
    return optimizers


_Gradients = tuple[list[torch.Tensor | None], dict[str, float]]
"""Of every parameter, and figures to report."""


def _parameters(model: Any, heads: AuxHeads) -> list[nn.Parameter]:
    return [*model.model.language_model.parameters(), *heads.parameters()]


def _gradients(
    model: Any, heads: AuxHeads, batch: Batch, plan: LanguagePlan, layer: Callable[..., torch.Tensor] = decoder_layer
) -> _Gradients:
    hidden, kept = forward(model, batch, torch.bfloat16, layer)
    known = batch.targets >= 0
    logits = nn.functional.linear(hidden[known], model.model.language_model.embed_tokens.weight)
    losses = nn.functional.cross_entropy(logits, batch.targets[known], reduction="none")
    weights = batch.weights[known]
    loss = (losses * weights).sum() / weights.sum()
    aux = heads.loss(kept, batch)
    gradients = torch.autograd.grad(loss + plan.aux_weight * aux, _parameters(model, heads), allow_unused=True)
    right = float((logits.argmax(-1) == batch.targets[known]).float().mean())
    return list(gradients), {"loss": float(loss.detach()), "aux": float(aux.detach()), "right": right}


def _update(
    model: Any, heads: AuxHeads, optimizers: list[torch.optim.Optimizer], computed: Sequence[_Gradients]
) -> dict[str, float]:
    """One step along the mean of the gradients; the mean of the figures."""
    for parameter, *gradients in zip(_parameters(model, heads), *(gradients for gradients, _ in computed), strict=True):
        there = [gradient for gradient in gradients if gradient is not None]
        parameter.grad = sum(there[1:], start=there[0]) / len(computed) if there else None
    nn.utils.clip_grad_norm_(_parameters(model, heads), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return {name: float(np.mean([figures[name] for _, figures in computed])) for name in computed[0][1]}
