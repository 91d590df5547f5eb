"""Whether a frame is wanted, by its stamp: sampling, stamps from the future, and quarantine together."""

from __future__ import annotations

from vstream_ros.memory.clip import Verdict
from vstream_ros.memory.future_stamps import Clock, FutureStamps
from vstream_ros.memory.memory_config import MemoryConfig
from vstream_ros.memory.quarantine import REASON as QUARANTINE_REASON
from vstream_ros.memory.quarantine import Quarantine
from vstream_ros.memory.sampling import Sampler


class StampJudge:
    """Not thread-safe; O(1)."""

    def __init__(self, config: MemoryConfig) -> None:
        self.sampler = Sampler(config.sample_rate_hz, config.time_jump_threshold_s)
        self.quarantine = Quarantine(config.sample_rate_hz, config.time_jump_threshold_s)
        self.future = FutureStamps(config.future_stamp_tolerance_s)

    def verdict(self, stamp_ns: int, clock: Clock | None) -> Verdict:
        """On a frame that is offered. In quarantine a KEEP is a look: ``Quarantine.ends_with`` decides."""
        self.quarantine.advance(stamp_ns)
        if self.quarantine.active:
            return self.quarantine.check(stamp_ns)
        if self.future.refuses(stamp_ns, self.sampler.newest_ns, clock):
            return Verdict.FUTURE
        return self.sampler.check(stamp_ns)

    def verdict_again(self, verdict: Verdict, stamp_ns: int, shape: tuple[int, ...], went_on: bool) -> Verdict:
        """On an offered frame whose pixels are there now: ``verdict``, or a new one where the memory went on meanwhile
        (``went_on``), or where the camera is to be looked at. ``shape``: (height, width, 3)."""
        if self.quarantine.active:
            if not self.quarantine.ends_with(stamp_ns, shape):
                return Verdict.QUARANTINED
            return self.sampler.check(stamp_ns)
        if not went_on:
            return verdict
        again = self.sampler.check(stamp_ns)
        return Verdict.BACKWARD if again is Verdict.JUMP else again  # only what the offer saw may be cleared

    def is_far_ahead(self, stamp_ns: int) -> bool:
        """Whether a stamp is further ahead of the newest one than the tolerance."""
        return self.future.is_far_ahead(stamp_ns, self.sampler.newest_ns)

    def why(self, verdict: Verdict) -> str:
        """Why a frame with this verdict is not kept, in a sentence; empty where it is."""
        sentences = {Verdict.FUTURE: self.future.reason, Verdict.QUARANTINED: QUARANTINE_REASON}
        return "" if verdict.wanted else sentences.get(verdict, verdict.value)
