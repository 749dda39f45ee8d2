"""Short questions about a scene, with their answers, in the words of `operators.miniatures.captions`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from labelmill.operators.miniatures.captions import FACE, SIGN, plural
from labelmill.operators.miniatures.objects import colours, kinds, pairs
from labelmill.operators.miniatures.training.scenes import Thing

DESCRIBE = "Describe the image."
"""What is answered with a caption."""
COUNTS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def is_there(thing: str) -> str:
    """Asks for ``red car``, ``car`` or ``face``; answered with yes or no."""
    return f"Is there {'an' if thing[0] in 'aeiou' else 'a'} {thing}?"


def what_colour(kind: str) -> str:
    """Asked where there is one of the kind."""
    return f"What colour is the {kind}?"


def how_many(kind: str) -> str:
    """Answered with one of `COUNTS`."""
    return f"How many {plural(kind)} are there?"


def ask(things: Sequence[Thing], rng: np.random.Generator) -> tuple[str, str]:
    """A question and its answer. Half of what is asked for with yes or no is there; no held-out pair is asked for."""
    coloured = [thing for thing in things if thing.colour]
    alone = [thing for thing in coloured if sum(thing.kind == other.kind for other in things) == 1]
    chance = rng.random()
    if chance < 0.2 and alone:
        thing = alone[int(rng.integers(len(alone)))]
        return what_colour(thing.kind), str(thing.colour)
    if chance < 0.4:
        return _count(things, rng)
    present = Counter(name for thing in things for name in (thing.name, thing.kind))
    if things and rng.random() < 0.5:
        thing = things[int(rng.integers(len(things)))]
        return is_there(thing.name if rng.random() < 0.7 else thing.kind), "yes"
    name = _absent(coloured, rng)
    return is_there(name), "yes" if present[name] else "no"


def ask_kind(things: Sequence[Thing], rng: np.random.Generator) -> tuple[str, str]:
    """A question that no colour helps to answer, and its answer."""
    if rng.random() < 0.4:
        return _count(things, rng)
    there = {thing.kind for thing in things}
    yes = bool(there) and rng.random() < 0.5
    kind = str(rng.choice(sorted(there) if yes else [*kinds(), FACE, SIGN]))
    return is_there(kind), "yes" if kind in there else "no"


def _count(things: Sequence[Thing], rng: np.random.Generator) -> tuple[str, str]:
    kind = _kind(things, rng)
    return how_many(kind), COUNTS[sum(thing.kind == kind for thing in things)]


def _kind(things: Sequence[Thing], rng: np.random.Generator) -> str:
    if things and rng.random() < 0.75:
        return things[int(rng.integers(len(things)))].kind
    return str(rng.choice([*kinds(), FACE, SIGN]))


def _absent(things: Sequence[Thing], rng: np.random.Generator) -> str:
    """A name that is probably not there; half of them share the kind or the colour of something that is."""
    chance = rng.random()
    if chance < 0.3:
        return str(rng.choice([*kinds(), FACE, SIGN]))
    kind, colour = str(rng.choice(kinds())), str(rng.choice(colours()))
    if things and chance < 0.7:
        near = things[int(rng.integers(len(things)))]
        kind, colour = (near.kind, colour) if rng.random() < 0.5 else (kind, str(near.colour))
    return f"{colour} {kind}" if (kind, colour) in pairs("seen") else kind
