"""What the Qwen-VL families have in common, on the classes of the installed transformers.

The prompt, the positions and the features all come from the installed processor and model, never from a formula of
our own; a check at load compares them with a full call of the processor, so that a version that lays out its prompt
in another way is refused instead of being answered wrongly.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter, OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, QuantizedCache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.video_utils import VideoMetadata

from vstream_ros.errors import ModelFailedError
from vstream_ros.memory.clip import NANOSECONDS, Tubelet
from vstream_ros.models.base import GenerationOptions, Prompt, Segment, TubeletFeatures, VideoModel
from vstream_ros.models.frame_spec import FrameSpec
from vstream_ros.models.generation import run_generate
from vstream_ros.models.kernels.attention import grouped_attention
from vstream_ros.models.kernels.kv_cache import SPARE_TOKENS, GrowingLayer
from vstream_ros.models.kernels.padded_linear import paddable, padded_linears
from vstream_ros.models.kernels.patch_embedding import linear_patch_embedding

_ZERO_WIDTH_SPACE = "\u200b"
PREFIXES = 4
"""Prompts whose video part is kept: for memory, for what it will be after the next slide, and for parts of it."""


@dataclass(frozen=True)
class _Prefix:
    """The part of a prompt up to its last video token: arrays as in ``Prompt``, and how text goes on behind it."""

    input_ids: np.ndarray
    position_ids: np.ndarray
    tubelet_ids: np.ndarray
    spans: tuple[tuple[int, int], ...]
    closing: str
    """What the processor puts between the last video token and the template's own text."""
    next_position: np.ndarray
    """(4, 1): of the first token behind."""

    @classmethod
    def of(cls, prompt: Prompt, closing: str) -> _Prefix | None:
        """``prompt``'s; None where its text does not count on by one, so that nothing can be foretold."""
        end = prompt.prefix_length
        behind = prompt.position_ids[:, end:]
        if not np.array_equal(behind, behind[:, :1] + np.arange(behind.shape[1])):
            return None
        return cls(
            prompt.input_ids[:end].copy(),
            prompt.position_ids[:, :end].copy(),
            prompt.tubelet_ids[:end].copy(),
            prompt.spans,
            closing,
            behind[:, :1].copy(),
        )

    def ask(self, tubelets: tuple[Tubelet, ...], behind: Sequence[int]) -> Prompt:
        """The prompt whose tokens after the video are ``behind``."""
        count = len(behind)
        return Prompt(
            np.concatenate([self.input_ids, np.asarray(behind, dtype=np.int64)]),
            np.concatenate([self.position_ids, self.next_position + np.arange(count)], axis=1),
            np.concatenate([self.tubelet_ids, np.full(count, -1, dtype=np.int64)]),
            tubelets,
            self.spans,
        )


def _identity(segment: Segment) -> Hashable:
    """All of a segment that its prompt depends on, besides the label, without its pixels."""
    tubelets = tuple((t.id, t.time_ns, t.frames.shape) for t in segment.tubelets)
    return segment.second_per_grid, segment.origin_ns, tubelets


