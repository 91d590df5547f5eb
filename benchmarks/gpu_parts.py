"""The parts of ``benchmarks.gpu``: each measures one thing of one model, and gives plain data for the report."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from benchmarks.decoding import answer_together
from benchmarks.gpu_models import bytes_per_token, in_float32
from benchmarks.latency import QUESTION, Contest, measure_clip
from support.equality import Generated, cached_answer, compare, native_answer
from vstream_ros.engine.answers import Question
from vstream_ros.engine.continuation import Interrupts
from vstream_ros.engine.device_memory import is_out_of_memory, read_device_memory, release_unused_memory, reset_peak
from vstream_ros.engine.recovery import forget_frames
from vstream_ros.engine.segments import clip_segments
from vstream_ros.memory import Clip
from vstream_ros.models.base import GenerationOptions

T = TypeVar("T")
SCENARIOS = ("cold", "vision_first", "background_first", "follow_up", "appended")
BATCH = 8
"""Tubelets encoded in one step: the engine's default chunk."""
RUNTIME_CALLS = (
    "cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaMemcpyAsync",
    "cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaGraphLaunch", "aten::scaled_dot_product_attention",
    "aten::_local_scalar_dense", "aten::copy_",
)  # fmt: skip
"""What is counted beside the kernels: launches, copies, and where the host waits for the device."""


def synchronize(device: torch.device) -> None:
    """Until ``device`` has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(device: torch.device, run: Callable[[], Any]) -> float:
    """Seconds that ``run`` takes, its work on the device included."""
    synchronize(device)
    started = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - started


def median_s(device: torch.device, run: Callable[[], Any], repeats: int) -> float:
    """Of ``repeats`` runs after one that is not counted."""
    run()
    return statistics.median(timed(device, run) for _ in range(repeats))


def copy_rate(device: torch.device) -> float:
    """Bytes a second that a large copy within the device's memory reads and writes."""
    source = torch.randn(2**29 if device.type == "cuda" else 2**21, device=device)  # float32: 2 GiB, 8 MiB
    target = torch.empty_like(source)
    if device.type != "cuda":
        return 2 * source.nbytes / median_s(device, lambda: target.copy_(source), 5)
    target.copy_(source)
    times = []
    for _ in range(10):
        started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        started.record()
        target.copy_(source)
        ended.record()
        ended.synchronize()
        times.append(started.elapsed_time(ended) / 1e3)
    return 2 * source.nbytes / statistics.median(times)


def first_tokens(contest: Contest, tubelets: int, repeats: int) -> list[dict[str, Any]]:
    """Seconds to the first token, as ``benchmarks.latency`` takes them."""
    return [dataclasses.asdict(row) for row in measure_clip(contest, tubelets, repeats, SCENARIOS)]


def decoding(contest: Contest, tubelets: int, tokens: int, bytes_a_second: float) -> dict[str, Any]:
    """Tokens a second behind a clip, beside what reading weights and cache once a token would allow."""
    model, clip = contest.model, contest.clip(tubelets)
    prompt = contest.answerer.prompt((clip,), QUESTION)
    contest.ours(clip)
    cache = contest.answerer.timelines.current.cache
    held_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    cache_bytes = held_bytes / len(contest.answerer.timelines.current) * (len(prompt) + tokens / 2)

    def native(on_token: Callable[[int, float], bool]) -> None:
        options = GenerationOptions(tokens, on_token=on_token)
        model.native_generate(clip_segments((clip,), ["camera"], 10.0), QUESTION, options, true_time=True)

    def ours(on_token: Callable[[int, float], bool]) -> None:
        interrupts = Interrupts(on_text=lambda text, count: on_token(count, 0.0))
        contest.answerer.answer((clip,), Question(QUESTION, max_new_tokens=tokens), interrupts=interrupts)

    result: dict[str, Any] = {"tubelets": tubelets, "prompt_tokens": len(prompt)}
    config = contest.answerer.config
    contest.answerer.config = dataclasses.replace(config, drafts="off")
    for name, answer in (("native", native), ("ours", ours)):
        rates = []
        for _ in range(3):
            stamps: list[float] = []

            def on_token(token_id: int, log_probability: float, stamps: list[float] = stamps) -> bool:
                stamps.append(time.perf_counter())  # the log-probability was read from the device
                return False

            answer(on_token)
            rates.append((len(stamps) - 1) / max(stamps[-1] - stamps[0], 1e-9))
        result[f"{name}_tokens_per_s"] = statistics.median(rates)
        result["tokens"] = len(stamps)

    def together_s(questions: Sequence[Question], repeats: int) -> float:
        return median_s(model.device, lambda: answer_together(contest.answerer, clip, questions), repeats)

    contest.answerer.config = dataclasses.replace(contest.answerer.config, decode_graphs="off")
    one = [Question(QUESTION, max_new_tokens=tokens)]
    result["uncaptured_tokens_per_s"] = tokens / together_s(one, 1)
    contest.answerer.config = dataclasses.replace(contest.answerer.config, decode_graphs="auto")
    eight = [Question(f"{QUESTION} {k}", max_new_tokens=tokens) for k in range(8)]
    result["ours_tokens_per_s_8_questions"] = 8 * tokens / together_s(eight, 1)
    contest.answerer.config = config
    answer_together(contest.answerer, clip, one)
    result["again_s"] = together_s(one, 3)
    choices = ("red 0", "green 1", "blue 2", "left 3", "right 4", "up 5", "down 6", "no 7")
    chosen = [Question(QUESTION, choices=choices, max_new_tokens=1)]
    result["choices_8_s"] = together_s(chosen, 3)
    result["bytes_per_token"] = bytes_per_token(model) + cache_bytes
    result["limit_tokens_per_s"] = bytes_a_second / result["bytes_per_token"]
    result["share_of_limit"] = result["ours_tokens_per_s"] / result["limit_tokens_per_s"]
    return result


