"""Square pieces of scenes for the trainings of images and words: cut, mirrored, some of them in other colours."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from labelmill.operators.miniatures.objects import HELD_OUT, nearest_colour
from labelmill.operators.miniatures.training.scenes import Drawn, Thing

SMALLEST = 0.85
"""Least side of the piece of a scene that is shown, as a share of the scene's."""
CUT_OFF = 0.1
"""Largest share of a thing's box that may be outside that piece, unless all of it is."""
GREY, STRANGE = 0.15, 0.3
"""Shares of the pieces that are shown in shades of grey, and in colours that are not theirs."""
NEAR = 0.36
"""How far the shades of a colour are from the middle one, at most; channels 0…1."""


@dataclass(frozen=True, eq=False)
class Piece:
    """A square piece of a scene.

    Attributes:
        pixels: uint8 (side, side, 3).
        labels: uint8 (side, side): 0 background, else the number of the thing there.
        things: What is in it.
        numbers: Their numbers.
        middles: float64 (things, 2): the middles of their boxes, x and y as shares of the side.
        looks: The colours that each of its things looks like, none of a face or a sign.
        coloured: Whether its things have their colours.
    """

    pixels: np.ndarray
    labels: np.ndarray
    things: list[Thing]
    numbers: list[int]
    middles: np.ndarray
    looks: list[set[str]]
    coloured: bool = True


def cut(scene: Drawn, rng: np.random.Generator) -> Piece:
    """A piece of a scene where no thing is cut off, or else all of it; half of them mirrored."""
    whole = scene.labels.shape[0]
    boxes = np.array([thing.box for thing in scene.things], np.float64).reshape(-1, 4)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    for _ in range(4):
        side = int(rng.integers(round(SMALLEST * whole), whole + 1))
        x, y = (int(v) for v in rng.integers(whole - side + 1, size=2))
        inside = np.clip(boxes - [x, y, x, y], 0, side)
        share = (inside[:, 2:] - inside[:, :2]).prod(axis=1) / area
        if np.all((share == 0) | (share >= 1 - CUT_OFF)):
            break
    else:
        x, y, side, inside, share = 0, 0, whole, boxes, np.ones(len(boxes))
    there = np.flatnonzero(share > 0).tolist()
    middles = (inside[there, :2] + inside[there, 2:]) / (2 * side)
    pixels, labels = scene.pixels[y : y + side, x : x + side], scene.labels[y : y + side, x : x + side]
    if rng.random() < 0.5:
        pixels, labels = pixels[:, ::-1], labels[:, ::-1]
        middles[:, 0] = 1 - middles[:, 0]
    things = [scene.things[n] for n in there]
    looks = [{thing.colour} if thing.colour else set() for thing in things]
    return Piece(pixels, labels, things, [n + 1 for n in there], middles, looks)


def recoloured(piece: Piece, rng: np.random.Generator) -> Piece:
    """Some of the pieces in other colours than their own, the others as they are."""
    chance = rng.random()
    if chance >= GREY + STRANGE:
        return piece
    for _ in range(4):
        pixels = (_grey if chance < GREY else _strange)(piece.pixels, rng)
        shown = [_shown(pixels[piece.labels == number]) for number in piece.numbers]
        if not any(
            (thing.kind, name) in HELD_OUT and apart < NEAR
            for thing, looks in zip(piece.things, shown, strict=True)
            for name, apart in looks
        ):
            looks = [{name for name, _ in looks} for looks in shown]
            return replace(piece, pixels=pixels, looks=looks, coloured=False)
    return piece


def _grey(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """In shades of grey, by any weights of the three channels: how light a colour is does not tell which it is."""
    shade = (pixels @ rng.dirichlet(np.ones(3))).round().astype(np.uint8)
    return np.repeat(shade[..., None], 3, axis=-1)


def _strange(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """With channels exchanged, turned over and flattened."""
    low, high = rng.uniform(0, 80, 3), rng.uniform(175, 255, 3)
    over = rng.random(3) < 0.5
    low, high = np.where(over, high, low), np.where(over, low, high)
    table = (low + np.linspace(0, 1, 256)[:, None] * (high - low)).round().astype(np.uint8)
    return np.stack([table[pixels[..., old], new] for new, old in enumerate(rng.permutation(3).tolist())], axis=-1)


def _shown(pixels: np.ndarray) -> list[tuple[str, float]]:
    """What colours come nearest to all pixels together and to half of them, and how near."""
    middles = (pixels.mean(axis=0) / 255, np.median(pixels, axis=0) / 255)
    return [nearest_colour(tuple(middle.tolist())) for middle in middles]
