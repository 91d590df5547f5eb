"""From clips to the prompt's video blocks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from vstream_ros.memory.clip import NANOSECONDS, Clip
from vstream_ros.models.base import Segment


def clip_segments(clips: Sequence[Clip], cameras: Sequence[str], block_s: float) -> list[Segment]:
    """Cut clips, one per camera, into the prompt's segments.

    One camera: one block without a label, which is exactly the native prompt over one video. Several: blocks of
    ``block_s`` seconds on a fixed time grid, in time order and within one block in the order of ``cameras``, each
    behind a label. Blocks are cut by absolute time, so a new tubelet changes its camera's last block only, and the
    KV cache of all closed blocks stays valid.
    """
    origin_ns = min(clip.tubelets[0].time_ns for clip in clips)
    if len(clips) == 1:
        return [Segment(clips[0].tubelets, clips[0].second_per_grid, origin_ns)]
    block_ns = round(block_s * NANOSECONDS)
    blocks: list[tuple[int, int, Segment]] = []
    for clip in clips:
        camera = clip.tubelets[0].camera
        for block, group in groupby(clip.tubelets, key=lambda tubelet: tubelet.time_ns // block_ns):
            seconds = (block - origin_ns // block_ns) * block_s
            label = f"{camera} camera, from second {seconds:g}:"
            segment = Segment(tuple(group), clip.second_per_grid, origin_ns, label)
            blocks.append((block, cameras.index(camera), segment))
    return [segment for _, _, segment in sorted(blocks, key=lambda item: item[:2])]
