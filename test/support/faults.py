"""Failures of the model, injected where a test wants them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def fault_at(model: Any, call: int, error: type[Exception]) -> Iterator[list[str]]:
    """Raise at the ``call``-th forward of any of the model's modules from here on; yields where it did."""
    calls, raised = 0, []

    def count(module: torch.nn.Module, args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raised.append(type(module).__name__)
            raise error("injected")

    hooks = [module.register_forward_pre_hook(count) for module in model.modules()]
    try:
        yield raised
    finally:
        for hook in hooks:
            hook.remove()
