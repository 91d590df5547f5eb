"""From a clip to the prompt's video blocks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from vstream_ros.memory.types import NANOSECONDS, Clip, Tubelet
from vstream_ros.models.base import Segment


def clip_segments(clip: Clip, cameras: Sequence[str], block_s: float) -> list[Segment]:
    """Cut a clip into the prompt's segments.

    One camera: one block without a label, which is exactly the native prompt over one video. Several: blocks of
    ``block_s`` seconds on a fixed time grid, in time order and within one block in the order of ``cameras``, each
    behind a label. Blocks are cut by absolute time, so new tubelets only ever change the last block of each camera,
    and the KV cache of all closed blocks stays valid.
    """
    if not clip.tubelets:
        return []
    origin = min(tubelet.time_ns for tubelet in clip.tubelets)
    if len(clip.cameras) == 1:
        return [Segment(clip.tubelets, clip.second_per_grid, origin)]
    block_ns = round(block_s * NANOSECONDS)
    order = {name: index for index, name in enumerate(cameras)}

    def block_of(tubelet: Tubelet) -> tuple[int, int]:
        return tubelet.time_ns // block_ns, order[tubelet.camera]

    first_block = origin // block_ns
    segments = []
    for (block, _), group in groupby(sorted(clip.tubelets, key=lambda t: (*block_of(t), t.time_ns)), key=block_of):
        tubelets = tuple(group)
        seconds = (block - first_block) * block_s
        label = f"{tubelets[0].camera} camera, from second {seconds:g}:"
        segments.append(Segment(tubelets, clip.second_per_grid, origin, label))
    return segments
