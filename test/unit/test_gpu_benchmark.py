"""``make bench-gpu`` on a CPU, tiny: every part runs before it first meets a GPU."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_models import GEOMETRIES, make_model, model_config, tiny
from benchmarks.gpu_parts import longest_clips, runs_out
from benchmarks.latency import Contest
from vstream_ros.memory import Clip
from vstream_ros.synthetic.random_model import byte_tokenizer, random_weights

CPU = torch.device("cpu")
CHECKS = 10
PARTS = ["vision", "first_token_2", "decoding", "equality", "profiles", "peak_memory", "first_token_3", "longest_clip"]


@pytest.fixture(autouse=True)
def restored_settings() -> Iterator[None]:
    threads, tf32 = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    gc.freeze()  # memory is collected after every part: without what was there before, in half of the time
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = tf32


def test_a_dry_run_measures_every_part_and_passes_every_check(tmp_path: Path) -> None:
    out = tmp_path / "new" / "bench.json"
    gpu.main(["--dry-run", "--check", "--out", str(out)])
    report = json.loads(out.read_text())
    assert [(c["check"], c["detail"]) for c in report["checks"] if not c["passed"]] == []
    assert len(report["checks"]) == CHECKS
    assert list(report["models"]) == [f"{geometry.name} (tiny)" for geometry in GEOMETRIES]
    for measured in report["models"].values():
        assert list(measured) == ["weights", "graphs", *PARTS]
        assert [part["traceback"] for part in measured.values() if "traceback" in part] == []
        for part in ("first_token_2", "first_token_3"):
            rows = measured[part]["result"]
            assert len(rows) == 5
            assert all(row["answers_equal"] for row in rows)
        equality = measured["equality"]["result"]
        for scenario in ("cold", "follow_up", "appended"):
            assert equality["float32"][scenario]["tokens_equal"]
            assert equality["float32"][scenario]["logit_difference"] < 1e-4 < 1e-2 < equality["control"]
        decoding = measured["decoding"]["result"]
        assert 0 < decoding["ours_tokens_per_s"] < decoding["limit_tokens_per_s"]
        for batch in ("batch_1", "batch_8"):
            vision = measured["vision"]["result"][batch]
            assert vision["difference"] < 1e-4 * vision["scale"]
        assert measured["longest_clip"]["result"]["ours"] == {"worked": 2, "ran_out": None}


def test_a_part_that_fails_is_reported_and_the_next_goes_on(tmp_path: Path) -> None:
    report = gpu.Report(tmp_path / "bench.json", 60.0, {"device": "none"})

    def fails() -> None:
        raise ValueError("no such kernel")

    until = math.inf
    report.add_part("model", "broken", fails, until)
    report.add_part("model", "whole", lambda: {"figure": 1}, until)
    report.add_part("model", "late", lambda: {"figure": 1}, until=-math.inf)
    parts: dict[str, Any] = json.loads((tmp_path / "bench.json").read_text())["models"]["model"]
    assert parts["broken"]["error"] == "ValueError: no such kernel"
    assert "in fails" in parts["broken"]["traceback"]
    assert parts["whole"]["result"] == {"figure": 1}
    assert "result" not in parts["late"]
    gpu.show(json.loads((tmp_path / "bench.json").read_text()))


def test_the_longest_clip_is_the_one_before_memory_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    contest = Contest(make_model(tiny(GEOMETRIES[0]), CPU, torch.float32), (56, 84))

    def native(clip: Clip) -> None:
        if len(clip) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(contest, "native", native)
    measured = longest_clips(contest, 1, 4, 0, lambda: False)
    assert measured["native"] == {"worked": 2, "ran_out": 4}
    assert measured["ours"] == {"worked": 4, "ran_out": None}
    assert longest_clips(contest, 1, 4, 0, lambda: True)["ours"] == {"worked": 0, "ran_out": None}
    with pytest.raises(ZeroDivisionError):
        runs_out(lambda: 1 / 0)


def test_dimensions_are_the_checkpoints() -> None:
    """As many parameters as the published weights have: Qwen2.5-VL-3B-Instruct and Qwen3-VL-4B-Instruct."""
    tokenizer = byte_tokenizer()
    for geometry, parameters in zip(GEOMETRIES, (3_754_622_976, 4_437_815_808), strict=True):
        model = random_weights(model_config(geometry, tokenizer), tokenizer, device="meta")
        assert sum(p.numel() for p in model.parameters()) == parameters
        assert model.lm_head.weight is model.get_input_embeddings().weight
