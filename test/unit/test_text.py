"""Texts from outside, made fit to be shown."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vstream_ros.text import clipped


def test_a_short_text_stays():
    assert clipped("encoding 'rgb8' é") == "encoding 'rgb8' é"


def test_a_long_text_keeps_its_ends():
    text = clipped("step is wrong" + "x" * 1_000_000 + "check the driver")
    assert len(text) == 200
    assert text.startswith("step is wrong")
    assert text.endswith("check the driver")


def test_what_can_not_be_printed_becomes_a_space():
    assert clipped("a\nb\0c\ud800d\x1b[31m") == "a b c d [31m"


@given(st.text(st.characters()), st.integers(4, 50))
def test_the_limit_holds(text, limit):
    line = clipped(text, limit)
    assert len(line) == min(len(text), limit)
    assert line.isprintable()
    line.encode()
