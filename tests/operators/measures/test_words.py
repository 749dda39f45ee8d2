"""Words that were read against words that are there."""

from __future__ import annotations

import math
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelmill.operators.measures.words import Read, WordScores, word_scores

BOX = (10.0, 20.0, 90.0, 40.0)
AWAY = (10.0, 120.0, 90.0, 140.0)


@pytest.mark.parametrize(
    ("there", "read", "edits"),
    [
        ("stop", "stop", 0),
        ("stop", "shop", 1),
        ("stop", "stp", 1),
        ("stop", "sttop", 1),
        ("stop", "Stop", 1),
        ("Exit", "EXIT", 3),
        ("ab", "ba", 2),
        ("1905", "", 4),
        ("to", "totally", 5),
        ("kitten", "sitting", 3),
    ],
)
def test_edits_by_hand(there: str, read: str, edits: int) -> None:
    scores = word_scores([Read(0, there, BOX)], [Read(0, read, BOX)])
    assert scores == WordScores(1, 1, 1, edits, len(there))
    assert scores.character_error_rate == edits / len(there)
    assert (scores.recall, scores.precision) == (1, 1)


def test_all_words_together() -> None:
    truth = [Read(0, "stop", BOX), Read(0, "exit", AWAY), Read(1, "lemon", BOX), Read(2, "7", BOX)]
    found = [
        Read(0, "exit", BOX),  # whatever it says, it is where "stop" is
        Read(0, "lost", (200, 0, 240, 20)),
        Read(1, "lemon", (10, 20, 90, 48)),  # an IoU of 20 / 28
        Read(2, "7", (10, 20, 49, 40)),  # an IoU of 39 / 80
        Read(3, "7", BOX),  # of another image
    ]
    scores = word_scores(truth, found)
    assert (scores.there, scores.found, scores.matched, scores.characters) == (4, 5, 2, 9)
    assert scores.edits == 4  # s-t-o-p to e-x-i-t
    assert scores.recall == 0.5
    assert scores.precision == 0.4
    assert scores.character_error_rate == pytest.approx(4 / 9)


def test_a_word_is_matched_once() -> None:
    scores = word_scores([Read(0, "stop", BOX)], [Read(0, "stop", BOX), Read(0, "top", BOX)])
    assert (scores.matched, scores.edits, scores.precision) == (1, 0, 0.5)


def test_sides_that_are_empty_give_nan() -> None:
    word = [Read(0, "stop", BOX)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nothing, missed, invented = word_scores([], []), word_scores(word, []), word_scores([], word)
        unread = word_scores([Read(0, "", BOX)], word)
    assert all(math.isnan(each) for each in (nothing.recall, nothing.precision, nothing.character_error_rate))
    assert missed.recall == 0 and math.isnan(missed.precision) and math.isnan(missed.character_error_rate)
    assert math.isnan(invented.recall) and invented.precision == 0 and math.isnan(invented.character_error_rate)
    assert unread.edits == 4 and math.isnan(unread.character_error_rate)


def distance(one: str, other: str) -> int:
    """Levenshtein's, row by row (Wagner and Fischer 1974)."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        above, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (a != b))
    return row[-1]


texts = st.text("abAB1é ", max_size=8)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(texts, texts), max_size=5))
def test_edits_are_levenshtein_s(words: list[tuple[str, str]]) -> None:
    truth = [Read(image, there, BOX) for image, (there, _) in enumerate(words)]
    found = [Read(image, read, BOX) for image, (_, read) in enumerate(words)]
    scores = word_scores(truth, found[::-1])
    assert scores.matched == len(words)
    assert scores.edits == sum(distance(*pair) for pair in words)
    assert scores.characters == sum(len(there) for there, _ in words)
