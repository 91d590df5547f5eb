"""Randomised streams: memory grows, slides, is cleared and asked about, and every answer is compared with native's."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from support.controls import CONTROLS
from support.equality import Comparison, cached_answer, compare, native_answer
from support.frames import random_frame
from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.engine.answers import Question
from vstream_ros.engine.engine_config import EngineConfig
from vstream_ros.engine.feature_importance import FeatureImportance
from vstream_ros.memory import Clip, MemoryConfig, SmartFrameManager
from vstream_ros.memory.clip import NANOSECONDS
from vstream_ros.models.qwen.video_model import QwenVideoModel

WORDS = ["what", "who", "where", "when", "is", "the", "red", "car", "person", "left", "door", "before", "after", "seen"]


def random_question(rng: np.random.Generator, max_new_tokens: int = 6) -> Question:
    """A few words, sometimes with what looks like a control token."""
    words = list(rng.choice(WORDS, int(rng.integers(1, 8))))
    if rng.random() < 0.2:
        words.append("<|video_pad|>")
    return Question(" ".join(words) + "?", max_new_tokens=max_new_tokens)


@dataclasses.dataclass
class StreamResult:
    """One randomised stream: every answer's comparison, and each control's largest logit difference."""

    comparisons: list[Comparison]
    controls: dict[str, float]
    reweighed: int = 0
    """Tubelets whose importance was measured again by their features."""


class RandomStream:
    """Cameras with memories of random parameters, fed at random, and an answerer over them."""

    def __init__(
        self, model: QwenVideoModel, rng: np.random.Generator, cameras: int, text_positions: str, *,
        by_features: bool = False,
    ) -> None:
        """``by_features``: importance is measured again by vision features, as soon as they are there."""
        self._rng = rng
        self._update_rng = np.random.default_rng(rng.bit_generator.seed_seq.spawn(1)[0])  # type: ignore[attr-defined]
        self.names = [f"camera{k}" for k in range(cameras)]
        memory = MemoryConfig(
            star_memory_size=int(rng.choice([2, 4, 6])),
            stream_window_size=int(rng.choice([2, 4, 8])),
            stream_slide=int(rng.integers(1, 4)),
            sample_rate_hz=2.0 if rng.random() < 0.5 else None,
            include_pending=bool(rng.random() < 0.7),
            scene_threshold=float(rng.choice([0.3, 1.0])),  # 1: random frames don't count as scene cuts
        )
        self.config = EngineConfig(
            time_positions=str(rng.choice(["true", "index"])),
            text_positions=text_positions,
            prefill_chunk_tubelets=int(rng.integers(1, 5)),
            camera_block_s=float(rng.choice([1.0, 3.0, 10.0])),
            features_max_bytes=int(rng.choice([0, 1 << 30])),
            forks_max_bytes=int(rng.choice([0, 1 << 30])),
        )
        ids = itertools.count()
        self._memories = {name: SmartFrameManager(memory, camera=name, ids=ids) for name in self.names}
        factor = model.frame_spec.factor
        self._sizes = {
            name: (factor * int(rng.integers(2, 5)), factor * int(rng.integers(2, 5))) for name in self.names
        }
        self._times = dict.fromkeys(self.names, 0)
        self.reweighed: set[int] = set()
        """The ids of tubelets that got another importance."""
        self.answerer = ClipAnswerer(
            model, self.config, self.names, FeatureImportance(self.names if by_features else (), self._reweigh)
        )

    def _reweigh(self, camera: str, tubelet_id: int, importance: float) -> None:
        if self._memories[camera].reweigh(tubelet_id, importance):
            self.reweighed.add(tubelet_id)

    def clips(self) -> tuple[Clip, ...]:
        """One clip per camera that has frames."""
        taken = (memory.clip() for memory in self._memories.values())
        return tuple(clip for clip in taken if clip.tubelets)

    def grow(self) -> None:
        """A few frames per camera with jitter and gaps, now and then after a clear."""
        for name in self.names:
            if self._rng.random() < 0.1:
                self._memories[name].clear("at random")
                self._times[name] = 0
            for _ in range(int(self._rng.integers(1, 12))):
                self.add_frame(name)

    def add_frame(self, name: str) -> None:
        """One random frame, half a second or more after the last."""
        rng = self._rng
        gap = 0.5 + rng.uniform(-0.01, 0.01) if rng.random() < 0.85 else rng.uniform(0.6, 5.0)
        self._times[name] += round(gap * NANOSECONDS)
        self._memories[name].add_frame(random_frame(rng, *self._sizes[name]), self._times[name])
        self._memories[name].check_integrity()

    def update_star_memory(self) -> None:
        """Now and then a few important frames: newer than memory, older, between frames, or held already."""
        rng = self._update_rng
        for name in self.names:
            memory = self._memories[name]
            if rng.random() >= 0.4 or not memory.clip().tubelets:
                continue
            held = [stamp for tubelet in memory.clip().tubelets for stamp in tubelet.stamps_ns]
            span_ns = held[-1] - held[0] + 2 * NANOSECONDS
            start_ns = int(rng.choice([held[0] - NANOSECONDS // 3, rng.integers(held[0], held[0] + span_ns)]))
            stamps = start_ns + np.cumsum(rng.integers(1, NANOSECONDS, int(rng.integers(1, 5))))
            if rng.random() < 0.3:
                stamps = np.union1d(stamps, rng.choice(held))
            memory.update_star_memory((random_frame(rng, *self._sizes[name]), int(stamp)) for stamp in stamps)
            memory.check_integrity()
            self._times[name] = max(self._times[name], int(stamps[-1]))

    def work_ahead(self) -> None:
        """Some background steps, as many as a pause of random length would allow."""
        if self._rng.random() < 0.3:
            self.answerer.encode_ahead(self.clips())
        for _ in range(int(self._rng.choice([0, 0, 3, 30]))):
            later = [memory.next_clip() or memory.clip() for memory in self._memories.values()]
            self.answerer.prefill_ahead(self.clips(), [clip for clip in later if clip.tubelets])
            self.check_integrity()

    def compare_answer(self, question: Question) -> Comparison:
        """The engine's answer about all of memory, or about a part on a fork, against native's."""
        clips, part = self.clips(), None
        if self._rng.random() < 0.3:
            clip = clips[int(self._rng.integers(len(clips)))]
            first = int(self._rng.integers(len(clip)))
            clips, part = (dataclasses.replace(clip, tubelets=clip.tubelets[first:]),), (clip.tubelets[0].camera, first)
        cached = cached_answer(self.answerer, clips, question, part)
        self.check_integrity()
        return compare(cached, native_answer(self.answerer, clips, question))

    def check_integrity(self) -> None:
        """Every invariant of the caches."""
        self.answerer.timelines.check_integrity()
        self.answerer.vision.check_integrity()

    def control_differences(self) -> dict[str, float]:
        """Each negative control's largest logit difference from native."""
        while max(map(len, self.clips()), default=0) < 2:
            self.add_frame(self.names[0])
        # A feature cache of zero bytes could not hold the stale feature; without true times an eviction would also move
        # every later position, which another control is about.
        config = dataclasses.replace(self.config, features_max_bytes=1 << 30, time_positions="true")
        answerer = ClipAnswerer(self.answerer.model, config, self.names)
        question = random_question(self._rng)
        native = native_answer(answerer, self.clips(), question)
        return {
            label: compare(control(answerer, self.clips(), question, self._rng), native).logit_difference
            for label, control in CONTROLS.items()
        }


def run_stream(
    model: QwenVideoModel, seed: int, *, text_positions: str, cameras: int = 1, steps: int = 4,
    by_features: bool = False,
) -> StreamResult:
    """Grow, slide, evict, clear, insert and ask at random, and compare every answer with native."""
    rng = np.random.default_rng(seed)
    stream = RandomStream(model, rng, cameras, text_positions, by_features=by_features)
    comparisons = []
    for _ in range(steps):
        stream.grow()
        stream.work_ahead()
        stream.update_star_memory()
        comparisons += [stream.compare_answer(random_question(rng)) for _ in range(int(rng.integers(1, 4)))]
    return StreamResult(comparisons, stream.control_differences(), len(stream.reweighed))
