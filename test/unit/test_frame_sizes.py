"""A model that becomes ready finds the frames that came before it, at its own size."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from support.memory_frames import SECOND, flat, noisy, scene
from vstream_ros.engine import DelayedBatchInferenceEngine, Question
from vstream_ros.engine.camera_memories import CameraMemories
from vstream_ros.errors import ConfigError, NoFramesError
from vstream_ros.images import resize_rgb
from vstream_ros.memory import MemoryConfig, SmartFrameManager, Verdict
from vstream_ros.models.frame_spec import FrameSpec
from vstream_ros.synthetic.random_model import write_random_checkpoint

PERIOD = SECOND // 2
OTHER = FrameSpec(factor=32)


def filled(frames: int, **overrides: object) -> SmartFrameManager:
    memory = SmartFrameManager(sample_rate_hz=2.0, stream_window_size=4, stream_slide=1, **overrides)  # type: ignore[arg-type]
    for k in range(frames):
        memory.add_frame(noisy(scene(k // 9), k), k * PERIOD)
    return memory


# ---- the memory ----


@pytest.mark.parametrize("frames", [1, 2, 7, 40])
def test_scaling_changes_pixels_and_ids_and_nothing_else(frames: int) -> None:
    ids = itertools.count()
    memory = filled(frames, ids=ids)
    twin = filled(frames)
    before = memory.clip().tubelets
    assert memory.resize(lambda height, width: (32, 64)) == len(before) + frames % 2 - before[-1].provisional
    after = memory.clip().tubelets
    for old, new in zip(before, after, strict=True):
        assert (new.stamps_ns, new.time_ns, new.importance) == (old.stamps_ns, old.time_ns, old.importance)
        assert (new.scene_change, new.key, new.provisional) == (old.scene_change, old.key, old.provisional)
        assert np.array_equal(new.frames, np.stack([resize_rgb(frame, (32, 64)) for frame in old.frames]))
    assert {t.id for t in before}.isdisjoint(t.id for t in after)
    assert [t.id for t in after] == sorted(t.id for t in after)
    assert memory.status().clears == {}
    memory.check_integrity()
    for k in range(frames, frames + 20):  # it goes on as one that was never scaled
        picture = noisy(scene(k // 9), k)
        scaled = memory.add_frame(resize_rgb(picture, (32, 64)), k * PERIOD)
        assert (scaled.cleared, scaled.verdict) == ("", twin.add_frame(picture, k * PERIOD).verdict)
        memory.check_integrity()


def test_nothing_is_scaled_where_nothing_changes_or_is_held() -> None:
    memory = filled(5)
    clip = memory.clip()
    assert memory.resize(lambda height, width: (height, width)) == 0
    assert memory.clip() is clip
    assert SmartFrameManager().resize(lambda height, width: (32, 32)) == 0


def test_a_frame_that_was_offered_before_the_scaling_is_kept_after_it() -> None:
    memory = filled(5)
    slot = memory.offer(5 * PERIOD)
    memory.resize(lambda height, width: (32, 64))
    assert memory.keep(slot, flat(9, 32, 64)).cleared == ""
    assert memory.clip().frame_count == 6


# ---- all cameras ----


def cameras(clock: list[float] | None = None) -> CameraMemories:
    times = clock if clock is not None else [0.0]
    configs = {name: MemoryConfig(sample_rate_hz=2.0) for name in ("front", "rear")}
    return CameraMemories(configs, FrameSpec(), clock=lambda: times[0])


def fill(memories: CameraMemories, camera: str, sizes: tuple[int, int], frames: int = 5) -> None:
    """As the node does it: decoded at the size that the slot tells."""
    for k in range(frames):
        slot = memories.offer(k * PERIOD, camera)
        memories.keep(slot, resize_rgb(scene(1, 0, *sizes), slot.frame_size(*sizes)))


def test_frames_are_scaled_to_what_the_cameras_next_image_will_have() -> None:
    """From the camera's own size: scaled from the stored one, the next frame would have another and clear them."""
    memories = cameras()
    fill(memories, "front", (480, 640))
    fill(memories, "rear", (300, 470))
    held = {camera.camera: camera.newest_stamp_ns for camera in memories.status()}
    memories.use_frame_spec(OTHER, "another model")
    for name, size in (("front", (480, 640)), ("rear", (300, 470))):
        slot = memories.offer(5 * PERIOD, name)
        target = slot.frame_size(*size)
        assert target == OTHER.fit(*size)
        status = memories.keep(slot, resize_rgb(scene(1, 0, *size), target))
        assert status.cleared == ""
        assert status.stream_frames == 6
    assert [camera.clears for camera in memories.status()] == [{}, {}]
    assert held == {"front": 4 * PERIOD, "rear": 4 * PERIOD}


