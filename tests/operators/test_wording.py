from __future__ import annotations

import pytest

from labelmill.operators.wording import counted


@pytest.mark.parametrize(
    ("number", "words", "expected"),
    [
        (0, ("image",), "0 images"),
        (1, ("image",), "1 image"),
        (2, ("image",), "2 images"),
        (12345, ("label error",), "12,345 label errors"),
        (2, ("entry",), "2 entries"),
        (2, ("other box",), "2 other boxes"),
        (1, ("image has", "images have"), "1 image has"),
        (3, ("image has", "images have"), "3 images have"),
    ],
)
def test_words_agree_with_their_number(number: int, words: tuple[str, ...], expected: str) -> None:
    assert counted(number, *words) == expected
