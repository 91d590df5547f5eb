"""What drafts propose, what they may cost, and that what they are made of is bounded."""

from __future__ import annotations

import itertools
import random

import pytest

from vstream_ros.engine import drafts
from vstream_ros.engine.drafts import FIRST_CREDIT, MAX_LENGTH, MAX_TOKENS, NGRAM, REMEMBERED, AnswerBook, Draft, Tokens

ROOM = 1000


def ngrams_of(tokens: Tokens) -> set[Tokens]:
    """Those that something follows, counted by hand."""
    return {tokens[k : k + NGRAM] for k in range(len(tokens) - NGRAM)}


def check_integrity(book: AnswerBook) -> None:
    """The index leads to nothing but answers that are remembered, and to all of them."""
    answers = set(book._answers.values())
    for ngram, (tokens, end) in book._ngrams.items():
        assert tokens in answers
        assert tokens[end - NGRAM : end] == ngram
        assert end < len(tokens)
    assert len(book._answers) <= REMEMBERED
    assert all(len(tokens) <= MAX_TOKENS for tokens in answers)
    assert len(book._ngrams) <= REMEMBERED * MAX_TOKENS


def proposed(draft: Draft, answer: list[int], length: int = MAX_LENGTH) -> Tokens:
    return draft.propose(answer, length)


# -- the book ----------------------------------------------------------------------------------------------------------


def test_the_last_answer_to_the_same_question_is_the_draft() -> None:
    book = AnswerBook()
    book.remember("what?", [1, 2, 3, 4])
    book.remember("who?", [5, 6])
    book.remember("what?", [1, 2, 9, 8, 7])
    check_integrity(book)
    draft = book.draft("what?", [])
    assert proposed(draft, [1]) == (2, 9, 8, 7)
    assert proposed(draft, [1, 2, 9]) == (8, 7)
    assert proposed(book.draft("who?", []), [5]) == (6,)
    assert proposed(book.draft("where?", []), [1]) == ()
    # What the question said before is gone from the index as well.
    assert proposed(book.draft("where?", []), [1, 2, 3]) == ()


def test_elsewhere_than_in_the_last_answer_the_same_words_are_looked_up() -> None:
    book = AnswerBook()
    book.remember("what?", [1, 2, 3, 4, 5, 6])
    other = book.draft("who?", [30, 31, 32, 33, 34])
    assert proposed(other, [9, 2, 3, 4]) == (5, 6)
    assert proposed(other, [9, 30, 31, 32]) == (33, 34)  # the question's own words
    assert proposed(other, [3, 4]) == ()
    assert proposed(other, [4, 5, 6]) == ()  # nothing followed
    same = book.draft("what?", [])
    assert proposed(same, [9, 9, 1, 2, 3]) == (4, 5, 6)  # another beginning than the last time


def test_of_several_places_the_newest_counts() -> None:
    book = AnswerBook()
    book.remember("a", [1, 2, 3, 4])
    book.remember("b", [1, 2, 3, 5, 1, 2, 3, 6])
    check_integrity(book)
    assert proposed(book.draft("c", [1, 2, 3, 7]), [1, 2, 3]) == (6,)  # an answer before the question's words
    book.remember("b", [8])
    check_integrity(book)


def test_it_is_bounded_and_the_oldest_answer_goes_first() -> None:
    book = AnswerBook()
    for k in range(3 * REMEMBERED):
        book.remember(f"question {k}", [1000 * k + i for i in range(MAX_TOKENS + 50)])
        if k % 10 == 0:
            check_integrity(book)
    check_integrity(book)
    assert set(book._answers) == {f"question {k}" for k in range(2 * REMEMBERED, 3 * REMEMBERED)}
    assert len(book._ngrams) == REMEMBERED * (MAX_TOKENS - NGRAM)
    book.remember(f"question {2 * REMEMBERED}", [1, 2])  # asked again: the newest now
    book.remember("one more", [3, 4])
    assert f"question {2 * REMEMBERED}" in book._answers
    assert f"question {2 * REMEMBERED + 1}" not in book._answers
    check_integrity(book)


