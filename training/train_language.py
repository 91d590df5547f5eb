"""Stage 2 of training vstream-tiny: the language model on cached features, several isolated questions a clip.

A clip is computed once; its questions see it and themselves, but not each other.
"""

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

from training.batches import (
    AUX_LAYERS,
    FACTS,
    FACTS_LAYER,
    IDENTITIES,
    NAMES,
    NOTHING,
    SEEN_LAYER,
    TEXT_LAYER,
    TOKEN_TARGETS,
    TUBELET_TARGETS,
    Batch,
    BatchMaker,
)
from training.feature_pool import FeaturePool
from training.tiny_config import HIDDEN, TOKENS
from training.train_vision import save_atomically, schedule
from vstream_ros.synthetic.shapes_questions import KINDS, ask, ask_all, readings

HARD = ("before", "after", "total", "describe", "last", "ever")
"""Kinds that take the longest to learn; asked twice as often."""
ODDS = np.array([2.0 if kind in HARD else 1.0 for kind in KINDS])
ODDS /= ODDS.sum()
SEEN_WEIGHT = 5.0
"""In the loss, which is a mean over all names: most of them have never been there."""
NOTHING_WEIGHT = 0.1
"""In the loss: most tokens have no object."""


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
    learning_rate: float = 2e-3
    aux_weight: float = 1.0
    seed: int = 12

    def clips(self, tubelets: int) -> int:
        """How many clips of that length are in a batch."""
        return max(self.token_budget // (TOKENS * tubelets + 20 * self.questions), 4)


class AuxHeads(nn.Module):
    """What has happened so far, read from the tokens with objects, from each tubelet's last token and, for the whole
    clip, from the token that ends the video; thrown away after training."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleDict({str(layer): nn.RMSNorm(HIDDEN) for layer in AUX_LAYERS})
        self.tubelets = nn.ModuleDict({str(k): nn.Linear(HIDDEN, sum(sizes)) for k, sizes in TUBELET_TARGETS.items()})
        self.tokens = nn.ModuleDict({str(k): nn.Linear(HIDDEN, classes) for k, classes in TOKEN_TARGETS.items()})
        self.seen = nn.Linear(HIDDEN, len(NAMES))
        self.text = nn.Linear(HIDDEN, IDENTITIES)
        self.facts = nn.Linear(HIDDEN, sum(map(len, FACTS.values())))

    def loss(self, kept: dict[int, torch.Tensor], batch: Batch) -> torch.Tensor:
        """The mean of what video tokens are told, and that of what names are told. ``kept``: as of ``forward``."""
        losses: list[torch.Tensor | None] = []
        of_names: list[torch.Tensor | None] = []
        cut = batch.prefix_ids.shape[1]
        start = cut - batch.features.shape[1]
        for layer, states in kept.items():
            normed = self.norms[str(layer)](states)
            video, end, text = normed[:, start:cut], normed[:, cut : cut + 1], normed[:, cut:]
            lasts = video[:, TOKENS - 1 :: TOKENS]
            if layer in TOKEN_TARGETS:
                weight = torch.ones(TOKEN_TARGETS[layer])
                weight[NOTHING] = NOTHING_WEIGHT
                losses.append(_cross_entropy(self.tokens[str(layer)](video), batch.token_targets[layer], weight))
            if layer in TUBELET_TARGETS:
                labels = batch.tubelet_targets[layer]
                for hidden, known in ((lasts, labels), (end, labels[:, -1:])):
                    parts = self.tubelets[str(layer)](hidden).split(TUBELET_TARGETS[layer], dim=-1)
                    losses += [_cross_entropy(logits, known[..., k]) for k, logits in enumerate(parts)]
            if layer == SEEN_LAYER:
                logits, known = self.seen(torch.cat([lasts, end], dim=1)), batch.seen_targets
                known = torch.cat([known, known[:, -1:]], dim=1)
                told = known >= 0
                missed = nn.functional.binary_cross_entropy_with_logits(logits[told], known[told])
                losses.append(SEEN_WEIGHT * missed)
            if layer == TEXT_LAYER:
                of_names.append(_cross_entropy(self.text(text), batch.text_targets))
            if layer == FACTS_LAYER:
                parts = self.facts(text).split(list(map(len, FACTS.values())), dim=-1)
                of_names += [_cross_entropy(part, batch.fact_targets[..., k]) for k, part in enumerate(parts)]
        return _mean(losses) + _mean(of_names)


def _mean(losses: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """Of those that there are."""
    there = [loss for loss in losses if loss is not None]
    return torch.stack(there).mean() if there else torch.zeros(())


def _cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor | None:
    """Over what can be told; None where nothing can."""
    known = target >= 0
    return nn.functional.cross_entropy(logits[known], target[known], weight=weight) if known.any() else None


def decoder_layer(
    layer: Any,
    states: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    bias: torch.Tensor,
    first: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """``layer``'s output (B, tokens - first, hidden) float32 for the tokens from ``first`` on.

    ``states``: (B, tokens, hidden); ``cos`` and ``sin``: (B, tokens, 1, head size); ``bias``: ``Batch``'s; ``first``: 0
    or where the questions begin.
    """
    attention, mlp = layer.self_attn, layer.mlp
    normed = layer.input_layernorm(states).to(dtype)
    sources = ((normed[:, first:], attention.q_proj), (normed, attention.k_proj), (normed, attention.v_proj))
    query, key, value = (
        _linear(part, proj, dtype).float().unflatten(-1, (-1, attention.head_dim)) for part, proj in sources
    )
    query, key = _rotate(query, cos[:, first:], sin[:, first:]), _rotate(key, cos, sin)
    mixed = _attend(query, key, value, bias).to(dtype)
    states = states[:, first:] + _linear(mixed, attention.o_proj, dtype)
    normed = layer.post_attention_layernorm(states).to(dtype)
    gated = nn.functional.silu(_linear(normed, mlp.gate_proj, dtype)) * _linear(normed, mlp.up_proj, dtype)
    return states + _linear(gated, mlp.down_proj, dtype)


def forward(
    model: Any, batch: Batch, dtype: torch.dtype = torch.float32, layer: Callable[..., torch.Tensor] = decoder_layer
) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """The language model on a batch: (final hidden states of the questions (B, Q, hidden); by layer with auxiliary
    targets those of all tokens (B, V + Q, hidden); the first question's first token ends the video).

    The same as the model's own forward on each question apart. ``dtype``: of the large matrix products; bfloat16 is
    several times as quick where the CPU has it. Attention is float32: finding the newest tubelet takes sharp scores.
    ``layer``: ``decoder_layer``, compiled or not.
    """
    text = model.model.language_model
    cut = batch.prefix_ids.shape[1]
    states = text.embed_tokens(torch.cat([batch.prefix_ids, batch.question_ids], dim=1))
    start = cut - batch.features.shape[1]
    states = torch.cat([states[:, :start], batch.features, states[:, cut:]], dim=1)
    cos, sin = (t[:, :, None] for t in text.rotary_emb(states, batch.positions))
    kept: dict[int, torch.Tensor] = {}
    for number, weights in enumerate(text.layers, start=1):
        first = cut if number == len(text.layers) else 0  # nobody reads the prefix's last states
        states = layer(weights, states, cos, sin, batch.bias, first, dtype)
        if number in AUX_LAYERS:
            kept[number] = states
    return text.norm(states), kept


def _linear(states: torch.Tensor, layer: nn.Linear, dtype: torch.dtype) -> torch.Tensor:
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return nn.functional.linear(states, layer.weight.to(dtype), bias)


def _rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    one, other = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-other, one), dim=-1) * sin


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Grouped-query attention; all (B, tokens, heads, head size) float32, the result (B, tokens, heads x head size).

    The last queries are the questions' and see what ``bias`` says; those before, if any, see what stands before them.
    """
    query, key, value = (states.transpose(1, 2) for states in (query, key, value))
    attend = functools.partial(nn.functional.scaled_dot_product_attention, enable_gqa=True)
    asked = bias.shape[1]
    cut = key.shape[2] - asked
    mixed = attend(query[:, :, -asked:], key, value, bias[:, None])
    if query.shape[2] > asked:
        video = attend(query[:, :, :cut], key[:, :, :cut], value[:, :, :cut], is_causal=True)
        mixed = torch.cat([video, mixed], dim=2)
    return mixed.transpose(1, 2).flatten(2)


def draw_batch(
    maker: BatchMaker, pool: FeaturePool, plan: LanguagePlan, most: int, long_share: float, rng: np.random.Generator
) -> Batch:
    """Random clips of one random length with random questions."""
    tubelets = int(rng.integers(2, most + 1))
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
    start = _resume(folder, model, heads, optimizers)
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
                state = {"step": step + 1, "text": model.model.language_model.state_dict(), "heads": heads.state_dict()}
                state["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
                save_atomically(state, folder / "language.pt")


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


def _resume(folder: Path, model: Any, heads: AuxHeads, optimizers: list[torch.optim.Optimizer]) -> int:
    path = folder / "language.pt"
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.model.language_model.load_state_dict(state["text"])
    heads.load_state_dict(state["heads"])
    for optimizer, stored in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(stored)
    return int(state["step"])
