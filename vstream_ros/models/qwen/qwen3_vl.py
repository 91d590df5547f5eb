"""Qwen3-VL: time as text before each tubelet, and DeepStack features beside the embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from vstream_ros.models.base import TubeletFeatures
from vstream_ros.models.qwen.video_model import QwenVideoModel


class Qwen3VideoModel(QwenVideoModel):
    """``model_type`` qwen3_vl: true times stand in the ``<t seconds>`` texts, by way of the frames' metadata."""

    tokens_between_tubelets = 24  # "<12345.6 seconds>" digit by digit, and the inner vision tokens

    def split_features(self, output: Any) -> list[TubeletFeatures]:
        layers = zip(*output.deepstack_features, strict=True)
        return [
            TubeletFeatures(embeds.clone(), tuple(layer.clone() for layer in deepstack))
            for embeds, deepstack in zip(output.pooler_output, layers, strict=True)
        ]

    def join_features(self, features: Sequence[TubeletFeatures]) -> Any:
        return BaseModelOutputWithDeepstackFeatures(
            pooler_output=[f.embeds for f in features],
            deepstack_features=[list(layer) for layer in zip(*(f.deepstack for f in features), strict=True)],
        )
