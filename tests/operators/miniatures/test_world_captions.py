"""Captions can be read back, and nothing else can be read as one."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelmill.operators.miniatures.captions import FACE, SIGN, Thing, caption, parse_caption, plural
from labelmill.operators.miniatures.objects import colours, kinds

coloured = st.tuples(st.sampled_from(colours()), st.sampled_from(kinds()))
things: st.SearchStrategy[Thing] = st.one_of(coloured, st.sampled_from([(None, FACE), (None, SIGN)]))


@given(st.lists(things, max_size=12))
def test_a_caption_reads_back_as_what_it_was_made_from(content: list[Thing]) -> None:
    assert parse_caption(caption(content)) == Counter(content)


@given(st.lists(things, max_size=8), st.randoms())
def test_a_caption_does_not_depend_on_order(content: list[Thing], random: object) -> None:
    shuffled = list(content)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert caption(shuffled) == caption(content)


def test_the_grammar() -> None:
    assert caption([]) == "nothing"
    assert caption([("orange", "car")]) == "an orange car"
    assert caption([(None, "sign"), ("blue", "cup"), ("red", "fish"), ("red", "fish")]) == (
        "a blue cup, two red fish and a sign"
    )
    assert caption([(None, "face"), ("blue", "bus"), (None, "face"), ("blue", "bus")]) == "two blue buses and two faces"
    assert caption([(None, "sign"), (None, "cup"), (None, "car"), (None, "cup")]) == "a car, two cups and a sign"
    assert len({plural(name) for name in (*kinds(), FACE, SIGN)}) == len(kinds()) + 2


@pytest.mark.parametrize(
    "text",
    ["", "a car", "a red", "red car", "a red cars", "two red car", "a red face", "thirteen red cars", "a big red car",
     "a red car and", "a Red car", "a pink car"],
)  # fmt: skip
def test_what_is_not_a_caption_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_caption(text)


def test_more_than_twelve_cannot_be_counted() -> None:
    with pytest.raises(ValueError, match="there are 13 of 'car'"):
        caption([("red", "car")] * 13)
