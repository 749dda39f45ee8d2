"""Captions that say exactly what is in a scene, and can be read back.

``a red car, two blue cups and a face``: kinds in canonical order, then colours in canonical order; then faces, then
signs. Words on signs are not part of it. A scene without any of these is ``nothing``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from labelmill.operators.miniatures.objects import colours, kinds

FACE, SIGN = "face", "sign"
NOTHING = "nothing"
_NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_PLURALS = {"bus": "buses", "fish": "fish", "butterfly": "butterflies"}

Thing = tuple[str | None, str]
"""Colour (None for faces and signs, and where colours are not told) and kind."""


def plural(kind: str) -> str:
    """The plural of a kind, `FACE` or `SIGN`."""
    return _PLURALS.get(kind, kind + "s")


def caption(things: Iterable[Thing]) -> str:
    """The caption of a scene that holds these things, in any order.

    Raises:
        ValueError: There are more than twelve of one sort.
    """
    counts = Counter(things)
    order = [(colour, kind) for kind in (*kinds(), FACE, SIGN) for colour in (*colours(), None)]
    phrases = [_phrase(thing, counts[thing]) for thing in order if counts[thing]]
    if not phrases:
        return NOTHING
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def parse_caption(text: str) -> Counter[Thing]:
    """How many of each thing a caption names.

    Raises:
        ValueError: The text does not follow the grammar of this module.
    """
    counts: Counter[Thing] = Counter()
    if text == NOTHING:
        return counts
    singular = {name: name for name in (*kinds(), FACE, SIGN)}
    several = {plural(name): name for name in singular}
    for phrase in text.replace(" and ", ", ").split(", "):
        number, *rest = phrase.split(" ")
        count = 1 if number in ("a", "an") else _NUMBERS.index(number) + 2 if number in _NUMBERS else 0
        colour = rest[0] if len(rest) == 2 else None
        kind = (singular if count == 1 else several).get(rest[-1]) if rest else None
        plain = kind in (FACE, SIGN)
        if not count or kind is None or len(rest) > 2 or plain == (colour is not None):
            raise ValueError(f"a caption must be made of phrases such as 'two blue cups' but has {phrase!r}")
        if colour is not None and colour not in colours():
            raise ValueError(f"colour must be one of {', '.join(colours())} but is {colour!r}")
        counts[(colour, kind)] += count
    return counts


def _phrase(thing: Thing, count: int) -> str:
    colour, kind = thing
    if count == 1:
        name = f"{colour} {kind}" if colour else kind
        return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
    if count - 2 >= len(_NUMBERS):
        raise ValueError(f"a caption can count to twelve but there are {count} of {kind!r}")
    return " ".join(part for part in (_NUMBERS[count - 2], colour, plural(kind)) if part)
