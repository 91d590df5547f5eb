"""Which frame sizes a model takes, also before it is loaded: a checkpoint's configuration says so. No torch."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vstream_ros.errors import FrameError
from vstream_ros.models.checkpoint_folder import local_folder


@dataclass(frozen=True)
class FrameSpec:
    """The frame sizes that a model takes."""

    factor: int = 28
    """Height and width are multiples of this (patch size x spatial merge size), in pixels."""
    min_pixels: int = 56 * 56
    max_pixels: int = 4 * 224 * 224
    temporal_patch_size: int = 2

    def fit(self, height: int, width: int) -> tuple[int, int]:
        """Size that an image must be scaled to: the family's own rule, independent of the clip's length.

        A fitting size fits unchanged. Raises ``FrameError`` for an empty image or an aspect ratio over 200.
        """
        return _fit(self.factor, self.min_pixels, self.max_pixels, height, width)

    def shrink(self, height: int, width: int, *, max_pixels: int) -> tuple[int, int]:
        """Size of at most ``max_pixels`` to which a fitting frame is scaled down, by the same rule.

        One that is small enough stays as it is, and so does one that can't be: a strip that is one factor high or wide.
        """
        if height * width <= max_pixels:
            return height, width
        try:
            smaller = _fit(self.factor, 1, max_pixels, height, width)
        except FrameError:  # rounding made the aspect ratio of a long strip longer still
            return height, width
        return smaller if smaller[0] * smaller[1] <= max_pixels else (height, width)


@functools.lru_cache(maxsize=256)
def _fit(factor: int, min_pixels: int, max_pixels: int, height: int, width: int) -> tuple[int, int]:
    # Imported late: it brings torchvision, which the other parts of the package do without.
    from qwen_vl_utils.vision_process import smart_resize

    if height < 1 or width < 1:
        raise FrameError(f"the image is empty ({width}x{height}); check the camera driver")
    try:
        fitted = smart_resize(height, width, factor=factor, min_pixels=min_pixels, max_pixels=max_pixels)
    except ValueError as error:
        raise FrameError(f"a {width}x{height} image can't be used: {error}") from error
    # Rounding down can leave 0 on the short side of a very long image.
    return max(fitted[0], factor), max(fitted[1], factor)


# Family: (patch size, greatest size in pixels of its video processor), where a checkpoint's files name none.
_DEFAULTS = {
    "qwen2_vl": (14, 28 * 28 * 768),
    "qwen2_5_vl": (14, 28 * 28 * 768),
    "qwen3_vl": (16, 32 * 32 * 768),
}


def capped_pixels(min_pixels: int, max_pixels: int, processor_size: dict[str, Any]) -> tuple[int, int]:
    """The pixels of a frame at least and at most, no more than the checkpoint's processor takes.

    It says how large a frame may be; far more would be far from what the model was trained on.
    """
    max_pixels = min(max_pixels, processor_size.get("longest_edge") or max_pixels)
    return min(min_pixels, max_pixels), max_pixels


def frame_spec_of(model_id: str, *, min_pixels: int, max_pixels: int) -> FrameSpec | None:
    """What ``load_model(...).frame_spec`` will be, from the checkpoint's files; milliseconds.

    ``model_id``: hub id, folder, or the name of an embedded checkpoint. None where the files are not here, or say
    nothing that we understand: loading it will tell.
    """
    folder = local_folder(model_id)
    if folder is None:
        return None
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        patch, longest_edge = _DEFAULTS[config["model_type"]]
        vision = config["vision_config"]
        low, high = capped_pixels(min_pixels, max_pixels, _processor_size(folder, longest_edge))
        return FrameSpec(
            factor=int(vision.get("patch_size", patch)) * int(vision.get("spatial_merge_size", 2)),
            min_pixels=low,
            max_pixels=high,
            temporal_patch_size=int(vision.get("temporal_patch_size", 2)),
        )
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return None


def _processor_size(folder: Path, longest_edge: int) -> dict[str, Any]:
    """The video processor's size: from its own file or the one that it shares, as transformers looks for it."""
    for name in ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        found = json.loads(path.read_text(encoding="utf-8"))
        if name == "processor_config.json" and (found := found.get("video_processor")) is None:
            continue
        size: dict[str, Any] = dict(found.get("size") or {"longest_edge": longest_edge})
        if found.get("max_pixels") is not None:  # as checkpoints of Qwen2 have it
            size["longest_edge"] = found["max_pixels"]
        return size
    return {}
