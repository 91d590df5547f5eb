"""Randomised streams: memory grows, slides, is cleared, saved, restored and asked about, and every answer is compared
with native's."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import numpy as np

from support.controls import CONTROLS, swapped, visible_swap
from support.equality import Comparison, Generated, cached_answer, compare, native_answer
from support.frames import random_frame
from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.engine.answers import Question
from vstream_ros.engine.camera_memories import CameraMemories
from vstream_ros.engine.engine_config import EngineConfig
from vstream_ros.engine.feature_importance import FeatureImportance
from vstream_ros.engine.memory_files import load_memories, save_memories
from vstream_ros.memory import Clip, MemoryConfig
from vstream_ros.memory.clip import NANOSECONDS
from vstream_ros.memory.saved import write_memory
from vstream_ros.memory.saved_state import SavedState
from vstream_ros.models.qwen.video_model import QwenVideoModel

WORDS = ["what", "who", "where", "when", "is", "the", "red", "car", "person", "left", "door", "before", "after", "seen"]
WRONG_RESTORE = "swapped_in_restore"
CONTROL_NAMES = (*CONTROLS, WRONG_RESTORE)
"""Of every stream's negative controls."""


def random_question(rng: np.random.Generator, max_new_tokens: int = 6) -> Question:
    """A few words, sometimes with what looks like a control token."""
    words = list(rng.choice(WORDS, int(rng.integers(1, 8))))
    if rng.random() < 0.2:
        words.append("<|video_pad|>")
    return Question(" ".join(words) + "?", max_new_tokens=max_new_tokens)


@dataclasses.dataclass(frozen=True)
class StreamKind:
    """What a stream does beside growing, sliding, being cleared and being asked about."""

    cameras: int = 1
    by_features: bool = False
    """Importance is measured again by vision features, as soon as they are there."""
    mixed_sizes: bool = False
    """Star is handed out in smaller frames than the window."""
    restores: bool = False
    """Now and then all of memory goes through a file."""


@dataclasses.dataclass
class StreamResult:
    """One randomised stream: every answer's comparison, and each control's largest logit difference."""

    comparisons: list[Comparison]
    controls: dict[str, float]
    reweighed: int
    """Tubelets whose importance was measured again by their features."""
    of_two_sizes: int
    """Answers from frames of different sizes."""
    restores: int
    """Restored memories, each with an answer before and one after."""