def vision(contest: Contest, repeats: int) -> dict[str, Any]:
    """Seconds a tubelet in the vision encoder: as transformers computes it, and as we do."""
    model, device = contest.model, contest.model.vision_device
    result: dict[str, Any] = {"patches_per_tubelet": 0}
    for count in (1, BATCH):
        tubelets = contest.clip(count).tubelets
        pixels, grids = model.pixel_values(tubelets)
        stock_grids = grids.to(device)
        result["patches_per_tubelet"] = pixels.shape[0] // count

        def stock(pixels: torch.Tensor = pixels, grids: torch.Tensor = stock_grids) -> Any:
            with torch.inference_mode():
                return model.model.model.get_video_features(pixels, grids, return_dict=True)

        runs: dict[str, Callable[[], Any]] = {
            "pixels": lambda tubelets=tubelets: model.pixel_values(tubelets),  # type: ignore[misc]
            "stock": stock,
            "ours": lambda pixels=pixels, grids=grids: model.vision_output(pixels, grids),  # type: ignore[misc]
            "encode": lambda tubelets=tubelets: model.encode(tubelets),  # type: ignore[misc]
        }
        result[f"batch_{count}"] = {name: median_s(device, run, repeats) / count for name, run in runs.items()}
        ours, native = (output.pooler_output for output in (runs["ours"](), stock()))
        difference = max((a.float() - b.float()).abs().max().item() for a, b in zip(ours, native, strict=True))
        result[f"batch_{count}"]["difference"] = difference
        result[f"batch_{count}"]["scale"] = max(a.float().abs().max().item() for a in native)
    return result


def peak_memory(contest: Contest, tubelets: int) -> dict[str, Any]:
    """Bytes above the loaded and warmed-up model that one cold answer takes; on a CPU those of the whole process."""
    device, answerer = contest.model.device, contest.answerer
    result: dict[str, Any] = {"tubelets": tubelets}
    for name, run in (("native", contest.native), ("ours", contest.ours)):
        run(contest.clip(2))
        answerer.drop_caches()
        clip = contest.clip(tubelets)
        release_unused_memory()
        synchronize(device)
        reset_peak([device])
        before = read_device_memory(device).allocated
        run(clip)
        synchronize(device)
        result[f"{name}_bytes"] = read_device_memory(device).peak_allocated - before
    result["held_after_bytes"] = answerer.timelines.nbytes + answerer.vision.nbytes
    answerer.drop_caches()
    return result


@contextmanager
def limited_room(device: torch.device, room_bytes: int) -> Iterator[None]:
    """Within it this process may take that much more of a CUDA device; a CPU has no such limit."""
    if device.type != "cuda":
        yield
        return
    release_unused_memory()
    synchronize(device)
    total = torch.cuda.get_device_properties(device).total_memory
    allowed = torch.cuda.memory_reserved(device) + room_bytes
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def runs_out(run: Callable[[], Any]) -> bool:
    """Whether ``run`` needs more memory than there is; nothing of it is left afterwards."""
    try:
        run()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        forget_frames(error)
        out = True
    else:
        out = False
    release_unused_memory()
    return out


def longest_clips(
    contest: Contest, shortest: int, longest: int, room_bytes: int, time_is_over: Callable[[], bool]
) -> dict[str, Any]:
    """How long a clip may be within a robot's memory: lengths double until native and ours have both run out."""
    result: dict[str, Any] = {"room_bytes": room_bytes}
    with limited_room(contest.model.device, room_bytes):
        for name, run in (("native", contest.native), ("ours", contest.ours)):
            worked, failed = 0, None
            for count in itertools.takewhile(lambda n: n <= longest, (shortest << k for k in range(32))):
                if time_is_over():
                    break
                clip = contest.clip(count)
                out = runs_out(lambda clip=clip: run(clip))  # type: ignore[misc]  # noqa: B023  (called at once)
                contest.answerer.drop_caches()
                if out:
                    failed = count
                    break
                worked = count
            result[name] = {"worked": worked, "ran_out": failed}
    release_unused_memory()
    return result


