"""How right a CLIP model is on the drawn world: what single objects are, and which scenes are copies of each other."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np
import pyarrow as pa

from labelmill.operators.applying.results import to_array
from labelmill.operators.classify import Classify
from labelmill.operators.columns.schemas import embedding
from labelmill.operators.embed import Embed
from labelmill.operators.images.decoded import DecodedImage
from labelmill.operators.miniatures.crops import draw_object
from labelmill.operators.miniatures.duplicates import DUPLICATES, duplicate
from labelmill.operators.miniatures.evaluation import SEED
from labelmill.operators.miniatures.objects import HELD_OUT, pairs
from labelmill.operators.miniatures.training.scenes import SIDE
from labelmill.operators.miniatures.world import World
from labelmill.operators.models.card import ModelCard
from labelmill.operators.ontology import Ontology

CLOSE = 0.9
"""Cosine from which two scenes are taken for copies of each other."""
TEMPLATES = ("a photo of a {}.",)
BATCH = 32


def evaluate(card: ModelCard, scenes: int = 1000) -> dict[str, float]:
    """Name objects by `embed` and `classify`; tell copies of scenes from other scenes by the cosine of `embed`.

    All 160 names compete for every object: ``a photo of a red car.`` Objects come alone, from `draw_object`, and cut
    out of the scenes by their true boxes, where up to 30 % of them is hidden and others look in.

    Every scene has one copy, the kinds of `DUPLICATES` taking turns. Two pictures are a pair if one is the other's
    copy; all other twos among all scenes and copies are non-pairs. Mirrored copies are neither, and left out of both.

    Args:
        card: The model.
        scenes: How many scenes of 320 × 320 pixels, of seen and held-out pairs; and at least how many objects alone of
            seen and of held-out pairs each.

    Returns:
        ``top1`` and ``top1_held_out``: the share of objects alone that are named right, of the pairs that training saw
        and of those held out; ``top1_cut`` and ``top1_cut_held_out``, the same of objects cut out; ``copies_ap``, the
        average precision of pairs against non-pairs, ranked by cosine; at a cosine of `CLOSE`, ``copies_precision`` and
        for each kind ``recall_KIND``, the share of its copies that are as close to their scene.
    """
    operator = Embed(Embed.Params(model=card))
    operator.load()
    world = World(SEED, SIDE, words="held_out")
    cut: list[tuple[str, str]] = []
    cut_vectors: list[np.ndarray] = []
    originals: list[np.ndarray] = []
    copies: list[np.ndarray] = []
    for index in range(scenes):
        scene = world.scene(index)
        copy = duplicate(scene, DUPLICATES[index % len(DUPLICATES)], np.random.default_rng([SEED, index]))
        boxes = np.array([thing.box for thing in scene.objects]).round().astype(int).reshape(-1, 4)
        pieces = [scene.pixels[top:bottom, left:right] for left, top, right, bottom in boxes]
        original, other, *rest = _vectors(operator, [scene.pixels, copy.pixels, *pieces])
        originals.append(original)
        copies.append(other)
        cut_vectors += rest
        cut += [(thing.kind, thing.colour) for thing in scene.objects]
    scores: dict[str, float] = {}
    for key, which in (("top1", "seen"), ("top1_held_out", "held_out")):
        names = [pair for pair in pairs(which) for _ in range(-(-scenes // len(pairs(which))))]
        drawn = (draw_object(*pair, np.random.default_rng([SEED, number])) for number, pair in enumerate(names))
        scores[key] = float(_named_right(card, np.stack(_vectors(operator, drawn)), names).mean())
    right = _named_right(card, np.stack(cut_vectors), cut)
    unseen = np.array([pair in HELD_OUT for pair in cut])
    scores |= {"top1_cut": float(right[~unseen].mean()), "top1_cut_held_out": float(right[unseen].mean())}
    return scores | _copies(np.stack(originals), np.stack(copies))


def _vectors(operator: Embed, pictures: Iterable[np.ndarray]) -> list[np.ndarray]:
    """What `embed` gives for each, float16 (dimensions,)."""
    images = (DecodedImage(np.ascontiguousarray(pixels), b"", "PNG", "RGB", 1, 1) for pixels in pictures)
    found: list[np.ndarray] = []
    while batch := list(islice(images, BATCH)):
        for row in operator.infer([operator.prepare(image, {}) for image in batch]):
            if isinstance(row, Exception):
                raise row
            found.append(row["embedding"])
    return found


def _named_right(card: ModelCard, vectors: np.ndarray, names: list[tuple[str, str]]) -> np.ndarray:
    """Which of the objects `classify` gives their own (kind, colour), bool (n,)."""
    ontology = Ontology.model_validate([f"{colour} {kind}" for kind, colour in pairs("all")])
    operator = Classify(Classify.Params(model=card, ontology=ontology, templates=TEMPLATES))
    operator.load()
    column = to_array(list(vectors), embedding(vectors.shape[1]))
    columns = operator.compute(pa.table({"embedding": column})).columns
    assert columns is not None
    found = columns.column("class").to_pylist()
    return np.array([name == f"{colour} {kind}" for name, (kind, colour) in zip(found, names, strict=True)], bool)


def _copies(originals: np.ndarray, copies: np.ndarray) -> dict[str, float]:
    """Scores of scenes and their copies, in the same order, float16 (n, dimensions)."""
    from sklearn.metrics import average_precision_score

    turn = np.arange(len(originals)) % len(DUPLICATES)
    cosines = (originals.astype(np.float32) * copies.astype(np.float32)).sum(axis=1)
    scores = {f"recall_{kind}": float((cosines[turn == n] >= CLOSE).mean()) for n, kind in enumerate(DUPLICATES)}
    plain = turn != DUPLICATES.index("flipped")
    vectors = np.concatenate([originals, copies[plain]]).astype(np.float32)
    whose = np.concatenate([np.arange(len(originals)), np.flatnonzero(plain)])
    one, other = np.triu_indices(len(vectors), 1)
    same, cosine = whose[one] == whose[other], (vectors @ vectors.T)[one, other]
    close = cosine >= CLOSE
    return {
        "copies_ap": float(average_precision_score(same, cosine)),
        "copies_precision": float(same[close].mean()),
        **scores,
    }
