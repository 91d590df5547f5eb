"""Star in smaller frames: the answer is still native's, over exactly the frames handed out."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from support.controls import CONTROL_THRESHOLD
from support.engines import feed
from support.equality import LOGIT_TOLERANCE, Generated, cached_answer, compare, native_answer, recorded_logits
from support.frames import random_frame
from support.streams import StreamKind, run_stream
from vstream_ros import errors
from vstream_ros.engine import Answer, DelayedBatchInferenceEngine, EngineConfig, Question
from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.memory import Clip, MemoryConfig, SmartFrameManager
from vstream_ros.models.base import TEXT_POSITIONS
from vstream_ros.models.qwen.video_model import QwenVideoModel
from vstream_ros.synthetic.random_model import FAMILIES, random_model

QUESTION = Question("what happened?", max_new_tokens=6)
MEMORY = MemoryConfig(star_memory_size=8, stream_window_size=8, stream_slide=3, scene_threshold=1.0)
STAR_MAX_PIXELS = 56 * 56


class Stream:
    """Cameras whose star is handed out small, fed a tubelet each at a time."""

    def __init__(self, model: QwenVideoModel, cameras: int = 1) -> None:
        ids, factor = itertools.count(), model.frame_spec.factor
        self.names = [f"camera{k}" for k in range(cameras)]
        self._memories = [SmartFrameManager(MEMORY, camera=name, ids=ids) for name in self.names]
        for memory in self._memories:
            memory.resize(
                lambda *size: size, functools.partial(model.frame_spec.shrink, max_pixels=4 * factor * factor)
            )
        self._rng = np.random.default_rng(0)
        self._size = (3 * factor, 4 * factor)
        self._count = 0

    def add_tubelets(self, count: int = 1) -> None:
        for _ in range(2 * count):
            for memory in self._memories:
                memory.add_frame(random_frame(self._rng, *self._size), self._count * 500_000_000)
            self._count += 1

    def clips(self) -> tuple[Clip, ...]:
        return tuple(memory.clip() for memory in self._memories)

    def next_clips(self) -> tuple[Clip, ...]:
        clips = tuple(memory.next_clip() for memory in self._memories)
        return tuple(clip for clip in clips if clip is not None)


def sizes(clips: tuple[Clip, ...]) -> int:
    return len({tubelet.frames.shape for clip in clips for tubelet in clip.tubelets})


@pytest.mark.parametrize("seed", range(200, 204))
def test_randomised_streams_of_two_sizes_equal_native_and_controls_are_seen(
    any_model: QwenVideoModel, seed: int
) -> None:
    """Growth, slides, key frames, parts on forks, work ahead; every second one with two cameras."""
    kind = StreamKind(cameras=1 + seed % 2, mixed_sizes=True, restores=seed >= 202)
    result = run_stream(any_model, seed, text_positions=TEXT_POSITIONS[seed // 2 % 2], kind=kind)
    assert result.of_two_sizes, "or nothing is tested"
    assert all(c.tokens_equal for c in result.comparisons)
    assert max(c.logit_difference for c in result.comparisons) <= LOGIT_TOLERANCE
    assert min(result.controls.values()) > CONTROL_THRESHOLD, result.controls


def test_native_is_one_call_of_the_processor_with_a_video_of_each_size(any_model: QwenVideoModel) -> None:
    """Written out by hand, with the installed transformers' own positions, so that nothing of ours is in it."""
    stream = Stream(any_model)
    stream.add_tubelets(12)
    (clip,) = stream.clips()
    answerer = ClipAnswerer(
        any_model, EngineConfig(time_positions="index", text_positions="transformers"), stream.names
    )
    cached = cached_answer(answerer, (clip,), QUESTION)
    small = sum(t.frames.shape == clip.tubelets[0].frames.shape for t in clip.tubelets)
    assert 0 < small < len(clip)

    def native(*tubelets_of_videos: list[np.ndarray]) -> Generated:
        label = f"From second {(clip.tubelets[small].time_ns - clip.tubelets[0].time_ns) / 1e9:.1f}:"
        content = [{"type": "video"}, {"type": "text", "text": label}, {"type": "video"}]
        message = {"role": "user", "content": [*content, {"type": "text", "text": QUESTION.text}]}
        processor = any_model.processor
        inputs = processor(
            text=[processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)],
            videos=[np.concatenate(frames) for frames in tubelets_of_videos],
            video_metadata=[
                {"total_num_frames": 2 * len(f), "fps": 2.0, "frames_indices": list(range(2 * len(f)))}
                for f in tubelets_of_videos
            ],
            do_resize=False, do_sample_frames=False, cap_pixels_per_frame=False, return_tensors="pt",
        )  # fmt: skip
        with torch.inference_mode(), recorded_logits(any_model.model) as rows:
            output = any_model.model.generate(**inputs, do_sample=False, max_new_tokens=QUESTION.max_new_tokens)
        return Generated(output[0, inputs["input_ids"].shape[1] :].tolist(), torch.stack(rows))

    frames = [tubelet.frames for tubelet in clip.tubelets]
    assert compare(cached, native(frames[:small], frames[small:])).equal
    other = [255 - frames[0], *frames[1:small]]
    assert compare(cached, native(other, frames[small:])).logit_difference > CONTROL_THRESHOLD


