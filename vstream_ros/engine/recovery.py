"""What is done after a failed step, so that it holds nothing and what follows has room again."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

from vstream_ros.engine.device_memory import release_unused_memory

if TYPE_CHECKING:
    from vstream_ros.engine.answerer import ClipAnswerer


def forget_frames(error: BaseException) -> str:
    """Part ``error`` and its causes from the frames that they came through; returns the traceback's text.

    The frames' variables hold the activations and features of the step that failed, for as long as anybody holds the
    error or its traceback. Log the text, therefore, and not the error: handlers may keep their records.
    """
    text = "".join(traceback.format_exception(error))
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        link = chain.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        traceback.clear_frames(link.__traceback__)
        link.__traceback__ = None  # a cleared frame still holds what its function closes over
        chain += [link.__cause__, link.__context__]
    return text


def first_line(error: BaseException) -> str:
    """What ``error`` is and the first line of what it says: the text is kept, the error need not be."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def recover_from_out_of_memory(answerer: ClipAnswerer | None, *, keep_intact: bool) -> None:
    """Make room again. In the model's thread, outside of the ``except`` and after ``forget_frames``: until then the
    error holds what the failed step had computed, and nothing of it can be freed.

    Args:
        answerer: whose caches are dropped; None where there is none.
        keep_intact: drop only the KV caches that the failed step left in disorder.
    """
    if answerer is not None:
        answerer.model.free_scratch()
    if answerer is not None and keep_intact:
        for timeline in answerer.timelines:
            if not timeline.is_intact:
                timeline.reset()
    elif answerer is not None:
        answerer.drop_caches()
    release_unused_memory()
