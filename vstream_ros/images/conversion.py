"""What every conversion of an image message shares: sizes, limits, and one kind of error."""

from __future__ import annotations

import functools
import reprlib
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np

from vstream_ros.errors import FrameError, VStreamError

Size = tuple[int, int]
"""(height, width)"""

SizeRule = Size | Callable[[int, int], Size] | None
"""A size, or a function from the image's own (height, width) to it (``FrameSlot.frame_size``), or None: as it is."""

MAX_SIDE = 16384
MAX_PIXELS = 100_000_000
"""Beyond any camera: a header that claims more is damaged, and believing it would cost gigabytes."""

_Args = ParamSpec("_Args")
_Image = TypeVar("_Image")


def only_frame_errors(convert: Callable[_Args, _Image]) -> Callable[_Args, _Image]:
    """Let whatever a conversion raises be a ``FrameError`` with its cause: images come from outside, in every state."""

    @functools.wraps(convert)
    def refusing(*args: _Args.args, **kwargs: _Args.kwargs) -> _Image:
        try:
            return convert(*args, **kwargs)
        except VStreamError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines() or [""]
            raise FrameError(
                f"the image can't be converted: {type(error).__name__}: {quoted(reason[0])}"
            ) from error

    return refusing


def quoted(text: Any) -> str:
    """A text from outside, quoted, of a few words at most."""
    return reprlib.repr(str(text)[:200])


def checked_size(height: int, width: int) -> Size:
    """The size that an image's header claims; raises ``FrameError`` where no camera has such a one."""
    height, width = int(height), int(width)
    if height < 1 or width < 1:
        raise FrameError(f"the image is empty ({width}x{height}): check the camera driver")
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise FrameError(
            f"an image of {width}x{height} is beyond {MAX_SIDE} pixels a side or {MAX_PIXELS} in all: "
            "its header is damaged, or the camera must publish a smaller one"
        )
    return height, width


def target_size(size: SizeRule, height: int, width: int) -> Size:
    """The size that an image of this size is wanted at."""
    if size is None:
        return height, width
    wanted = size(height, width) if callable(size) else size
    return int(wanted[0]), int(wanted[1])


def message_bytes(data: Any) -> np.ndarray:
    """The message's bytes as a flat uint8 array, without a copy where ``data`` is a buffer."""
    if isinstance(data, np.ndarray):
        return np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    if isinstance(data, list):  # a message that was filled by hand
        return np.array(data, dtype=np.uint8)
    return np.frombuffer(data, dtype=np.uint8)
