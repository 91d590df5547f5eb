"""What goes wrong with one question: no other question beside it notices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from support.asking import Asking, part_of, questions
from vstream_ros.engine import decoder
from vstream_ros.engine.continuation import Interrupts
from vstream_ros.errors import CanceledError, ModelFailedError, VStreamError
from vstream_ros.memory.clip import Clip
from vstream_ros.models.base import Rows
from vstream_ros.models.qwen.video_model import QwenVideoModel

pytestmark = pytest.mark.usefixtures("full_length")


@pytest.mark.parametrize("steps", range(0, 12, 2))
def test_dropped_caches_in_the_middle_change_no_answer(desk: Asking, clips: tuple[Clip, ...], steps: int) -> None:
    for question in questions(3):
        desk.begin(clips, question)
    desk.begin(part_of(clips), questions(1)[0], part="part")
    desk.step(steps)
    desk.answerer.drop_caches()
    desk.step(2)
    desk.answerer.drop_caches()
    desk.finish()
    assert all(desk.compare(number).equal for number in range(4))


def test_a_failing_pass_fails_its_batch_and_no_other(
    desk: Asking, clips: tuple[Clip, ...], any_model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [desk.begin(clips, question) for question in questions(2)]
    part = desk.begin(part_of(clips), questions(1)[0], part="part")
    desk.step(7)
    assert not desk.ended
    broken = desk.answerer._batches[0].timeline
    forward = any_model.forward

    def fail(rows: Rows, cache: Any, *args: Any) -> torch.Tensor:
        if cache is broken.cache:
            raise KeyError("boom")
        return forward(rows, cache, *args)

    with monkeypatch.context() as patch:
        patch.setattr(any_model, "forward", fail)
        desk.step(2)
    hit, spared = ([part], whole) if broken is not desk.answerer.timelines.current else (whole, [part])
    assert desk.ended == hit
    assert all(isinstance(desk.outcomes[number], KeyError) for number in hit)
    desk.finish()
    assert all(desk.compare(number).equal for number in spared)
    again = desk.begin(clips, questions(1)[0])
    desk.finish()
    assert desk.compare(again).equal


@pytest.mark.parametrize("fails", ["forward", "keep_rows"])
def test_who_has_ended_in_the_step_that_fails_is_told_so(
    desk: Asking, clips: tuple[Clip, ...], any_model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    cancelled = False
    check = Interrupts(lambda: CanceledError("enough") if cancelled else None)
    desk.begin(clips, questions(1)[0], interrupts=check)
    desk.begin(clips, questions(2)[1])
    desk.step(5)
    assert not desk.ended
    cancelled = True
    monkeypatch.setattr(decoder, "MAX_DEAD_ROWS", 0)
    monkeypatch.setattr(any_model, fails, lambda *_: 1 / 0)
    desk.step(2)
    assert isinstance(desk.outcomes[0], CanceledError)
    assert isinstance(desk.outcomes[1], ZeroDivisionError)


@pytest.mark.parametrize("how", ["cancel", "on_text"])
@pytest.mark.parametrize("steps", range(0, 9, 2))
def test_one_that_leaves_between_any_two_steps_is_not_noticed_by_the_others(
    desk: Asking, clips: tuple[Clip, ...], steps: int, how: str
) -> None:
    leaves = False

    def check() -> VStreamError | None:
        return CanceledError("enough") if leaves and how == "cancel" else None

    def on_text(text: str, tokens: int) -> None:
        if leaves and how == "on_text":
            raise KeyError("the listener broke")

    for number, question in enumerate(questions(4, length=9)):
        desk.begin(clips, question, interrupts=Interrupts(check, on_text) if number == 1 else None)
    desk.step(steps)
    assert not desk.ended
    leaves = True
    desk.finish()
    error = desk.outcomes[1]
    assert isinstance(error, VStreamError)
    assert isinstance(error, CanceledError) == (how == "cancel")
    assert desk.ended[0] == 1
    assert all(desk.compare(number).equal for number in (0, 2, 3))


def test_who_has_its_last_token_in_the_step_that_fails_has_its_answer(
    desk: Asking, clips: tuple[Clip, ...], any_model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whose logits are not finite, fails of that; what others had computed in the same caches is computed again."""
    whole = [desk.begin(clips, question) for question in questions(2)]  # of six tokens and of seven
    part = desk.begin(part_of(clips), questions(1)[0], part="part")
    forward = any_model.forward

    def damaged(rows: Rows, cache: Any, wanted: np.ndarray, features: Any = ()) -> torch.Tensor:
        logits = forward(rows, cache, wanted, features).clone()
        if len(logits) == 2 and len(desk.running(whole[0]).token_ids) == 5:
            logits[1] = torch.nan
        return logits

    monkeypatch.setattr(any_model, "forward", damaged)
    desk.finish()
    assert isinstance(desk.outcomes[whole[1]], ModelFailedError)
    assert desk.compare(whole[0]).equal
    assert desk.compare(part).equal
