"""Trains the miniature of docTR's text recognition: a CRNN with docTR's own CTC loss (Shi et al. 2015; Graves et al.
2006, connectionist temporal classification).

It learns from the words of the scenes and from as many signs with made-up words on them: letters that follow each
other as in English, letters that follow no rule, and numbers. So it learns to read letters and not a list of words.
Each word is cut out as `operators.engines.text.doctr` does, by corners such as the detection model gives.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labelmill.operators.miniatures.training.loop import Plan, train
from labelmill.operators.miniatures.training.scenes import Scenes
from labelmill.operators.models.card import ModelCard

if TYPE_CHECKING:
    import torch

NAME = "doctr-recognition-miniature"
SCENES = 24_000
PLAN = Plan(steps=3_600, rate=2e-3, warm_up=200, decay=0.02, average=0.998, clip=2.0)
BATCH = 48
MADE_UP = 20_000
"""Signs with made-up words."""
SHRINK, UNCLIP = 0.4, 1.5
"""docTR's constants for DBNet: how far the sides of words move inward, and outward again."""
AROUND = 0.35
"""What is kept around a word, as a share of its height."""
BLOCK = 500

Patch = tuple[str, np.ndarray, np.ndarray]
"""A word: its text, uint8 (h, w, 3) of its surroundings, and its corners in them, float (4, 2)."""


@dataclass(frozen=True, eq=False)
class Patches:
    """Words with their surroundings, in one array.

    Attributes:
        texts: What is printed, ``<U`` (n,).
        quads: float32 (n, 4, 2), corners in pixels of the patch, clockwise from the top left of the text.
        sizes: int64 (n, 2), height and width of the patch.
        starts: int64 (n,), where the patch begins in `pixels`.
        pixels: uint8, all patches one after the other.
    """

    texts: np.ndarray
    quads: np.ndarray
    sizes: np.ndarray
    starts: np.ndarray
    pixels: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Patch:
        height, width = self.sizes[index]
        start = self.starts[index]
        pixels = self.pixels[start : start + height * width * 3].reshape(height, width, 3)
        return str(self.texts[index]), pixels, self.quads[index]


def run(card: ModelCard, scenes: Scenes, folder: Path, plan: Plan = PLAN) -> dict[str, torch.Tensor]:
    """Train, or go on with it.

    Args:
        card: Sizes, characters and preprocessing.
        scenes: Whose words to train on.
        folder: Where the training stands and its curve; the words that were cut out and drawn are kept there too.
        plan: How long and how fast.

    Returns:
        The weights.
    """
    import torch
    from doctr.models import recognition_predictor

    from labelmill.operators.engines.text import doctr_model
    from labelmill.operators.models.device import pick_device

    device = pick_device()
    words = patches(scenes, folder, MADE_UP)
    model = doctr_model.initial(card, plan.seed).to(device)
    model.feat_extractor.to(memory_format=torch.channels_last)
    prepare: Any = recognition_predictor(model).pre_processor.sample_transforms
    mean, std = (torch.tensor(model.cfg[key], device=device).view(3, 1, 1) for key in ("mean", "std"))

    def loss(rng: np.random.Generator, far: float) -> dict[str, torch.Tensor]:
        texts: list[str] = []
        crops: list[torch.Tensor] = []
        while len(texts) < BATCH:
            text, pixels, quad = words[int(rng.integers(len(words)))]
            crop = cut_word(pixels, quad, rng)
            if crop is not None:
                texts.append(text)
                crops.append(prepare(crop))
        batch = (torch.stack(crops).to(device) - mean) / std
        return {"ctc": model(batch.contiguous(memory_format=torch.channels_last), texts)["loss"]}

    return train(NAME, model, loss, plan, folder)


