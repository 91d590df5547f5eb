"""Whether the engine does on a GPU what its tests show on a CPU: ``python -m benchmarks.gpu --check``.

Each check says what it saw or why it failed, and the next one goes on. In float32, where answers must be native's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.decoding import answer_together
from benchmarks.gpu_models import MAX_PIXELS, QWEN2_5_VL_3B, make_model, tiny
from benchmarks.gpu_parts import limited_room, synchronize
from benchmarks.latency import Contest
from support.equality import native_answer
from support.faults import fault_at
from support.frames import random_frame
from vstream_ros import errors
from vstream_ros.engine import DelayedBatchInferenceEngine, EngineConfig, Question
from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.engine.device_memory import read_device_memory, release_unused_memory, reset_peak
from vstream_ros.engine.recovery import first_line, forget_frames
from vstream_ros.memory import MemoryConfig
from vstream_ros.memory.clip import NANOSECONDS
from vstream_ros.models.loader import load_model
from vstream_ros.models.qwen.video_model import QwenVideoModel
from vstream_ros.synthetic.random_model import write_random_checkpoint

LAYERS = 8
"""Of the language model: enough for everything that is checked here."""
WAIT_S = 120.0
TOKENS = 8
TEXT = "What happens?"


class Checks:
    """The checks of one model on one device."""

    def __init__(self, device: torch.device, *, dry_run: bool) -> None:
        """``dry_run``: a tiny model and short clips."""
        self.device = device
        self.size = (56, 84) if dry_run else (252, 448)
        self.tubelets = 8 if dry_run else 80
        self.clips = 1 if dry_run else 6
        geometry = tiny(QWEN2_5_VL_3B) if dry_run else QWEN2_5_VL_3B
        self.model: QwenVideoModel = make_model(geometry, device, torch.float32, layers=LAYERS)

    def all(self) -> Iterator[tuple[str, Callable[[], str]]]:
        """Name and check; what a check returns is what it saw."""
        yield "auto dtype and device", self.auto_dtype
        yield "vstream-tiny answers as native", self.vstream_tiny
        yield "the vision encoder never waits for the device", self.vision_waits
        yield "device_memory is sensible", self.device_memory
        yield "out of memory is recovered from", self.out_of_memory
        yield "work ahead while frames come in", self.background
        yield "features kept on the CPU", self.features_on_the_cpu
        yield "captured graphs give native's answers", self.graphs
        yield "sampling draws what native draws", self.sampling
        yield "closing gives the memory back", self.closing

    # -- checks ------------------------------------------------------------------------------------------------------

    def auto_dtype(self) -> str:
        wanted = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        with tempfile.TemporaryDirectory() as folder:
            write_random_checkpoint(folder)
            loaded = load_model(folder, device="auto", local_files_only=True, min_pixels=56 * 56, max_pixels=MAX_PIXELS)
        dtypes = {parameter.dtype for parameter in loaded.model.parameters()}
        assert dtypes == {wanted}, f"weights are {dtypes}"
        assert loaded.device.type == loaded.vision_device.type == self.device.type, loaded.device
        return f"{loaded.device}, {wanted}"

    def vstream_tiny(self) -> str:
        equal = {}
        for dtype in ("float32", "auto"):
            model = load_model(
                "vstream-tiny", device=str(self.device), torch_dtype=dtype, min_pixels=56 * 56, max_pixels=9800
            )
            answers = []
            for seed in range(self.clips):
                with self.engine(model) as engine:
                    self.feed(engine, 10, seed=seed, size=(84, 112))
                    answers.append(self.equals_native(engine, Question("What colour is the shape?", max_new_tokens=16)))
            equal[dtype] = sum(answers)
        seen = f"in float32 {equal['float32']} of {self.clips}, in the device's own dtype {equal['auto']}"
        assert equal["float32"] == self.clips, seen
        return seen

    def vision_waits(self) -> str:
        with self.engine() as engine:
            self.feed(engine, 4)
            tubelets = engine.clips()[0].tubelets
            model = _answerer(engine).model
            assert isinstance(model, QwenVideoModel)
            pixels, grids = model.pixel_values(tubelets)
            model.vision_output(pixels, grids)  # what follows from the grids is there from now on
            with waits_counted(self.device) as encoding:
                model.vision_output(pixels, grids)
            features = model.encode(tubelets)
            prompt = _answerer(engine).prompt(engine.clips(), TEXT)
            with waits_counted(self.device) as prefilling:
                model.prefill(prompt, prompt.prefix_length, features, model.new_cache())
        # One is torch's own check of an argument, in transformers' code.
        assert len(encoding) <= 1, f"{len(encoding)} times: {encoding[:3]}"
        return f"{len(encoding)} times ({encoding}); a prefill does {len(prefilling)} times before its end"

    def device_memory(self) -> str:
        with self.engine() as engine:
            self.feed(engine, 4)
            self.ask(engine)
            of_device = next(m for m in engine.device_memory() if torch.device(m.device).type == self.device.type)
        m = of_device
        assert 0 < m.model <= m.allocated <= m.reserved <= m.total, m
        assert 0 < m.free <= m.total, m
        assert m.peak_allocated >= m.allocated, m
        assert m.kv_cache > 0, m
        assert m.features > 0, m
        sizes = {"model": m.model, "allocated": m.allocated, "reserved": m.reserved, "total": m.total}
        return ", ".join(f"{name} {size >> 20}" for name, size in sizes.items()) + " MiB"

    def out_of_memory(self) -> str:
        with self.engine(prefill_chunk_tubelets=64) as engine:
            self.feed(engine, self.tubelets)
            newest = engine.clips()[0].tubelets[-3].stamps_ns[0]
            few, everything = self.question(start_ns=newest), self.question()
            needs = [self.needed_bytes(engine, question) for question in (few, everything)]
            _answerer(engine).drop_caches()
            with self.shortage(sum(needs) // 2):
                error = engine.submit(everything).future.exception(WAIT_S)
                assert isinstance(error, errors.OutOfMemoryError), f"it ended with {error!r}"
                assert self.equals_native_later(engine, few), "the smaller question's answer is not native's"
            assert self.equals_native(engine, everything), "the answer with enough memory is not native's"
        return f"needed {needs[1] >> 20} MiB of {sum(needs) >> 21}, ended with: {error}; a smaller one was right"

    def background(self) -> str:
        with self.engine(background_encoding="full") as engine:
            feeder = threading.Thread(target=self.feed, args=(engine, 16))
            feeder.start()
            asked = 0
            while feeder.is_alive():
                if engine.clips():
                    self.ask(engine)
                    asked += 1
            feeder.join()
            self.wait_until(lambda: not engine.status().pending_tubelets, "the work ahead did not catch up")
            pending = engine.submit(self.question()).future.result(WAIT_S)
            assert pending.metrics.cache_hit, "the question found work left to do"
            assert self.equals_native(engine, self.question()), "the answer is not native's"
            part = self.question(start_ns=5 * NANOSECONDS)
            assert self.equals_native(engine, part), "the answer about a part is not native's"
            status = engine.status()
            assert not status.background_failures, status.background_error
        return f"{asked} questions meanwhile, first token after {1e3 * pending.metrics.first_token_latency:.0f} ms"

    def features_on_the_cpu(self) -> str:
        with self.engine(features_device="cpu") as engine:
            self.feed(engine, 6)
            self.ask(engine)
            _answerer(engine).timelines.reset()  # the features alone are left
            answer = engine.submit(self.question()).future.result(WAIT_S)
            assert answer.metrics.encoding_latency == 0.0, "something was encoded again"
            assert self.equals_native(engine, self.question()), "the answer is not native's"
            assert _answerer(engine).vision.device.type == "cpu"
        return "none was encoded again"

    def graphs(self) -> str:
        """Questions one after another and together, captured; the same ones uncaptured take how much longer."""
        contest = Contest(self.model, self.size)
        answerer, clip = contest.answerer, contest.clip(self.tubelets // 4)
        questions = [Question(f"{TEXT} {k}", max_new_tokens=4 + 6 * k) for k in range(6)]
        natives = [native_answer(answerer, (clip,), question).tokens for question in questions]
        seconds = {}
        for mode in ("off", "auto"):
            answerer.config = dataclasses.replace(answerer.config, decode_graphs=mode)
            for _ in range(2):  # the second time with drafts, and nothing is captured
                synchronize(self.device)
                started = time.perf_counter()
                for question, native in zip(questions, natives, strict=True):
                    assert list(answerer.answer((clip,), question).token_ids) == native, f"{mode}: another answer alone"
                for answer, native in zip(answer_together(answerer, clip, questions), natives, strict=True):
                    assert list(answer.token_ids) == native, f"{mode}: another answer in a batch"
                answerer.timelines.check_integrity()
                seconds[mode] = time.perf_counter() - started
        captured = self.model.captured_rows
        if self.device.type == "cuda":
            assert captured, "nothing was captured"
        self.model.free_scratch()
        assert not self.model.arena_bytes, "the arena is still there"
        faster = seconds["off"] / seconds["auto"]
        return f"{2 * len(questions)} answers, rows {captured}, {faster:.1f} times as fast"

    def sampling(self) -> str:
        state = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.get_rng_state()
        question = self.question(temperature=1.0, seed=5)
        with self.engine() as engine:
            self.feed(engine, 4)
            assert self.equals_native(engine, question), "another answer than native's with the same seed"
        after = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.get_rng_state()
        assert torch.equal(state, after), "the process's random state was changed"
        return "same tokens, random state untouched"

    def closing(self) -> str:
        release_unused_memory()
        before = read_device_memory(self.device).allocated
        with self.engine() as engine:
            self.feed(engine, self.tubelets)
            self.ask(engine)
            held = read_device_memory(self.device).allocated - before
        release_unused_memory()
        left = read_device_memory(self.device).allocated - before
        if self.device.type == "cuda":
            assert held > 0
            assert left < held / 10, f"{left} of {held} bytes are left"
        return f"{held >> 20} MiB held, {left >> 20} left"

    # -- what they share ---------------------------------------------------------------------------------------------

    def engine(self, model: QwenVideoModel | None = None, **overrides: Any) -> DelayedBatchInferenceEngine:
        """One whose memory forgets nothing of what is fed here."""
        model = model or self.model
        frames = 2 * self.tubelets
        memory = MemoryConfig(
            star_memory_size=4, stream_window_size=frames, scene_threshold=1.0, include_pending=False
        )
        config = EngineConfig(device=str(self.device), max_pixels=model.frame_spec.max_pixels, timeout_s=WAIT_S)
        return DelayedBatchInferenceEngine(model.model, model.processor, config=config, memory=memory, **overrides)

    def feed(
        self, engine: DelayedBatchInferenceEngine, tubelets: int, seed: int = 0, size: tuple[int, int] | None = None
    ) -> None:
        """Random frames, two a second."""
        rng = np.random.default_rng(seed)
        for k in range(2 * tubelets):
            engine.add_frame(random_frame(rng, *(size or self.size)), k / 2)

    def question(self, **fields: Any) -> Question:
        return Question(TEXT, max_new_tokens=TOKENS, **fields)

    def ask(self, engine: DelayedBatchInferenceEngine) -> None:
        engine.submit(self.question()).future.result(WAIT_S)

    def equals_native(self, engine: DelayedBatchInferenceEngine, question: Question) -> bool:
        tokens = list(engine.submit(question).future.result(WAIT_S).token_ids)
        return tokens == native_answer(_answerer(engine), engine.clips(question), question).tokens

    def equals_native_later(self, engine: DelayedBatchInferenceEngine, question: Question) -> bool:
        """The same, native with all of the device's memory."""
        tokens = list(engine.submit(question).future.result(WAIT_S).token_ids)
        if self.device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0, self.device)
        return tokens == native_answer(_answerer(engine), engine.clips(question), question).tokens

    def needed_bytes(self, engine: DelayedBatchInferenceEngine, question: Question) -> int:
        """Above what is there without any cache."""
        _answerer(engine).drop_caches()
        release_unused_memory()
        reset_peak([self.device])
        before = read_device_memory(self.device).allocated
        engine.submit(question).future.result(WAIT_S)
        synchronize(self.device)
        return read_device_memory(self.device).peak_allocated - before

    def shortage(self, room_bytes: int) -> AbstractContextManager[Any]:
        """A device with that much room; on a CPU, which can't be limited, one failed allocation."""
        if self.device.type == "cuda":
            return limited_room(self.device, room_bytes)
        return fault_at(self.model.model, 20, torch.OutOfMemoryError)

    def wait_until(self, condition: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, otherwise
            time.sleep(0.01)


@contextlib.contextmanager
def waits_counted(device: torch.device) -> Iterator[list[str]]:
    """Where the host waits for CUDA within it, without plain synchronisation; nowhere on a CPU."""
    where: list[str] = []
    if device.type != "cuda":
        yield where
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield where
        finally:
            torch.cuda.set_sync_debug_mode("default")
            where += [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]


def _answerer(engine: DelayedBatchInferenceEngine) -> ClipAnswerer:
    answerer = engine._host.answerer
    assert answerer is not None
    return answerer


def run_checks(device: torch.device, *, dry_run: bool, report: Callable[[dict[str, Any]], None]) -> None:
    """All checks, each reported as {"check", "passed", "detail", "seconds"}."""
    checks = Checks(device, dry_run=dry_run)
    for name, check in checks.all():
        started = time.perf_counter()
        passed, detail = True, ""
        try:
            detail = check()
        except Exception as error:  # noqa: BLE001  (the next check goes on)
            passed, detail = False, f"{first_line(error)}\n{forget_frames(error)}"
        with contextlib.suppress(Exception):
            release_unused_memory()
        report({"check": name, "passed": passed, "detail": detail, "seconds": time.perf_counter() - started})
