"""Drawing in processes of their own, while the training computes."""

from __future__ import annotations

import collections
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, TypeVar

import cv2

Result = TypeVar("Result")


def in_processes(function: Callable[..., Result], calls: Iterable[tuple[Any, ...]], processes: int) -> Iterator[Result]:
    """``function(*call)`` for each call, in order, computed at most a few calls ahead of the consumer.

    With 0 ``processes`` in this one, when the consumer asks for it.
    """
    if not processes:
        yield from (function(*call) for call in calls)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), cv2.setNumThreads, (1,)) as pool:
        ahead: collections.deque[Future[Result]] = collections.deque()
        for call in calls:
            ahead.append(pool.submit(function, *call))
            if len(ahead) > 3 * processes:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
