"""What one camera's memory holds at a moment: star, stream, and the frames that are no tubelet yet."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vstream_ros.errors import ConfigError
from vstream_ros.memory.archive import Archive
from vstream_ros.memory.clip import NANOSECONDS, Tubelet
from vstream_ros.memory.forming import ScoredFrame, TubeletFormer
from vstream_ros.memory.key_frames import grouped
from vstream_ros.memory.memory_config import MemoryConfig
from vstream_ros.memory.slot import Fit, Size
from vstream_ros.memory.snapshot import MemorySnapshot
from vstream_ros.memory.star_frames import StarFrames
from vstream_ros.memory.store import GAP_POWER, StarStream, values


@dataclass(frozen=True, eq=False)
class HeldState:
    """What was held at a moment; the frames themselves never change."""

    star: list[Tubelet]
    stream: list[Tubelet]
    pending: list[ScoredFrame]


class HeldFrames:
    """The frames of one camera, bounded, in time order. Not thread-safe."""

    def __init__(
        self,
        config: MemoryConfig,
        camera: str,
        temporal_patch_size: int,
        ids: Iterator[int],
        archive: Archive | None = None,
    ) -> None:
        """``archive`` is told of every tubelet that leaves, and of all that is done to those that are held.

        Raises ``ConfigError`` where a size of ``config`` is less than one tubelet.
        """
        self._config = config
        self._camera = camera
        self._ids = ids
        self._archive = archive
        self._patch = temporal_patch_size
        self._former = TubeletFormer(camera, temporal_patch_size, ids)
        self.star_frames = StarFrames(self._former.resized)
        self._store = StarStream(
            star=_tubelets(config, "star_memory_size", temporal_patch_size),
            window=_tubelets(config, "stream_window_size", temporal_patch_size),
            slide=config.stream_slide,
        )

    def regrouped(self, temporal_patch_size: int) -> HeldFrames:
        """Nothing yet, for tubelets of another length. Raises ``ConfigError`` as ``__init__``."""
        held = HeldFrames(self._config, self._camera, temporal_patch_size, self._ids, self._archive)
        held.star_frames.fit = self.star_frames.fit
        return held

    @property
    def tubelets(self) -> list[Tubelet]:
        """The complete and sealed tubelets, star then stream."""
        return self._store.star + self._store.stream

    @property
    def tubelet_count(self) -> int:
        return len(self._store.star) + len(self._store.stream)

    @property
    def last_pending_stamp_ns(self) -> int | None:
        """Stamp of the newest frame that is no tubelet yet; None where there is none."""
        return self._former.pending[-1].stamp_ns if self._former.pending else None

    @property
    def stamps_ns(self) -> list[int]:
        """Header stamps of all real frames held, tubelet by tubelet."""
        held = [stamp for tubelet in self.tubelets for stamp in tubelet.stamps_ns]
        return held + [frame.stamp_ns for frame in self._former.pending]

    @property
    def frame_shape(self) -> tuple[int, ...] | None:
        """(height, width, 3) of the frames held; None where there are none."""
        if self._former.pending:
            return self._former.pending[-1].pixels.shape
        return self._store.stream[-1].frames.shape[1:] if self._store.stream else None

    @property
    def frame_sizes(self) -> tuple[Size, Size] | None:
        """(height, width) of the frames held, and of those in star where they are handed out; None: none are held."""
        if (shape := self.frame_shape) is None:
            return None
        size = (shape[0], shape[1])
        return size, self.star_frames.size(size)

    @property
    def nbytes(self) -> int:
        """Summed anew each time: a running count is one forgotten line away from a lie."""
        tubelets = sum(tubelet.nbytes for tubelet in self.tubelets) + self.star_frames.nbytes
        return tubelets + sum(frame.pixels.nbytes for frame in self._former.pending)

    @property
    def fill(self) -> dict[str, Any]:
        """Real frames held (repetitions not counted) and the most that can be held: integers."""
        return {
            "star_frames": sum(len(t.stamps_ns) for t in self._store.star),
            "star_capacity": self._config.star_memory_size,
            "stream_frames": sum(len(t.stamps_ns) for t in self._store.stream) + len(self._former.pending),
            "stream_capacity": self._config.stream_window_size + self._patch * self._config.stream_slide - 1,
        }

    def as_status(self) -> dict[str, Any]:
        """The fields of ``MemoryStatus`` that are about what is held."""
        stamps = self.stamps_ns
        return {
            "tubelets": self.tubelet_count,
            "nbytes": self.nbytes,
            "oldest_stamp_ns": min(stamps, default=0),
            "newest_stamp_ns": max(stamps, default=0),
            **self.fill,
        }

    def append(self, frame: ScoredFrame) -> None:
        """Store the newest frame."""
        self._store_tubelet(self._former.add(frame))

    def seal(self) -> None:
        """Close the tubelet that is being formed: what comes next does not belong to it."""
        self._store_tubelet(self._former.seal())

    def insert_keys(self, frames: list[ScoredFrame], gap_ns: float) -> list[ScoredFrame]:
        """Store frames of any age as key tubelets, each at its place; stamps rise. Returns those that were stored.

        A frame whose stamp is held already makes its tubelet a key tubelet and is not stored twice. ``gap_ns``: frames
        that are further apart make no tubelet together.
        """
        # A tubelet that is being formed is the last one: it is closed where one of these would come behind the others.
        if not self._store.stream or frames[-1].stamp_ns > self._store.stream[-1].stamps_ns[0]:
            self.seal()
        held = {stamp: tubelet.id for tubelet in self.tubelets for stamp in tubelet.stamps_ns}
        for frame in frames:
            if frame.stamp_ns in held:
                self._store.mark_key(held[frame.stamp_ns])
        new = [frame for frame in frames if frame.stamp_ns not in held]
        groups = grouped(new, self.tubelets, self._patch, gap_ns)
        before, keys = self.tubelets, [self._former.key_tubelet(group) for group in groups]
        self._store.insert(keys)
        self._archive_those_gone(before + keys)
        return new

    def reweigh(self, tubelet_id: int, importance: float) -> bool:
        """See ``StarStream.reweigh``; of a tubelet, or of the one that a smaller twin stands for. Raises ``ValueError``
        for what is no importance."""
        if not 0.0 <= importance < math.inf:
            raise ValueError(f"importance must be >= 0 and finite, got {importance}")
        return self._store.reweigh(self.star_frames.original(tubelet_id), importance)

    def to_hand_out(self, include_pending: bool) -> tuple[Tubelet, ...]:
        """The tubelets in time order, star's in its size. Pending frames come last as a provisional tubelet, where they
        are wanted or nothing else is held."""
        self._forget_twins()
        held = self.star_frames.small(self._store.star) + self._store.stream
        provisional = self._former.provisional() if include_pending or not held else None
        return tuple(held) if provisional is None else (*held, provisional)

    def after_slide(self) -> list[Tubelet] | None:
        """See ``StarStream.after_slide``; star's in its size, as they will be handed out."""
        self._forget_twins()
        held = self._store.after_slide()
        if held is None:
            return None
        star = len(held) - len(self._store.stream) + self._config.stream_slide
        return self.star_frames.small(held[:star]) + held[star:]

    def snapshot(self, camera: str, second_per_grid: float) -> MemorySnapshot:
        """What is held now and what it is worth, pending frames as a provisional tubelet."""
        star, stream = tuple(self._store.star), tuple(self._store.stream)
        worth = values(self._store.star, stream[0].time_ns) if star else []
        provisional = self._former.provisional()
        return MemorySnapshot(
            camera=camera,
            star=star,
            values=tuple(value / NANOSECONDS**GAP_POWER for value in worth),
            stream=stream if provisional is None else (*stream, provisional),
            second_per_grid=second_per_grid,
        )

    def remember(self) -> HeldState:
        """What is held now, for ``put_back``."""
        return HeldState(list(self._store.star), list(self._store.stream), list(self._former.pending))

    def put_back(self, state: HeldState) -> None:
        """Hold what was held at another moment."""
        self._store.star, self._store.stream = list(state.star), list(state.stream)
        self._former.pending = list(state.pending)
        if self._archive is not None:
            self._archive.withdraw_after(max(self.stamps_ns, default=0))

    def take_over(self, state: HeldState) -> None:
        """Hold what another memory held, which must fit (``Capacity``), under new ids.

        Where the window is longer here, the newest of star stand in it: the clip is the same.
        """
        held = [self._former.adopted(tubelet) for tubelet in (*state.star, *state.stream)]
        window = self._config.stream_window_size // self._patch
        split = min(len(state.star), max(len(held) - window, 0))
        self._store.star, self._store.stream = held[:split], held[split:]
        self._former.pending = list(state.pending)
        self._forget_twins()
        if self._archive is not None:
            self._archive.forget()

    def change(self, shape: tuple[int, ...], stamp_ns: int, *, jumped: bool) -> tuple[str, str] | None:
        """Why a frame, (height, width, 3), can't stand beside those held, in two words and in a sentence; None where it
        can. ``jumped``: its stamp jumped back in time."""
        if jumped:
            back_s = (max(self.stamps_ns) - stamp_ns) / NANOSECONDS
            return "time jump", f"stamps jumped back by {back_s:.3f} s"
        held = self.frame_shape
        if held is None or held == shape:
            return None
        return "resolution change", f"resolution changed from {held[1]}x{held[0]} to {shape[1]}x{shape[0]}"

    def shrink_star(self, fit: Fit | None) -> None:
        """Hand out star, and what the archive has, at ``fit`` of the held frames' size; None: as they are held."""
        self.star_frames.fit = fit
        if self._archive is not None:
            self._archive.shrink(fit)

    def resize(self, size: Size) -> None:
        """Scale every frame to ``size`` = (height, width), where they have another one. Tubelets get new ids, all else
        about them stays."""
        if (sizes := self.frame_sizes) is None or sizes[0] == size:
            return
        self._store.star, self._store.stream = (
            [self._former.resized(tubelet, size) for tubelet in tubelets]
            for tubelets in (self._store.star, self._store.stream)
        )
        self._former.resize_pending(size)
        self._forget_twins()
        if self._archive is not None:
            self._archive.resize(size)

    def clear(self) -> None:
        """Forget every frame."""
        self._store.clear()
        self._former.clear()
        self._forget_twins()
        if self._archive is not None:
            self._archive.forget()

    def check_integrity(self) -> None:
        """Raise AssertionError where an invariant is broken. For tests: O(bytes held)."""
        self._store.check_integrity()
        held, pending, stamps = self.tubelets, self._former.pending, self.stamps_ns
        assert len(pending) < self._patch, "a complete tubelet is still pending"
        assert len(set(stamps)) == len(stamps), "a frame is held twice"
        assert all(a < b for t in held for a, b in itertools.pairwise(t.stamps_ns)), "frames are not in time order"
        if held and pending:
            assert max(stamps[:-1]) < stamps[-1], "the pending frame is not the newest"
        arrays = [t.frames for t in held] + [f.pixels for f in pending]
        assert len({a.shape[-3:] for a in arrays}) <= 1, "frames of different resolutions are mixed"
        assert not any(a.flags.writeable for a in arrays), "a stored frame can be changed"
        for tubelet in held:
            assert len(tubelet.frames) == self._patch, "a tubelet of another length"
            assert 1 <= len(tubelet.stamps_ns) <= self._patch, "a tubelet without real frames"
            assert not tubelet.provisional, "a provisional tubelet was stored"
        fill = self.fill
        assert fill["star_frames"] <= fill["star_capacity"], "star holds too many frames"
        assert fill["stream_frames"] <= fill["stream_capacity"], "stream holds too many frames"

    def _forget_twins(self) -> None:
        """Those of tubelets that are not held any more."""
        self.star_frames.keep_only({tubelet.id for tubelet in self.tubelets})

    def _store_tubelet(self, tubelet: Tubelet | None) -> None:
        if tubelet is not None:
            before = self.tubelets
            self._store.append(tubelet)
            self._archive_those_gone(before)

    def _archive_those_gone(self, before: list[Tubelet]) -> None:
        """Of ``before``, the ones that are not held any more."""
        if self._archive is not None:
            held = {tubelet.id for tubelet in self.tubelets}
            for tubelet in before:
                if tubelet.id not in held:
                    self._archive.add(tubelet)


def _tubelets(config: MemoryConfig, name: str, temporal_patch_size: int) -> int:
    """A size in frames as a number of whole tubelets. Raises ``ConfigError`` where it is less than one."""
    if temporal_patch_size < 1:
        raise ConfigError(f"temporal_patch_size must be >= 1, got {temporal_patch_size}")
    frames: int = getattr(config, name)
    if frames < temporal_patch_size:
        raise ConfigError(f"{name} must be >= one tubelet ({temporal_patch_size} frames), got {frames}")
    return frames // temporal_patch_size
