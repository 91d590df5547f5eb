"""Stage 2 of training vstream-tiny: the language model on cached features, several isolated questions a clip.

The positions are the engine's: true times for the video tokens, text after the video at start + max(rows, columns).
A clip is computed once; its questions see it and themselves, but not each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vstream_ros.synthetic.feature_pool import Clip, FeaturePool
from vstream_ros.synthetic.questions import KINDS, QA, ask, ask_all, readings, running_targets
from vstream_ros.synthetic.shapes_world import COLOURS, SHAPES
from vstream_ros.synthetic.tiny_config import CELLS, HIDDEN, TOKENS_PER_SECOND
from vstream_ros.synthetic.train_vision import IGNORE, save_atomically, schedule

AUX_LAYER = 4
"""Decoder layers before the auxiliary heads."""
AUX_TARGETS = (len(COLOURS), len(SHAPES), len(COLOURS), len(SHAPES), len(COLOURS), len(SHAPES), 11, 5)
"""Newest object, the one before it, the first one (colour and shape each), how many there were, how many there are."""


@dataclass(frozen=True)
class LanguagePlan:
    """How long and how stage 2 trains. The defaults are what the shipped checkpoint was trained with."""

    steps: int = 3000
    token_budget: int = 6500
    """Of video and question tokens in a batch, roughly: decides how many clips are in it."""
    questions: int = 8
    """For each clip."""
    stages: tuple[tuple[float, int, float], ...] = ((0.0, 4, 0.0), (0.12, 8, 0.1), (0.35, 16, 0.2), (0.6, 28, 0.4))
    """(from this part of the steps on, tubelets at most, share of long memories)."""
    learning_rate: float = 2e-3
    aux_weight: float = 0.3
    seed: int = 12


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
    question_mask: torch.Tensor
    """(B, Q, Q) bool: sees."""
    owner: torch.Tensor
    """(B, Q): number of the question that a token belongs to, -1 for padding."""
    targets: torch.Tensor
    """(B, Q): the token that follows; IGNORE outside of answers."""
    weights: torch.Tensor
    """(B, Q): of each target in the loss."""
    aux: torch.Tensor
    """(B, tubelets, len(AUX_TARGETS))"""


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

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _known(self, text: str) -> list[int]:
        if text not in self._cache:
            self._cache[text] = self._ids(text)
        return self._cache[text]

    def batch(self, clips: Sequence[Clip], questions: Sequence[Sequence[QA]]) -> Batch:
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
            positions[:, k, len(prefix) : len(prefix) + length] = start + max(CELLS) + np.asarray(q_offsets)
            ids[k, :length], owner[k, :length] = torch.tensor(q_ids), torch.tensor(q_owner)
            targets[k, :length], weights[k, :length] = torch.tensor(q_targets), torch.tensor(q_weights)
        causal = torch.ones(longest, longest, dtype=torch.bool).tril()
        return Batch(
            prefix_ids=torch.tensor([prefix] * size),
            features=torch.stack([clip.features for clip in clips]).flatten(1, 2),
            positions=torch.from_numpy(positions),
            question_ids=ids,
            question_mask=(owner[:, :, None] == owner[:, None, :]) & causal,
            owner=owner,
            targets=targets,
            weights=weights,
            aux=torch.from_numpy(np.stack([_aux_labels(clip) for clip in clips])),
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


def _aux_labels(clip: Clip) -> np.ndarray:
    table = np.full((len(clip.views), len(AUX_TARGETS)), IGNORE, dtype=np.int64)
    colours = list(COLOURS)
    for k, (view, order) in enumerate(zip(clip.views, running_targets(clip.views), strict=True)):
        here, perhaps = sum(s.here for s in view), sum(s.glimpsed for s in view)
        table[k, 7] = here if here == perhaps else IGNORE
        if order is None:
            continue
        table[k, 6] = min(len(order), 10)
        for slot, name in ((0, order[-1:]), (2, order[-2:-1]), (4, order[:1])):
            for colour, shape in (n.split() for n in name):
                table[k, slot], table[k, slot + 1] = colours.index(colour), SHAPES.index(shape)
    return table


class AuxHeads(nn.Module):
    """What has happened so far, read from each tubelet's last token and, for the whole clip, from the token that ends
    the video; thrown away after training."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(HIDDEN)
        self.out = nn.Linear(HIDDEN, sum(AUX_TARGETS))

    def loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """``hidden``: (B, tubelets, hidden)."""
        total = hidden.new_zeros((), dtype=torch.float32)
        parts = self.out(self.norm(hidden.float())).split(AUX_TARGETS, dim=-1)
        for k, logits in enumerate(parts):
            target = labels[..., k]
            if (target >= 0).any():
                total = total + nn.functional.cross_entropy(logits[target >= 0].float(), target[target >= 0])
        return total / len(parts)


