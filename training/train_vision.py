"""Stage 1 of training vstream-tiny: the vision tower alone, on single tubelets, with heads that are thrown away.

Every token answers for its own part of the image: is an object's centre here, of which colour and shape, how does it
move, in which third of the image. That is a dense target; from answers alone the tower learns colours in an hour and
shapes and directions never.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from training.parallel import in_processes
from training.states import load_state, save_state, schedule
from training.tiny_config import CELLS, FRAME_SIZE, HIDDEN, TOKENS
from training.tower import encode_tubelets
from vstream_ros.synthetic.shapes_world import COLOURS, COUNTABLE, OPPOSITE, PLACES, SHAPES, Scene
from vstream_ros.synthetic.sightings import GLIMPSED, SEEN, Sighting, camera_frame, sightings

MOTIONS = ("left", "right", "up", "down", "nowhere")
TARGETS = {"state": 3, "colour": len(COLOURS), "shape": len(SHAPES), "motion": len(MOTIONS), "place": len(PLACES)}
"""Classes of each head. state: nothing, here at the end, gone by the end."""
IGNORE = -100
CAMERAS = ((480, 640), (240, 320), (168, 224))


@dataclass(frozen=True)
class VisionPlan:
    """How long and how stage 1 trains. What the shipped checkpoint was trained with stands in its model card."""

    steps: int = 2500
    batch: int = 96
    fresh: int = 80
    """New tubelets in each batch; the rest are drawn again from the newest ``buffer``. With 24 of 96 shapes were 98 %
    right on what was drawn again and 85 % on new tubelets."""
    buffer: int = 12_000
    learning_rate: float = 1.5e-3
    seed: int = 11


def label(seen: tuple[Sighting, ...]) -> np.ndarray:
    """(tokens, len(TARGETS)) classes of one tubelet's tokens; IGNORE where nothing can be told."""
    table = np.full((TOKENS, len(TARGETS)), IGNORE, dtype=np.int64)
    table[:, 0] = 0
    for sighting in seen:
        cell = table[token_of(sighting)]
        if not sighting.seen:
            if sighting.glimpsed:
                cell[0] = IGNORE
            continue
        if GLIMPSED <= sighting.after < SEEN:
            cell[0] = IGNORE
        else:
            cell[0] = 1 if sighting.here else 2
        cell[1] = list(COLOURS).index(sighting.visit.colour)
        cell[2] = SHAPES.index(sighting.visit.shape)
        cell[3] = IGNORE if sighting.motion is None else MOTIONS.index(sighting.motion)
        if sighting.here and sighting.place is not None:
            cell[4] = PLACES.index(sighting.place)
    return table


def token_of(sighting: Sighting) -> int:
    """Number of the tubelet's token that has the object's centre, or is nearest to it."""
    return token_at(sighting.x, sighting.y)


def token_at(x: float, y: float) -> int:
    """The same of a point, in widths."""
    rows, columns = CELLS
    row = min(max(int(y * columns), 0), rows - 1)
    return row * columns + min(max(int(x * columns), 0), columns - 1)


