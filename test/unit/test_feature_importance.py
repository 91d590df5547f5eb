"""selection_method semantic: vision features that come later decide what star keeps, and no answer is another."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from support.controls import CONTROL_THRESHOLD
from support.equality import cached_answer, compare, native_answer
from support.frames import random_frame
from support.streams import StreamKind, run_stream
from vstream_ros.engine import DelayedBatchInferenceEngine, EngineConfig, Question
from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.engine.feature_importance import FeatureImportance
from vstream_ros.errors import ConfigError, VStreamError
from vstream_ros.memory import Clip, MemoryConfig, SmartFrameManager, Tubelet
from vstream_ros.models.base import TEXT_POSITIONS, TubeletFeatures
from vstream_ros.models.qwen.video_model import QwenVideoModel
from vstream_ros.synthetic.random_model import random_model, write_random_checkpoint

QUESTION = Question("what?", max_new_tokens=4)
MEMORY = MemoryConfig(star_memory_size=6, stream_window_size=4, stream_slide=2, scene_threshold=1.0)
DARK, TUBELETS = 9, 30
"""The tubelet in which the light is low, of a still scene of so many."""


@pytest.fixture
def model(models: dict[str, QwenVideoModel]) -> QwenVideoModel:
    return models["qwen2_5_vl"]


def still_frame(number: int, size: tuple[int, int], light: float = 1.0) -> np.ndarray:
    """A wall with a sensor's noise. Pixel importance is free of gain: less light is nothing to it."""
    wall = np.kron(np.random.default_rng(3).integers(90, 200, (4, 6, 3)), np.ones((size[0] // 4, size[1] // 6, 1)))
    noise = np.random.default_rng([4, number]).normal(scale=2.0, size=wall.shape)
    return np.clip(light * (wall + noise), 0, 255).astype(np.uint8)


class Watched:
    """A memory beside an answerer that judges what is in it; everything in one thread."""

    def __init__(self, model: QwenVideoModel, cameras: tuple[str, ...] = ("camera",)) -> None:
        self.memory = SmartFrameManager(MEMORY)
        self.reweighed: list[tuple[int, float]] = []
        self.answerer = ClipAnswerer(model, EngineConfig(), ["camera"], FeatureImportance(cameras, self._reweigh))
        self._size = model.frame_spec.fit(56, 84)

    def _reweigh(self, camera: str, tubelet_id: int, importance: float) -> None:
        if self.memory.reweigh(tubelet_id, importance):
            self.reweighed.append((tubelet_id, importance))

    def add_tubelet(self, number: int, light: float = 1.0) -> None:
        for k in (2 * number, 2 * number + 1):
            self.memory.add_frame(still_frame(k, self._size, light), k * 500_000_000)

    def clips(self) -> tuple[Clip, ...]:
        return (self.memory.clip(),)

    def held(self) -> list[Tubelet]:
        return list(self.memory.clip().tubelets)

    def prefill_all(self) -> None:
        def ahead() -> list[Clip]:
            later = self.memory.next_clip()
            return [] if later is None else [later]

        while self.answerer.prefill_ahead(self.clips(), ahead()):
            self.answerer.timelines.check_integrity()


@pytest.mark.parametrize("cameras", [("camera",), ()])
def test_star_keeps_what_only_features_see(model: QwenVideoModel, cameras: tuple[str, ...]) -> None:
    watched = Watched(model, cameras)
    for number in range(TUBELETS):
        watched.add_tubelet(number, light=0.4 if number == DARK else 1.0)
        while watched.answerer.encode_ahead(watched.clips()):
            pass
    kept = {tubelet.stamps_ns[0] // 1_000_000_000 for tubelet in watched.held()}
    assert (DARK in kept) is bool(cameras)
    assert len(watched.reweighed) == (TUBELETS - 1 if cameras else 0)  # the first has nothing to be compared with
    assert all(tubelet.id in watched.answerer.importance._judged for tubelet in watched.held()) is bool(cameras)
    assert len(watched.answerer.importance._judged) <= TUBELETS // 2


def test_pixels_count_until_the_features_are_there(model: QwenVideoModel) -> None:
    watched = Watched(model)
    watched.add_tubelet(0)
    watched.add_tubelet(1, light=0.4)
    before = watched.memory.clip()
    watched.answerer.answer([before], QUESTION)  # a question encodes, too
    after = watched.memory.clip()
    assert [t.reweighed for t in before.tubelets] == [False, False]
    assert [t.reweighed for t in after.tubelets] == [False, True]
    assert before.tubelets[1].importance < 0.05 < 0.1 < after.tubelets[1].importance
    assert [t.id for t in before.tubelets] == [t.id for t in after.tubelets]
    assert all(a.frames is b.frames for a, b in zip(before.tubelets, after.tubelets, strict=True))
    assert watched.answerer.answer([after], QUESTION).metrics.cache_hit  # nothing of the cache is lost by it


def test_what_is_encoded_again_is_not_judged_again(model: QwenVideoModel) -> None:
    watched = Watched(model)
    for number in range(3):
        watched.add_tubelet(number)
    watched.answerer.answer(watched.clips(), QUESTION)
    first = list(watched.reweighed)
    watched.answerer.drop_caches()
    watched.answerer.answer(watched.clips(), QUESTION)
    assert watched.reweighed == first


def test_a_cleared_camera_starts_anew_and_an_unjudged_older_tubelet_is_compared(model: QwenVideoModel) -> None:
    watched = Watched(model)
    for number in range(4):
        watched.add_tubelet(number)
    whole = watched.memory.clip()
    newest = Clip(whole.tubelets[2:], whole.second_per_grid)
    watched.answerer.answer([newest], QUESTION, part="newest")
    assert [tubelet_id for tubelet_id, _ in watched.reweighed] == [whole.tubelets[3].id]
    watched.answerer.answer([whole], QUESTION)
    assert sorted(tubelet_id for tubelet_id, _ in watched.reweighed) == [whole.tubelets[k].id for k in (0, 1, 3)]
    watched.memory.clear("test")
    watched.add_tubelet(0)  # stamps begin again
    watched.answerer.keep_only({tubelet.id for tubelet in watched.held()})
    watched.answerer.answer(watched.clips(), QUESTION)
    watched.add_tubelet(1)
    watched.answerer.answer(watched.clips(), QUESTION)
    assert [tubelet.reweighed for tubelet in watched.held()] == [False, True]


def test_features_that_are_not_finite_leave_what_pixels_said(model: QwenVideoModel) -> None:
    watched = Watched(model)
    for number in range(2):
        watched.add_tubelet(number)
    first, second = watched.held()
    watched.answerer.importance.observe(first, TubeletFeatures(torch.ones(4, 8)))
    watched.answerer.importance.observe(second, TubeletFeatures(torch.full((4, 8), float("nan"))))
    assert watched.reweighed == []


def test_in_step_with_memory_a_slide_prefills_only_what_is_new(model: QwenVideoModel) -> None:
    """Importance that comes later must not make the timeline that is built ahead the wrong one again and again."""
    watched = Watched(model)
    prefilled = []
    for number in range(TUBELETS):
        watched.add_tubelet(number, light=float(np.random.default_rng(number).uniform(0.3, 1.0)))
        prompt = watched.answerer.prompt(watched.clips(), "")
        held = watched.answerer.timelines.for_memory(prompt).common_prefix(prompt)
        prefilled.append(sum(span[1] > held for span in prompt.spans))
        watched.prefill_all()
        assert watched.answerer.answer(watched.clips(), QUESTION).metrics.cache_hit
    assert set(prefilled) == {1}
    assert len({round(importance, 4) for _, importance in watched.reweighed}) > TUBELETS // 2
    cached, native = (f(watched.answerer, watched.clips(), QUESTION) for f in (cached_answer, native_answer))
    assert compare(cached, native).equal


@pytest.mark.parametrize("seed", range(4))
def test_randomised_streams_equal_native_and_controls_are_seen(any_model: QwenVideoModel, seed: int) -> None:
    result = run_stream(
        any_model, 300 + seed, text_positions=TEXT_POSITIONS[seed % 2],
        kind=StreamKind(cameras=1 + seed % 2, by_features=True, mixed_sizes=seed >= 2, restores=True),
    )
    assert result.reweighed > 3
    assert result.comparisons
    assert all(comparison.equal for comparison in result.comparisons)
    assert min(result.controls.values()) > CONTROL_THRESHOLD


# -- through the engine -----------------------------------------------------------------------------------------------


@pytest.fixture
def engine() -> Iterator[DelayedBatchInferenceEngine]:
    made, processor = random_model("qwen2_5_vl")
    config = {"background_encoding": "full", "selection_method": "semantic", "max_pixels": 84 * 84, "max_new_tokens": 4}
    with DelayedBatchInferenceEngine(
        made, processor, "cpu", memory={"left": MEMORY, "right": MEMORY}, **config
    ) as engine:
        yield engine


def test_off_is_refused_with_what_to_set() -> None:
    with pytest.raises(ConfigError, match=r"semantic.*background_encoding 'vision' or 'full', got 'off'.*'pixel'"):
        DelayedBatchInferenceEngine(selection_method="semantic")


@pytest.mark.parametrize("mode", ["vision", "full"])
def test_the_engine_reweighs_while_nobody_asks_and_answers_as_native(mode: str) -> None:
    made, processor = random_model("qwen2_5_vl")
    with DelayedBatchInferenceEngine(
        made, processor, "cpu", memory=MEMORY, background_encoding=mode, selection_method="semantic",
        max_pixels=84 * 84,
    ) as engine:
        size = engine.frame_size(56, 84)
        encoded = threading.Event()
        step = engine._work_ahead.step

        def watched() -> float | None:
            pause_s = step()
            if pause_s is None:
                encoded.set()
            return pause_s

        engine._thread._background = watched
        for number in range(TUBELETS):
            for k in (2 * number, 2 * number + 1):
                engine.add_frame(still_frame(k, size, 0.4 if number == DARK else 1.0), k / 2)
            encoded.clear()
            engine._thread.poke()
            assert encoded.wait(60)
        (clip,) = engine.clips()
        assert DARK in {tubelet.stamps_ns[0] // 1_000_000_000 for tubelet in clip.tubelets}
        assert sum(tubelet.reweighed for tubelet in clip.tubelets) >= len(clip) - 1
        answer = engine.submit(QUESTION).future.result(timeout=60)
        answerer = engine._host.answerer
        assert answerer is not None
        assert list(answer.token_ids) == native_answer(answerer, engine.clips(), QUESTION).tokens


def test_another_model_starts_with_nothing_usual(tmp_path: Path) -> None:
    folders = [str(write_random_checkpoint(tmp_path / name)) for name in ("one", "two")]
    with DelayedBatchInferenceEngine(
        folders[0], device="cpu", memory=MEMORY, background_encoding="vision", selection_method="semantic",
        max_pixels=84 * 84,
    ) as engine:
        engine.load().result(timeout=120)
        for k in range(8):
            engine.add_frame(still_frame(k, engine.frame_size(56, 84)), k / 2)
        engine.ask(QUESTION)
        first = engine._host.answerer
        engine.load(folders[1]).result(timeout=120)
        second = engine._host.answerer
        assert first is not None
        assert second is not None
        assert first.importance._meters
        assert second.importance is not first.importance
        engine.ask(QUESTION)
        assert set(second.importance._meters) == {"camera"}


class Crowd:
    """What goes on at an engine while its model's thread reweighs."""

    def __init__(self, engine: DelayedBatchInferenceEngine) -> None:
        self._engine = engine
        self.fed = threading.Event()
        self.answers = 0

    def feed(self, camera: str) -> None:
        rng = np.random.default_rng(len(camera))
        for k in range(150):
            self._engine.add_frame(random_frame(rng, 84, 84), k / 2, camera=camera)

    def clear_and_mark(self) -> None:
        rng = np.random.default_rng(1)
        while not self.fed.is_set():
            self._engine.clear("stress", camera=str(rng.choice(["left", "right"])))
            for clip in self._engine.clips(Question("", cameras=("left",))):
                frame, stamp_ns = clip.tubelets[-1].frames[0], clip.tubelets[-1].stamps_ns[0]
                self._engine.update_star_memory([(frame, stamp_ns)], camera="left", nanoseconds=True)

    def ask(self) -> None:
        while not self.fed.is_set():
            error = self._engine.submit(QUESTION).future.exception(timeout=60)
            assert error is None or (isinstance(error, VStreamError) and error.code in {"CANCELED", "NO_FRAMES"}), error
            self.answers += error is None


def test_frames_clears_and_questions_meanwhile(engine: DelayedBatchInferenceEngine) -> None:
    crowd = Crowd(engine)
    with ThreadPoolExecutor(4) as pool:
        feeding = [pool.submit(crowd.feed, camera) for camera in ("left", "right")]
        others = [pool.submit(crowd.clear_and_mark), pool.submit(crowd.ask)]
        try:
            for future in feeding:
                future.result(timeout=120)
        finally:
            crowd.fed.set()
        for future in others:
            future.result(timeout=120)
    for camera in ("left", "right"):  # they may have been cleared just now
        for k in range(200, 210):
            engine.add_frame(still_frame(k, (84, 84)), k / 2, camera=camera)
    answer = engine.submit(QUESTION).future.result(timeout=60)
    answerer = engine._host.answerer
    assert answerer is not None

    def check_in_the_models_thread() -> None:
        for memory in engine._cameras._memories.values():
            memory.check_integrity()
        answerer.vision.check_integrity()
        held = engine._cameras.held_tubelets()
        answerer.keep_only(held)
        complete = {tubelet.id for clip in engine.clips() for tubelet in clip.tubelets if not tubelet.provisional}
        assert answerer.importance._judged == complete
        assert set(answerer.importance._meters) == {"left", "right"}
        assert any(tubelet.reweighed for clip in engine.clips() for tubelet in clip.tubelets)
        assert list(answer.token_ids) == native_answer(answerer, engine.clips(), QUESTION).tokens

    engine._thread.run(check_in_the_models_thread).result(timeout=120)
