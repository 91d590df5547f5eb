"""Star in smaller frames than the window: as many of the model's tokens show more of the past."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from dataclasses import replace

from vstream_ros.memory.clip import Tubelet
from vstream_ros.memory.slot import Fit, Size


class StarFrames:
    """Makes the smaller twins that stand for star's tubelets where a clip is handed out. Not thread-safe.

    A twin has other pixels, so an id of its own. It is made once, when it is first handed out, and kept for as long as
    its tubelet is held: what was told of the next slide and what that leaves are then the same tubelets, and what was
    computed ahead from them stays good.
    """

    def __init__(self, resized: Callable[[Tubelet, Size], Tubelet]) -> None:
        """``resized``: a tubelet at another size, under a new id."""
        self.fit: Fit | None = None
        """The rule from a held frame's (height, width) to the one in star, set by who knows the model; None: as it
        is."""
        self._resized = resized
        self._twins: dict[int, Tubelet] = {}
        """By the id of the tubelet that a twin stands for."""

    @property
    def nbytes(self) -> int:
        """Of the twins alone."""
        return sum(twin.nbytes for twin in self._twins.values())

    def size(self, size: Size) -> Size:
        """(height, width) in star of a frame that is held at ``size``."""
        return size if self.fit is None else self.fit(*size)

    def small(self, tubelets: Iterable[Tubelet]) -> list[Tubelet]:
        """Their twins; a tubelet that is small enough stands for itself. What is not pixels is the tubelet's of now."""
        return [self._twin(tubelet) for tubelet in tubelets]

    def original(self, tubelet_id: int) -> int:
        """The id of the tubelet that stands behind the twin ``tubelet_id``; any other id as it is."""
        return next((held for held, twin in self._twins.items() if twin.id == tubelet_id), tubelet_id)

    def keep_only(self, tubelet_ids: Set[int]) -> None:
        """Forget the twins of all other tubelets than these."""
        for tubelet_id in self._twins.keys() - tubelet_ids:
            del self._twins[tubelet_id]

    def _twin(self, tubelet: Tubelet) -> Tubelet:
        held = (tubelet.frames.shape[1], tubelet.frames.shape[2])
        size = self.size(held)
        if size == held:
            return tubelet
        made = self._twins.get(tubelet.id)
        if made is None or made.frames.shape[1:3] != size:
            made = self._twins[tubelet.id] = self._resized(tubelet, size)
        return replace(tubelet, id=made.id, frames=made.frames)
