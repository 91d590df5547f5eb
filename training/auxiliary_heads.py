"""Auxiliary targets of stage 2: what the language model's states are asked while it trains, beside the answers."""

from __future__ import annotations

from collections.abc import Sequence

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
)
from training.tiny_config import HIDDEN, TOKENS

SEEN_WEIGHT = 5.0
"""In the loss, which is a mean over all names: most of them have never been there."""
NOTHING_WEIGHT = 0.1
"""In the loss: most tokens have no object."""


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
