"""What every recording yields, whatever it is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from vstream_ros.images import SizeRule


class Frame(ABC):
    """One image of a recording. The pixels are decoded when asked for, so that frames nobody wants cost little."""

    topic: str
    stamp_ns: int
    """Header stamp; the receive time where the header has none."""
    receive_ns: int
    """When the recorder got it: never goes back within a bag, and orders the frames. Replay is paced by it."""

    @abstractmethod
    def rgb(self, size: SizeRule = None) -> np.ndarray:
        """Return the image as (height, width, 3) uint8 in RGB order.

        ``size``: (height, width), or a function that makes it of the image's own (``engine.frame_size``); None: as
        recorded. Raises ``FrameError`` if the image can't be decoded.
        """


class Source(ABC):
    """A recording that can be iterated any number of times, from its start each time.

    Not thread-safe: one iteration at a time. Use it as a context manager, or call ``close``.
    """

    path: Path
    topics: tuple[str, ...]
    """The image topics that iteration yields; ("video",) for a video file."""
    frame_count: int
    """Frames that are probably there (what the file's header says); 0 when unknown."""
    skipped: int = 0
    """Damaged messages or packets passed over since the last iteration began."""
    last_fault: str = ""
    """What was wrong with the last one of them."""

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]:
        """Yield frames in the order they were received.

        Raises ``InvalidRequestError`` when not a single frame can be read, or when the file breaks off on the way.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the file. Calling it twice does no harm."""

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _count_fault(self, what: str) -> None:
        self.skipped += 1
        self.last_fault = what
