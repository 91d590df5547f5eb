"""``vstream compare``: what each method may forget, whose answer is native's, and what is done when memory runs out."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.frames import random_frame
from vstream_ros.compare.comparison import draw_results, terminal_table, write_json, write_page
from vstream_ros.compare.measure import compare
from vstream_ros.compare.methods import MethodResult
from vstream_ros.errors import NoFramesError, OutOfMemoryError
from vstream_ros.models.qwen.video_model import QwenVideoModel


class Recording:
    """A source of random frames, ten a second, on two topics."""

    path = Path("recording")
    topics = ("front", "rear")

    def __init__(self, seconds: float) -> None:
        self._count = int(10 * seconds)

    def __iter__(self) -> Any:
        for k in range(self._count):
            for topic in self.topics:
                yield Picture(topic, k * 100_000_000, k)


class Picture:
    def __init__(self, topic: str, stamp_ns: int, seed: int) -> None:
        self.topic, self.stamp_ns, self._seed = topic, stamp_ns, seed

    def rgb(self, size: Any) -> np.ndarray:
        assert self.topic == "front"
        return random_frame(np.random.default_rng(self._seed), *size(56, 84))


@pytest.fixture
def model(models: dict[str, QwenVideoModel]) -> QwenVideoModel:
    return models["qwen2_5_vl"]


def run(model: QwenVideoModel, **options: Any) -> Any:
    return compare(model, Recording(10), "what?", frames=9, max_new_tokens=8, window=2, **options)  # type: ignore[arg-type]


def test_delayed_and_streamed_give_natives_answer_over_all_frames(any_model: QwenVideoModel) -> None:
    results = {r.method: r for r in run(any_model).results}
    assert list(results) == ["native", "incremental", "replace", "delayed", "streamed"]
    for method in ("delayed", "streamed"):
        assert results[method].equals_native
        assert results[method].token_ids == results["native"].token_ids
        assert results[method].cache_tokens == results["native"].cache_tokens
    assert not results["incremental"].equals_native
    assert not results["replace"].equals_native
    assert {m: r.frames for m, r in results.items()} == {
        "native": 9, "incremental": 9, "replace": 3, "delayed": 9, "streamed": 9,
    }  # fmt: skip
    assert results["delayed"].streaming_s == 0.0
    assert results["streamed"].streaming_s > 0.0
    assert all(r.first_token_s > 0 and r.total_s >= r.first_token_s for r in results.values())


def test_out_of_memory_doubles_the_stride_and_says_so(model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = model.native_generate

    def small_device(segments: Any, *args: Any, **kwargs: Any) -> Any:
        if len(segments[0].tubelets) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(segments, *args, **kwargs)

    monkeypatch.setattr(model, "native_generate", small_device)
    comparison = run(model)
    assert comparison.frame_stride == 4
    assert [note.split(":")[0] for note in comparison.notes] == ["frame stride 1", "frame stride 2"]
    assert all("native ran out of memory" in note for note in comparison.notes)
    assert len(comparison.results) == 5

    def no_device(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "native_generate", no_device)
    with pytest.raises(OutOfMemoryError, match="max_pixels"):
        run(model)


def test_an_empty_recording_is_one_sentence(model: QwenVideoModel) -> None:
    with pytest.raises(NoFramesError, match="recording"):
        compare(model, Recording(0), "what?")  # type: ignore[arg-type]


def test_the_page_stands_alone_and_the_json_holds_every_field(model: QwenVideoModel, tmp_path: Path) -> None:
    comparison = run(model)
    comparison.question = "<script>alert('what?')</script>"
    comparison.notes.append("a note")
    write_page(comparison, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<script>" not in page
    assert "a note" in page
    assert "data:image/png;base64," in page
    assert all(f"<h3>{r.method}" in page for r in comparison.results)
    write_json(comparison, tmp_path / "compare.json")
    document = json.loads((tmp_path / "compare.json").read_text())
    assert [r["method"] for r in document["results"]] == [r.method for r in comparison.results]
    assert terminal_table(comparison).row_count == 10
    drafted = {r.method: (r.tokens_per_pass, r.draft_share_right) for r in comparison.results}
    assert drafted["native"] == (1.0, 0.0)
    assert all(drafted[name][0] > 1.0 and drafted[name][1] == 1.0 for name in ("delayed", "streamed"))


@pytest.mark.parametrize(
    ("native_s", "ours_s"), [(0.9, 0.03), (0.05, 0.03), (0.2, 0.2), (1.0, 0.1), (100.0, 0.0002)]
)
def test_no_number_of_the_plots_lies_on_another_or_outside(native_s: float, ours_s: float) -> None:
    """Every bar, tick and title as matplotlib lays them out. A range of less than a decade used to label its minor
    ticks, each with a power of ten."""
    results = [
        MethodResult(name, equals_native=native, first_token_s=first, first_token_warm_s=ours_s, peak_bytes=10**8)
        for name, native, first in (("native", True, native_s), ("incremental", False, ours_s))
    ]
    figure = draw_results(results)
    figure.draw_without_rendering()
    for axes in figure.axes:
        axis = axes.xaxis
        low, high = axes.get_xlim()
        ticks = [t for t in (*axis.get_major_ticks(), *axis.get_minor_ticks()) if low <= t.get_loc() <= high]
        labels = [t.label1 for t in ticks if t.label1.get_text()]
        assert len(labels) >= 2
        for text in (*labels, *axes.texts, axes.title):
            inside = text.get_window_extent()
            assert figure.bbox.x0 <= inside.x0 <= inside.x1 <= figure.bbox.x1, text
        for texts in (labels, axes.texts):
            boxes = [text.get_window_extent() for text in texts]
            for one, other in itertools.combinations(boxes, 2):
                assert not one.overlaps(other)
    first, following, _ = figure.axes
    assert first.get_xlim() == following.get_xlim()
