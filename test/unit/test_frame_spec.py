"""The frame size is known before a model is loaded: what the files say is what the loaded model takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from vstream_ros.models.frame_spec import FrameSpec, frame_spec_of
from vstream_ros.models.loader import load_model
from vstream_ros.synthetic.random_model import FAMILIES, write_random_checkpoint

PIXELS = {"min_pixels": 56 * 56, "max_pixels": 4 * 224 * 224}


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def legacy(folder: Path, name: str, **fields: Any) -> None:
    """The processor's files as before transformers 5: not nested, one file each."""
    nested = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": nested["processor_class"]}))
    image, video = nested["image_processor"], nested["video_processor"]
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    if name != "preprocessor_config.json":
        (folder / name).write_text(json.dumps(video))
    for key, value in fields.items():
        edit(folder / name, lambda content, key=key, value=value: content.update({key: value}))  # type: ignore[misc]
        if value is None:
            edit(folder / name, lambda content, key=key: content.pop(key))  # type: ignore[misc]


CHANGES: dict[str, Callable[[Path], None]] = {
    "as written": lambda folder: None,
    "a small processor": lambda folder: edit(
        folder / "processor_config.json",
        lambda c: c["video_processor"]["size"].update(longest_edge=100 * 100, shortest_edge=10),
    ),
    "no size": lambda folder: edit(folder / "processor_config.json", lambda c: c["video_processor"].pop("size")),
    "a file of the video processor's own": lambda folder: legacy(
        folder, "video_preprocessor_config.json", size={"shortest_edge": 10, "longest_edge": 9_000}
    ),
    "max_pixels, as Qwen2's": lambda folder: legacy(
        folder, "preprocessor_config.json", size=None, min_pixels=10, max_pixels=8_000
    ),
    "other patches": lambda folder: edit(folder / "config.json", lambda c: c["vision_config"].pop("patch_size")),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_files_say_what_the_loaded_model_takes(tmp_path: Path, family: str, change: str) -> None:
    folder = write_random_checkpoint(tmp_path / "model", family)
    CHANGES[change](folder)
    expected = load_model(str(folder), device="cpu", **PIXELS).frame_spec
    assert frame_spec_of(str(folder), **PIXELS) == expected
    assert expected.factor == (32 if family == "qwen3_vl" else 28)
    if change in ("a small processor", "a file of the video processor's own", "max_pixels, as Qwen2's"):
        assert expected.max_pixels <= 10_000, "or the change was none"


def test_the_embedded_checkpoint_says_it_too() -> None:
    expected = load_model("vstream-tiny", device="cpu", **PIXELS).frame_spec
    assert frame_spec_of("vstream-tiny", **PIXELS) == expected != FrameSpec()


def test_a_checkpoint_in_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert frame_spec_of("someone/model", **PIXELS) is None
    cached = tmp_path / "models--someone--model"
    snapshot = cached / "snapshots" / "abc"
    write_random_checkpoint(snapshot, "qwen3_vl")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    spec = frame_spec_of("someone/model", **PIXELS)
    assert spec is not None
    assert spec.factor == 32


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model_type": "llava"}', '{"model_type": "qwen2_vl"}'])
def test_what_says_nothing_is_no_fault(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert frame_spec_of(str(tmp_path), **PIXELS) is None


@pytest.mark.parametrize("name", ["", "/nope", "~nobody/x", "a b/c:d", "a/b/c/d", "\0", "x" * 5_000])
def test_a_name_that_is_none_is_no_fault(name: str) -> None:
    assert frame_spec_of(name, **PIXELS) is None


def test_it_takes_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from vstream_ros.models.frame_spec import frame_spec_of;"
        "assert frame_spec_of('vstream-tiny', min_pixels=1, max_pixels=9) is not None;"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
