"""What both stages need to go on where they were interrupted: states on disk, and the learning rate at a step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def save_state(path: Path, step: int, parts: Mapping[str, Any]) -> None:
    """Write what ``load_state`` takes. ``parts``: modules and optimizers by name."""
    save_atomically({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, path)


def load_state(path: Path, parts: Mapping[str, Any]) -> int:
    """Bring ``parts`` into the state that is stored there, if any. Returns the number of steps already done."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Write a state so that an interrupted run leaves the old file, never half of the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    torch.save(state, temporary)
    temporary.replace(path)


def schedule(step: int, steps: int, warmup: int = 60) -> float:
    """Factor of the learning rate: a short linear rise, then a cosine down to 2 %."""
    part = min(step / max(steps, 1), 1.0)
    return min((step + 1) / warmup, 1.0) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * part)))
