"""An engine's memory saved and loaded: the next answer is the one before the saving, token for token."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.engines import Gate, fails_with, feed
from support.equality import Generated, cached_answer, compare, native_answer
from vstream_ros.engine import DelayedBatchInferenceEngine, Question
from vstream_ros.errors import CanceledError, MemoryFileError, NoMemoryFileError
from vstream_ros.memory import MemoryConfig

MEMORY = MemoryConfig(scene_threshold=1.0, star_memory_size=8, stream_window_size=6, stream_slide=2, sample_rate_hz=2.0)
QUESTION = Question("what happened?", max_new_tokens=6)
Make = Callable[..., DelayedBatchInferenceEngine]


@pytest.fixture
def make(loaded: tuple[Any, Any]) -> Iterator[Make]:
    made: list[DelayedBatchInferenceEngine] = []

    def make_engine(*cameras: str, memory: MemoryConfig = MEMORY, max_pixels: int = 84 * 84) -> Any:
        memories = dict.fromkeys(cameras or ("front",), memory)
        # Without drafts: the same question again is computed in the same passes, bit by bit.
        made.append(
            DelayedBatchInferenceEngine(*loaded, "cpu", memory=memories, max_pixels=max_pixels, drafts="off")
        )
        return made[-1]

    yield make_engine
    for engine in made:
        engine.close()


def generated(engine: DelayedBatchInferenceEngine) -> Generated:
    """In the model's thread, as an answer is."""
    answerer = engine._host.answerer
    assert answerer is not None
    return engine._thread.run(lambda: cached_answer(answerer, engine.clips(), QUESTION)).result(timeout=60)


def native(engine: DelayedBatchInferenceEngine) -> Generated:
    answerer = engine._host.answerer
    assert answerer is not None
    return engine._thread.run(lambda: native_answer(answerer, engine.clips(), QUESTION)).result(timeout=60)


def same(one: Generated, other: Generated) -> bool:
    return one.tokens == other.tokens and torch.equal(one.logits, other.logits)


@pytest.mark.parametrize(("cameras", "frames"), [(("front",), 31), (("front",), 1), (("front", "rear"), 20)])
def test_the_next_answer_is_the_one_of_before(make: Make, tmp_path: Path, cameras: tuple, frames: int) -> None:
    before, after = make(*cameras), make(*cameras)
    for index, camera in enumerate(cameras):
        feed(before, frames - index, camera=camera)
        feed(after, 5, start=50, camera=camera)
    after.ask("warm up")
    wanted = generated(before)
    saved = before.save_memory(tmp_path / "memory.npz")
    read = after.load_memory(tmp_path / "memory.npz")
    assert (read.tubelets, read.nbytes) == (saved.tubelets, saved.nbytes)
    assert saved.nbytes == (tmp_path / "memory.npz").stat().st_size
    assert saved.tubelets == sum(camera.tubelets for camera in before.status().cameras)
    assert same(generated(after), wanted)
    assert compare(generated(after), native(after)).equal
    answers = [engine.submit(QUESTION).future.result(timeout=60) for engine in (before, after)]
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].frame_stamps_ns == answers[1].frame_stamps_ns

    # And it goes on alike; a control: without the file the answers differ.
    for engine in (before, after):
        for camera in cameras:
            feed(engine, 7, start=frames + 1, camera=camera)
    assert same(generated(before), generated(after))
    alone = make(*cameras)
    for camera in cameras:
        feed(alone, 7, start=frames + 1, camera=camera)
    assert not same(generated(before), generated(alone))


@pytest.mark.parametrize("array", ["frames", "times_ns"])
def test_a_file_that_was_changed_gives_another_answer(make: Make, tmp_path: Path, array: str) -> None:
    """The control of the test above: pixels and times do reach the answer through the file."""
    before, after = make(), make()
    feed(before, 20)
    wanted = generated(before)
    path = tmp_path / "memory.npz"
    before.save_memory(path)
    with np.load(path) as file:
        parts = {name: file[name] for name in file.files if name != "header.json"}
        header = file["header.json"]
    name = f"camera0_{array}"
    parts[name] = 255 - parts[name] if array == "frames" else parts[name] * 2
    np.savez(path, **parts)
    import zipfile

    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("header.json", header)
    after.load_memory(path)
    assert not same(generated(after), wanted)


