"""Trains the miniature of SAM (Kirillov et al. 2023) on box prompts.

As in the paper an image is embedded once and all its boxes are decoded, boxes are moved by a little noise, and the loss
of the predicted IoU is its squared error. The loss of a mask is cross-entropy plus dice (Milletari et al. 2016, V-Net);
its target is the mask averaged down to the logits' grid, so that logits cross zero where the object ends.

Most of the training sees a quarter of the frame at a time: a square of tokens at any of the places where the encoder's
windows begin, with the positions that these tokens have. What lies within a window is computed as in the whole frame at
a quarter of the cost. The end of the training sees whole frames.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labelmill.operators.engines.segmentation import segment_anything
from labelmill.operators.engines.segmentation.segment_anything import Sizes
from labelmill.operators.miniatures.canvas import mask_box
from labelmill.operators.miniatures.training import crops
from labelmill.operators.miniatures.training.crops import Piece
from labelmill.operators.miniatures.training.loop import Plan, train
from labelmill.operators.miniatures.training.scenes import SIDE, Drawn, Scenes
from labelmill.operators.models.card import ModelCard, ModelError

if TYPE_CHECKING:
    import torch

NAME = "sam-miniature"
SCENES = 24_000
PLAN = Plan(steps=45_000, rate=1.5e-3, warm_up=60, decay=0.02, average=0.998)
VIEWS, FRAMES = 8, 3
"""Images in a batch: quarters of the frame, and whole ones."""
WHOLE = 0.9
"""How far training has come when it begins to see whole frames."""
NOISE = 0.03
"""Standard deviation of a corner's noise, as a share of the box's side. Half of the boxes have none."""
LEAST_INSIDE = 0.5
"""Share of a thing's visible pixels that a view must have for the thing to be a prompt."""


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
        ModelError: The card's sizes do not fit the scenes or the views.
    """
    import torch

    from labelmill.operators.models.device import pick_device

    sizes = segment_anything.sizes(card)
    _check(card, sizes)
    device = pick_device()
    model = segment_anything.initial(card, plan.seed).to(device).train()

    def loss(rng: np.random.Generator, far: float) -> dict[str, torch.Tensor]:
        if far < WHOLE:
            side = SIDE // 2
            corner = rng.integers(1 + side // _window(sizes), size=2) * sizes.window_size
            pieces = [_view(scenes, side, rng) for _ in range(VIEWS)]
        else:
            side, corner = SIDE, np.zeros(2, np.int64)
            pieces = _frames(scenes, rng)
        pixels, boxes, masks, owner = (value.to(device) for value in _batch(pieces, side, rng))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits, predicted = _predict(model, pixels, boxes, owner, side, corner)
        return _criterion(logits.float(), predicted.float(), masks)

    return train(NAME, model, loss, plan, folder)


def _window(sizes: Sizes) -> int:
    """Pixels of a window's side."""
    return sizes.window_size * sizes.patch_size


def _check(card: ModelCard, sizes: Sizes) -> None:
    if sizes.image_size != SIDE:
        raise ModelError(
            f"model card {card.name}: image_size must be {SIDE}, as the scenes have, but is {sizes.image_size}"
        )
    if SIDE // 2 % _window(sizes) or sizes.encoder_global_attn_indexes:
        raise ModelError(
            f"model card {card.name}: to train it on quarters of its frame, windows must divide {SIDE // 2} pixels and "
            f"no layer may look beyond them, but windows have {_window(sizes)} pixels and global layers are "
            f"{list(sizes.encoder_global_attn_indexes)}"
        )