@pytest.mark.parametrize("cameras", [1, 2])
def test_in_step_with_memory_a_slide_leaves_only_what_is_new(any_model: QwenVideoModel, cameras: int) -> None:
    """The timeline that was built ahead, of smaller twins, takes over: no work ahead is thrown away."""
    stream = Stream(any_model, cameras)
    answerer = ClipAnswerer(any_model, EngineConfig(camera_block_s=2.0), stream.names)
    for k in range(15):
        stream.add_tubelets()
        if cameras == 1:
            prompt = answerer.prompt(stream.clips(), "")
            held = answerer.timelines.for_memory(prompt).common_prefix(prompt)
            assert sum(span[1] > held for span in prompt.spans) == 1
        while answerer.prefill_ahead(stream.clips(), stream.next_clips()):
            answerer.timelines.check_integrity()
        assert answerer.answer(stream.clips(), QUESTION).metrics.cache_hit
        if k % 5 == 4:
            assert compare(*(f(answerer, stream.clips(), QUESTION) for f in (cached_answer, native_answer))).equal
    assert sizes(stream.clips()) == 2


def test_full_frames_in_the_twins_place_are_seen(any_model: QwenVideoModel) -> None:
    """Had star's features or cache stayed those of the tubelets before they were scaled, the logits would tell."""
    stream = Stream(any_model)
    stream.add_tubelets(12)
    answerer = ClipAnswerer(any_model, EngineConfig(), stream.names)
    small = native_answer(answerer, stream.clips(), QUESTION)
    for memory in stream._memories:
        memory.resize(lambda *size: size)
    assert sizes(stream.clips()) == 1
    assert compare(small, native_answer(answerer, stream.clips(), QUESTION)).logit_difference > CONTROL_THRESHOLD


# ---- through the engine ----


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def engine(family: str) -> Iterator[DelayedBatchInferenceEngine]:
    with DelayedBatchInferenceEngine(
        *random_model(family), "cpu", memory=MEMORY, max_pixels=112 * 112, star_max_pixels=STAR_MAX_PIXELS,
        min_pixels=1024, max_new_tokens=6, background_encoding="full", include_pending=False,
    ) as made:  # fmt: skip
        yield made


def answered(engine: DelayedBatchInferenceEngine, question: Question) -> Answer:
    return engine.submit(question).future.result(timeout=60)


def test_questions_between_frames_and_about_a_time_equal_native(
    engine: DelayedBatchInferenceEngine, models: dict[str, QwenVideoModel], family: str
) -> None:
    """While the background works ahead. The model beside the engine has the same weights."""
    model = models[family]
    reference = ClipAnswerer(model, engine.config, engine.cameras)
    blocks, per_factor = set(), model.frame_spec.factor**2
    for start in range(0, 60, 10):
        feed(engine, 10, start)
        lately = Question("then?", max_new_tokens=4, start_ns=max(start - 4, 0) * 10**9 // 2)
        for question in (QUESTION, lately):
            clips = engine.clips(question)
            answer = answered(engine, question)
            native = native_answer(reference, clips, question)
            assert list(answer.token_ids) == native.tokens
            shapes = [t.frames.shape for clip in clips for t in clip.tubelets]
            assert answer.metrics.visual_tokens == sum(height * width // per_factor for _, height, width, _ in shapes)
            assert answer.metrics.frames == 2 * len(shapes)
            blocks.add(len(set(shapes)))
    assert blocks == {1, 2}


def test_a_smaller_star_holds_more_within_the_models_context() -> None:
    """And what would not fit is refused at once, by name."""
    limits = {"max_pixels": 112 * 112, "star_memory_size": 200}
    with pytest.raises(errors.ConfigError, match="1900") as caught:
        DelayedBatchInferenceEngine(*random_model(context=1900), "cpu", **limits)
    assert "star_memory_size" in str(caught.value)
    limits["star_max_pixels"] = 112 * 112 // 2  # 100 * 8 tokens, 13 * 16 and an answer of 128
    with pytest.raises(errors.ConfigError, match="1136"):
        DelayedBatchInferenceEngine(*random_model(context=1136), "cpu", **limits)
    limits |= {"max_new_tokens": 2, "scene_threshold": 1.0}
    rng = np.random.default_rng(0)
    with DelayedBatchInferenceEngine(*random_model(context=1136), "cpu", **limits) as engine:
        for k in range(260):
            engine.add_frame(random_frame(rng, 112, 112), k / 2)
        answer = answered(engine, Question("what?"))
        assert answer.metrics.tubelets > 100
        assert answer.metrics.visual_tokens < 100 * 8 + 13 * 16
        assert sizes(engine.clips()) == 2
