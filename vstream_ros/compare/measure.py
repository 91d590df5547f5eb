"""From a recording to a comparison."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable
from pathlib import Path

import torch

from vstream_ros.compare.comparison import Comparison
from vstream_ros.compare.methods import run_methods
from vstream_ros.engine.device_memory import is_out_of_memory
from vstream_ros.errors import NoFramesError, OutOfMemoryError
from vstream_ros.memory import Clip, MemoryConfig, SmartFrameManager, Verdict
from vstream_ros.models.qwen.video_model import QwenVideoModel
from vstream_ros.replay.frames import Source


def read_clip(model: QwenVideoModel, source: Source, *, frames: int, sample_rate_hz: float, stride: int) -> Clip:
    """The first frames of a recording's first topic as one clip, nothing forgotten.

    ``stride``: keep every second, fourth … frame of the sampling grid. Raises ``NoFramesError``.
    """
    # A window in which nothing slides, even if every frame were a scene of its own and sealed alone.
    memory = SmartFrameManager(MemoryConfig(stream_window_size=2 * frames, sample_rate_hz=sample_rate_hz / stride))
    for frame in source:
        if frame.topic != source.topics[0]:
            continue
        slot = memory.offer(frame.stamp_ns)
        if slot.verdict is Verdict.KEEP:
            memory.keep(slot, frame.rgb(model.frame_spec.fit))
        if memory.status().frames_kept >= frames:
            break
    clip = memory.clip()
    if not clip.tubelets:
        raise NoFramesError(f"{source.path} holds no frame that could be used")
    return clip


def compare(
    model: QwenVideoModel,
    source: Source,
    question: str,
    *,
    frames: int = 40,
    sample_rate_hz: float = 2.0,
    max_new_tokens: int = 64,
    window: int = 10,
    on_step: Callable[[str], None] = lambda what: None,
) -> Comparison:
    """Run every method; where one runs out of memory, all of them again with the frame stride doubled.

    Raises ``OutOfMemoryError`` where not even two frames fit.
    """
    comparison = Comparison(str(Path(source.path)), model.name, str(model.device), question)
    while True:
        stride = comparison.frame_stride
        clip = read_clip(model, source, frames=max(2, frames // stride), sample_rate_hz=sample_rate_hz, stride=stride)
        comparison.results = []
        try:
            on_step(f"warming up, {clip.frame_count} frames")
            for _ in run_methods(model, dataclasses.replace(clip, tubelets=clip.tubelets[:2]), question, 1, window):
                pass
            on_step("native")
            for result in run_methods(model, clip, question, max_new_tokens, window):
                comparison.results.append(result)
                on_step(f"after {result.method}")
            return comparison
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if clip.frame_count <= 2:
                raise OutOfMemoryError(f"not even {clip.frame_count} frames fit; lower max_pixels") from error
            failed = ("native", "incremental", "replace", "delayed", "streamed")[len(comparison.results)]
        comparison.notes.append(
            f"frame stride {stride}: {failed} ran out of memory with {clip.frame_count} frames; all methods were run "
            f"again with stride {2 * stride}"
        )
        comparison.frame_stride *= 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
