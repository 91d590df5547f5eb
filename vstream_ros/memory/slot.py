"""A frame that was offered by its stamp and waits for its pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vstream_ros.memory.clip import Verdict

Size = tuple[int, int]
"""(height, width)"""
Fit = Callable[[int, int], Size]
"""A rule from one (height, width) to another."""


@dataclass(eq=False)
class FrameSlot:
    """What a memory said of one frame: the frame is counted as offered, and judged, once.

    Where it is ``wanted``, convert the image at the size that ``frame_size`` tells and hand it to ``keep`` of whom made
    the slot, or ``reject`` it there. A slot belongs to one thread; others may change the memory meanwhile.
    """

    camera: str
    stamp_ns: int
    verdict: Verdict
    reason: str
    """Why the frame is not wanted; empty where it is."""
    clears: int
    revision: int
    """What the memory had gone through when it judged: how often it was cleared, and how often it changed."""
    withdrawn: str = ""
    """Why frames that were kept before were dropped again, now that this one showed them to be false; "": none were."""
    fit: Fit | None = None
    """The rule from an image's own size to the stored one, set by who knows the model; None: as it is."""
    source_size: Size | None = None
    """The image's own size, as far as anybody said it."""
    decoded_size: Size | None = None
    """What ``frame_size`` answered last."""

    @property
    def wanted(self) -> bool:
        """The image is worth converting."""
        return self.verdict.wanted

    def frame_size(self, height: int, width: int) -> Size:
        """(height, width) at which an image of this size is kept; raises ``FrameError`` for an impossible one."""
        self.source_size = (height, width)
        self.decoded_size = self.source_size if self.fit is None else self.fit(height, width)
        return self.decoded_size
