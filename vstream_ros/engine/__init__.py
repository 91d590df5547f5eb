"""Clip and question in, answer out. torch, no ROS; knows models only through their interface."""

from vstream_ros.engine.answers import (
    Answer,
    AnswerMetrics,
    BackgroundState,
    DeviceMemory,
    EngineStatus,
    ModelState,
    Question,
)
from vstream_ros.engine.engine import DelayedBatchInferenceEngine
from vstream_ros.engine.engine_config import EngineConfig
from vstream_ros.engine.model_thread import PendingAnswer

__all__ = [
    "Answer",
    "AnswerMetrics",
    "BackgroundState",
    "DelayedBatchInferenceEngine",
    "DeviceMemory",
    "EngineConfig",
    "EngineStatus",
    "ModelState",
    "PendingAnswer",
    "Question",
]
