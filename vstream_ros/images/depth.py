"""16-bit pixels to 8 bits, in the same way for all images of a camera."""

from __future__ import annotations

import logging

import numpy as np

logger = logging.getLogger(__name__)

SENSOR_BITS = (10, 12, 14, 16)


class SensorDepth:
    """How many bits the sensor of one camera fills: as many as its brightest pixel so far took, for it never shrinks.

    A message does not say it. One among those that sensors have (10, 12, 14, 16): a 12-bit camera is not shown black.
    Judged image by image, a lamp that takes the brightest pixel from 1023 to 1024 would make the whole picture four
    times darker, and back again: a change of scene that never was. Held for a camera's life it can grow three times at
    most. Used by one thread.
    """

    def __init__(self, camera: str = "") -> None:
        """``camera``: its name in the log; empty: nothing is logged."""
        self._camera = camera
        self.bits = 0
        """0: no 16-bit image was seen yet."""

    def to_uint8(self, image: np.ndarray) -> np.ndarray:
        """The upper 8 of the bits that the sensor fills. ``image``: uint16 of any shape, not changed."""
        needed = int(image.max()).bit_length()
        if needed > self.bits:
            before, self.bits = self.bits, next(bits for bits in SENSOR_BITS if bits >= needed)
            if before and self._camera:
                logger.warning(
                    "camera %s: its 16-bit images fill %d bits, not %d as it seemed: pictures are %d times darker from "
                    "here on", self._camera, self.bits, before, 1 << (self.bits - before)
                )  # fmt: skip
        return (image >> (self.bits - 8)).astype(np.uint8)
