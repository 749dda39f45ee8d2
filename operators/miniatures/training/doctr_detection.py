"""Trains the miniature of docTR's text detection: a DBNet with docTR's own loss (Liao et al. 2020, Real-time scene text
detection with differentiable binarization).

It learns from pieces of scenes, a quarter of them without a word. docTR's loss ignores an image that has no box at all,
so that it would learn nothing from those: they are given a box of one pixel in a corner, which is too small to count
and leaves the rest of the image as background.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from labelmill.operators.miniatures.training.loop import Plan, train
from labelmill.operators.miniatures.training.scenes import Drawn, Scenes
from labelmill.operators.models.card import ModelCard

if TYPE_CHECKING:
    import torch

NAME = "doctr-detection-miniature"
SCENES = 24_000
PLAN = Plan(steps=4_000, rate=2e-3, warm_up=150, decay=0.02, average=0.998, clip=2.0)
BATCH = 4
SIDE = 256
"""Pixels of a piece's side, as the model sees it."""
CUT = (144, 224)
"""Smallest and largest side of a piece in pixels of the scene."""
EMPTY = 0.25
"""Share of pieces that are cut from scenes without a word."""


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
        ValueError: No scene has a word.
    """
    import torch
    from torchvision.transforms.v2.functional import resize

    from labelmill.operators.engines.text import doctr_model
    from labelmill.operators.models.device import pick_device

    device = pick_device()
    model = doctr_model.initial(card, plan.seed).to(device, memory_format=torch.channels_last)
    mean, std = (torch.tensor(model.cfg[key], device=device).view(3, 1, 1) for key in ("mean", "std"))
    worded = [number for number in range(len(scenes)) if scenes[number].words]
    wordless = sorted(set(range(len(scenes))) - set(worded))
    if not worded:
        raise ValueError(f"scenes must have words on some of them but none of the {len(scenes)} has")

    def loss(rng: np.random.Generator, far: float) -> dict[str, torch.Tensor]:
        pieces, targets = [], []
        for place in range(BATCH):
            # The first has words always: docTR's loss fails on a batch without any.
            empty = place and wordless and rng.random() < EMPTY
            numbers = wordless if empty else worded
            pixels, quads = cut_piece(scenes[numbers[int(rng.integers(len(numbers)))]], rng)
            pieces.append(resize(torch.from_numpy(pixels).permute(2, 0, 1), [SIDE, SIDE], antialias=True))
            targets.append({"words": quads})
        batch = (torch.stack(pieces).to(device).float() / 255 - mean) / std
        return {"db": model(batch.contiguous(memory_format=torch.channels_last), targets)["loss"]}

    return train(NAME, model, loss, plan, folder)


def cut_piece(scene: Drawn, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Cut a square piece out of a scene where no word is cut; if the scene has words, at least one is in it.

    Returns:
        uint8 (side, side, 3), and float32 (words, 4, 2): the corners of its words as shares of the side; of the one
        pixel in the corner if there are no words.
    """
    height, width = scene.pixels.shape[:2]
    quads = np.array([word.quad for word in scene.words], np.float64).reshape(-1, 4, 2)
    low, high = quads.min(axis=1), quads.max(axis=1)
    side, x, y = min(height, width), 0, 0
    for _ in range(20):
        side = int(rng.integers(CUT[0], CUT[1] + 1))
        x, y = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
        inside = ((low >= (x, y)) & (high <= (x + side, y + side))).all(axis=1)
        outside = ((high <= (x, y)) | (low >= (x + side, y + side))).any(axis=1)
        if (inside | outside).all() and (inside.any() or not len(quads)):
            break
    else:
        side, x, y = min(height, width), 0, 0
        inside = ((low >= 0) & (high <= side)).all(axis=1)
    pixels = np.array(scene.pixels[y : y + side, x : x + side])
    found = (quads[inside] - (x, y)) / side
    if not len(found):
        found = np.array([[(0, 0), (1, 0), (1, 1), (0, 1)]]) / side
    return pixels, np.clip(found, 0, 1).astype(np.float32)
