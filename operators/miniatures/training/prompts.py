"""What a detector is asked about a scene: names of what is there, and of what is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from labelmill.operators.miniatures.captions import FACE, SIGN
from labelmill.operators.miniatures.objects import colours, kinds, pairs
from labelmill.operators.miniatures.training.scenes import Thing

NAMES = {which: tuple(f"{colour} {kind}" for kind, colour in pairs(which)) for which in ("seen", "held_out")}


@dataclass(frozen=True)
class Asked:
    """Names, and which of them each thing of the scene answers to: bool (things, names)."""

    names: tuple[str, ...]
    answers: np.ndarray


def ask(
    things: Sequence[Thing], parts: Sequence[Thing], count: int, rng: np.random.Generator, by_kind: bool = False
) -> Asked:
    """Draw `count` names for a scene, in random order.

    A thing is asked for by colour and kind (most often), by kind, by both or not at all. Half of the names of what is
    not there share the kind or the colour of something that is. No held-out pair is ever asked for.

    Args:
        things: What is in the scene.
        parts: What shows too little to be found or missed: never asked for.
        count: How many names; there are fewer where they run out.
        rng: What to draw with.
        by_kind: No name has a colour, and every kind that is in the scene is asked for.
    """
    names: dict[str, None] = {}
    for thing in things:
        chance = rng.random()
        if by_kind or thing.colour is None:
            if by_kind or chance < 0.85:
                names[thing.kind] = None
            continue
        if chance < 0.75:
            names[thing.name] = None
        if 0.6 < chance < 0.92:
            names[thing.kind] = None
    unsure = {thing.name for thing in parts} | {thing.kind for thing in parts}
    chosen = [name for name in names if name not in unsure][:count]
    taken = {thing.name for thing in things} | {thing.kind for thing in things} | unsure
    if by_kind:
        absent = [name for name in (*kinds(), FACE, SIGN) if name not in taken]
        chosen += [absent[index] for index in rng.permutation(len(absent))[: count - len(chosen)]]
    coloured = [thing for thing in things if thing.colour]
    seen = set(NAMES["seen"])
    while len(chosen) < count and not by_kind:
        name = _absent(coloured, rng)
        if name not in taken and name not in chosen and (" " not in name or name in seen):
            chosen.append(name)
    order = [chosen[index] for index in rng.permutation(len(chosen))]
    return Asked(tuple(order), answers(things, order))


def answers(things: Sequence[Thing], names: Sequence[str]) -> np.ndarray:
    """Which names each thing answers to: its own, and that of its kind."""
    return np.array([[name in (thing.name, thing.kind) for name in names] for thing in things], bool).reshape(
        len(things), len(names)
    )


def _absent(things: Sequence[Thing], rng: np.random.Generator) -> str:
    """A name that is probably not there."""
    chance = rng.random()
    kind, colour = str(rng.choice(kinds())), str(rng.choice(colours()))
    if chance < 0.05:
        return str(rng.choice([FACE, SIGN]))
    if chance < 0.2:
        return kind
    if things and chance < 0.6:
        near = things[int(rng.integers(len(things)))]
        return f"{colour} {near.kind}" if rng.random() < 0.5 else f"{near.colour} {kind}"
    return f"{colour} {kind}"