def _closeness(ours: Generated, native: Generated) -> dict[str, Any]:
    comparison = compare(ours, native)
    steps = min(len(ours.tokens), len(native.tokens))
    same = next((k for k in range(steps) if ours.tokens[k] != native.tokens[k]), steps)
    return {
        "tokens_equal": comparison.tokens_equal,
        "equal_until": same,
        "tokens": len(native.tokens),
        "logit_difference": comparison.logit_difference,
    }


def _answers(contest: Contest, clip: Clip, question: Question) -> dict[str, Generated]:
    """Native's answer, and ours to a cold clip, to one that is there, and to one whose last tubelet is new."""
    answerer = contest.answerer
    answerer.drop_caches()
    answers = {"native": native_answer(answerer, (clip,), question), "cold": cached_answer(answerer, (clip,), question)}
    answers["follow_up"] = cached_answer(answerer, (clip,), question)
    answerer.drop_caches()
    cached_answer(answerer, (dataclasses.replace(clip, tubelets=clip.tubelets[:-1]),), question)
    answers["appended"] = cached_answer(answerer, (clip,), question)
    answerer.drop_caches()
    return answers


def equality(contest: Contest, tubelets: int, tokens: int) -> dict[str, Any]:
    """Ours beside native: in float32, where tokens must be equal, and in the model's own dtype, where both round.

    ``from_float32``: how far the first logits of either are from those of float32 with the same weights. ``control``:
    the difference that another last tubelet makes.
    """
    clip, question = contest.clip(tubelets), Question(QUESTION, max_new_tokens=tokens)
    other = dataclasses.replace(clip, tubelets=(*clip.tubelets[:-1], contest.tubelet(tubelets - 1)))
    wide = Contest(in_float32(contest.model), contest.size)
    exact = _answers(wide, clip, question)
    rounded = _answers(contest, clip, question)
    control = native_answer(wide.answerer, (other,), question)
    del wide
    release_unused_memory()
    first = {name: answer.logits[0] for name, answer in rounded.items()}
    return {
        "tubelets": tubelets,
        "float32": {name: _closeness(exact[name], exact["native"]) for name in ("cold", "follow_up", "appended")},
        "own_dtype": {name: _closeness(rounded[name], rounded["native"]) for name in ("cold", "follow_up", "appended")},
        "from_float32": {n: (row - exact["native"].logits[0]).abs().max().item() for n, row in first.items()},
        "scale": exact["native"].logits.abs().max().item(),
        "control": compare(control, exact["native"]).logit_difference,
    }


def profiles(contest: Contest, tubelets: int, tokens: int) -> dict[str, Any]:
    """Where the time goes: kernels, launches and waits of a follow-up, an appended tubelet, decoding, and encoding."""
    clip, model = contest.clip(tubelets), contest.model
    batch = contest.clip(BATCH).tubelets
    many = Question(QUESTION, max_new_tokens=tokens)

    def holding_the_clip() -> Clip:
        contest.ours(clip)
        return clip

    def with_another_tubelet() -> Clip:
        contest.ours(clip)
        return dataclasses.replace(clip, tubelets=(*clip.tubelets, contest.tubelet(tubelets)))

    device = model.device
    return {
        "follow_up": profiled(device, holding_the_clip, contest.ours),
        f"answer_of_{tokens}": profiled(device, holding_the_clip, lambda c: contest.answerer.answer((c,), many)),
        "appended": profiled(device, with_another_tubelet, contest.ours),
        f"encode_{BATCH}": profiled(device, lambda: batch, model.encode),
    }


def profiled(device: torch.device, prepare: Callable[[], T], run: Callable[[T], Any]) -> dict[str, Any]:
    """Wall time of one run without the profiler, and the profiler's counts of another; each after ``prepare``."""
    run(prepare())
    given = prepare()
    wall_s = timed(device, lambda: run(given))
    given = prepare()
    synchronize(device)
    cuda = device.type == "cuda"
    with torch.profiler.profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as watch:
        run(given)
        synchronize(device)
    averages = watch.key_averages()
    kernels = [a for a in averages if a.device_type == DeviceType.CUDA]
    kernels.sort(key=lambda a: -a.self_device_time_total)
    return {
        "wall_s": wall_s,
        "kernel_s": sum(a.self_device_time_total for a in kernels) / 1e6,
        "kernels": sum(a.count for a in kernels),
        "calls": {a.key: a.count for a in averages if a.key in RUNTIME_CALLS and a.device_type == DeviceType.CPU},
        "longest": [[a.key[:90], a.count, a.self_device_time_total / 1e6] for a in kernels[:8]],
    }
