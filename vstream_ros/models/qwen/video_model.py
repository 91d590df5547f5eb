"""What the Qwen-VL families have in common, on the classes of the installed transformers: the model's computing."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from tokenizers.decoders import DecodeStream
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, QuantizedCache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vstream_ros.errors import ModelFailedError
from vstream_ros.memory.clip import Tubelet
from vstream_ros.models.base import GenerationOptions, Prompt, Rows, Segment, TubeletFeatures, VideoModel
from vstream_ros.models.frame_spec import FrameSpec
from vstream_ros.models.generation import TokenChoosers
from vstream_ros.models.grammar import CompiledGrammar, GrammarCompiler, end_tokens_of
from vstream_ros.models.json_schema import check_schema
from vstream_ros.models.kernels.attention import grouped_attention
from vstream_ros.models.kernels.decode_graphs import DecodeGraphs, GraphTail
from vstream_ros.models.kernels.kv_cache import SPARE_TOKENS, GrowingLayer
from vstream_ros.models.kernels.padded_linear import paddable, padded_linears
from vstream_ros.models.kernels.patch_embedding import linear_patch_embedding
from vstream_ros.models.kernels.vision_attention import BatchedVision
from vstream_ros.models.qwen.native import NativeInference
from vstream_ros.models.qwen.positions import PositionRules, Positions
from vstream_ros.models.qwen.prompt import PromptBuilder
from vstream_ros.models.tail import CacheTail, Tail
from vstream_ros.models.token_chooser import TokenChooser


class QwenVideoModel(VideoModel):
    """Base of the families; see ``VideoModel`` for the contract."""

    positions_class: ClassVar[type[Positions]] = Positions
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
        self.takes_masks = model.config.get_text_config()._attn_implementation in ("sdpa", "eager")
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
        self._vision = BatchedVision(model.model.visual)
        self.context_length = self._text_config.max_position_embeddings
        self.weight_bytes_by_device = self._count_weights()
        self.weight_bytes = sum(self.weight_bytes_by_device.values())
        self.max_tokens_per_tubelet = self.max_tokens(max_pixels)
        positions = self.positions_class(model)
        self.prompts = PromptBuilder(model, processor, positions, name)
        self.native = NativeInference(model, processor, self.prompts, positions)
        self._check_cache()
        self._choosers = TokenChoosers(model)
        self._decode_graphs = DecodeGraphs(model, self.device) if self._can_capture() else None
        self.native.check_layout(name, self.frame_spec)

    def _count_weights(self) -> dict[torch.device, int]:
        """Bytes of parameters and buffers on each device; ``ModelFailedError`` where some are on none."""
        by_device: Counter[torch.device] = Counter()
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            by_device[tensor.device] += tensor.numel() * tensor.element_size()
        if torch.device("meta") in by_device:
            raise ModelFailedError(
                f"device_map leaves parts of {self.name} off every device (offloaded); name devices with room for all "
                "of it"
            )
        return dict(by_device)

    def _can_capture(self) -> bool:
        on_one_device = {tensor.device for tensor in self.model.model.language_model.parameters()} == {self.device}
        stock = self._text_config._attn_implementation == "sdpa"
        return self.device.type == "cuda" and on_one_device and stock and self.cache_rolls_back

    @property
    def arena_bytes(self) -> int:
        return 0 if self._decode_graphs is None else self._decode_graphs.nbytes

    @property
    def captured_rows(self) -> list[int]:
        """Of the passes that are captured graphs."""
        return [] if self._decode_graphs is None else sorted(self._decode_graphs.captured)

    def prepare(self, tokens: int) -> None:
        if self._decode_graphs is None:
            return
        cache = self.new_cache()
        one = Rows(np.zeros(1, np.int64), np.zeros((4, 1), np.int64))
        self.forward(one, cache, np.arange(1))  # the layers' keys and values have their shapes
        self._decode_graphs.prepare(cache, tokens)

    def free_scratch(self) -> None:
        if self._decode_graphs is not None:
            self._decode_graphs.release()

    def max_tokens(self, max_pixels: int) -> int:
        return max_pixels // self.frame_spec.factor**2 + self.tokens_between_tubelets

    def build_prompt(
        self, segments: Sequence[Segment], question: str, *, true_time: bool, text_positions: str = "checkpoint"
    ) -> Prompt:
        return self.prompts.build(segments, question, PositionRules(true_time, text_positions))

    def native_generate(
        self,
        segments: Sequence[Segment],
        question: str,
        options: GenerationOptions,
        *,
        true_time: bool,
        text_positions: str = "checkpoint",
    ) -> list[int]:
        """Plain, uncached ``model.generate`` over the same frames: the reference for every answer.

        Returns:
            the new token ids, end token included.
        """
        return self.native.generate(segments, question, options, PositionRules(true_time, text_positions))

    @torch.inference_mode()
    def encode(self, tubelets: Sequence[Tubelet]) -> list[TubeletFeatures]:
        output = self.vision_output(*self.pixel_values(tubelets))
        features = self.split_features(output)
        _wait_for(self.vision_device)
        return features

    def pixel_values(self, tubelets: Sequence[Tubelet]) -> tuple[torch.Tensor, torch.Tensor]:
        """What the vision encoder takes: (patches, values) float32 on its device, and (tubelets, 3) grids in patches on
        the CPU, where they are read."""
        pixels = self.processor.video_processor(
            [torch.tensor(t.frames).permute(0, 3, 1, 2) for t in tubelets],
            do_resize=False,
            do_sample_frames=False,
            cap_pixels_per_frame=False,
            device=self.vision_device,
            return_tensors="pt",
        )
        return pixels["pixel_values_videos"].to(self.vision_device), pixels["video_grid_thw"].cpu()

    @torch.inference_mode()
    def vision_output(self, pixels: torch.Tensor, grids: torch.Tensor) -> Any:
        """What ``get_video_features`` gives for ``pixel_values``, by our own kernels."""
        model = self.model.model
        plan = self._vision.plan(grids)
        with linear_patch_embedding(model.visual.patch_embed.proj), self._vision.attention(plan):
            return model.get_video_features(pixels, grids, return_dict=True, **plan.inputs)

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
                past_key_values=cache,
                mm_encoder_outputs=self._encoder_outputs(features),
                use_cache=True,
            )
        _wait_for(self.device)

    @torch.inference_mode()
    def forward(
        self, rows: Rows, cache: Cache, wanted: np.ndarray, features: Sequence[TubeletFeatures] = ()
    ) -> torch.Tensor:
        with grouped_attention(self._text_config), padded_linears(self._paddable):
            states = self.model.model(
                input_ids=torch.from_numpy(rows.input_ids[None]).to(self.device),
                position_ids=torch.from_numpy(rows.position_ids[:, None]).to(self.device),
                attention_mask=None if rows.visible is None else self._mask(rows.visible, cache.get_seq_length()),
                past_key_values=cache,
                mm_encoder_outputs=self._encoder_outputs(features),
                use_cache=True,
            ).last_hidden_state
            logits: torch.Tensor = self.model.lm_head(states[:, torch.from_numpy(wanted).to(states.device)])
        return logits[0].to(self.device, torch.float32)

    def _mask(self, visible: np.ndarray, held: int) -> torch.Tensor:
        """(1, 1, rows, held + rows): 0 where a row sees a token and -inf where not; ``visible`` as in ``Rows``."""
        count, behind = visible.shape
        mask = torch.zeros(1, 1, count, held + count, dtype=self.model.dtype, device=self.device)
        hidden = torch.from_numpy(~visible).to(self.device)
        mask[..., held + count - behind :].masked_fill_(hidden, float("-inf"))
        return mask

    def keep_rows(self, cache: Cache, start: int, kept: np.ndarray) -> None:
        count = len(kept)
        if not count or kept[-1] == count - 1:
            for layer in cache.layers:
                layer.crop(start + count - layer.get_seq_length())
            return
        for layer in cache.layers:
            layer.keep(start, torch.from_numpy(kept).to(layer.keys.device))

    def open_tail(self, cache: Cache, needed: int, *, graphs: bool) -> Tail:
        if graphs and self._decode_graphs is not None:
            return GraphTail(self, cache, self._decode_graphs, needed)
        return CacheTail(self, cache)

    def token_chooser(self, prompt: Prompt, options: GenerationOptions) -> TokenChooser:
        return self._choosers.make(torch.from_numpy(prompt.input_ids[None]).to(self.device), options)

    def text_stream(self) -> Callable[[int], str]:
        stream, tokenizer = DecodeStream(skip_special_tokens=True), self.processor.tokenizer.backend_tokenizer
        return lambda token_id: stream.step(tokenizer, token_id) or ""

    def _encoder_outputs(self, features: Sequence[TubeletFeatures]) -> dict[str, Any]:
        """``mm_encoder_outputs`` for these tubelets, on the language model's device."""
        return {"video": self.join_features([item.to(self.device) for item in features])} if features else {}

    def compile_grammar(self, json_schema: str) -> CompiledGrammar:
        check_schema(json_schema)  # it also says where the library is missing
        return self._grammars.compile(json_schema)

    @functools.cached_property
    def _grammars(self) -> GrammarCompiler:
        """Made for the first question with a schema: it takes a second."""
        ends = end_tokens_of(self.model.generation_config)
        return GrammarCompiler(self.processor.tokenizer, self._text_config.vocab_size, ends)

    def decode_text(self, token_ids: Sequence[int]) -> str:
        return str(self.processor.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def tokenize(self, text: str) -> list[int]:
        return self.prompts.tokenize(self.prompts.neutralise(text))

    def count_text_tokens(self, text: str) -> int:
        return len(self.prompts.tokenize(text))


def _wait_for(device: torch.device) -> None:
    """Until what was asked of ``device`` is done: steps are timed, and a question waits for one of them at most."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
