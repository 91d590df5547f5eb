"""Qwen2-VL: temporal positions count tubelets; there is no time in the prompt."""

from vstream_ros.models.qwen.video_model import QwenVideoModel


class Qwen2VideoModel(QwenVideoModel):
    """``model_type`` qwen2_vl. ``time_positions`` has no effect: the family knows order only."""
