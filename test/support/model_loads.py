"""Models that load at a test's command: what stands in for ``load_model``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vstream_ros import errors
from vstream_ros.models import loader
from vstream_ros.synthetic.random_model import random_model


class StandInLoader:
    """Stands in for ``load_model``: any name but "broken" is a model; ``before`` runs at each load's beginning."""

    def __init__(self) -> None:
        self.parts = random_model()
        self.loads: list[str] = []
        self.before: Callable[[str], None] = lambda name: None
        self.size: int | None = 1000
        self.most_at_a_time = 0
        self._at_work = 0

    def load(self, name: str, *, min_pixels: int, max_pixels: int, **_: Any) -> Any:
        self.loads.append(name)
        self._at_work += 1
        self.most_at_a_time = max(self.most_at_a_time, self._at_work)
        try:
            self.before(name)
            if name == "broken":
                raise errors.ModelFailedError("broken is damaged")
            return loader.wrap_model(*self.parts, name=name, min_pixels=min_pixels, max_pixels=max_pixels)
        finally:
            self._at_work -= 1
