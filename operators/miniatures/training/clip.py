"""Trains the miniature of CLIP (Radford et al. 2021), in open_clip's class with a ResNet for the eyes.

Two losses share the image side. Single objects, drawn alone or cut out of scenes, learn their texts: a softmax over the
texts of all seen colour-object pairs, and one each over those of kinds and of colours, so that the text side learns to
compose pairs that it never saw. Every picture has the same few texts, so the softmax runs over these and not over the
pictures of a batch. Whole scenes learn to be near to their own altered copies and far from other scenes and theirs
(NT-Xent: Chen et al. 2020, SimCLR), with the alterations of `operators.miniatures.duplicates` but for mirroring.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labelmill.operators.engines.embedding import open_clip
from labelmill.operators.miniatures.captions import FACE, SIGN
from labelmill.operators.miniatures.crops import draw_object
from labelmill.operators.miniatures.duplicates import DUPLICATES, duplicate
from labelmill.operators.miniatures.objects import colours, kinds, pairs
from labelmill.operators.miniatures.training.loop import Plan, train
from labelmill.operators.miniatures.training.scenes import Scenes, Thing
from labelmill.operators.miniatures.world import Scene
from labelmill.operators.models.card import ModelCard, Weights

if TYPE_CHECKING:
    import torch

NAME = "clip-miniature"
SCENES = 24_000
PLAN = Plan(steps=1_800, rate=2e-3, warm_up=100, decay=0.05, average=0.997, clip=1.0)
DRAWN, CUT, COPIED = 28, 44, 24
"""Pictures of a batch: objects drawn alone, things cut out of scenes, and scenes with one copy each."""
TEMPLATES = ("{}", "a {}", "the {}", "a photo of a {}.", "a picture of a {}", "a drawing of a {}", "one {}")
COLOUR_TEMPLATES = ("{}", "something {}", "a {} thing", "a photo of a {} thing.", "a picture of something {}")
SHARPNESS = 10.0
"""What cosines of two scenes are multiplied with before the softmax."""
COPIES = tuple(kind for kind in DUPLICATES if kind not in ("exact", "flipped"))
_NAMES, _KINDS, _COLOURS = pairs("seen"), (*kinds(), FACE, SIGN), colours()


def run(card: ModelCard, scenes: Scenes, folder: Path, plan: Plan = PLAN) -> dict[str, torch.Tensor]:
    """Train, or go on with it.

    Args:
        card: Sizes and preprocessing.
        scenes: What to train on.
        folder: Where the training stands and its curve.
        plan: How long and how fast.

    Returns:
        The weights.

    Raises:
        ModelError: The card's sizes cannot be built.
    """
    import torch
    from open_clip import SimpleTokenizer
    from torch.nn import functional

    from labelmill.operators.models.device import pick_device

    device = pick_device()
    drawn = card.model_copy(update={"weights": Weights.model_validate({"random": plan.seed})})
    model = open_clip.build(drawn).requires_grad_(True).to(device)
    model.visual.to(memory_format=torch.channels_last)
    given = open_clip.settings(card)
    shrink = open_clip.image_transform_of(given).transforms[:-2]
    mean = 255 * torch.tensor(given.mean, device=device).view(3, 1, 1)
    std = 255 * torch.tensor(given.std, device=device).view(3, 1, 1)
    tokeniser = SimpleTokenizer(context_length=model.context_length)

    def loss(rng: np.random.Generator, far: float) -> dict[str, torch.Tensor]:
        objects, things = _objects(scenes, rng)
        pictures = [*objects, *_copies(scenes, rng)]
        batch = torch.stack([_shrunk(picture, shrink) for picture in pictures]).to(device)
        vectors = model.encode_image((batch.permute(0, 3, 1, 2).float() - mean) / std, normalize=True)
        seen, copied = vectors[: len(objects)], vectors[len(objects) :]
        texts = model.encode_text(tokeniser(_texts(rng)).to(device), normalize=True)
        logits = model.logit_scale.exp().clamp(max=100) * seen @ texts.T
        name, kind, colour = logits.split([len(_NAMES), len(_KINDS), len(_COLOURS)], dim=1)
        answers = torch.tensor([_answers(thing) for thing in things], device=device).unbind(1)
        return {
            "name": functional.cross_entropy(name, answers[0], ignore_index=-1),
            "kind": 0.5 * functional.cross_entropy(kind, answers[1]),
            "colour": 0.5 * functional.cross_entropy(colour, answers[2], ignore_index=-1),
            "copy": _contrast(copied),
        }

    return train(NAME, model, loss, plan, folder)


def _objects(scenes: Scenes, rng: np.random.Generator) -> tuple[list[np.ndarray], list[Thing]]:
    """Pictures of one thing each, uint8 (h, w, 3), and the things."""
    pictures, things = [], []
    for number in rng.integers(len(_NAMES), size=DRAWN):
        kind, colour = _NAMES[number]
        pictures.append(draw_object(kind, colour, rng))
        things.append(Thing(kind, colour, (0, 0, 0, 0)))
    while len(things) < DRAWN + CUT:
        scene = scenes[int(rng.integers(len(scenes)))]
        if scene.things:
            thing = scene.things[int(rng.integers(len(scene.things)))]
            pictures.append(_cut(scene.pixels, thing.box, rng))
            things.append(thing)
    return pictures, things


def _cut(pixels: np.ndarray, box: tuple[float, float, float, float], rng: np.random.Generator) -> np.ndarray:
    """A thing as a detector would cut it out: by its box with a small error, or the square around it."""
    low, high = np.array(box[:2]), np.array(box[2:])
    size = high - low
    if rng.random() < 0.5:
        low, high = low - size * rng.uniform(-0.04, 0.1, 2), high + size * rng.uniform(-0.04, 0.1, 2)
    else:
        half = size.max() / rng.uniform(0.62, 1.0) / 2
        middle = (low + high) / 2 + rng.uniform(-1, 1, 2) * (half - size.max() / 2)
        low, high = middle - half, middle + half
    (left, top), (right, bottom) = np.maximum(low.round().astype(int), 0), high.round().astype(int)
    piece = np.asarray(pixels[top:bottom, left:right])
    return piece[:, ::-1] if rng.random() < 0.5 else piece


def _copies(scenes: Scenes, rng: np.random.Generator) -> list[np.ndarray]:
    """Scenes of several shapes, then a copy of each, uint8 (h, w, 3); at half size, for speed."""
    import cv2

    originals, copies = [], []
    for number in rng.integers(len(scenes), size=COPIED):
        pixels = np.asarray(scenes[int(number)].pixels)
        high, wide = pixels.shape[:2]
        shape = rng.random()
        pixels = pixels[: high * 3 // 4] if shape < 0.2 else pixels[:, : wide * 3 // 4] if shape < 0.4 else pixels
        high, wide = pixels.shape[:2]
        small = np.asarray(cv2.resize(pixels, (wide // 2, high // 2), interpolation=cv2.INTER_AREA))
        copy = Scene(small, (), (), (), ())
        for kind in rng.choice(COPIES, size=1 if rng.random() < 0.6 else 2, replace=False):
            copy = duplicate(copy, str(kind), rng)
        originals.append(small)
        copies.append(copy.pixels)
    return originals + copies


def _shrunk(picture: np.ndarray, steps: list[Any]) -> torch.Tensor:
    import torch
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(picture))
    for step in steps:
        image = step(image)
    return torch.from_numpy(np.array(image))


def _texts(rng: np.random.Generator) -> list[str]:
    """Every seen name, kind and colour, each in a template of its own."""
    things = [f"{colour} {kind}" for kind, colour in _NAMES] + list(_KINDS)
    chosen = rng.integers(len(TEMPLATES), size=len(things))
    texts = [TEMPLATES[number].replace("{}", thing) for number, thing in zip(chosen, things, strict=True)]
    chosen = rng.integers(len(COLOUR_TEMPLATES), size=len(_COLOURS))
    return texts + [COLOUR_TEMPLATES[number].replace("{}", name) for number, name in zip(chosen, _COLOURS, strict=True)]


def _answers(thing: Thing) -> tuple[int, int, int]:
    """Which name, kind and colour; -1 for none."""
    kind = _KINDS.index(thing.kind)
    if thing.colour is None:
        return -1, kind, -1
    return _NAMES.index((thing.kind, thing.colour)), kind, _COLOURS.index(thing.colour)


def _contrast(vectors: torch.Tensor) -> torch.Tensor:
    """NT-Xent of originals followed by their copies, float (2n, d)."""
    import torch
    from torch.nn import functional

    count = len(vectors)
    logits = SHARPNESS * vectors @ vectors.T
    logits = logits.masked_fill(torch.eye(count, dtype=torch.bool, device=vectors.device), float("-inf"))
    partner = torch.arange(count, device=vectors.device).roll(count // 2)
    return functional.cross_entropy(logits, partner)