def cut_word(pixels: np.ndarray, quad: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """Cut a word out by corners such as DBNet gives, up to some pixels and degrees.

    DBNet learns the word's middle, what is left when all sides move inward by a distance that its area and length
    decide, and moves the sides of what it found outward again, as a rule by less (Liao et al. 2020).

    Returns:
        uint8 (h, w, 3), or None where nothing is left of it.
    """
    from doctr.utils.geometry import extract_rcrops

    across, down = quad[1] - quad[0], quad[3] - quad[0]
    width, height = float(np.linalg.norm(across)), float(np.linalg.norm(down))
    across, down = across / width, down / height
    inward = width * height * (1 - SHRINK**2) / (2 * (width + height))
    inner = width - 2 * inward, height - 2 * inward
    outward = UNCLIP * (inner[0] + 1) * (inner[1] + 1) / (2 * (inner[0] + inner[1]) + 2)
    left, top, right, bottom = outward - inward + rng.uniform(-0.1, 0.15, 4) * height
    moved = quad + np.array([
        -left * across - top * down, right * across - top * down,
        right * across + bottom * down, -left * across + bottom * down,
    ])  # fmt: skip
    angle = np.radians(rng.normal(0, 2))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    middle = moved.mean(axis=0)
    share = ((moved - middle) @ turn + middle) / np.array(pixels.shape[1::-1])
    (crop,) = extract_rcrops(pixels, np.clip(share, 0, 1).astype(np.float32)[None], assume_horizontal=True)
    return crop if min(crop.shape[:2]) > 0 else None


def patches(scenes: Scenes, folder: Path, made_up: int, workers: int | None = None) -> Patches:
    """The words of the scenes and of signs with made-up words, from `folder` if they are there.

    Args:
        scenes: Whose words to take.
        folder: Where they are kept.
        made_up: How many signs to draw.
        workers: Processes that draw; one for each core if None.
    """
    path = folder / f"{NAME}-words-{len(scenes)}-{made_up}.npz"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        found = list(_printed(scenes))
        numbers = [range(start, min(start + BLOCK, made_up)) for start in range(0, made_up, BLOCK)]
        # Not forked: OpenCV's threads, if this process has any, would leave the children waiting for ever.
        with ProcessPoolExecutor(workers or os.cpu_count(), get_context("spawn")) as pool:
            for drawn in pool.map(partial(_draw, tuple(sorted({text.lower() for text, *_ in found}))), numbers):
                found += drawn
        sizes = np.array([pixels.shape[:2] for _, pixels, _ in found], np.int64).reshape(-1, 2)
        temporary = path.with_name(f".{os.getpid()}-{path.name}")
        np.savez(
            temporary,
            texts=np.array([text for text, *_ in found]),
            quads=np.array([quad for *_, quad in found], np.float32),
            sizes=sizes,
            starts=np.cumsum(3 * sizes.prod(axis=1)) - 3 * sizes.prod(axis=1),
            pixels=np.concatenate([pixels.ravel() for _, pixels, _ in found]),
        )
        os.replace(temporary, path)
    with np.load(path) as arrays:
        return Patches(**{name: arrays[name] for name in arrays.files})


def _printed(scenes: Scenes) -> Iterator[Patch]:
    for number in range(len(scenes)):
        scene = scenes[number]
        for word in scene.words:
            yield _patch(word.text, scene.pixels, np.array(word.quad))


def _patch(text: str, pixels: np.ndarray, quad: np.ndarray) -> Patch:
    margin = AROUND * float(np.linalg.norm(quad[3] - quad[0]))
    height, width = pixels.shape[:2]
    x1, y1 = (max(0, int(side)) for side in np.floor(quad.min(axis=0) - margin))
    x2, y2 = (int(side) for side in np.ceil(quad.max(axis=0) + margin))
    piece = np.array(pixels[y1 : min(height, y2), x1 : min(width, x2)])
    return text, piece, (quad - np.array([x1, y1])).astype(np.float32)


def _draw(known: tuple[str, ...], numbers: range) -> list[Patch]:
    """Signs with one made-up word each; which, their numbers decide."""
    import cv2

    from labelmill.operators.miniatures.backgrounds import background, photograph
    from labelmill.operators.miniatures.signs import print_sign

    cv2.setNumThreads(1)
    found = []
    for number in numbers:
        rng = np.random.default_rng([1, number])
        text = make_up(known, rng)
        printed = print_sign([[text]], rng.uniform(14, 32), rng, 198)
        pixels = background(*printed.layer.size, rng)
        printed.layer.over(pixels, 0, 0)
        found.append(_patch(text, photograph(pixels, rng), printed.quads[0]))
    return found


def make_up(known: tuple[str, ...], rng: np.random.Generator) -> str:
    """A word that is not held out: one or two known words' halves, letters without a rule, or a number.

    Args:
        known: Words in lower case.
        rng: Decides.
    """
    from labelmill.operators.miniatures.words import held_out

    letters = [word for word in known if word.isalpha()] or ["word"]
    while True:
        choice = rng.random()
        if choice < 0.25:
            text = "".join(str(digit) for digit in rng.integers(10, size=int(rng.integers(1, 5))))
        elif choice < 0.6:
            text = "".join(chr(97 + int(letter)) for letter in rng.integers(26, size=int(rng.integers(2, 10))))
        else:
            start, end = (letters[int(index)] for index in rng.integers(len(letters), size=2))
            text = start[: int(rng.integers(1, 6))] + end[-int(rng.integers(1, 6)) :]
        if not held_out(text):
            break
    case = rng.random()
    return text.upper() if case < 0.4 else text.capitalize() if case < 0.7 else text
