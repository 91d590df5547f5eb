"""What may be a frame's time: checked once, where it comes in."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from vstream_ros.errors import FrameError
from vstream_ros.memory.clip import NANOSECONDS

MAX_STAMP_NS = 2**63 - 1
"""Nanoseconds in 64 bits, as ROS counts them: from 1677 to 2262."""


def checked_stamp_ns(stamp_ns: Any) -> int:
    """A stamp in nanoseconds, of any integer type, as an int. Raises ``FrameError`` for anything else."""
    if isinstance(stamp_ns, bool | np.bool_):
        raise FrameError("a stamp must be a whole number of nanoseconds, got a truth value")
    try:
        value = operator.index(stamp_ns)
    except TypeError:
        raise FrameError(
            f"a stamp must be a whole number of nanoseconds, got {type(stamp_ns).__name__}; convert it first"
        ) from None
    if abs(value) > MAX_STAMP_NS:
        raise FrameError("a stamp must fit into 64 bits of nanoseconds (the years 1677 to 2262): check its unit")
    return value


def stamp_ns_of_seconds(timestamp: Any) -> int:
    """A time in seconds, any finite number, in whole nanoseconds. Raises ``FrameError`` for anything else."""
    if isinstance(timestamp, np.floating):
        timestamp = float(timestamp)  # a product in float32 would be off by seconds
    try:
        if isinstance(timestamp, bool | np.bool_ | str | bytes | list | tuple):  # they can be multiplied, too
            raise TypeError
        stamp_ns = round(timestamp * NANOSECONDS)
    except (TypeError, ValueError, ArithmeticError):  # ArithmeticError: inf overflows, and so does Decimal
        found = f"{timestamp}" if isinstance(timestamp, float) else type(timestamp).__name__
        raise FrameError(f"a timestamp must be a finite number of seconds, got {found}") from None
    return checked_stamp_ns(stamp_ns)