def test_answers_that_share_words_leave_a_right_index_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts, "REMEMBERED", 5)
    rng = random.Random(0)
    book = AnswerBook()
    for _ in range(500):
        book.remember(f"question {rng.randrange(9)}", [rng.randrange(3) for _ in range(rng.randrange(30))])
        assert len(book._answers) <= 5
        check_integrity(book)
        known = set().union(*map(ngrams_of, book._answers.values()))
        assert set(book._ngrams) <= known
        newest = next(reversed(book._answers.values()))
        assert ngrams_of(newest) <= set(book._ngrams)  # older ones may have lost what a newer one had, and lost


def test_a_draft_lives_on_when_the_book_forgets_what_it_is_made_of() -> None:
    book = AnswerBook()
    book.remember("what?", [1, 2, 3, 4, 5])
    draft = book.draft("what?", [])
    for k in range(REMEMBERED):
        book.remember(f"question {k}", [10 * k])
    assert proposed(draft, [1]) == (2, 3, 4, 5)
    assert proposed(draft, [7, 2, 3, 4]) == ()


# -- one draft ---------------------------------------------------------------------------------------------------------


def test_it_ends_where_the_answer_ended() -> None:
    draft = Draft((1, 2, 3))
    assert draft.propose([1, 2], ROOM) == (3,)
    assert draft.propose([1, 2, 3], ROOM) == ()
    assert draft.propose([1, 2, 3, 4], ROOM) == ()


@pytest.mark.parametrize("room", [-1, 0, 1, 5])
def test_it_keeps_to_its_room(room: int) -> None:
    assert len(Draft(tuple(range(20))).propose([0], room)) == max(0, room)
    assert len(Draft(tuple(range(200))).propose([0], ROOM)) == MAX_LENGTH


def wrong_rows(draft: Draft, right_of: list[int]) -> int:
    """Rows that were for nothing when in each pass so many of the proposed tokens are right, over and over."""
    wrong, answer = 0, [0]
    for right in itertools.islice(itertools.cycle(right_of), 400):
        tokens = draft.propose(answer, ROOM)
        hit = min(right, len(tokens))
        draft.judge(len(tokens), hit)
        wrong += len(tokens) - hit
        answer += tokens[:hit]
        answer.append(0)
    return wrong


def always(*, known: bool) -> Draft:
    """Finds something at any place: all zeros."""
    zeros = tuple([0] * 2000)
    ngrams = {zeros[:NGRAM]: (zeros, NGRAM)}
    return Draft(zeros[:1999] if known else (), ngrams)


@pytest.mark.parametrize(("known", "credit"), [(True, MAX_LENGTH), (False, FIRST_CREDIT)])
def test_what_is_always_wrong_costs_its_credit_and_no_more(known: bool, credit: int) -> None:
    draft = always(known=known)
    assert 0 < wrong_rows(draft, [0]) <= credit
    assert draft.accepted == 0
    assert draft.proposed <= credit
    assert draft.propose([0] * 5, ROOM) == ()  # nor is anything more


@pytest.mark.parametrize("pattern", [[1, 0], [3, 0, 0], [0, 0, 8], [1], [2, 1, 0]])
def test_wrong_rows_are_paid_by_right_ones(pattern: list[int]) -> None:
    draft = always(known=True)
    wrong = wrong_rows(draft, pattern)
    assert wrong <= MAX_LENGTH + draft.accepted
    assert draft.proposed == draft.accepted + wrong


def test_its_length_follows_what_was_right() -> None:
    draft = Draft(tuple([0] * 500))
    assert len(draft.propose([0], ROOM)) == MAX_LENGTH
    draft.judge(MAX_LENGTH, 5)
    assert len(draft.propose([0], ROOM)) == 5
    draft.judge(5, 5)
    assert len(draft.propose([0], ROOM)) == 10  # all of it was right: twice as many
    draft.judge(10, 4)
    assert len(draft.propose([0], ROOM)) == 4
    draft.judge(4, 0)
    for length in (1, 2, 4, 8):
        assert len(draft.propose([0], ROOM)) == length
        draft.judge(length, length)


def test_a_pass_without_a_draft_changes_nothing() -> None:
    draft = Draft(tuple([0] * 50))
    before = draft.propose([0], ROOM)
    draft.judge(0, 0)
    assert draft.propose([0], ROOM) == before
    assert (draft.proposed, draft.accepted) == (0, 0)