def test_a_model_that_comes_while_a_frame_is_converted_gets_it_at_its_size() -> None:
    memories = cameras()
    fill(memories, "front", (480, 640))
    slot = memories.offer(5 * PERIOD, "front")
    picture = resize_rgb(scene(1, 0, 480, 640), slot.frame_size(480, 640))
    memories.use_frame_spec(OTHER, "another model")
    status = memories.keep(slot, picture)
    assert (status.verdict, status.cleared, status.stream_frames) == (Verdict.KEEP, "", 6)


def test_tubelets_of_another_length_clear_and_say_so() -> None:
    memories = cameras()
    fill(memories, "front", (48, 64))
    memories.use_frame_spec(FrameSpec(temporal_patch_size=4), "another model")
    assert memories.announcements == ("another model: tubelets of 4 frames",)
    assert "another model" in memories.why_empty(("front",))
    fill(memories, "front", (48, 64), frames=9)
    assert [t.frames.shape[0] for t in memories.take(("front",)).clips[0].tubelets] == [4, 4, 4]
    assert memories.max_tubelets.total == 2 * (5 + 5 + 8)
    with pytest.raises(ConfigError, match="30 frames"):
        memories.use_frame_spec(FrameSpec(temporal_patch_size=30), "a strange one")
    assert memories.status()[0].stream_frames == 9, "nothing was lost on the way"


def test_it_says_why_there_is_nothing() -> None:
    clock = [100.0]
    memories = cameras(clock)
    assert memories.why_empty(("front", "rear")) == (
        "no frame came yet from: front, rear; check the image topics and the camera drivers"
    )
    fill(memories, "front", (48, 64))
    memories.reject(memories.offer(0, "rear"), "an encoding that nobody knows")
    memories.clear("requested")
    clock[0] = 103.2
    assert memories.why_empty(("front",)).startswith("the memory of front was cleared 3 s ago (requested)")
    other = cameras(clock)
    other.reject(other.offer(0, "rear"), "an encoding that nobody knows")
    assert other.why_empty(("front", "rear")) == (
        "no frame of rear could be used: an encoding that nobody knows; no frame came yet from: front; "
        "check the image topics and the camera drivers"
    )


# ---- the engine ----


def feed(engine: DelayedBatchInferenceEngine, frames: int, size: tuple[int, int] = (112, 112)) -> None:
    for k in range(frames):
        engine.add_frame(scene(k, 0, *size), k / 2)


@pytest.mark.parametrize("frames", [1, 5])
def test_frames_that_came_before_the_model_are_its_frames(tmp_path: Path, frames: int) -> None:
    """Also the odd one that is no tubelet yet."""
    folder = write_random_checkpoint(tmp_path / "model", "qwen3_vl")
    with DelayedBatchInferenceEngine(device="cpu", max_pixels=112 * 112, max_new_tokens=4) as engine:
        feed(engine, frames)
        engine.load(str(folder)).result(timeout=120)
        _, metrics = engine.ask("what?")
        assert metrics["frames"] == frames
        assert engine.status().announcements == ()
        assert engine.clips()[0].tubelets[0].frames.shape[1:] == (96, 96, 3)


def test_the_size_is_known_before_the_first_frame_where_the_checkpoint_is_here(tmp_path: Path) -> None:
    folder = write_random_checkpoint(tmp_path / "model", "qwen3_vl")
    with DelayedBatchInferenceEngine(model=str(folder), device="cpu", max_pixels=112 * 112, max_new_tokens=4) as engine:
        assert engine.frame_size(112, 112) == (96, 96)
        feed(engine, 5)
        held = [tubelet.id for tubelet in engine.clips()[0].tubelets if not tubelet.provisional]
        engine.load().result(timeout=120)
        assert [tubelet.id for tubelet in engine.clips()[0].tubelets if not tubelet.provisional] == held
    with DelayedBatchInferenceEngine(device="cpu", max_pixels=112 * 112) as engine:
        loading = engine.load(str(folder))
        assert engine.frame_size(112, 112) == (96, 96)  # before it is loaded
        loading.result(timeout=120)


def test_a_question_after_a_clear_is_told_of_it() -> None:
    with DelayedBatchInferenceEngine(model="vstream-tiny", device="cpu") as engine:
        engine.load().result(timeout=120)
        feed(engine, 2)
        engine.clear("a test")
        with pytest.raises(NoFramesError, match=r"cleared \d+ s ago \(a test\)"):
            engine.submit(Question("what?")).future.result(timeout=60)
