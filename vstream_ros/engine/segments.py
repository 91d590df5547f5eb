"""From clips to the prompt's video blocks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from vstream_ros.memory.clip import NANOSECONDS, Clip
from vstream_ros.models.base import Segment


def clip_segments(clips: Sequence[Clip], cameras: Sequence[str], block_s: float) -> list[Segment]:
    """Cut clips, one per camera, into the prompt's segments. A segment's frames are equal in size.

    One camera: one block without a label, which is exactly the native prompt over one video; where its star has smaller
    frames, a second block behind it, whose label tells the time that passed, since positions start anew in each block.
    Several: blocks of ``block_s`` seconds on a fixed time grid, in time order and within one block in the order of
    ``cameras``, each behind a label. Blocks are cut by absolute time, so a new tubelet changes its camera's last block
    only, and the KV cache of all closed blocks stays valid.
    """
    origin_ns = min(clip.tubelets[0].time_ns for clip in clips)
    if len(clips) == 1:
        return _blocks_of_one(clips[0], origin_ns)
    block_ns = round(block_s * NANOSECONDS)
    blocks: list[tuple[int, int, Segment]] = []
    for clip in clips:
        camera = clip.tubelets[0].camera
        parts = groupby(clip.tubelets, key=lambda tubelet: (tubelet.time_ns // block_ns, tubelet.frames.shape))
        for (block, _), group in parts:
            seconds = (block - origin_ns // block_ns) * block_s
            label = f"{camera} camera, from second {seconds:g}:"
            segment = Segment(tuple(group), clip.second_per_grid, origin_ns, label)
            blocks.append((block, cameras.index(camera), segment))
    return [segment for _, _, segment in sorted(blocks, key=lambda item: item[:2])]


def _blocks_of_one(clip: Clip, origin_ns: int) -> list[Segment]:
    """One block for each run of tubelets of one size; the first without a label."""
    segments: list[Segment] = []
    for _, group in groupby(clip.tubelets, key=lambda tubelet: tubelet.frames.shape):
        tubelets = tuple(group)
        seconds = (tubelets[0].time_ns - origin_ns) / NANOSECONDS
        label = f"From second {seconds:.1f}:" if segments else ""
        segments.append(Segment(tubelets, clip.second_per_grid, origin_ns, label))
    return segments
