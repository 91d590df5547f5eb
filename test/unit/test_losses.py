"""Lost images: from sequence numbers and events, or estimated from stamps."""

from __future__ import annotations

import random

import pytest

from vstream_ros.node.losses import LossCounter, StampGaps

MS = 1_000_000
START_NS = 1_700_000_000_000 * MS


def count(sequences, publisher=b"p"):
    losses = LossCounter()
    for sequence in sequences:
        losses.arrive(publisher, sequence)
    return losses.total


def test_gaps_in_a_sequence_are_losses():
    assert count(range(100, 200)) == 0
    assert count([100, 101, 104, 105, 110]) == 6


def test_a_repeated_or_late_number_is_no_loss():
    assert count([5, 6, 6, 4, 7]) == 0


def test_publishers_have_sequences_of_their_own():
    losses = LossCounter()
    for sequence in range(10):
        losses.arrive(b"a", 100 + sequence)
        losses.arrive(b"b", sequence)
    losses.arrive(b"a", 112)
    assert losses.total == 2


def test_a_publisher_that_starts_again_without_a_name():
    assert count([500, 501, 1, 2, 5], publisher=b"") == 2


def test_many_publishers_are_forgotten():
    losses = LossCounter()
    for index in range(10_000):
        losses.arrive(index.to_bytes(4, "big"), 1)
    assert losses.total == 0
    assert len(losses._sequences) <= 16


def test_a_loss_that_the_middleware_tells_and_the_gap_shows_counts_once():
    losses = LossCounter()
    losses.arrive(b"p", 1)
    losses.tell(2)
    losses.arrive(b"p", 4)
    assert losses.total == 2
    losses.arrive(b"p", 8)  # the other way round
    losses.tell(3)
    assert losses.total == 5
    losses.arrive(b"p", 10)  # overwritten in our own queue: no event
    assert losses.total == 6


def test_losses_before_the_first_image_do_not_hide_later_ones():
    losses = LossCounter()
    losses.tell(98)
    losses.arrive(b"p", 99)
    losses.arrive(b"p", 101)
    assert losses.total == 99


def test_a_new_subscription_starts_anew_and_keeps_the_total():
    losses = LossCounter()
    for sequence in (1, 4):
        losses.arrive(b"p", sequence)
    losses.restart()
    losses.arrive(b"p", 50)
    assert losses.total == 2


def test_the_total_never_falls():
    rng = random.Random(3)
    losses, last = LossCounter(), 0
    for _ in range(2_000):
        step = rng.randrange(4)
        if step == 0:
            losses.tell(rng.randrange(4))
        elif step == 1:
            losses.restart()
        else:
            losses.arrive(rng.choice([b"", b"a", b"b"]), rng.randrange(1_000))
        assert losses.total >= last
        last = losses.total


def test_when_the_last_one_was_lost():
    now = 10.0
    losses = LossCounter(clock=lambda: now)
    losses.arrive(b"p", 1)
    assert losses.seconds_since is None
    losses.arrive(b"p", 3)
    now = 14.0
    assert losses.seconds_since == 4.0
    losses.arrive(b"p", 4)
    assert losses.seconds_since == 4.0
    losses.tell(1)
    assert losses.seconds_since == 0.0


# ---- by stamps ----


def missing(stamps_ms):
    gaps = StampGaps()
    return sum(gaps.missing_before(START_NS + round(stamp * MS)) for stamp in stamps_ms)


def steady(count, period_ms=33.3, jitter_ms=0.0, seed=1):
    rng = random.Random(seed)
    return [index * period_ms + rng.uniform(-jitter_ms, jitter_ms) for index in range(count)]


def without(stamps, *indices):
    return [stamp for index, stamp in enumerate(stamps) if index not in indices]


@pytest.mark.parametrize("jitter_ms", [0.0, 3.0])
def test_a_steady_cameras_gaps_are_counted(jitter_ms):
    stamps = steady(300, jitter_ms=jitter_ms)
    assert missing(stamps) == 0
    assert missing(without(stamps, 100, 200, 201, 202)) == 4


def test_nothing_is_counted_before_the_period_is_known():
    assert missing(without(steady(15), 3, 4, 9)) == 0


def test_an_unsteady_camera_is_never_counted():
    rng = random.Random(2)
    stamps, now = [], 0.0
    for _ in range(300):
        now += rng.uniform(10.0, 200.0)
        stamps.append(now)
    assert missing(stamps) == 0


def test_a_pause_of_the_camera_is_no_loss():
    stamps = steady(100)
    assert missing(stamps + [stamps[-1] + 5_000.0 + stamp for stamp in stamps]) == 0


def test_a_new_rate_is_learned():
    slow = steady(100, period_ms=100.0)
    fast = [slow[-1] + 33.3 + stamp for stamp in without(steady(100), 70)]
    assert missing(slow + fast) == 1
    assert missing(fast + [fast[-1] + 100.0 + stamp for stamp in slow]) <= 2 * StampGaps.WINDOW


def test_stamps_that_go_back_are_no_loss():
    stamps = steady(100)
    assert missing(stamps + stamps) == 0


def test_images_without_a_number_or_a_stamp():
    losses = LossCounter()
    for stamp in without(steady(100), 50):
        losses.arrive_unnumbered(START_NS + round(stamp * MS))
    losses.arrive_unnumbered(0)
    assert losses.total == 1
