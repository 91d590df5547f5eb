"""Whether what was loaded is what the architecture needs: every weight, no other, and only finite numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

import torch

from vstream_ros.errors import ModelFailedError

NAMED = 3
"""Weights that an error names; it counts the others."""
CHECKED_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""What quantized weights are packed into has no numbers that are not finite, or no minimum."""


def check_loaded_weights(model: Any, loading_info: Mapping[str, Any], name: str) -> None:
    """Refuse a model that transformers loaded in spite of its checkpoint: ``ModelFailedError`` names some weights.

    Without this, weights that a checkpoint lacks are left at random values. Weights that are tied to others, and those
    that transformers itself says may be missing, are not among the missing ones.

    Args:
        model: as ``from_pretrained`` returned it, on its devices or about to be moved.
        loading_info: what ``from_pretrained`` returns with ``output_loading_info``.
        name: of the checkpoint.
    """
    # Beside its packed weights such a checkpoint has others (scales, maps), which only its quantizer knows.
    quantized = getattr(model.config, "quantization_config", None) is not None
    for key, says in (
        ("missing_keys", "are missing"),
        ("mismatched_keys", "have another shape than its config.json says"),
        ("unexpected_keys", "are unknown to its architecture"),
    ):
        wrong = [item if isinstance(item, str) else item[0] for item in loading_info.get(key) or ()]
        if wrong and not (key == "unexpected_keys" and quantized):
            raise ModelFailedError(_refusal(name, wrong, says, "fetch the checkpoint again, config.json included"))
    if wrong := not_finite(model):
        then = (
            "fetch the checkpoint again, or use another torch_dtype if they are too large for this one (bfloat16 or "
            "float32 instead of float16)"
        )
        raise ModelFailedError(_refusal(name, wrong, "are not finite", then))


def not_finite(model: Any) -> list[str]:
    """Names of the floating-point parameters with a NaN or an infinity in them.

    One pass over each where it is, without a copy of it, and one wait per device.
    """
    names: defaultdict[torch.device, list[str]] = defaultdict(list)
    extremes: defaultdict[torch.device, list[torch.Tensor]] = defaultdict(list)
    for name, tensor in model.named_parameters():
        if tensor.dtype in CHECKED_DTYPES and not tensor.is_meta and tensor.numel():
            names[tensor.device].append(name)
            extremes[tensor.device].append(torch.stack(torch.aminmax(tensor.detach())).float())
    return [
        name
        for device, held in names.items()
        for name, finite in zip(held, torch.stack(extremes[device]).isfinite().all(dim=1).tolist(), strict=True)
        if not finite
    ]


def _refusal(name: str, weights: Collection[str], says: str, then: str) -> str:
    shown = ", ".join(sorted(weights)[:NAMED])
    others = f" and {len(weights) - NAMED} more" if len(weights) > NAMED else ""
    return f"{name} can't be used: {len(weights)} of its weights {says} ({shown}{others}); {then}"