def mirror(frames: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A tubelet (2, H, W, 3) and its labels, left and right exchanged."""
    labels = labels.reshape(*CELLS, -1)[:, ::-1].reshape(labels.shape).copy()
    swap = np.array([MOTIONS.index(OPPOSITE.get(m, m)) if m in ("left", "right") else k for k, m in enumerate(MOTIONS)])
    known = labels[:, 3] >= 0
    labels[known, 3] = swap[labels[known, 3]]
    known = labels[:, 4] >= 0
    labels[known, 4] = 2 - labels[known, 4]
    return frames[:, :, ::-1], labels


class TubeletSampler:
    """An endless stream of labelled single tubelets, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 100])
        self._seed = seed * 1_000_003

    def draw(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(count, 2, height, width, 3) uint8 frames and (count, tokens, len(TARGETS)) labels."""
        frames: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        while len(frames) < count:
            self._seed += 1
            scene = Scene(self._seed, 24.0, gap_s=float(self._rng.uniform(1.0, 4.0)), visits=COUNTABLE)
            camera = CAMERAS[int(self._rng.choice(3, p=[0.2, 0.4, 0.4]))] if self._rng.random() < 0.2 else None
            for _ in range(8):
                first = float(self._rng.uniform(0.0, 23.0))
                second = first + (0.5 if self._rng.random() < 0.95 else 0.0)
                seen = sightings(scene, first, second)
                if not seen and self._rng.random() < 0.7:
                    continue
                frames.append(np.stack([camera_frame(scene, t, FRAME_SIZE, camera) for t in (first, second)]))
                labels.append(label(seen))
        return np.stack(frames[:count]), np.stack(labels[:count])


class Heads(nn.Module):
    """One linear classifier a target on each token."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(HIDDEN, classes) for name, classes in TARGETS.items()})

    def loss(self, features: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        """Summed cross entropies, and the share of right tokens by target (of the object's tokens; state: of all)."""
        total = features.new_zeros((), dtype=torch.float32)
        right: dict[str, float] = {}
        for k, (name, head) in enumerate(self.heads.items()):
            logits, target = head(features).float().flatten(0, 1), labels[..., k].flatten()
            known = target >= 0
            if known.any():
                total = total + nn.functional.cross_entropy(logits[known], target[known])
                right[name] = float((logits[known].argmax(-1) == target[known]).float().mean())
        return total, right


def train_vision(
    tower: Any, folder: Path, plan: VisionPlan, report: Callable[[int, dict[str, float]], None]
) -> dict[str, float]:
    """Train ``tower`` in place, going on from ``folder/vision.pt`` where that exists.

    ``report(step, figures)`` is called after each step. Returns the figures on held-out tubelets.
    """
    torch.manual_seed(plan.seed)
    heads = Heads()
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=plan.learning_rate, weight_decay=0.02, betas=(0.9, 0.98))
    parts = {"tower": tower, "heads": heads, "optimizer": optimizer}
    start = load_state(folder / "vision.pt", parts)
    rng = np.random.default_rng([plan.seed, start])
    frames: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    steps = range(start, plan.steps)
    drawn = in_processes(_draw, ((plan.seed * 100_000 + step, plan.fresh) for step in steps), processes=1)
    for step, (new_frames, new_labels) in zip(steps, drawn, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * schedule(step, plan.steps)
        frames = (frames + list(new_frames))[-plan.buffer :]
        labels = (labels + list(new_labels))[-plan.buffer :]
        newest = range(len(frames) - plan.fresh, len(frames))
        chosen = [*newest, *rng.integers(len(frames), size=plan.batch - plan.fresh)]
        pairs = [mirror(frames[k], labels[k]) if rng.random() < 0.5 else (frames[k], labels[k]) for k in chosen]
        with torch.autocast("cpu", torch.bfloat16):
            features = encode_tubelets(tower, np.stack([pair[0] for pair in pairs]))
        loss, right = heads.loss(features.float(), torch.from_numpy(np.stack([pair[1] for pair in pairs])))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        report(step, {"loss": float(loss.detach()), **right})
        if (step + 1) % 250 == 0 or step + 1 == plan.steps:
            save_state(folder / "vision.pt", step + 1, parts)
    return measure(tower, heads)


def _draw(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    return TubeletSampler(seed).draw(count)


@torch.no_grad()
def measure(tower: Any, heads: Heads, seed: int = 987_654, count: int = 600) -> dict[str, float]:
    """Share of right tokens by target on tubelets that were never trained on."""
    frames, labels = TubeletSampler(seed).draw(count)
    features = torch.cat([encode_tubelets(tower, frames[k : k + 100]) for k in range(0, count, 100)])
    return heads.loss(features, torch.from_numpy(labels))[1]
