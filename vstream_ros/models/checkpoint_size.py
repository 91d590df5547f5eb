"""How much memory a checkpoint will take, before it is loaded."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from vstream_ros.models.checkpoint_folder import local_folder


def checkpoint_bytes(model_id: str, dtype: torch.dtype) -> int | None:
    """Bytes of a checkpoint's tensors, each as ``dtype``, from the headers of its safetensors files; no tensor is read.

    Args:
        model_id: hub id, folder, or the name of an embedded checkpoint.
        dtype: what the weights will be loaded as. Quantized weights take less than this says.

    Returns:
        None where that is unknown: not downloaded yet, not complete, not safetensors.
    """
    folder = local_folder(model_id)
    try:
        files = [] if folder is None else _weight_files(folder)
        elements = sum(map(_elements, files))
    except (OSError, ValueError, KeyError, SafetensorError):
        return None
    return elements * dtype.itemsize or None


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [folder / "model.safetensors"]
    return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]


def _elements(path: Path) -> int:
    with safe_open(path, "pt") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118  (no mapping)
