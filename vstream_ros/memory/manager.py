"""One camera's memory: frames in, a bounded clip out."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from vstream_ros.errors import FrameError
from vstream_ros.images.resize import owned_rgb
from vstream_ros.memory.archive import Archive
from vstream_ros.memory.clip import NANOSECONDS, Clip, FrameStatus, MemoryStatus, Verdict
from vstream_ros.memory.counters import FrameCounters
from vstream_ros.memory.forming import ScoredFrame
from vstream_ros.memory.future_stamps import Clock, Trial
from vstream_ros.memory.held_frames import HeldFrames
from vstream_ros.memory.importance import Embed, FrameScorer, Score
from vstream_ros.memory.judge import StampJudge
from vstream_ros.memory.key_frames import checked_key_frames, scored
from vstream_ros.memory.memory_config import MemoryConfig
from vstream_ros.memory.quarantine import REASON as QUARANTINE_REASON
from vstream_ros.memory.saved_state import Capacity, SavedState, reviewing_scorer
from vstream_ros.memory.slot import Fit, FrameSlot, Size
from vstream_ros.memory.snapshot import MemorySnapshot
from vstream_ros.memory.stamps import checked_stamp_ns


class SmartFrameManager:
    """Keeps the key frames of the past (star) and the most recent frames (stream) of one camera, for ever.

    A frame is offered by its stamp, which sampling judges (is it wanted?), and kept with its pixels: scoring (motion,
    complexity, scene change), then forming (two frames become a tubelet, once). Tubelets enter the stream window and
    are promoted to star when they leave it. Whatever number of frames is added, at most ``star_memory_size +
    stream_window_size + temporal_patch_size * stream_slide`` frames are held.

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
        archive: Archive | None = None,
        **overrides: Any,
    ) -> None:
        """``overrides`` are fields of ``MemoryConfig`` that replace those of ``config``. ``ids`` yields tubelets' ids,
        rising and never repeated; cameras whose clips meet in one engine share it. ``embed``, for
        ``selection_method="semantic"``, makes a vector of a read-only frame in ``keep``'s thread; if it fails, motion
        is taken from the pixels. ``archive`` notes what leaves, and is cleared with the memory. Raises ``ConfigError``.
        """
        self.config = config = replace(config or MemoryConfig(), **overrides)
        self.camera = camera
        self._judge = StampJudge(config)
        self._trial: Trial | None = None
        self._embed = embed
        self._scorer = FrameScorer(config, embed)
        self._ids = itertools.count() if ids is None else ids
        self._patch = temporal_patch_size
        self._held = HeldFrames(config, camera, temporal_patch_size, self._ids, archive)
        self._source_size: Size | None = None  # of the camera's own images, as far as anybody said it
        self._clip: Clip | None = None
        self.epoch = 0  # how often what is held was cleared or scaled: what began under another one is void
        self._revision = 0  # how often anything that is held changed
        self._counters = FrameCounters()

    @property
    def period_s(self) -> float:
        """Nominal seconds between frames: the sampling period, or the first spacing seen, pinned until a clear."""
        return self._judge.sampler.period_s

    # -- frames in ---------------------------------------------------------------------------------------------------

    def offer(self, stamp_ns: int, clock: Clock | None = None) -> FrameSlot:
        """Count a frame by its header stamp and judge whether it is wanted, before anyone pays for its conversion.

        ``stamp_ns``: nanoseconds, any integer of 64 bits; ``clock``: the one that stamps come from, None where none
        runs. With ``sample_rate_hz`` one frame per slot of the grid is kept; without, every frame that is
        newer than the newest. A stamp equal to the newest is BACKWARD: a frame without a time of its own has no place
        in the order and can't be asked about. A frame that is refused is counted as rejected here and need not be
        handed on. O(1). Raises ``FrameError``, counted, for what is no stamp.
        """
        self._counters.offered += 1
        try:
            stamp_ns = checked_stamp_ns(stamp_ns)
        except FrameError as error:
            self._counters.reject(str(error))
            raise
        withdrawn = self._settle_trial(stamp_ns)
        verdict = self._judge.verdict(stamp_ns, clock)
        reason = self._judge.why(verdict)
        if verdict.rejected:
            self._counters.reject(reason)
        return FrameSlot(self.camera, stamp_ns, verdict, reason, self._counters.all_clears, self._revision, withdrawn)

    def keep(self, slot: FrameSlot, pixels: np.ndarray) -> FrameStatus:
        """Store an offered frame; returns what became of it.

        ``pixels``: (H, W, 3) uint8 RGB at the model's resolution, any strides, H and W >= 1; they are copied, the
        caller may reuse them. A jump back in time or another resolution clears this camera's memory first and says so
        in ``cleared``. Where the memory went on since the offer the frame is judged again, and a clear voids it. Does
        nothing for a slot that is not wanted. Raises ``FrameError`` for anything that is not such an image; it is
        counted as rejected, and the memory is as before.
        """
        if not slot.wanted:
            return self._frame_status(slot.verdict, slot.stamp_ns)
        try:
            owned = owned_rgb(pixels)
        except FrameError as error:
            self.reject(slot, str(error))
            raise
        verdict = self._verdict_now(slot, owned)
        jumped = verdict is Verdict.JUMP
        change = self._held.change(owned.shape, slot.stamp_ns, jumped=jumped) if verdict.wanted else None
        if change is not None and not self._judge.quarantine.allows_clear():
            verdict = Verdict.QUARANTINED
        if not verdict.wanted:
            if verdict.rejected:
                self._counters.reject(self._judge.why(verdict))
            return self._frame_status(verdict, slot.stamp_ns)
        if change is not None:
            self._forget(change[0])
        self._begin_trial(slot.stamp_ns)
        score = self._scorer.score(owned, slot.stamp_ns)
        self._store(owned, slot.stamp_ns, score)
        self._source_size = slot.source_size
        return self._frame_status(verdict, slot.stamp_ns, score, "" if change is None else change[1])

    def reject(self, slot: FrameSlot, reason: str) -> None:
        """Count an offered frame that can't be used, such as an image that could not be converted."""
        if slot.wanted:
            self._counters.reject(reason)

    def reject_unstamped(self, reason: str) -> None:
        """Count an image that can't be offered, because nobody can tell its stamp."""
        self._counters.offered += 1
        self._counters.reject(reason)

    def add_frame(self, frame: np.ndarray, stamp_ns: int) -> FrameStatus:
        """``offer`` and ``keep`` in one step, for callers that have the pixels at hand."""
        return self.keep(self.offer(stamp_ns), frame)

    def update_star_memory(self, frames: Iterable[tuple[np.ndarray, int]]) -> list[FrameStatus]:
        """Store frames that must be remembered, whatever their age and the sampling grid; returns what became of each.

        ``frames``: pairs of an image as ``keep`` takes it and its header stamp in nanoseconds, stamps rising. They
        become key tubelets at once, two close frames each, a lonely one by repetition: as important as a scene change,
        and promoted for sure when they leave the window. What is newer than the memory is appended, what is older goes
        to its place in the window or in star; a frame whose stamp is held already makes its tubelet a key tubelet and
        is not stored twice. Tubelets that are held keep their identity, so what was computed from them stays valid.

        Raises ``FrameError``, and changes nothing but the count of rejected frames, where an image is none, has another
        resolution than those held, or stamps do not rise.
        """
        try:
            checked = checked_key_frames(frames, self._held.frame_shape)
        except FrameError as error:
            self.reject_unstamped(str(error))
            raise
        if not checked:
            return []
        self._begin_trial(checked[-1][1])
        keys = scored(checked, FrameScorer(self.config, self._embed))
        stored = self._held.insert_keys(keys, gap_ns=1.5 * self.period_s * NANOSECONDS)
        for frame in stored:
            self._judge.sampler.keep_off_grid(frame.stamp_ns)
        self._counters.offered += len(keys)
        self._counters.kept += len(stored)
        self._changed()
        return [self._frame_status(Verdict.KEEP, frame.stamp_ns, frame) for frame in keys]

    def reweigh(self, tubelet_id: int, importance: float) -> bool:
        """Give a tubelet another importance, >= 0, once, for the next slides. False: it isn't held, or was before."""
        self._clip = None  # without a new revision: frames that were offered are still judged by the same stamps
        return self._held.reweigh(tubelet_id, importance)

    def clear(self, reason: str) -> None:
        """Forget all frames, the sampling grid, the pinned period and a quarantine. The counters stay, ids go on."""
        self._judge.quarantine.active = False  # nothing is left that it could protect
        self._forget(reason)

    def resize(self, fit: Fit, star_fit: Fit | None = None) -> int:
        """Scale what is held to what ``fit`` makes of the camera's images; returns the number of tubelets.

        For a model that takes other sizes. All but pixels and tubelets' ids stays, and lost details don't come back.
        ``star_fit``: from a held frame's size to the one that star is handed out at from now on; None: the same.
        """
        before = self._held.frame_sizes
        self._held.shrink_star(star_fit)
        if before is not None:
            self._held.resize(fit(*(self._source_size or before[0])))
        if self._held.frame_sizes == before:
            return 0
        self._trial = None
        self.epoch += 1
        self._changed()
        return self._held.tubelet_count + (self._held.last_pending_stamp_ns is not None)

    def regroup(self, temporal_patch_size: int, reason: str) -> None:
        """Make tubelets of another length from now on. What is held can't be grouped anew, so it is cleared.

        Raises ``ConfigError`` where the memory is smaller than one such tubelet; it is then as before.
        """
        held = self._held.regrouped(temporal_patch_size)
        self.clear(reason)
        self._held, self._patch = held, temporal_patch_size

    # -- saving ------------------------------------------------------------------------------------------------------

    @property
    def capacity(self) -> Capacity:
        """What ``restore`` takes at most."""
        return Capacity.of(self.config, self._patch)

    def saved_state(self) -> SavedState:
        """What is held and where the sampling grid stands. O(tubelets held), copies no pixels."""
        rate_hz, grid = self.config.sample_rate_hz, self._judge.sampler.grid
        return SavedState(self.camera, self._patch, rate_hz, self._source_size, grid, self._held.remember())

    def scorer_after(self, state: SavedState) -> FrameScorer:
        """For ``restore``. Slow; needs no lock, since it reads only what never changes."""
        return reviewing_scorer(state, self.config, self._embed)

    def restore(self, state: SavedState, scorer: FrameScorer) -> None:
        """Hold what a memory held, in the place of all that is held, under new ids; what comes next goes on from there.

        ``state``: of any camera, with tubelets of this memory's length, no more than ``capacity``. ``scorer``: of
        ``scorer_after``. The counters and a quarantine stay; an archive is emptied."""
        self._held.take_over(state.held)
        self._judge.sampler.go_on_from(state.grid)
        self._scorer, self._source_size, self._trial = scorer, state.source_size, None
        self.epoch += 1
        self._changed()

    # -- a clip out --------------------------------------------------------------------------------------------------

    def clip(self, start_ns: int = 0, end_ns: int = 0) -> Clip:
        """What the memory holds, star then stream: in time order, without duplicates, possibly empty.

        ``start_ns`` and ``end_ns`` are header stamps, inclusive, 0: unbounded; a tubelet belongs to the range if any of
        its real frames does. Frames that are no tubelet yet come last as a provisional tubelet, padded by repetition,
        where ``include_pending`` is set or the memory holds nothing else. Until the next change the same object is
        handed out for the whole memory. O(tubelets held); changes nothing that is stored.
        """
        if self._clip is None:
            held = self._held.to_hand_out(self.config.include_pending)
            self._clip = Clip(held, second_per_grid=self._patch * self.period_s)
        if start_ns == 0 and end_ns == 0:
            return self._clip
        return replace(self._clip, tubelets=tuple(t for t in self._clip.tubelets if t.is_within(start_ns, end_ns)))

    def next_clip(self) -> Clip | None:
        """The clip that the next slide of the window will leave, up to today's newest tubelet.

        None while it can't be told yet. Whatever arrives before the slide only appends to it, so it can be computed
        ahead. Without a provisional tubelet.
        """
        held = self._held.after_slide()
        return None if held is None else Clip(tuple(held), second_per_grid=self._patch * self.period_s)

    def snapshot(self) -> MemorySnapshot:
        """What is held and why, to be looked at; O(tubelets held). Changes nothing that is stored."""
        return self._held.snapshot(self.camera, self._patch * self.period_s)

    def status(self) -> MemoryStatus:
        """Counters and fill at this moment; O(tubelets held)."""
        return MemoryStatus(
            camera=self.camera,
            epoch=self.epoch,
            quarantine=QUARANTINE_REASON if self._judge.quarantine.active else "",
            **self._counters.as_status(),
            **self._held.as_status(),
        )

    def check_integrity(self) -> None:
        """Raise AssertionError where an invariant is broken. For tests: O(bytes held)."""
        self._held.check_integrity()
        self._counters.check_integrity()

    # -- inside ------------------------------------------------------------------------------------------------------

    def _verdict_now(self, slot: FrameSlot, pixels: np.ndarray) -> Verdict:
        """The slot's verdict, or a new one where the memory went on meanwhile, or the camera is to be looked at."""
        if slot.clears != self._counters.all_clears:
            return Verdict.OVERTAKEN
        return self._judge.verdict_again(slot.verdict, slot.stamp_ns, pixels.shape, slot.revision != self._revision)

    def _forget(self, reason: str) -> None:
        self._counters.clear(reason)
        self._held.clear()
        self._scorer.reset()
        self._judge.sampler.reset()
        self._trial = None
        self.epoch += 1
        self._changed()

    def _begin_trial(self, stamp_ns: int) -> None:
        """Remember how everything is, where the frame to be stored is far ahead of the others."""
        if self._trial is None and self._judge.is_far_ahead(stamp_ns):
            sampler = copy.copy(self._judge.sampler)
            self._trial = Trial(self._held.remember(), sampler, self._scorer.copy(), self._counters.kept)

    def _settle_trial(self, stamp_ns: int) -> str:
        """Let a frame that is offered speak for those on trial or against them; returns why they were dropped."""
        trial = self._trial
        if trial is None or self._judge.quarantine.active:
            return ""
        if not trial.is_refuted_by(stamp_ns, self._judge.sampler):
            self._trial = trial if trial.frames_left else None
            return ""
        self._held.put_back(trial.held)
        self._judge.sampler, self._scorer = trial.sampler, trial.scorer
        self._counters.withdraw(self._counters.kept - trial.frames_kept, self._judge.future.reason)
        self._trial = None
        self._changed()
        return self._judge.future.reason

    def _store(self, pixels: np.ndarray, stamp_ns: int, score: Score) -> None:
        sampler, before_ns = self._judge.sampler, self._held.last_pending_stamp_ns
        if score.scene_change or (before_ns is not None and sampler.frames_are_missing(before_ns, stamp_ns)):
            self._held.seal()
        time_ns = sampler.keep(stamp_ns)
        self._held.append(ScoredFrame(pixels, stamp_ns, time_ns, score.importance, score.scene_change))
        self._counters.kept += 1
        self._changed()

    def _changed(self) -> None:
        self._revision += 1
        self._clip = None

    def _frame_status(
        self, verdict: Verdict, stamp_ns: int, score: Score | ScoredFrame | None = None, cleared: str = ""
    ) -> FrameStatus:
        return FrameStatus(
            verdict=verdict,
            stamp_ns=stamp_ns,
            camera=self.camera,
            reason=self._judge.why(verdict),
            importance=0.0 if score is None else score.importance,
            scene_change=score is not None and score.scene_change,
            cleared=cleared,
            **self._held.fill,
        )
