"""The randomised streams of ``benchmarks.equality``: what they mix, and that they see what they are there to see."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from support import streams
from support.controls import CONTROL_THRESHOLD, control_tubelets_swapped, swapped, visible_swap
from support.equality import LOGIT_TOLERANCE, compare, native_answer
from support.frames import random_frame
from support.streams import WRONG_RESTORE, StreamKind, run_stream
from vstream_ros.engine import EngineConfig, Question
from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.engine.camera_memories import CameraMemories
from vstream_ros.engine.memory_files import load_memories
from vstream_ros.images import resize_rgb
from vstream_ros.memory import Clip, MemoryConfig, SmartFrameManager, Tubelet
from vstream_ros.memory.forming import TubeletFormer
from vstream_ros.memory.saved_state import SavedState
from vstream_ros.models.qwen.video_model import QwenVideoModel

ALL = StreamKind(cameras=2, by_features=True, mixed_sizes=True, restores=True)
QUESTION = Question("what happened?", max_new_tokens=6)


@pytest.fixture
def model(models: dict[str, QwenVideoModel]) -> QwenVideoModel:
    return models["qwen2_5_vl"]


def test_a_stream_of_every_kind_at_once_equals_native(any_model: QwenVideoModel) -> None:
    results = [run_stream(any_model, seed, text_positions="checkpoint", kind=ALL) for seed in (400, 401)]
    for result in results:
        assert all(comparison.equal for comparison in result.comparisons)
        assert min(result.controls.values()) > CONTROL_THRESHOLD, result.controls
        assert result.reweighed
    assert all(sum(getattr(r, name) for r in results) > 2 for name in ("of_two_sizes", "restores"))


def test_the_same_seed_is_the_same_stream_and_restores_add_to_it(model: QwenVideoModel) -> None:
    def numbers(kind: StreamKind) -> list[float]:
        return [c.logit_difference for c in run_stream(model, 3, text_positions="checkpoint", kind=kind).comparisons]

    plain, restored = numbers(StreamKind()), numbers(StreamKind(restores=True))
    assert plain == numbers(StreamKind())
    assert len(restored) > len(plain)


# ---- a restore that is wrong is seen in the answers ----


def failures(model: QwenVideoModel) -> int:
    kind = StreamKind(restores=True, mixed_sizes=True)
    results = [run_stream(model, seed, text_positions="checkpoint", kind=kind) for seed in (2, 3, 6, 7)]
    assert all(result.restores for result in results)
    return sum(not comparison.equal for result in results for comparison in result.comparisons)


def test_swapped_tubelets_in_a_file_are_seen(model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the comparison of the answers before and after, which is the only one that can tell."""
    restore = SmartFrameManager.restore

    def wrong(self: SmartFrameManager, state: SavedState, scorer: object) -> None:
        count = state.tubelet_count
        restore(self, streams._with_swapped(state, (0, count - 1)) if count > 1 else state, scorer)  # type: ignore[arg-type]

    monkeypatch.setattr(SmartFrameManager, "restore", wrong)
    assert failures(model) > 1


def test_a_star_that_is_not_small_any_more_is_seen(model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(memories: CameraMemories, path: Path) -> None:
        load_memories(memories, path)
        for name in memories.names:
            memories._memories[name].resize(lambda height, width: (height, width))

    monkeypatch.setattr(streams, "load_memories", load)
    assert failures(model) > 1


def test_ids_that_are_the_files_are_seen(model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others have them already, and something may be cached of those."""

    def adopted(self: TubeletFormer, tubelet: Tubelet) -> Tubelet:
        return dataclasses.replace(tubelet, camera=self._camera)

    monkeypatch.setattr(TubeletFormer, "adopted", adopted)
    with pytest.raises(AssertionError):  # an invariant, or an answer
        assert failures(model) == 0


def test_the_control_is_of_a_file_that_was_read(model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the swap the restored memory gives native's answer: the difference is the swap's alone."""
    monkeypatch.setattr(streams, "_with_swapped", lambda state, pair: state)
    result = run_stream(model, 5, text_positions="checkpoint", kind=StreamKind(mixed_sizes=True))
    assert result.controls[WRONG_RESTORE] <= LOGIT_TOLERANCE
    assert result.controls["tubelets_swapped"] > CONTROL_THRESHOLD


# ---- which two tubelets are swapped ----


def clip_of(model: QwenVideoModel, tubelets: int) -> Clip:
    memory = SmartFrameManager(MemoryConfig(scene_threshold=1.0))
    rng, factor = np.random.default_rng(0), model.frame_spec.factor
    for k in range(2 * tubelets + 1):
        memory.add_frame(random_frame(rng, 2 * factor, 3 * factor), k * 500_000_000)
    return memory.clip()


def test_two_that_show_the_same_are_not_chosen_though_they_lie_farthest_apart(any_model: QwenVideoModel) -> None:
    clip = clip_of(any_model, 4)
    first, second, third, last, provisional = clip.tubelets
    last = dataclasses.replace(last, frames=first.frames)
    clips = (dataclasses.replace(clip, tubelets=(first, second, third, last, provisional)),)
    answerer = ClipAnswerer(any_model, EngineConfig(), ["camera"])
    index, pair = visible_swap(answerer, clips, QUESTION)
    assert index == 0
    assert set(pair) not in ({0, 3}, {4})
    control = control_tubelets_swapped(answerer, clips, QUESTION, np.random.default_rng(0))
    assert compare(control, native_answer(answerer, clips, QUESTION)).logit_difference > CONTROL_THRESHOLD


def test_the_farthest_pair_of_the_longest_clip_and_none_that_is_provisional(model: QwenVideoModel) -> None:
    shorter, longer = clip_of(model, 2), clip_of(model, 4)
    assert longer.tubelets[-1].provisional
    longer = dataclasses.replace(
        longer, tubelets=tuple(dataclasses.replace(t, id=t.id + 100, camera="other") for t in longer.tubelets)
    )
    answerer = ClipAnswerer(model, EngineConfig(), ["camera", "other"])
    assert visible_swap(answerer, (shorter, longer), QUESTION) == (1, (0, 3))


def test_a_swap_of_two_sizes_keeps_the_sizes_and_everything_but_pixels() -> None:
    rng = np.random.default_rng(0)
    sizes = [(28, 56), (56, 56), (56, 112)]
    tubelets = [
        Tubelet(k, "camera", np.stack([random_frame(rng, *size)] * 2), (k,), k, 0.0) for k, size in enumerate(sizes)
    ]
    result = swapped(tubelets, (0, 2))
    assert [t.frames.shape[1:3] for t in result] == sizes
    assert [(t.id, t.time_ns) for t in result] == [(t.id, t.time_ns) for t in tubelets]
    assert result[1] is tubelets[1] or np.array_equal(result[1].frames, tubelets[1].frames)
    for k, other in ((0, 2), (2, 0)):
        assert np.array_equal(result[k].frames[0], resize_rgb(tubelets[other].frames[0], sizes[k]))