def _frames(scenes: Scenes, rng: np.random.Generator) -> list[Piece]:
    """Pieces of one shape that fill the frame's longer side."""
    shape, short = rng.random(), int(rng.integers(SIDE // 2, SIDE))
    width, height = (SIDE, short) if shape < 0.15 else (short, SIDE) if shape < 0.3 else (SIDE, SIDE)
    pieces: list[Piece] = []
    while len(pieces) < FRAMES:
        piece = crops.cut(scenes[int(rng.integers(len(scenes)))], width, height, rng)
        if piece.numbers:
            pieces.append(piece)
    return pieces


def _view(scenes: Scenes, side: int, rng: np.random.Generator) -> Piece:
    """A square around one of the things of a scene."""
    scene = scenes[int(rng.integers(len(scenes)))]
    while not scene.things:
        scene = scenes[int(rng.integers(len(scenes)))]
    box = scene.things[int(rng.integers(len(scene.things)))].box
    x, y = (_start(box[axis], box[axis + 2], side, rng) for axis in (0, 1))
    return _cut(scene, x, y, side, bool(rng.random() < 0.5))


def _start(low: float, high: float, side: int, rng: np.random.Generator) -> int:
    """Where a view begins that has all from `low` to `high` in it, or as much as it can hold."""
    first, last = sorted((int(high) - side, int(low)))
    return int(np.clip(rng.integers(first, last + 1), 0, SIDE - side))


def _cut(scene: Drawn, x: int, y: int, side: int, mirror: bool) -> Piece:
    window = slice(y, y + side), slice(x, x + side)
    pixels, labels = np.asarray(scene.pixels[window]), np.asarray(scene.labels[window])
    if mirror:
        pixels, labels = pixels[:, ::-1], labels[:, ::-1]
    count = len(scene.things) + 1
    inside, whole = (np.bincount(each.ravel(), minlength=count)[1:] for each in (labels, scene.labels))
    numbers = np.flatnonzero(inside > LEAST_INSIDE * whole).tolist()
    boxes = np.array([mask_box(labels == number + 1) for number in numbers], np.float32).reshape(-1, 4)
    return Piece(pixels, labels, numbers, boxes)


def _batch(
    pieces: list[Piece], side: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pieces of one shape as tensors.

    Returns:
        uint8 (b, 3, h, w); boxes (n, 4), xyxy; masks, bool (n, side, side); and the piece of each, (n,).
    """
    import torch

    height, width = pieces[0].labels.shape
    numbers = np.array([number for piece in pieces for number in piece.numbers])
    owner = np.repeat(np.arange(len(pieces)), [len(piece.numbers) for piece in pieces])
    masks = np.zeros((len(owner), side, side), np.bool_)
    masks[:, :height, :width] = np.stack([piece.labels for piece in pieces])[owner] == numbers[:, None, None] + 1
    boxes = np.concatenate([piece.boxes for piece in pieces])
    size = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    noise = rng.normal(0, NOISE, size.shape).clip(-2 * NOISE, 2 * NOISE) * (rng.random((len(size), 1)) < 0.5)
    boxes = np.clip(boxes + noise * size, 0, [width, height] * 2).astype(np.float32)
    pixels = np.stack([piece.pixels for piece in pieces])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return images, torch.from_numpy(boxes), torch.from_numpy(masks), torch.from_numpy(owner)


def _predict(
    model: Any, pixels: torch.Tensor, boxes: torch.Tensor, owner: torch.Tensor, side: int, corner: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the model says about a square part of its frame.

    Args:
        model: A `Sam`.
        pixels: uint8 (b, 3, h, w), the part's top left.
        boxes: (n, 4), in pixels of the part.
        owner: The image of each box, (n,).
        side: Of the part, in pixels.
        corner: Row and column of the part's first token in the frame.

    Returns:
        Logits of the masks, (n, s, s) with 4 for each token's side, and predicted IoUs, (n,).
    """
    import torch

    patch = model.image_encoder.img_size // model.image_encoder.pos_embed.shape[1]
    rows, columns = (slice(int(start), int(start) + side // patch) for start in corner)
    shift = torch.tensor([corner[1], corner[0]] * 2, device=boxes.device) * patch
    sparse, dense = model.prompt_encoder(points=None, boxes=boxes + shift, masks=None)
    position = model.prompt_encoder.get_dense_pe()[:, :, rows, columns]
    # The decoder takes one image at a time and adds `dense` to it: boxes of several images go in as that.
    each = _embed(model, pixels, side, rows, columns)[owner] + dense[:, :, rows, columns]
    logits, predicted = model.mask_decoder(torch.zeros_like(each[:1]), position, sparse, each, multimask_output=False)
    return logits[:, 0], predicted[:, 0]


def _embed(model: Any, pixels: torch.Tensor, side: int, rows: slice, columns: slice) -> torch.Tensor:
    """The image encoder with the positions of some tokens; padded as SAM pads, with what is 0 after normalisation."""
    import torch

    encoder = model.image_encoder
    normal = (pixels.float() - model.pixel_mean) / model.pixel_std
    normal = torch.nn.functional.pad(normal, (0, side - normal.shape[3], 0, side - normal.shape[2]))
    tokens = encoder.patch_embed(normal) + encoder.pos_embed[:, rows, columns]
    for block in encoder.blocks:
        tokens = block(tokens)
    embedded: torch.Tensor = encoder.neck(tokens.permute(0, 3, 1, 2))
    return embedded


def _criterion(logits: torch.Tensor, predicted: torch.Tensor, masks: torch.Tensor) -> dict[str, torch.Tensor]:
    """Cross-entropy as a share of the mask's area, dice, and the error of the predicted IoU."""
    import torch
    from torch.nn import functional

    goal = functional.interpolate(masks[:, None].float(), logits.shape[1:], mode="bilinear", antialias=True)[:, 0]
    area = goal.sum(dim=(1, 2))
    entropy = functional.binary_cross_entropy_with_logits(logits, goal, reduction="none").sum(dim=(1, 2))
    likely = logits.sigmoid()
    dice = 1 - (2 * (likely * goal).sum(dim=(1, 2)) + 1) / (likely.sum(dim=(1, 2)) + area + 1)
    with torch.no_grad():
        found, there = logits > 0, goal > 0.5
        iou = (found & there).sum(dim=(1, 2)) / (found | there).sum(dim=(1, 2)).clamp(min=1)
    return {
        "entropy": (entropy / (area + 50)).mean(),
        "dice": dice.mean(),
        "quality": functional.mse_loss(predicted, iou),
    }
