"""The methods that ``vstream compare`` compares: what each computes while frames stream in, and at the question.

All but native go through the same timeline and differ only in the prompt that they keep in the KV cache, which is what
sets the designs apart:

- ``native``: plain ``model.generate`` over all frames, when asked. The reference for every answer.
- ``incremental``: four frames (two tubelets) at a time become a video of their own, appended to the cache.
- ``replace``: the cache is replaced as frames come: an anchor and the current window; the frames between are forgotten.
- ``delayed``: nothing until the question, then all frames in one video. The answer is native's.
- ``streamed``: the same video, extended in the background as frames come. The answer is native's.
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from vstream_ros.engine.clip_batch import answer_alone
from vstream_ros.engine.drafts import Draft
from vstream_ros.engine.free_text import FreeText
from vstream_ros.engine.timeline import Timeline
from vstream_ros.engine.vision_cache import VisionCache
from vstream_ros.memory.clip import Clip, Tubelet
from vstream_ros.models.base import GenerationOptions, Segment
from vstream_ros.models.qwen.video_model import QwenVideoModel

CHUNK_TUBELETS = 2
"""Four frames, as in the reference's incremental mode."""
UNBOUNDED = 1 << 62


@dataclass
class MethodResult:
    """What one method did. Seconds on the steady clock."""

    method: str
    answer: str = ""
    token_ids: list[int] = field(default_factory=list)
    equals_native: bool = False
    frames: int = 0
    streaming_s: float = 0.0
    """Computing while frames came, before the question."""
    first_token_s: float = 0.0
    """Question to first token, with all encoding that was left to do."""
    first_token_warm_s: float = 0.0
    """The same for a second question about the same frames."""
    total_s: float = 0.0
    """Question to last token."""
    total_warm_s: float = 0.0
    """The same for the same question once more, with its last answer as a draft."""
    tokens_per_pass: float = 1.0
    """Tokens of that second answer for each pass of the model."""
    draft_share_right: float = 0.0
    """Of the draft's tokens, those that the model said as well."""
    cache_tokens: int = 0
    """Tokens in the KV cache when the answer begins."""
    peak_bytes: int = 0
    """Most memory above what was taken before the first frame."""


def run_methods(
    model: QwenVideoModel, clip: Clip, question: str, max_new_tokens: int, window: int
) -> Iterator[MethodResult]:
    """Run every method over the clip's tubelets, native first.

    ``window``: tubelets of the replaced cache besides its anchor. Raises torch's or Python's out-of-memory error where
    a method does not fit.
    """
    options = GenerationOptions(max_new_tokens)
    native = _run_native(model, clip, question, options)
    native.equals_native = True
    yield native
    for method, stages in _stages(clip, window).items():
        result = _run_cached(model, method, stages, question, options)
        result.equals_native = result.token_ids == native.token_ids
        yield result


def _stages(clip: Clip, window: int) -> dict[str, list[list[Segment]]]:
    """The prompts' segments of each method: after each chunk that came, and last at the question."""
    origin = clip.tubelets[0].time_ns

    def segment(tubelets: Sequence[Tubelet]) -> Segment:
        return Segment(tuple(tubelets), clip.second_per_grid, origin)

    starts = range(0, len(clip), CHUNK_TUBELETS)
    chunks = [segment(clip.tubelets[start : start + CHUNK_TUBELETS]) for start in starts]
    seen = [clip.tubelets[: start + CHUNK_TUBELETS] for start in starts]
    replaced = [segment((*part[:1], *part[1:][-window:])) for part in seen]
    return {
        "incremental": [chunks[: k + 1] for k in range(len(chunks))] + [chunks],
        "replace": [[s] for s in replaced] + [[replaced[-1]]],
        "delayed": [[segment(clip.tubelets)]],
        "streamed": [[segment(clip.tubelets[: k + 1])] for k in range(len(clip))] + [[segment(clip.tubelets)]],
    }


def _run_native(model: QwenVideoModel, clip: Clip, question: str, options: GenerationOptions) -> MethodResult:
    segments = [Segment(clip.tubelets, clip.second_per_grid, clip.tubelets[0].time_ns)]
    result = MethodResult("native", frames=clip.frame_count)
    with _PeakMemory(model.device) as peak:
        watch = _Watch()
        tokens = model.native_generate(segments, question, watch.on(options), true_time=True)
        result.total_s, result.first_token_s = watch.elapsed(), watch.first_token_s
    result.first_token_warm_s, result.total_warm_s = result.first_token_s, result.total_s  # it keeps nothing
    result.peak_bytes = peak.nbytes
    result.cache_tokens = len(model.build_prompt(segments, question, true_time=True))
    result.token_ids, result.answer = tokens, model.decode_text(tokens)
    return result


def _run_cached(
    model: QwenVideoModel, method: str, stages: list[list[Segment]], question: str, options: GenerationOptions
) -> MethodResult:
    *streaming, asked = stages
    frames = sum(len(t.stamps_ns) for segment in asked for t in segment.tubelets)
    result = MethodResult(method, frames=frames)
    with _PeakMemory(model.device) as peak:
        timeline = Timeline(model, VisionCache(model, UNBOUNDED), 8)
        watch = _Watch()
        for segments in streaming:
            timeline.sync(model.build_prompt(segments, "", true_time=True))
        result.streaming_s = watch.elapsed() if streaming else 0.0

        def ask(draft: Draft) -> tuple[FreeText, float, float]:
            """The answer, and seconds to the first and to the last token."""
            started = time.monotonic()
            prompt = model.build_prompt(asked, question, true_time=True)
            answer = answer_alone(model, timeline, prompt, options, draft)
            result.cache_tokens = len(prompt)
            return answer, answer.first_token_at - started, time.monotonic() - started

        first, result.first_token_s, result.total_s = ask(Draft())
        # What was answered once is the draft of the second time.
        again, result.first_token_warm_s, result.total_warm_s = ask(Draft(tuple(first.token_ids)))
    result.peak_bytes = peak.nbytes
    result.token_ids, result.answer = first.token_ids, model.decode_text(first.token_ids)
    result.tokens_per_pass = len(again.token_ids) / max(1, again.passes)
    result.draft_share_right = again.draft.accepted / max(1, again.draft.proposed)
    return result


class _Watch:
    """Seconds since it was made, and until the first token."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self.first_token_s = 0.0

    def elapsed(self) -> float:
        return time.monotonic() - self._started

    def on(self, options: GenerationOptions) -> GenerationOptions:
        """``options`` that report their tokens here."""
        return GenerationOptions(options.max_new_tokens, on_token=self._on_token)

    def _on_token(self, token_id: int, log_probability: float) -> bool:
        self.first_token_s = self.first_token_s or self.elapsed()
        return False


class _PeakMemory:
    """Most memory above the start within a ``with`` block: allocated on CUDA, resident on the CPU (0 if unknown)."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.nbytes = 0

    def __enter__(self) -> _PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        else:
            _release_and_reset_peak()
            self._before = _resident("VmRSS")
        return self

    def __exit__(self, *exc_info: object) -> None:
        on_cuda = self._device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self._device) if on_cuda else _resident("VmHWM")
        self.nbytes = max(0, peak - self._before)


def _release_and_reset_peak() -> None:
    """Give freed memory back to the system, so that the next method's use of it shows, and forget the peak so far."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):  # not glibc, or not permitted: the peaks are then too high, if anything
        return


def _resident(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return 0
