"""Native inference: the reference that every cached answer must equal, and the check at load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from vstream_ros.errors import ModelFailedError
from vstream_ros.memory.clip import NANOSECONDS, Tubelet
from vstream_ros.models.base import TEXT_POSITIONS, FrameSpec, GenerationOptions, Segment
from vstream_ros.models.generation import run_generate
from vstream_ros.models.qwen.positions import PositionRules, Positions, video_metadata, with_text_row
from vstream_ros.models.qwen.prompt import PromptBuilder


class NativeInference:
    """Plain ``model.generate`` on one full call of the installed processor: no cache, no replaced kernel.

    With the engine's own prompts it shares the template's text, the cut into tubelets and the rules for positions. What
    these are applied to is its own: the processor's token ids and pixels, ``get_rope_index`` over the whole prompt.
    """

    def __init__(self, model: Any, processor: Any, prompts: PromptBuilder, positions: Positions) -> None:
        """``model``: a loaded ``…ForConditionalGeneration``; ``prompts`` and ``positions``: its own."""
        self._model = model
        self._processor = processor
        self._prompts = prompts
        self._positions = positions
        self._device = model.get_input_embeddings().weight.device

    def inputs(self, segments: Sequence[Segment], question: str, rules: PositionRules) -> dict[str, torch.Tensor]:
        """What ``model.generate`` is called with.

        It has explicit ``position_ids``, (4, 1, length), where the rules ask for others than the installed
        transformers' own; then decoding goes on from the last one + 1 as well.
        """
        frames_per_tubelet = self._model.config.vision_config.temporal_patch_size
        inputs = self._processor(
            text=[self._prompts.template_text(segments, question)],
            videos=[np.concatenate([t.frames for t in segment.tubelets]) for segment in segments],
            video_metadata=[video_metadata(s, frames_per_tubelet, true_time=rules.true_time) for s in segments],
            do_resize=False,
            do_sample_frames=False,
            cap_pixels_per_frame=False,
            return_tensors="pt",
        )
        if not self._positions.are_stock(rules):
            positions = self._stock_positions(inputs)
            spans = self._prompts.spans(inputs["input_ids"][0].numpy(), segments)
            self._positions.apply_rules(positions, segments, spans, rules)
            inputs["position_ids"] = torch.from_numpy(positions[:, None])
        return {key: value.to(self._device) for key, value in inputs.items()}

    def generate(
        self, segments: Sequence[Segment], question: str, options: GenerationOptions, rules: PositionRules
    ) -> list[int]:
        """See ``QwenVideoModel.native_generate``."""
        return run_generate(self._model, self.inputs(segments, question, rules), options)

    def check_layout(self, name: str, spec: FrameSpec) -> None:
        """Compare built prompts with native's on a small clip; ``ModelFailedError`` where they differ.

        ``spec``: of the model's frames; ``name``: for the error.
        """
        size = 2 * spec.factor
        frames = np.zeros((spec.temporal_patch_size, size, size, 3), dtype=np.uint8)
        tubelets = tuple(
            Tubelet(id=k, camera="", frames=frames, stamps_ns=(), time_ns=k * NANOSECONDS, importance=0.0)
            for k in range(3)
        )
        wide = tuple(replace(tubelet, frames=np.concatenate([frames, frames], axis=2)) for tubelet in tubelets[:2])
        segments = [Segment(tubelets, 1.0, 0), Segment(wide, 1.0, 0, label="b:")]
        for text_positions in TEXT_POSITIONS:
            # The second question's prompt is made of the first one's.
            for question in ("what happened?", "and then, what?"):
                if not self._agrees(segments, question, PositionRules(False, text_positions)):
                    import transformers

                    raise ModelFailedError(
                        f"transformers {transformers.__version__} lays out the prompt of {name} in a way that is not "
                        "supported; install the version that requirements.txt names"
                    )

    def _agrees(self, segments: Sequence[Segment], question: str, rules: PositionRules) -> bool:
        prompt = self._prompts.build(segments, question, rules)
        inputs = self.inputs(segments, question, rules)
        given = inputs.get("position_ids")
        positions = self._stock_positions(inputs) if given is None else given[:, 0].cpu().numpy()
        ids = inputs["input_ids"][0].cpu().numpy()
        return np.array_equal(prompt.input_ids, ids) and np.array_equal(prompt.position_ids, positions)

    def _stock_positions(self, inputs: dict[str, Any]) -> np.ndarray:
        """(4, length): the model's own ``get_rope_index`` over all that the processor gave."""
        described = {key: value.cpu() for key, value in inputs.items() if "pixel" not in key}
        rope, _ = self._model.model.get_rope_index(**described)
        return with_text_row(rope)
