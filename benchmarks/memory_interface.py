"""What a memory strategy is: it takes tubelets one after another and keeps some of them. No model, no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from vstream_ros.memory import MemoryConfig, Tubelet

TUBELET_FRAMES = 2


@dataclass(frozen=True)
class Kept:
    """What a strategy holds, in time order."""

    star: tuple[Tubelet, ...]
    """Kept for a reason: everything but the most recent ones."""
    stream: tuple[Tubelet, ...]
    """The most recent ones, kept because they are."""

    @property
    def tubelets(self) -> tuple[Tubelet, ...]:
        return self.star + self.stream


@dataclass(frozen=True)
class Sizes:
    """How much may be kept, in tubelets."""

    star: int
    window: int
    """The most that our window holds, just before it slides."""

    @property
    def total(self) -> int:
        return self.star + self.window

    @classmethod
    def of(cls, config: MemoryConfig) -> Sizes:
        """Our memory's, at most."""
        star = config.star_memory_size // TUBELET_FRAMES
        return cls(star, config.max_tubelets(TUBELET_FRAMES) - 1 - star)


@dataclass(frozen=True)
class Oracle:
    """What a strategy in real life can't know; only the oracles among the strategies look at it."""

    tubelets: int
    """Of the whole stream."""
    importance: Callable[[Tubelet], float]
    """How much a tubelet tells, by the truth."""


class Strategy(ABC):
    """Takes tubelets in time order and keeps some. Not thread-safe."""

    @abstractmethod
    def add(self, tubelet: Tubelet) -> None:
        """Take the next tubelet."""

    @abstractmethod
    def kept(self) -> Kept:
        """What is held now. Changes nothing."""