def forward(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The language model on a batch: (final hidden states of the questions (B, Q, hidden); after ``AUX_LAYER`` layers,
    those of the prefix and of the first question's first token, which ends the video (B, V + 1, hidden)).

    The same as the model's own forward on each question apart.
    """
    text = model.model.language_model
    size, cut = batch.prefix_ids.shape
    prefix = text.embed_tokens(batch.prefix_ids)
    prefix = torch.cat([prefix[:, : cut - batch.features.shape[1]], batch.features.to(prefix.dtype)], dim=1)
    asked = text.embed_tokens(batch.question_ids)
    cos, sin = text.rotary_emb(prefix, batch.positions)
    cos, sin = cos[:, None], sin[:, None]
    causal = torch.ones(cut, cut, dtype=torch.bool).tril()
    sees_prefix = torch.ones(size, asked.shape[1], cut, dtype=torch.bool)
    sees = torch.cat([sees_prefix, batch.question_mask], dim=2)[:, None]
    kept = prefix
    for number, layer in enumerate(text.layers):
        attention = layer.self_attn
        states = layer.input_layernorm(torch.cat([prefix, asked], dim=1))
        query, key, value = (
            proj(states).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            for proj in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        if number + 1 < len(text.layers):
            seen = _mix(query[:, :, :cut], key[:, :, :cut], value[:, :, :cut], causal)
            prefix = prefix + attention.o_proj(seen)
            prefix = prefix + layer.mlp(layer.post_attention_layernorm(prefix))
        answered = _mix(query[:, :, cut:], key, value, sees)
        asked = asked + attention.o_proj(answered)
        asked = asked + layer.mlp(layer.post_attention_layernorm(asked))
        if number + 1 == AUX_LAYER:
            kept = torch.cat([prefix, asked[:, :1]], dim=1)
    return text.norm(asked), kept


def _rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    one, other = states.chunk(2, dim=-1)
    return (states * cos + torch.cat((-other, one), dim=-1) * sin).to(states.dtype)


def _mix(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sees: torch.Tensor) -> torch.Tensor:
    scores = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
    scores = scores.masked_fill(~sees, float("-inf")).softmax(-1).to(value.dtype)
    return (scores @ value).transpose(1, 2).flatten(2)


def draw_batch(
    maker: BatchMaker, pool: FeaturePool, plan: LanguagePlan, most: int, long_share: float, rng: np.random.Generator
) -> Batch:
    """Random clips of one random length with random questions."""
    tubelets = int(rng.integers(2, most + 1))
    per_clip = 12 * tubelets + 20 * plan.questions
    clips = [pool.clip(tubelets, rng, long_share) for _ in range(max(plan.token_budget // per_clip, 4))]
    questions = []
    for clip in clips:
        facts = readings(clip.views)
        kinds = [KINDS[k] for k in rng.permutation(len(KINDS))]
        asked = [qa for kind in kinds if (qa := ask(kind, clip.views, rng, facts)) is not None]
        questions.append(asked[: plan.questions])
    return maker.batch(clips, questions)


def train_language(
    model: Any,
    processor: Any,
    pool: FeaturePool,
    folder: Path,
    plan: LanguagePlan,
    report: Callable[[int, dict[str, float]], None],
) -> None:
    """Train the language model in place, going on from ``folder/language.pt`` where that exists."""
    torch.manual_seed(plan.seed)
    heads = AuxHeads()
    parameters = [*model.model.language_model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=plan.learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    start = _resume(folder, model, heads, optimizer)
    maker = BatchMaker(processor, model.config.video_token_id)
    rng = np.random.default_rng([plan.seed, start])
    for step in range(start, plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * schedule(step, plan.steps)
        _, most, long_share = [stage for stage in plan.stages if step >= stage[0] * plan.steps][-1]
        figures = _step(model, heads, optimizer, parameters, draw_batch(maker, pool, plan, most, long_share, rng), plan)
        report(step, figures)
        if (step + 1) % 100 == 0 or step + 1 == plan.steps:
            state = {"step": step + 1, "text": model.model.language_model.state_dict(), "heads": heads.state_dict()}
            save_atomically({**state, "optimizer": optimizer.state_dict()}, folder / "language.pt")


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
        count = max(plan.token_budget // (12 * tubelets + 20 * plan.questions), 4)
        clips = [pool.clip(tubelets, rng, 0.4) for _ in range(count)]
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


def _step(
    model: Any, heads: AuxHeads, optimizer: Any, parameters: list[Any], batch: Batch, plan: LanguagePlan
) -> dict[str, float]:
    with torch.autocast("cpu", torch.bfloat16):
        hidden, kept = forward(model, batch)
        known = batch.targets >= 0
        logits = nn.functional.linear(hidden[known], model.model.language_model.embed_tokens.weight).float()
    losses = nn.functional.cross_entropy(logits, batch.targets[known], reduction="none")
    weights = batch.weights[known]
    loss = (losses * weights).sum() / weights.sum()
    tokens = CELLS[0] * CELLS[1]
    tubelets = batch.aux.shape[1]
    video = kept[:, -1 - tokens * tubelets : -1]
    aux = heads.loss(video[:, tokens - 1 :: tokens], batch.aux) + heads.loss(kept[:, -1:], batch.aux[:, -1:])
    optimizer.zero_grad()
    (loss + plan.aux_weight * aux).backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    right = float((logits.argmax(-1) == batch.targets[known]).float().mean())
    return {"loss": float(loss.detach()), "aux": float(aux.detach()), "right": right}


def _resume(folder: Path, model: Any, heads: AuxHeads, optimizer: torch.optim.Optimizer) -> int:
    path = folder / "language.pt"
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.model.language_model.load_state_dict(state["text"])
    heads.load_state_dict(state["heads"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