def test_questions_and_caches_of_what_was_there_are_void(make: Make, tmp_path: Path) -> None:
    engine = make()
    feed(engine, 12)
    engine.save_memory(tmp_path / "memory.npz")
    wanted = generated(engine)
    ids = {tubelet.id for clip in engine.clips() for tubelet in clip.tubelets}
    gate = Gate()
    running = engine.submit(Question("talk", max_new_tokens=6), on_text=gate)
    assert gate.reached.wait(60)
    clearings = engine.status().memory_epoch
    engine.load_memory(tmp_path / "memory.npz")
    gate.open()
    fails_with(running.future, CanceledError)
    assert engine.status().memory_epoch == clearings + 1
    assert "camera front: loaded from memory.npz" in engine.status().announcements
    engine._thread.run(lambda: None).result(timeout=60)
    answerer = engine._host.answerer
    assert answerer is not None
    assert ids.isdisjoint(answerer.timelines.current.tubelet_ids)
    assert not any(tubelet in answerer.vision for tubelet in ids)
    answerer.timelines.check_integrity()
    assert same(generated(engine), wanted)


def test_frames_of_another_size_are_scaled_and_that_is_said(make: Make, tmp_path: Path) -> None:
    before, after = make(), make(max_pixels=56 * 56)
    feed(before, 12)
    before.save_memory(tmp_path / "memory.npz")
    read = after.load_memory(tmp_path / "memory.npz")
    assert "tubelets were scaled" in read.summary
    (clip,) = after.clips()
    assert clip.tubelets[0].frames.shape[1:3] == after.frame_size(60, 80)
    assert compare(generated(after), native(after)).equal
    after.add_frame(np.zeros((60, 80, 3), np.uint8), 100.0)
    assert after.status().cameras[0].clears == {}


def test_cameras_are_matched_by_name(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "memory.npz"
    before, after = make("front", "rear"), make("rear", "side")
    for engine, camera in ((before, "front"), (before, "rear"), (after, "side"), (after, "rear")):
        feed(engine, 8, camera=camera)
    before.save_memory(path)
    side = after.clips(Question("", cameras=("side",)))[0].tubelets
    read = after.load_memory(path)
    assert "camera front is in the file and not here: skipped" in read.summary
    assert "camera side is not in the file: it keeps its frames" in read.summary
    assert after.clips(Question("", cameras=("side",)))[0].tubelets == side
    with pytest.raises(MemoryFileError, match=r"other cameras \(front, rear\)"):
        make("left").load_memory(path)


def test_another_rate_is_said(make: Make, tmp_path: Path) -> None:
    before = make()
    feed(before, 4)
    before.save_memory(tmp_path / "memory.npz")
    read = make(memory=MemoryConfig()).load_memory(tmp_path / "memory.npz")
    assert "was sampled at 2 Hz, is now at every frame" in read.summary


def test_a_refused_file_changes_nothing(make: Make, tmp_path: Path) -> None:
    engine, path = make(), tmp_path / "memory.npz"
    feed(engine, 12)
    wanted = generated(engine)
    ids, epochs = [t.id for t in engine.clips()[0].tubelets], engine.status().memory_epoch
    with pytest.raises(NoMemoryFileError):
        engine.load_memory(path)
    engine.save_memory(path)
    data = path.read_bytes()
    shutil.copy(path, tmp_path / "copy.npz")
    for damaged in (data[:-1], data[: len(data) // 2], b"", data[:5000] + b"\0\1\2" + data[5003:]):
        path.write_bytes(damaged)
        with pytest.raises(MemoryFileError, match="save the memory again"):
            engine.load_memory(path)
    assert [t.id for t in engine.clips()[0].tubelets] == ids
    assert engine.status().memory_epoch == epochs
    assert same(generated(engine), wanted)
    engine.load_memory(tmp_path / "copy.npz")