class QwenVideoModel(VideoModel):
    """Base of the families; see ``VideoModel`` for the contract."""

    tokens_between_tubelets = 0

    def __init__(
        self, model: Any, processor: Any, *, name: str, min_pixels: int, max_pixels: int, kv_cache: str = "full"
    ) -> None:
        """``model``: a loaded ``…ForConditionalGeneration`` in evaluation mode; ``processor``: its processor;
        ``kv_cache``: "full" or the backend of a ``QuantizedCache``.

        Raises ``ModelFailedError`` where the installed transformers lays out its prompt in an unknown way, where the
        tokenizer is not the model's, where layers can't be cached, or where the backend is not installed.
        """
        self.model = model
        self.processor = processor
        self.name = name
        self.kv_cache = kv_cache
        self.cache_rolls_back = kv_cache == "full"
        # Vision encoder and language model may be on different devices; model.device is the first parameter's.
        self.device = model.get_input_embeddings().weight.device
        self.vision_device = next(model.model.visual.parameters()).device
        vision = model.config.vision_config
        self.frame_spec = FrameSpec(
            factor=vision.patch_size * vision.spatial_merge_size,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            temporal_patch_size=vision.temporal_patch_size,
        )
        self._text_config = model.config.get_text_config()
        self._paddable = paddable(model.model.language_model)
        self.context_length = self._text_config.max_position_embeddings
        by_device: Counter[torch.device] = Counter()
        for tensor in (*model.parameters(), *model.buffers()):
            by_device[tensor.device] += tensor.numel() * tensor.element_size()
        if torch.device("meta") in by_device:
            raise ModelFailedError(
                f"device_map leaves parts of {name} off every device (offloaded); name devices with room for all of it"
            )
        self.weight_bytes_by_device = dict(by_device)
        self.weight_bytes = by_device.total()
        self.max_tokens_per_tubelet = max_pixels // self.frame_spec.factor**2 + self.tokens_between_tubelets
        self._patch_size = vision.patch_size
        self._merge_size = vision.spatial_merge_size
        self._video_token: str = processor.video_token
        self._video_token_id: int = model.config.video_token_id
        if processor.tokenizer.convert_tokens_to_ids(self._video_token) != self._video_token_id:
            raise ModelFailedError(
                f"the tokenizer of {name} does not know the model's video token: its tokenizer.json is missing or "
                "belongs to another checkpoint; fetch the checkpoint again"
            )
        self._video_runs = re.compile(f"((?:{re.escape(self._video_token)})+)")
        # Text a user could write that the tokenizer would take for control tokens or visual placeholders.
        special = [str(token) for token in processor.tokenizer.added_tokens_decoder.values() if token.special]
        self._control_tokens = re.compile("|".join(map(re.escape, special)))
        self._prefixes: OrderedDict[Hashable, _Prefix] = OrderedDict()
        """Of the prompts that were built last; the next question changes only what stands behind."""
        self._tokenize_piece = functools.lru_cache(maxsize=4096)(self._tokenize_uncached)
        self._check_cache()
        self._check_layout()

    # -- prompt ------------------------------------------------------------------------------------------------------

    def build_prompt(self, segments: Sequence[Segment], question: str, *, true_time: bool) -> Prompt:
        template = self.template_text(segments, question)
        video_end = template.rindex(self._video_token) + len(self._video_token)
        key = (true_time, template[:video_end], tuple(map(_identity, segments)))
        tubelets = tuple(tubelet for segment in segments for tubelet in segment.tubelets)
        prefix = self._prefixes.pop(key, None)
        if prefix is not None:
            self._prefixes[key] = prefix
            return prefix.ask(tubelets, self._tokenize_piece(prefix.closing + template[video_end:]))
        grids = [self.grid(segment) for segment in segments]
        text = self.expand_text(template, segments, grids, true_time)
        input_ids, spans = self._tokenize(text, segments)
        positions = self._positions(input_ids, segments, grids)
        if true_time:
            self.apply_true_time(positions, segments, spans)
        tubelet_ids = np.full(input_ids.shape, -1, dtype=np.int64)
        for tubelet, (start, end) in zip(tubelets, spans, strict=True):
            tubelet_ids[start:end] = tubelet.id
        prompt = Prompt(input_ids, positions, tubelet_ids, tubelets, tuple(spans))
        closing = text[text.rindex(self._video_token) + len(self._video_token) :].removesuffix(template[video_end:])
        if (prefix := _Prefix.of(prompt, closing)) is not None:
            self._prefixes[key] = prefix
            while len(self._prefixes) > PREFIXES:
                self._prefixes.popitem(last=False)
        return prompt

    def grid(self, segment: Segment) -> tuple[int, int, int]:
        """(tubelets, patch rows, patch columns) of a segment."""
        height, width = segment.tubelets[0].frames.shape[1:3]
        return len(segment.tubelets), height // self._patch_size, width // self._patch_size

    def _tubelet_sizes(self, segments: Sequence[Segment]) -> list[int]:
        """Video tokens of each tubelet, in prompt order."""
        return [int(np.prod(self.grid(s)[1:])) // self._merge_size**2 for s in segments for _ in s.tubelets]

    def template_text(self, segments: Sequence[Segment], question: str) -> str:
        """The chat template's text with one placeholder per segment; control tokens in user text are neutralised."""
        content: list[dict[str, str]] = []
        for segment in segments:
            if segment.label:
                content.append({"type": "text", "text": self.neutralise(segment.label)})
            content.append({"type": "video"})
        content.append({"type": "text", "text": self.neutralise(question)})
        text: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        return text

    def neutralise(self, text: str) -> str:
        """``text`` with a zero-width space inside every control token, so that it stays text."""
        return self._control_tokens.sub(lambda match: match[0][0] + _ZERO_WIDTH_SPACE + match[0][1:], text)

    def expand_text(
        self, text: str, segments: Sequence[Segment], grids: Sequence[tuple[int, int, int]], true_time: bool
    ) -> str:
        """``text`` with every placeholder expanded by the installed processor."""
        inputs = {
            "video_grid_thw": torch.tensor(grids),
            "video_metadata": [self.metadata(segment, true_time) for segment in segments],
        }
        blocks = [self.processor.replace_video_token(inputs, index) for index in range(len(segments))]
        return str(self.processor.get_text_with_replacements([text], videos_replacements=blocks)[0][0])

    def metadata(self, segment: Segment, true_time: bool) -> VideoMetadata:
        """What the processor is told of a segment's frames: when they were taken."""
        steps = segment.grid_steps(segment.origin_ns) if true_time else [float(k) for k in range(len(segment.tubelets))]
        patch = self.frame_spec.temporal_patch_size
        return VideoMetadata(
            total_num_frames=len(steps) * patch,
            fps=patch / segment.second_per_grid,
            frames_indices=[step * patch + offset for step in steps for offset in range(patch)],
        )

    def _tokenize(self, text: str, segments: Sequence[Segment]) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """Token ids of an expanded text, and the token range of each tubelet.

        Special tokens always part the text before it is tokenized, so the pieces between runs of the video token
        may be tokenized apart (and once).
        """
        ids: list[int] = []
        runs: list[tuple[int, int]] = []
        for piece in self._video_runs.split(text):
            if piece.startswith(self._video_token):
                count = len(piece) // len(self._video_token)
                runs.append((len(ids), len(ids) + count))
                ids.extend([self._video_token_id] * count)
            elif piece:
                ids.extend(self._tokenize_piece(piece))
        # A run covers one tubelet (Qwen3) or all tubelets of a segment (Qwen2): cut it evenly.
        spans: list[tuple[int, int]] = []
        sizes = self._tubelet_sizes(segments)
        remaining = iter(sizes)
        for start, end in runs:
            while start < end:
                size = next(remaining)
                spans.append((start, start + size))
                start += size
        return np.asarray(ids, dtype=np.int64), spans

    def _tokenize_uncached(self, text: str) -> tuple[int, ...]:
        return tuple(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _positions(
        self, input_ids: np.ndarray, segments: Sequence[Segment], grids: Sequence[tuple[int, int, int]]
    ) -> np.ndarray:
        """(4, length) position ids from the model's own ``get_rope_index``."""
        ids = torch.from_numpy(input_ids)[None]
        rope, _ = self.model.model.get_rope_index(
            ids,
            mm_token_type_ids=torch.where(ids == self._video_token_id, 2, 0).int(),
            video_grid_thw=torch.tensor(grids),
            **self.rope_arguments(segments),
        )
        return np.concatenate([np.arange(len(input_ids))[None], rope[:, 0].numpy()]).astype(np.int64)

    def rope_arguments(self, segments: Sequence[Segment]) -> dict[str, Any]:
        """What ``get_rope_index`` takes beyond ids and grids; families with times in their ids override this."""
        return {}

    def apply_true_time(
        self, positions: np.ndarray, segments: Sequence[Segment], spans: Sequence[tuple[int, int]]
    ) -> None:
        """Give the video tokens in ``positions`` their true times, in place; families without times do nothing."""

    # -- computing ---------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def encode(self, tubelets: Sequence[Tubelet]) -> list[TubeletFeatures]:
        pixels = self.processor.video_processor(
            [torch.tensor(t.frames).permute(0, 3, 1, 2) for t in tubelets],
            do_resize=False,
            do_sample_frames=False,
            cap_pixels_per_frame=False,
            device=self.vision_device,
            return_tensors="pt",
        )
        with linear_patch_embedding(self.model.model.visual.patch_embed.proj):
            output = self.model.model.get_video_features(
                pixels["pixel_values_videos"].to(self.vision_device),
                pixels["video_grid_thw"].to(self.vision_device),
                return_dict=True,
            )
        features = self.split_features(output)
        _wait_for(self.vision_device)
        return features

    def split_features(self, output: Any) -> list[TubeletFeatures]:
        """One item per tubelet from ``get_video_features``; copies, since a slice would keep the whole batch alive."""
        return [TubeletFeatures(embeds.clone()) for embeds in output.pooler_output]

    def join_features(self, features: Sequence[TubeletFeatures]) -> Any:
        """The model output that ``mm_encoder_outputs`` takes for these tubelets."""
        return BaseModelOutputWithPooling(pooler_output=[f.embeds for f in features])

    def new_cache(self) -> Cache:
        config = self._text_config
        if self.kv_cache in ("quanto", "hqq"):
            heads = config.num_attention_heads
            head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
            return QuantizedCache(self.kv_cache, config, q_group_size=math.gcd(64, head_dim))  # groups within a head
        if self.kv_cache != "full":
            return QuantizedCache(self.kv_cache, config)
        cache = DynamicCache(config=config)
        cache.layers = [GrowingLayer() for _ in cache.layers]
        return cache

    def _check_cache(self) -> None:
        """Refuse before anything is asked what could not be answered rightly: ``ModelFailedError``."""
        layers = DynamicCache(config=self._text_config).layers
        if any(type(layer) is not DynamicLayer for layer in layers):
            raise ModelFailedError(
                f"{self.name} has sliding-window or linear attention layers: they forget the tokens that a rollback "
                "after a question would need, so cached answers could not equal native ones; use a checkpoint with "
                "full attention in every layer (use_sliding_window: false)"
            )
        try:
            self.new_cache()
        except (ImportError, ValueError) as error:
            raise ModelFailedError(
                f"kv_cache {self.kv_cache!r} can't be used: {str(error).strip().splitlines()[0]}"
            ) from error

    def fork_cache(self, cache: Cache, length: int) -> Cache:
        forked = self.new_cache()
        if length:
            forked.layers = [layer.fork(length) for layer in cache.layers]
        return forked

    def reserve(self, cache: Cache, length: int) -> None:
        for layer in cache.layers:
            if isinstance(layer, GrowingLayer):
                layer.reserved = length + SPARE_TOKENS

    @torch.inference_mode()
    def prefill(self, prompt: Prompt, end: int, features: Sequence[TubeletFeatures], cache: Cache) -> None:
        start = cache.get_seq_length()
        with grouped_attention(self._text_config), padded_linears(self._paddable):
            self.model.model(
                input_ids=torch.from_numpy(prompt.input_ids[None, start:end]).to(self.device),
                position_ids=torch.from_numpy(prompt.position_ids[:, None, start:end]).to(self.device),
                attention_mask=torch.ones(1, end, dtype=torch.long, device=self.device),
                past_key_values=cache,
                mm_encoder_outputs=self._encoder_outputs(features),
                use_cache=True,
            )
        _wait_for(self.device)

    def generate(
        self, prompt: Prompt, cache: Cache, options: GenerationOptions, features: Sequence[TubeletFeatures] = ()
    ) -> list[int]:
        inputs = {
            "input_ids": torch.from_numpy(prompt.input_ids[None]).to(self.device),
            "attention_mask": torch.ones(1, len(prompt), dtype=torch.long, device=self.device),
            "position_ids": torch.from_numpy(prompt.position_ids[:, None]).to(self.device),
            "past_key_values": cache,
            "mm_encoder_outputs": self._encoder_outputs(features),
        }
        with grouped_attention(self._text_config), padded_linears(self._paddable):
            return run_generate(self.model, inputs, options)

    def _encoder_outputs(self, features: Sequence[TubeletFeatures]) -> dict[str, Any]:
        """``mm_encoder_outputs`` for these tubelets, on the language model's device."""
        return {"video": self.join_features([item.to(self.device) for item in features])} if features else {}

    def decode_text(self, token_ids: Sequence[int]) -> str:
        return str(self.processor.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def count_text_tokens(self, text: str) -> int:
        return len(self._tokenize_uncached(text))

    # -- native ------------------------------------------------------------------------------------------------------

    def native_inputs(self, segments: Sequence[Segment], question: str, *, true_time: bool) -> dict[str, torch.Tensor]:
        """The inputs of plain ``model.generate`` over the same frames: one full call of the installed processor.

        With ``true_time`` explicit ``position_ids`` are added: the processor's own, with the tubelets' times in them
        where the family carries time in its positions.
        """
        inputs = self.processor(
            text=[self.template_text(segments, question)],
            videos=[np.concatenate([t.frames for t in segment.tubelets]) for segment in segments],
            video_metadata=[self.metadata(segment, true_time) for segment in segments],
            do_resize=False,
            do_sample_frames=False,
            cap_pixels_per_frame=False,
            return_tensors="pt",
        )
        if true_time:
            rope, _ = self.model.model.get_rope_index(**{k: v for k, v in inputs.items() if "pixel" not in k})
            length = rope.shape[-1]
            positions = np.concatenate([np.arange(length)[None], rope[:, 0].numpy()]).astype(np.int64)
            is_video = inputs["input_ids"][0].numpy() == self._video_token_id
            sizes = self._tubelet_sizes(segments)
            bounds = np.split(np.flatnonzero(is_video), np.cumsum(sizes)[:-1])
            self.apply_true_time(positions, segments, [(int(b[0]), int(b[-1]) + 1) for b in bounds])
            inputs["position_ids"] = torch.from_numpy(positions[:, None])
        return {key: value.to(self.device) for key, value in inputs.items()}

    def native_generate(
        self, segments: Sequence[Segment], question: str, options: GenerationOptions, *, true_time: bool
    ) -> list[int]:
        """Plain, uncached ``model.generate`` over the same frames: the reference for every answer.

        Returns:
            the new token ids, end token included.
        """
        return run_generate(self.model, self.native_inputs(segments, question, true_time=true_time), options)

    def _check_layout(self) -> None:
        """Compare ``build_prompt`` with the processor on a small clip; ``ModelFailedError`` where they differ."""
        size, patch = 2 * self.frame_spec.factor, self.frame_spec.temporal_patch_size
        frames = np.zeros((patch, size, size, 3), dtype=np.uint8)
        tubelets = tuple(
            Tubelet(id=k, camera="", frames=frames, stamps_ns=(), time_ns=k * NANOSECONDS, importance=0.0)
            for k in range(3)
        )
        segments = [
            Segment(tubelets, 1.0, 0),
            Segment(tubelets[:2], 1.0, 0, label="b:"),
        ]
        # The second question's prompt is made of the first one's.
        for question in ("what happened?", "and then, what?"):
            prompt = self.build_prompt(segments, question, true_time=False)
            native = self.native_inputs(segments, question, true_time=False)
            rope, _ = self.model.model.get_rope_index(**{k: v.cpu() for k, v in native.items() if "pixel" not in k})
            same_ids = np.array_equal(prompt.input_ids, native["input_ids"][0].cpu().numpy())
            if same_ids and np.array_equal(prompt.position_ids[1:], rope[:, 0].numpy()):
                continue
            import transformers

            raise ModelFailedError(
                f"transformers {transformers.__version__} lays out the prompt of {self.name} in a way that is not "
                "supported; install the version that requirements.txt names"
            )


def _wait_for(device: torch.device) -> None:
    """Until what was asked of ``device`` is done: steps are timed, and a question waits for one of them at most."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
