"""Bytes of a camera to RGB at the size that the model wants. No rclpy, no torch."""

from vstream_ros.images.decoding import ENCODINGS, SizeRule, decode_compressed, decode_image
from vstream_ros.images.resize import resize_rgb

__all__ = ["ENCODINGS", "SizeRule", "decode_compressed", "decode_image", "resize_rgb"]
