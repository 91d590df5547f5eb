"""One way into every recording: a video file or a ROS 2 bag, as frames with a topic, stamps and pixels on demand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from vstream_ros.errors import InvalidRequestError
from vstream_ros.images import SizeRule

BAG_SUFFIXES = (".mcap", ".db3")


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


def is_bag(path: Path) -> bool:
    """Whether ``open_source`` would take ``path`` for a ROS 2 bag rather than a video."""
    return path.is_dir() or path.suffix in BAG_SUFFIXES


def open_source(path: str | Path, topics: Sequence[str] | None = None) -> Source:
    """Open a video file, a rosbag2 folder, or a single ``.mcap`` or ``.db3`` file.

    ``topics``: the image topics of a bag to read, None or empty for all of them; a video has none to choose from.
    Raises ``InvalidRequestError``, one sentence that says what to do, for whatever can't be opened.
    """
    path = Path(path)
    if not path.exists():
        raise InvalidRequestError(f"{path} does not exist; pass a video file or a rosbag2 folder")
    if path.suffix == ".bag":
        raise InvalidRequestError(
            f"{path} is a ROS 1 bag; convert it first: rosbags-convert --src {path} --dst {path.with_suffix('')}"
        )
    # Imported here: a video needs no bag library, a bag no video library.
    if is_bag(path):
        from vstream_ros.replay.bags import BagSource

        return BagSource(path, topics or ())
    if topics:
        raise InvalidRequestError(f"{path} is a video and has no topics; leave the topic out")
    from vstream_ros.replay.videos import VideoSource

    return VideoSource(path)
