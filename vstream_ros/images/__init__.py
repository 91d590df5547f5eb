"""Bytes of a camera to RGB at the size that the model wants. No rclpy, no torch."""

from vstream_ros.images.compressed import decode_compressed
from vstream_ros.images.conversion import SizeRule
from vstream_ros.images.depth import SensorDepth
from vstream_ros.images.raw import ENCODINGS, decode_image
from vstream_ros.images.resize import resize_rgb

__all__ = ["ENCODINGS", "SensorDepth", "SizeRule", "decode_compressed", "decode_image", "resize_rgb"]
