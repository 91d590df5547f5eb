"""Where a checkpoint's files are on this machine, without loading anything."""

from __future__ import annotations

from pathlib import Path

VSTREAM_TINY = "vstream-tiny"
EMBEDDED = {VSTREAM_TINY: Path(__file__).parent / "vstream_tiny"}
"""Checkpoints that are part of this package, by the names that select them."""


def local_folder(model_id: str) -> Path | None:
    """The folder of a checkpoint that is here: ``model_id`` itself, an embedded one, or the hub's cache; else None."""
    try:
        folder = Path(EMBEDDED.get(model_id, model_id)).expanduser()
        if folder.is_dir():
            return folder
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(model_id, "config.json")
    except (OSError, ValueError, RuntimeError):  # no path, no hub id (a ValueError), no home folder
        return None
    return Path(config).parent if isinstance(config, str) else None
