"""The architecture of vstream-tiny: Qwen2.5-VL, very small."""

from __future__ import annotations

from typing import Any

FRAME_SIZE = (84, 112)
"""(height, width) in pixels of the frames it is trained on: what 640x480 becomes within ``MAX_PIXELS``."""
MAX_PIXELS = 9800
"""A little more than 84 x 112, so that rounding never costs a 4:3 image a row of patches."""
MIN_PIXELS = 56 * 56
PATCH, MERGE, TEMPORAL_PATCH = 14, 2, 2
CELLS = (FRAME_SIZE[0] // (PATCH * MERGE), FRAME_SIZE[1] // (PATCH * MERGE))
"""Rows and columns of tokens of one tubelet."""
TOKENS = CELLS[0] * CELLS[1]
HIDDEN = 128
CONTEXT = 4096
TOKENS_PER_SECOND = 2

VISION: dict[str, Any] = {
    "depth": 4,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_heads": 4,
    "out_hidden_size": HIDDEN,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "temporal_patch_size": TEMPORAL_PATCH,
    # Four pixels' windows in a frame, of 16, 16, 8 and 8 patches; every second block sees the whole frame.
    "window_size": 56,
    "fullatt_block_indexes": [1, 3],
    "tokens_per_second": TOKENS_PER_SECOND,
    "initializer_range": 0.04,
}
TEXT: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 384,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    # Half of the frequencies for time: the slowest has a wavelength of 2,650 ids, 22 minutes at 2 ids a second.
    "rope_parameters": {"rope_type": "default", "mrope_section": [8, 4, 4], "rope_theta": 1e6},
    "initializer_range": 0.05,
    "tie_word_embeddings": True,
}
