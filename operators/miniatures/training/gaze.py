"""Trains the miniature of L2CS-Net (Abdelrahman et al. 2022) on the faces of the scenes and on faces of their own.

Each angle has the paper's loss: cross-entropy over its bins plus `ALPHA` times the squared error, in degrees, of the
angle that is read off them. An angle between two bins is shared by both in proportion (as in Li et al. 2020,
distribution focal loss), so that the cross-entropy and the angle that is read agree on what is right.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from labelmill.operators.engines.gaze import l2cs
from labelmill.operators.miniatures.crops import draw_face
from labelmill.operators.miniatures.training.loop import Plan, train
from labelmill.operators.miniatures.training.scenes import Scenes
from labelmill.operators.models.card import ModelCard

if TYPE_CHECKING:
    import torch

NAME = "l2cs-miniature"
SCENES = 24_000
PLAN = Plan(steps=1_200, rate=2e-3, warm_up=100, decay=0.05, average=0.99)
FROM_SCENES, DRAWN = 48, 16
"""Faces of a batch that are cut from scenes, and that are drawn for it."""
ALPHA = 0.02
ERROR = 0.06
"""How far the sides of a box are off at most, as a share of its width or height: detectors are not exact."""
HEIGHTS = (60.0, 125.0)
"""Heights in pixels of heads that are drawn."""


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
        ValueError: No scene has a face.
        ModelError: The card is none that the engine can build.
    """
    import torch

    from labelmill.operators.models.device import pick_device

    device = pick_device()
    model = l2cs.initial(card, plan.seed).to(device).to(memory_format=torch.channels_last)
    given = card.section("preprocess", l2cs.Preprocess)
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (given.mean, given.std))
    faces = [(n, t) for n in range(len(scenes)) for t, thing in enumerate(scenes[n].things) if thing.gaze]
    if not faces:
        raise ValueError(f"scenes must have at least one face but none of the {len(scenes)} has; draw more of them")
    half = device.type == "cuda" or torch.cpu._is_amx_tile_supported()

    def loss(rng: np.random.Generator, far: float) -> dict[str, torch.Tensor]:
        crops, gazes = _batch(scenes, faces, given.crop, rng)
        pixels = l2cs.normalise(crops.to(device), mean, std)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = model(l2cs.enlarge(pixels, given.size).contiguous(memory_format=torch.channels_last))
        parts: dict[str, torch.Tensor] = {}
        for name, found, wanted in zip(("yaw", "pitch"), logits, gazes.to(device).unbind(1), strict=True):
            parts |= _criterion(name, found.float(), wanted)
        return parts

    return train(NAME, model, loss, plan, folder)


def _batch(
    scenes: Scenes, faces: list[tuple[int, int]], side: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Faces, uint8 (n, side, side, 3), and their yaw and pitch in degrees, float32 (n, 2). Half are mirrored."""
    import torch
    from PIL import Image

    crops, gazes = [], []
    for place in rng.integers(len(faces), size=FROM_SCENES):
        number, index = faces[place]
        scene = scenes[number]
        thing = scene.things[index]
        crops.append(l2cs.cut_face(Image.fromarray(scene.pixels), _moved(thing.box, rng), side))
        gazes.append(thing.gaze)
    for _ in range(DRAWN):
        pixels, *gaze = draw_face(rng, rng.uniform(*HEIGHTS))
        crops.append(l2cs.cut_face(Image.fromarray(pixels), (0, 0, *pixels.shape[1::-1]), side))
        gazes.append(tuple(gaze))
    mirrored = rng.random(len(crops)) < 0.5
    pixels, angles = np.stack(crops), np.array(gazes, np.float32)
    pixels[mirrored] = pixels[mirrored, :, ::-1]
    angles[mirrored, 0] *= -1
    return torch.from_numpy(pixels), torch.from_numpy(angles)


def _moved(box: tuple[float, float, float, float], rng: np.random.Generator) -> tuple[float, ...]:
    """The box, with sides that are off by up to `ERROR`."""
    x1, y1, x2, y2 = box
    size = np.array([x2 - x1, y2 - y1] * 2)
    return tuple((np.array(box) + rng.uniform(-ERROR, ERROR, 4) * size).tolist())


def _criterion(name: str, logits: torch.Tensor, wanted: torch.Tensor) -> dict[str, torch.Tensor]:
    """The loss of one angle.

    Args:
        name: Of the angle.
        logits: (n, bins).
        wanted: Degrees, (n,).
    """
    import torch
    from torch.nn import functional

    from labelmill.operators.engines.gaze.l2cs_model import BIN_DEGREES, FIRST_BIN, angles

    place = (wanted - FIRST_BIN) / BIN_DEGREES
    low = place.floor().long()
    above = place - low
    likely = functional.log_softmax(logits, dim=1)
    entropy = -torch.lerp(likely.gather(1, low[:, None])[:, 0], likely.gather(1, low[:, None] + 1)[:, 0], above)
    return {name: entropy.mean(), f"{name} square": ALPHA * functional.mse_loss(angles(logits), wanted)}
