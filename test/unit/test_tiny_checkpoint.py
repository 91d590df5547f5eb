"""The embedded checkpoint: it is found by its name, loads as any other, and is right about short clips."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pytest
from rich.console import Console

from support import shapes_accuracy as evaluation
from vstream_ros.errors import InvalidRequestError, ModelFailedError, NoFramesError
from vstream_ros.memory.clip import NANOSECONDS, Tubelet
from vstream_ros.models.base import GenerationOptions, Segment
from vstream_ros.models.loader import EMBEDDED, load_model
from vstream_ros.synthetic.shapes_questions import KINDS, ask, right
from vstream_ros.synthetic.shapes_world import Scene
from vstream_ros.synthetic.sightings import sightings


@pytest.fixture(scope="module")
def tiny():
    return load_model(
        "vstream-tiny", device="cpu", torch_dtype="float32", local_files_only=True, min_pixels=3136, max_pixels=200_704
    )


def test_it_is_small_and_complete(tiny):
    folder = EMBEDDED["vstream-tiny"]
    assert (folder / "model.safetensors").stat().st_size <= 8_000_000
    assert "knows nothing" in (folder / "README.md").read_text()
    assert tiny.name == "vstream-tiny"
    assert tiny.frame_spec.fit(480, 640) == (84, 112)


def test_it_answers_about_short_clips(tiny):
    """Below what ``make eval`` measures, far above chance: whether it is the trained one."""
    rng = np.random.default_rng(3)
    score = []
    for seed in range(12):
        scene = Scene(7_000_000_000 + seed, 20.0, gap_s=3.0)
        times = [(8.0 + k, 8.5 + k) for k in range(4)]
        tubelets = tuple(
            Tubelet(
                k, "", np.stack([scene.frame(t, (84, 112)) for t in pair]), tuple(round(t * NANOSECONDS) for t in pair),
                round(pair[0] * NANOSECONDS), 0.5,
            )
            for k, pair in enumerate(times)
        )
        for kind in ("colour", "shape", "where", "before", "after", "count", "describe"):
            qa = ask(kind, [sightings(scene, *pair) for pair in times], rng)
            if qa is not None:
                segments = [Segment(tubelets, 1.0, tubelets[0].time_ns)]
                tokens = tiny.native_generate(segments, qa.question, GenerationOptions(120), true_time=True)
                score.append(right(tiny.decode_text(tokens), qa.answer))
    assert len(score) >= 45
    assert np.mean(score) >= 0.9


def test_questions_that_can_not_be_answered_are_refused(tiny):
    from vstream_ros.engine import DelayedBatchInferenceEngine

    with DelayedBatchInferenceEngine("vstream-tiny") as engine:
        with pytest.raises(NoFramesError):
            engine.ask("What is there now?")
        engine.add_frame(Scene(1, 5.0).frame(1.0, (84, 112)), 0.0)
        with pytest.raises(InvalidRequestError, match="exceed"):
            engine.ask("What is there now? " * 1000)


@pytest.mark.parametrize(
    ("file", "keep"),
    [
        ("model.safetensors", None), ("model.safetensors", 0.5), ("tokenizer.json", None), ("tokenizer.json", 0.5),
        ("config.json", None), ("config.json", 0.5), ("processor_config.json", None),
    ],
)
def test_a_damaged_copy_is_refused_in_one_sentence(tmp_path, file, keep):
    """``keep``: how much of the file is left; None: there is no such file."""
    folder = tmp_path / "vstream_tiny"
    shutil.copytree(EMBEDDED["vstream-tiny"], folder)
    options = {"device": "cpu", "torch_dtype": "float32", "local_files_only": True, "min_pixels": 1, "max_pixels": 9408}
    load_model(str(folder), **options)
    data = (folder / file).read_bytes()
    (folder / file).unlink()
    if keep is not None:
        (folder / file).write_bytes(data[: int(keep * len(data))])
    with pytest.raises(ModelFailedError) as caught:
        load_model(str(folder), **options)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    if (file, keep) == ("tokenizer.json", None):  # transformers loads it all the same, without a vocabulary
        assert "tokenizer.json is missing" in str(caught.value)


def test_evaluation_counts_every_kind(monkeypatch):
    monkeypatch.setattr(evaluation, "MAX_NEW_TOKENS", 12)
    monkeypatch.setattr(evaluation, "CAMERA_SHARE", 0.0)
    seed, silent = evaluation.HELD_OUT_SEED, Console(file=io.StringIO())
    report = evaluation.evaluate("vstream-tiny", 1, seed, silent, processes=0)
    assert [row["kind"] for row in report["kinds"]] == list(KINDS)
    for row in report["kinds"] + report["recall"]:
        assert row["n"] == row["engine_equals_native"] == 1
        assert row["right"] in (0, 1)
        assert 0.0 <= row["ci95"][0] <= row["accuracy"] <= row["ci95"][1] <= 1.0
    evaluation.show(report, silent)


def test_wilson():
    assert evaluation.wilson(0, 0) == (0.0, 1.0)
    low, high = evaluation.wilson(480, 500)
    assert (round(low, 3), round(high, 3)) == (0.939, 0.974)
