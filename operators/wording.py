"""Words that go with numbers, in every message of the project."""

from __future__ import annotations

_IRREGULAR = {"entry": "entries", "copy": "copies", "box": "boxes", "class": "classes", "match": "matches"}


def counted(number: int, what: str, plural: str | None = None) -> str:
    """``1 image``, ``2 images``, ``12,000 images``; zero is ``0 images``.

    Args:
        number: How many.
        what: One of them; the last word is what changes, as in "label error".
        plural: Several of them, where an ``s`` does not make it.
    """
    return f"{number:,} {plural_of(number, what, plural)}"


def plural_of(number: float, what: str, plural: str | None = None) -> str:
    """The word alone: ``image`` for one, ``images`` for any other number."""
    if number == 1:
        return what
    if plural is not None:
        return plural
    head, space, last = what.rpartition(" ")
    return f"{head}{space}{_IRREGULAR.get(last, last + 's')}"
