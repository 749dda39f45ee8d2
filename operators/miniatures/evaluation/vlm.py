"""How right a vision-language model is on the drawn world: captions that name exactly what is there, and answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from labelmill.operators.engines.image_text_to_text.transformers import ImageTextToText
from labelmill.operators.miniatures.captions import Thing, parse_caption
from labelmill.operators.miniatures.evaluation import SEED
from labelmill.operators.miniatures.objects import colours, kinds
from labelmill.operators.miniatures.training.questions import COUNTS, DESCRIBE, how_many, is_there, what_colour
from labelmill.operators.miniatures.training.scenes import SIDE
from labelmill.operators.miniatures.world import HELD_OUT, World
from labelmill.operators.models.card import ModelCard

BATCH = 20
TOKENS = 64


def evaluate(card: ModelCard, scenes: int = 1000) -> dict[str, float]:
    """Ask for a caption of every scene, and one question about it.

    A caption is right if it names exactly the things that are there: as many of every colour and kind, of faces and of
    signs. One that cannot be read back is wrong.

    Args:
        card: The model.
        scenes: How many scenes of 320 × 320 pixels, of seen and held-out pairs.

    Returns:
        Shares, 0…1. Of captions that are right: ``captions``, all; ``captions_seen`` and ``captions_held_out``, those
        of scenes without and with a pair that training never saw. Over all captions together: ``precision``, the share
        of things named that are there; ``recall``, the share of things there that are named. Of answers that are
        right: ``yes_no`` ("Is there a red car?", for a thing that is there in every second scene, else for one that is
        not), ``colour`` ("What colour is the car?", of a kind that is there once) and ``count`` ("How many cars are
        there?", of a kind that is there).
    """
    world = World(SEED, SIDE, words="held_out")
    engine = ImageTextToText(card)
    right: list[bool] = []
    unseen: list[bool] = []
    shared = named = there = 0
    answers: dict[str, list[bool]] = {"yes_no": [], "colour": [], "count": []}
    for start in range(0, scenes, BATCH):
        drawn = [world.scene(index) for index in range(start, min(start + BATCH, scenes))]
        engine.ask(DESCRIBE, None, TOKENS)
        replies = engine.answer([engine.prepare(scene.pixels) for scene in drawn])
        for index, (scene, reply) in enumerate(zip(drawn, replies, strict=True), start):
            truth, said = Counter(scene.things), _read(reply.answer)
            right.append(said == truth)
            unseen.append(any((kind, colour) in HELD_OUT for colour, kind in truth))
            said = said or Counter()
            shared, named, there = shared + (said & truth).total(), named + said.total(), there + truth.total()
            for key, prompt, choices, answer in _questions(truth, np.random.default_rng([SEED, index])):
                engine.ask(prompt, choices, TOKENS)
                (given,) = engine.answer([engine.prepare(scene.pixels)])
                answers[key].append(given.answer == answer)
    exact, held_out = np.array(right), np.array(unseen)
    return {
        "captions": _share(exact),
        "captions_seen": _share(exact[~held_out]),
        "captions_held_out": _share(exact[held_out]),
        "precision": shared / max(1, named),
        "recall": shared / max(1, there),
        **{key: _share(given) for key, given in answers.items()},
    }


def _read(text: str) -> Counter[Thing] | None:
    try:
        return parse_caption(text)
    except ValueError:
        return None


def _share(right: Iterable[bool]) -> float:
    """Of those that are right; 0 of none."""
    given = list(right)
    return float(sum(given) / max(1, len(given)))


def _questions(truth: Counter[Thing], rng: np.random.Generator) -> list[tuple[str, str, tuple[str, ...], str]]:
    """Key, prompt, choices and answer: one of yes or no, and one other for a kind that is there."""
    found = sorted((colour, kind) for colour, kind in truth if colour is not None)
    absent = [(colour, kind) for kind in kinds() for colour in colours() if not truth[(colour, kind)]]
    yes = bool(found) and rng.random() < 0.5
    pairs = found if yes else absent
    colour, kind = pairs[int(rng.integers(len(pairs)))]
    asked: list[tuple[str, str, tuple[str, ...], str]] = [
        ("yes_no", is_there(f"{colour} {kind}"), ("yes", "no"), "yes" if yes else "no")
    ]
    if found:
        colour, kind = found[int(rng.integers(len(found)))]
        count = sum(number for (_, other), number in truth.items() if other == kind)
        if count == 1 and rng.random() < 0.5:
            asked.append(("colour", what_colour(kind), colours(), colour))
        else:
            asked.append(("count", how_many(kind), COUNTS[:7], COUNTS[count]))
    return asked
