"""One camera's memory: frames in, a bounded clip out."""

from __future__ import annotations

import bisect
import itertools
import operator
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from vstream_ros.errors import ConfigError, FrameError
from vstream_ros.images.resize import check_image
from vstream_ros.memory.clip import NANOSECONDS, Clip, FrameStatus, MemoryStatus, Tubelet, Verdict
from vstream_ros.memory.forming import ScoredFrame, TubeletFormer
from vstream_ros.memory.importance import Embed, FrameScorer, Score
from vstream_ros.memory.memory_config import MemoryConfig
from vstream_ros.memory.sampling import Sampler
from vstream_ros.memory.store import StarStream
from vstream_ros.text import clipped

MAX_CLEAR_REASONS = 16
"""Different reasons that are counted apart; a memory that runs for ever must not collect texts."""
OTHER_REASONS = "other"


class SmartFrameManager:
    """Keeps the key frames of the past (star) and the most recent frames (stream) of one camera, for ever.

    A frame goes through sampling (is it wanted?), scoring (motion, complexity, scene change) and forming (two frames
    become a tubelet, once); tubelets enter the stream window and are promoted to star when they leave it. Whatever
    number of frames is added, at most ``star_memory_size + stream_window_size + temporal_patch_size * stream_slide``
    frames are held.

    Not thread-safe: the engine holds a lock around it.
    """

    def __init__(
        self,
        config: MemoryConfig | None = None,
        *,
        camera: str = "camera",
        temporal_patch_size: int = 2,
        ids: Iterator[int] | None = None,
        embed: Embed | None = None,
        **overrides: Any,
    ) -> None:
        """An empty memory.

        ``overrides`` are fields of ``MemoryConfig`` that replace those of ``config``. ``ids`` yields the tubelets' ids,
        rising and never repeated; cameras whose clips meet in one engine share it. ``embed`` is for
        ``selection_method="semantic"``: it takes a read-only frame and returns a vector; it is called in
        ``add_frame``'s thread, and where it fails the frame's motion is taken from its pixels. Raises ``ConfigError``.
        """
        config = replace(config or MemoryConfig(), **overrides)
        self.config = config
        self.camera = camera
        self._sampler = Sampler(config.sample_rate_hz, config.time_jump_threshold_s)
        self._embed = embed
        self._scorer = FrameScorer(config, embed)
        self._former = TubeletFormer(camera, temporal_patch_size, itertools.count() if ids is None else ids)
        self._patch = temporal_patch_size
        self._store = StarStream(
            star=_tubelets(config, "star_memory_size", temporal_patch_size),
            window=_tubelets(config, "stream_window_size", temporal_patch_size),
            slide=config.stream_slide,
        )
        self._clip: Clip | None = None
        self._offered = self._kept = self._rejected = 0
        self._offered_stamp_ns: int | None = None
        self._last_rejection = ""
        self._clears: dict[str, int] = {}

    @property
    def period_s(self) -> float:
        """Nominal seconds between frames: the sampling period, or the first spacing seen, pinned until a clear."""
        return self._sampler.period_s

    def check(self, stamp_ns: int) -> Verdict:
        """Whether a frame with this header stamp is wanted, before anyone pays for its conversion.

        O(1), changes nothing and counts nothing (see ``count_offered``). With ``sample_rate_hz`` one frame per slot of
        the grid is kept; without, every frame that is newer than the newest. A stamp equal to the newest is BACKWARD:
        a frame without a time of its own has no place in the order and can't be asked about.
        """
        return self._sampler.check(operator.index(stamp_ns))

    def count_offered(self, stamp_ns: int) -> Verdict:
        """``check``, and count the frame: as offered, and as rejected where it goes back in time.

        For callers that look before they convert. A frame that is then added with the same stamp is not counted
        again, so ``frames_offered`` is right for callers that only add, too. A backward frame need not be added.
        """
        verdict = self.check(stamp_ns)
        self._offered += 1
        self._offered_stamp_ns = stamp_ns
        if verdict is Verdict.BACKWARD:
            self.reject(verdict.value)
        return verdict

    def add_frame(self, frame: np.ndarray, stamp_ns: int) -> FrameStatus:
        """Store a frame if its stamp is wanted; returns what became of it.

        ``frame``: (H, W, 3) uint8 RGB at the model's resolution, any strides, H and W >= 1; it is copied, the caller
        may reuse it. ``stamp_ns``: header stamp in nanoseconds, any integer. A jump back in time or another resolution
        clears this camera's memory first and says so in ``cleared``. Raises ``FrameError`` for anything that is not
        such an image; it is counted as rejected, and the memory is as before.
        """
        stamp_ns = operator.index(stamp_ns)
        verdict = self._verdict_counted_once(stamp_ns)
        if verdict in (Verdict.SKIP, Verdict.BACKWARD):
            return self._frame_status(verdict, stamp_ns)
        try:
            pixels = _owned_copy(frame)
        except FrameError as error:
            self.reject(str(error))
            raise
        cleared = self._clear_before(verdict, pixels, stamp_ns)
        score = self._scorer.score(pixels)
        self._store_frame(pixels, stamp_ns, score)
        return self._frame_status(verdict, stamp_ns, score, cleared)

    def update_star_memory(self, frames: Iterable[tuple[np.ndarray, int]]) -> list[FrameStatus]:
        """Store frames that must be remembered, whatever their age and the sampling grid; returns what became of each.

        ``frames``: pairs of an image as ``add_frame`` takes it and its header stamp in nanoseconds, stamps rising. They
        become key tubelets at once, two close frames each, a lonely one by repetition: as important as a scene change,
        and promoted for sure when they leave the window. What is newer than the memory is appended, what is older goes
        to its place in the window or in star; a frame whose stamp is held already makes its tubelet a key tubelet and
        is not stored twice. Tubelets that are held keep their identity, so what was computed from them stays valid.

        Raises ``FrameError``, and changes nothing but the count of rejected frames, where an image is none, has another
        resolution than those held, or stamps do not rise.
        """
        try:
            checked = self._checked_update(frames)
        except FrameError as error:
            self._offered += 1
            self.reject(str(error))
            raise
        if not checked:
            return []
        # A tubelet that is being formed is the last one: it is closed where one of these would come behind the others.
        if self._store.stream == [] or checked[-1][1] > self._store.stream[-1].stamps_ns[0]:
            self._store_tubelet(self._former.seal())
        held = {stamp: tubelet.id for tubelet in self._stored() for stamp in tubelet.stamps_ns}
        scorer = FrameScorer(self.config, self._embed)
        scores = [scorer.score(pixels) for pixels, _ in checked]
        for _, stamp_ns in checked:
            if stamp_ns in held:
                self._store.mark_key(held[stamp_ns])
        new = [
            ScoredFrame(pixels, stamp_ns, stamp_ns, score.importance, score.scene_change)
            for (pixels, stamp_ns), score in zip(checked, scores, strict=True)
            if stamp_ns not in held
        ]
        self._store.insert([self._former.key_tubelet(frames) for frames in self._grouped(new)])
        for frame in new:
            self._sampler.pass_by(frame.stamp_ns)
        self._offered += len(checked)
        self._kept += len(new)
        self._clip = None
        return [
            self._frame_status(Verdict.KEEP, stamp_ns, score)
            for (_, stamp_ns), score in zip(checked, scores, strict=True)
        ]

    def reject(self, reason: str) -> None:
        """Count a frame that was offered and can't be used, such as an image that could not be converted.

        Not for frames that were given to ``add_frame``: it counts what it refuses.
        """
        self._rejected += 1
        self._last_rejection = clipped(reason)

    def clip(self, start_ns: int = 0, end_ns: int = 0) -> Clip:
        """What the memory holds, star then stream: in time order, without duplicates, possibly empty.

        ``start_ns`` and ``end_ns`` are header stamps, inclusive, 0: unbounded; a tubelet belongs to the range if any of
        its real frames does. Frames that are no tubelet yet come last as a provisional tubelet, padded by repetition,
        where ``include_pending`` is set or the memory holds nothing else. Until the next change the same object is
        handed out for the whole memory. O(tubelets held); changes nothing that is stored.
        """
        if self._clip is None:
            self._clip = Clip(self._held(), second_per_grid=self._patch * self.period_s)
        if start_ns == 0 and end_ns == 0:
            return self._clip
        return replace(self._clip, tubelets=tuple(t for t in self._clip.tubelets if _within(t, start_ns, end_ns)))

    def next_clip(self) -> Clip | None:
        """The clip that the next slide of the window will leave, up to today's newest tubelet.

        None while it can't be told yet. Whatever arrives before the slide only appends to it, so it can be computed
        ahead. Without a provisional tubelet.
        """
        held = self._store.after_slide()
        return None if held is None else Clip(tuple(held), second_per_grid=self._patch * self.period_s)

    def clear(self, reason: str) -> None:
        """Forget all frames, the sampling grid and the pinned period. The counters stay, ids go on."""
        known = reason in self._clears or len(self._clears) < MAX_CLEAR_REASONS
        key = reason if known else OTHER_REASONS
        self._clears[key] = self._clears.get(key, 0) + 1
        self._store.clear()
        self._former.clear()
        self._scorer.reset()
        self._sampler.reset()
        self._clip = None

    def status(self) -> MemoryStatus:
        """Counters and fill at this moment; O(tubelets held)."""
        stamps = self._stamps()
        return MemoryStatus(
            camera=self.camera,
            frames_offered=self._offered,
            frames_kept=self._kept,
            frames_rejected=self._rejected,
            tubelets=len(self._store.star) + len(self._store.stream),
            nbytes=self._nbytes(),
            oldest_stamp_ns=min(stamps, default=0),
            newest_stamp_ns=max(stamps, default=0),
            clears=dict(self._clears),
            last_rejection=self._last_rejection,
            **self._fill(),
        )

    def check_integrity(self) -> None:
        """Raise AssertionError where an invariant is broken. For tests: O(bytes held)."""
        self._store.check_integrity()
        held = self._stored()
        pending = self._former.pending
        stamps = self._stamps()
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
        fill = self._fill()
        assert fill["star_frames"] <= fill["star_capacity"], "star holds too many frames"
        assert fill["stream_frames"] <= fill["stream_capacity"], "stream holds too many frames"
        assert self._kept <= self._offered, "more frames were kept than offered"

    def _verdict_counted_once(self, stamp_ns: int) -> Verdict:
        announced, self._offered_stamp_ns = self._offered_stamp_ns == stamp_ns, None
        if announced:
            return self.check(stamp_ns)
        verdict = self.count_offered(stamp_ns)
        self._offered_stamp_ns = None
        return verdict

    def _checked_update(self, frames: Iterable[tuple[np.ndarray, int]]) -> list[tuple[np.ndarray, int]]:
        """Own copies with their stamps; raises ``FrameError`` where they can't stand beside the frames held."""
        checked = [(_owned_copy(frame), operator.index(stamp_ns)) for frame, stamp_ns in frames]
        for (_, earlier_ns), (_, later_ns) in itertools.pairwise(checked):
            if later_ns <= earlier_ns:
                raise FrameError(f"stamps must rise, got {earlier_ns} ns before {later_ns} ns; sort the frames by time")
        shape = self._shape()
        for pixels, _ in checked:
            shape = shape or pixels.shape
            if pixels.shape != shape:
                raise FrameError(
                    f"the frame is {pixels.shape[1]}x{pixels.shape[0]}, the memory's are {shape[1]}x{shape[0]}; scale "
                    "it, or clear the memory first"
                )
        return checked

    def _grouped(self, frames: list[ScoredFrame]) -> list[list[ScoredFrame]]:
        """Frames that make a tubelet together: no cut, no gap and no tubelet that is held between them."""
        starts = [tubelet.stamps_ns[0] for tubelet in self._stored()]
        gap_ns = 1.5 * self.period_s * NANOSECONDS
        groups: list[list[ScoredFrame]] = []
        for frame in frames:
            last = groups[-1][-1] if groups and len(groups[-1]) < self._patch else None
            near = last is not None and frame.stamp_ns - last.stamp_ns <= gap_ns and not frame.scene_change
            if near and last and bisect.bisect(starts, last.stamp_ns) == bisect.bisect(starts, frame.stamp_ns):
                groups[-1].append(frame)
            else:
                groups.append([frame])
        return groups

    def _clear_before(self, verdict: Verdict, pixels: np.ndarray, stamp_ns: int) -> str:
        """Clear where this frame can't stand beside the stored ones; returns why ("" where it can)."""
        if verdict is Verdict.JUMP:
            back_s = (max(self._stamps()) - stamp_ns) / NANOSECONDS
            self.clear("time jump")
            return f"stamps jumped back by {back_s:.3f} s"
        shape = self._shape()
        if shape is not None and shape != pixels.shape:
            self.clear("resolution change")
            return f"resolution changed from {shape[1]}x{shape[0]} to {pixels.shape[1]}x{pixels.shape[0]}"
        return ""

    def _store_frame(self, pixels: np.ndarray, stamp_ns: int, score: Score) -> None:
        pending = self._former.pending
        if pending and (score.scene_change or self._sampler.parted(pending[-1].stamp_ns, stamp_ns)):
            self._store_tubelet(self._former.seal())
        time_ns = self._sampler.keep(stamp_ns)
        frame = ScoredFrame(pixels, stamp_ns, time_ns, score.importance, score.scene_change)
        self._store_tubelet(self._former.add(frame))
        self._kept += 1
        self._clip = None

    def _store_tubelet(self, tubelet: Tubelet | None) -> None:
        if tubelet is not None:
            self._store.append(tubelet)

    def _stored(self) -> list[Tubelet]:
        """The complete and sealed tubelets, star then stream."""
        return self._store.star + self._store.stream

    def _held(self) -> tuple[Tubelet, ...]:
        """The tubelets to hand out, with the provisional one where it belongs."""
        held = self._stored()
        provisional = self._former.provisional() if self.config.include_pending or not held else None
        return tuple(held) if provisional is None else (*held, provisional)

    def _stamps(self) -> list[int]:
        """Header stamps of all real frames held, tubelet by tubelet."""
        held = [stamp for t in self._stored() for stamp in t.stamps_ns]
        return held + [frame.stamp_ns for frame in self._former.pending]

    def _shape(self) -> tuple[int, ...] | None:
        """(height, width, 3) of the frames held; None where there are none."""
        if self._former.pending:
            return self._former.pending[-1].pixels.shape
        return self._store.stream[-1].frames.shape[1:] if self._store.stream else None

    def _nbytes(self) -> int:
        """Summed anew each time: a running count is one forgotten line away from a lie."""
        tubelets = sum(t.nbytes for t in self._stored())
        return tubelets + sum(frame.pixels.nbytes for frame in self._former.pending)

    def _fill(self) -> dict[str, int]:
        """Real frames held (repetitions not counted) and the most that can be held."""
        stream_capacity = self.config.stream_window_size + self._patch * self.config.stream_slide - 1
        return {
            "star_frames": sum(len(t.stamps_ns) for t in self._store.star),
            "star_capacity": self.config.star_memory_size,
            "stream_frames": sum(len(t.stamps_ns) for t in self._store.stream) + len(self._former.pending),
            "stream_capacity": stream_capacity,
        }

    def _frame_status(
        self, verdict: Verdict, stamp_ns: int, score: Score | None = None, cleared: str = ""
    ) -> FrameStatus:
        return FrameStatus(
            verdict=verdict,
            stamp_ns=stamp_ns,
            camera=self.camera,
            importance=0.0 if score is None else score.importance,
            scene_change=score is not None and score.scene_change,
            cleared=cleared,
            **self._fill(),
        )


def _tubelets(config: MemoryConfig, name: str, temporal_patch_size: int) -> int:
    """A size in frames as a number of whole tubelets. Raises ``ConfigError`` where it is less than one."""
    if temporal_patch_size < 1:
        raise ConfigError(f"temporal_patch_size must be >= 1, got {temporal_patch_size}")
    frames: int = getattr(config, name)
    if frames < temporal_patch_size:
        raise ConfigError(f"{name} must be >= one tubelet ({temporal_patch_size} frames), got {frames}")
    return frames // temporal_patch_size


def _owned_copy(frame: np.ndarray) -> np.ndarray:
    """A C-contiguous, read-only copy. Raises ``FrameError`` for anything but (H, W, 3) uint8."""
    check_image(frame)
    if frame.shape[2:] != (3,):
        raise FrameError(f"a frame must be RGB, (height, width, 3), got shape {frame.shape}")
    pixels = np.array(frame, order="C", copy=True, subok=False)
    pixels.setflags(write=False)
    return pixels


def _within(tubelet: Tubelet, start_ns: int, end_ns: int) -> bool:
    return any((start_ns == 0 or start_ns <= s) and (end_ns == 0 or s <= end_ns) for s in tubelet.stamps_ns)