class RandomStream:
    """Cameras with memories of random parameters, fed at random, and an answerer over them."""

    def __init__(self, model: QwenVideoModel, rng: np.random.Generator, text_positions: str, kind: StreamKind) -> None:
        self._model = model
        self._kind = kind
        self._rng = rng
        # Each has numbers of its own, so that a stream is the same with and without them.
        seeds = rng.bit_generator.seed_seq.spawn(3)  # type: ignore[attr-defined]
        self._update_rng, size_rng, self._restore_rng = map(np.random.default_rng, seeds)
        self.names = [f"camera{k}" for k in range(kind.cameras)]
        self._memory = MemoryConfig(
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
        factor = model.frame_spec.factor
        self._sizes = {
            name: (factor * int(rng.integers(2, 5)), factor * int(rng.integers(2, 5))) for name in self.names
        }
        self._star_max_pixels = factor**2 * int(size_rng.choice([1, 2, 4, 6])) if kind.mixed_sizes else 0
        self._times = dict.fromkeys(self.names, 0)
        self.reweighed: set[int] = set()
        """The ids of tubelets that got another importance."""
        self.of_two_sizes = 0
        self.restores = 0
        self.memories = self._new_memories()
        self.answerer = self._new_answerer()

    def _new_memories(self) -> CameraMemories:
        configs = dict.fromkeys(self.names, self._memory)
        return CameraMemories(configs, self._model.frame_spec, star_max_pixels=self._star_max_pixels)

    def _new_answerer(self) -> ClipAnswerer:
        judged = self.names if self._kind.by_features else ()
        return ClipAnswerer(self._model, self.config, self.names, FeatureImportance(judged, self._reweigh))

    def _reweigh(self, camera: str, tubelet_id: int, importance: float) -> None:
        if self.memories.reweigh(camera, tubelet_id, importance):
            self.reweighed.add(tubelet_id)

    def clips(self) -> tuple[Clip, ...]:
        """One clip per camera that has frames."""
        return self.memories.take().clips

    def grow(self) -> None:
        """A few frames per camera with jitter and gaps, now and then after a clear."""
        for name in self.names:
            if self._rng.random() < 0.1:
                self.memories.clear("at random", name)
                self._times[name] = 0
            for _ in range(int(self._rng.integers(1, 12))):
                self.add_frame(name)

    def add_frame(self, name: str) -> None:
        """One random frame, half a second or more after the last."""
        rng = self._rng
        gap = 0.5 + rng.uniform(-0.01, 0.01) if rng.random() < 0.85 else rng.uniform(0.6, 5.0)
        self._times[name] += round(gap * NANOSECONDS)
        self.memories.keep(self.memories.offer(self._times[name], name), random_frame(rng, *self._sizes[name]))
        self._check_memory(name)

    def update_star_memory(self) -> None:
        """Now and then a few important frames: newer than memory, older, between frames, or held already."""
        rng = self._update_rng
        for name in self.names:
            clips = self.memories.take((name,)).clips
            if rng.random() >= 0.4 or not clips:
                continue
            held = [stamp for tubelet in clips[0].tubelets for stamp in tubelet.stamps_ns]
            span_ns = held[-1] - held[0] + 2 * NANOSECONDS
            start_ns = int(rng.choice([held[0] - NANOSECONDS // 3, rng.integers(held[0], held[0] + span_ns)]))
            stamps = start_ns + np.cumsum(rng.integers(1, NANOSECONDS, int(rng.integers(1, 5))))
            if rng.random() < 0.3:
                stamps = np.union1d(stamps, rng.choice(held))
            frames = ((random_frame(rng, *self._sizes[name]), int(stamp)) for stamp in stamps)
            self.memories.update_star_memory(frames, name)
            self._check_memory(name)
            self._times[name] = max(self._times[name], int(stamps[-1]))

    def work_ahead(self) -> None:
        """Some background steps, as many as a pause of random length would allow."""
        if self._rng.random() < 0.3:
            now, later = self.memories.clips_ahead()
            self.answerer.encode_ahead((*now, *later))
        for _ in range(int(self._rng.choice([0, 0, 3, 30]))):
            self.answerer.prefill_ahead(*self.memories.clips_ahead())
            self.check_integrity()

    def compare_answer(self, question: Question) -> Comparison:
        """The engine's answer about all of memory, or about a part on a fork, against native's."""
        clips, part = self.clips(), None
        if self._rng.random() < 0.3:
            clip = clips[int(self._rng.integers(len(clips)))]
            first = int(self._rng.integers(len(clip)))
            clips, part = (dataclasses.replace(clip, tubelets=clip.tubelets[first:]),), (clip.tubelets[0].camera, first)
        return compare(self._answer(clips, question, part), native_answer(self.answerer, clips, question))

    def save_and_restore(self) -> list[Comparison]:
        """Now and then put all of memory through a file: the answer after, against the one before and native's.

        It comes back into new memories under a new engine's cold caches, or into the same ones after a clear and, by
        turns, frames that it replaces.
        """
        rng = self._restore_rng
        if not self._kind.restores or rng.random() < 0.3:
            return []
        question = random_question(rng)
        before = self._answer(self.clips(), question)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "memory.npz")
            save_memories(self.memories, path)
            if rng.random() < 0.5:
                self.memories, self.answerer = self._new_memories(), self._new_answerer()
            else:
                self.memories.clear("before a restore")
                for name in self.names * int(rng.choice([0, 3])):
                    stamp_ns = int(rng.integers(NANOSECONDS)) + self._times[name]
                    self.memories.keep(self.memories.offer(stamp_ns, name), random_frame(rng, *self._sizes[name]))
            load_memories(self.memories, path)
        self.answerer.keep_only(self.memories.held_tubelets())  # as the engine does
        for name in self.names:
            self._check_memory(name)
        self.restores += 1
        clips = self.clips()
        after = self._answer(clips, question)
        return [compare(after, before), compare(after, native_answer(self.answerer, clips, question))]

    def _answer(self, clips: tuple[Clip, ...], question: Question, part: tuple[str, int] | None = None) -> Generated:
        self.of_two_sizes += len({t.frames.shape for clip in clips for t in clip.tubelets}) > 1
        cached = cached_answer(self.answerer, clips, question, part)
        self.check_integrity()
        return cached

    def check_integrity(self) -> None:
        """Every invariant of the caches."""
        self.answerer.timelines.check_integrity()
        self.answerer.vision.check_integrity()

    def _check_memory(self, name: str) -> None:
        self.memories._memories[name].check_integrity()

    def control_differences(self) -> dict[str, float]:
        """Each negative control's largest logit difference from native."""
        while max(state.tubelet_count for state in self.memories.saved_states()) < 2:
            self.add_frame(self.names[0])
        # A feature cache of zero bytes could not hold the stale feature; without true times an eviction would also move
        # every later position, which another control is about.
        config = dataclasses.replace(self.config, features_max_bytes=1 << 30, time_positions="true")
        answerer = ClipAnswerer(self._model, config, self.names)
        clips, question = self.clips(), random_question(self._rng)
        native = native_answer(answerer, clips, question)
        damaged = {label: control(answerer, clips, question, self._rng) for label, control in CONTROLS.items()}
        answerer.drop_caches()
        index, pair = visible_swap(answerer, clips, question)
        wrong = self._wrongly_restored(clips[index].tubelets[0].camera, pair)
        damaged[WRONG_RESTORE] = cached_answer(answerer, wrong, question)
        return {label: compare(one, native).logit_difference for label, one in damaged.items()}

    def _wrongly_restored(self, camera: str, pair: tuple[int, int]) -> tuple[Clip, ...]:
        """The clips of memories that read a file in which two of a camera's tubelets have each other's frames."""
        states = self.memories.saved_states()
        index = self.names.index(camera)
        states[index] = _with_swapped(states[index], pair)
        memories = self._new_memories()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "memory.npz")
            with path.open("wb") as file:
                write_memory(file, states)
            load_memories(memories, path)
        return memories.take().clips


def _with_swapped(state: SavedState, pair: tuple[int, int]) -> SavedState:
    held, star = state.held, len(state.held.star)
    tubelets = list(swapped(held.star + held.stream, pair))
    return dataclasses.replace(state, held=dataclasses.replace(held, star=tubelets[:star], stream=tubelets[star:]))


def run_stream(
    model: QwenVideoModel, seed: int, *, text_positions: str, steps: int = 4, kind: StreamKind | None = None
) -> StreamResult:
    """Grow, slide, evict, clear, insert, save, restore and ask at random, and compare every answer with native."""
    rng = np.random.default_rng(seed)
    stream = RandomStream(model, rng, text_positions, kind or StreamKind())
    comparisons = []
    for _ in range(steps):
        stream.grow()
        stream.work_ahead()
        stream.update_star_memory()
        comparisons += [stream.compare_answer(random_question(rng)) for _ in range(int(rng.integers(1, 4)))]
        comparisons += stream.save_and_restore()
    controls = stream.control_differences()
    return StreamResult(comparisons, controls, len(stream.reweighed), stream.of_two_sizes, stream.restores)
