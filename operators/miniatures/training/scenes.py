"""The scenes that the miniatures are trained on: drawn once, kept on disk as plain arrays, read by every training.

::

    FOLDER/pixels-00000.npy    uint8 (n, side, side, 3), RGB
    FOLDER/labels-00000.npy    uint8 (n, side, side): 0 background, else 1 + the number of the thing there
    FOLDER/truth-00000.json    for each scene its things, words and caption

A file holds `BLOCK` scenes. A file that is there is complete, so drawing can stop and go on. The things of a scene are
its objects, then its faces, then its signs; only pairs and words that are not held out appear.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from labelmill.operators.miniatures.captions import FACE, SIGN
from labelmill.operators.miniatures.world import Scene, World

SIDE = 320
"""Pixels of a scene's side."""
BLOCK = 500
SEED = 1
"""The world that training sees. Scores come from another, see `operators.miniatures.evaluation`."""


@dataclass(frozen=True)
class Thing:
    """An object, a face or a sign of a scene.

    Attributes:
        kind: One of `kinds()`, or ``face`` or ``sign``.
        colour: Of an object; None otherwise.
        box: Visible extent, xyxy in pixels of the scene.
        gaze: Yaw and pitch of a face in degrees, as in `operators.miniatures.world.Face`; None otherwise.
    """

    kind: str
    colour: str | None
    box: tuple[float, float, float, float]
    gaze: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        """``red car``, ``face``."""
        return f"{self.colour} {self.kind}" if self.colour else self.kind


@dataclass(frozen=True)
class Word:
    """A printed word: its text, and its corners as in `operators.miniatures.world.Word`, float (4, 2)."""

    text: str
    quad: list[list[float]]


@dataclass(frozen=True, eq=False)
class Drawn:
    """One scene: its arrays are views of the files."""

    pixels: np.ndarray
    labels: np.ndarray
    things: tuple[Thing, ...]
    words: tuple[Word, ...]
    caption: str


class Scenes:
    """The scenes of a folder, by number.

    Args:
        folder: Where `draw_scenes` put them.
        count: How many of them.

    Raises:
        FileNotFoundError: There are fewer.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.count = count
        blocks = range(-(-count // BLOCK))
        self._pixels = [np.load(folder / f"pixels-{block:05d}.npy", mmap_mode="r") for block in blocks]
        self._labels = [np.load(folder / f"labels-{block:05d}.npy", mmap_mode="r") for block in blocks]
        self._truth = [_truth(folder / f"truth-{block:05d}.json") for block in blocks]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Drawn:
        if not 0 <= index < self.count:
            raise IndexError(f"index must be from 0 to {self.count - 1} but is {index}")
        block, row = divmod(index, BLOCK)
        things, words, caption = self._truth[block][row]
        return Drawn(self._pixels[block][row], self._labels[block][row], things, words, caption)


def draw_scenes(
    folder: Path, count: int, workers: int | None = None, progress: Callable[[int, int], None] | None = None
) -> Scenes:
    """Draw what is missing of the first `count` scenes.

    Args:
        folder: Where to keep them; made if it is not there.
        count: How many scenes; about 0.4 MB each.
        workers: Processes; one for each core if None.
        progress: Called with the number of scenes that are there and that are wanted.

    Raises:
        BrokenProcessPool: It is called at the top level of a script without ``if __name__ == "__main__":``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    blocks = range(-(-count // BLOCK))
    missing = [block for block in blocks if not (folder / f"truth-{block:05d}.json").is_file()]
    done = len(blocks) - len(missing)
    # Not forked: OpenCV's threads, if this process has any, would leave the children waiting for ever.
    with ProcessPoolExecutor(workers or os.cpu_count(), get_context("spawn")) as pool:
        for number, _ in enumerate(pool.map(partial(_draw_block, folder, BLOCK), missing), done + 1):
            if progress:
                progress(min(number * BLOCK, count), count)
    return Scenes(folder, count)


def describe(scene: Scene) -> tuple[np.ndarray, list[Thing]]:
    """The label map and the things of a drawn scene."""
    things = [Thing(thing.kind, thing.colour, thing.box) for thing in scene.objects]
    things += [Thing(FACE, None, face.box, (face.yaw, face.pitch)) for face in scene.faces]
    things += [Thing(SIGN, None, sign.box) for sign in scene.signs]
    labels = np.zeros(scene.pixels.shape[:2], np.uint8)
    masks = [thing.mask for group in (scene.objects, scene.faces, scene.signs) for thing in group]
    for number, mask in enumerate(masks, 1):
        labels[mask] = number
    return labels, things


def _draw_block(folder: Path, size: int, block: int) -> None:
    import cv2

    cv2.setNumThreads(1)
    world = World(SEED, SIDE, pairs="seen", words="seen")
    pixels = np.empty((size, SIDE, SIDE, 3), np.uint8)
    labels = np.empty((size, SIDE, SIDE), np.uint8)
    truth = []
    for row in range(size):
        scene = world.scene(block * size + row)
        pixels[row] = scene.pixels
        labels[row], things = describe(scene)
        truth.append({
            "things": [[thing.kind, thing.colour, thing.box, thing.gaze] for thing in things],
            "words": [[word.text, word.quad.tolist()] for word in scene.words],
            "caption": scene.caption,
        })  # fmt: skip
    # The truth last: where it is, the rest is.
    _commit(folder / f"pixels-{block:05d}.npy", lambda path: np.save(path, pixels))
    _commit(folder / f"labels-{block:05d}.npy", lambda path: np.save(path, labels))
    _commit(folder / f"truth-{block:05d}.json", lambda path: path.write_text(json.dumps(truth), encoding="utf-8"))


def _commit(path: Path, write: Callable[[Path], Any]) -> None:
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    write(temporary)
    os.replace(temporary, path)


def _truth(path: Path) -> list[tuple[tuple[Thing, ...], tuple[Word, ...], str]]:
    return [
        (
            tuple(
                Thing(kind, colour, tuple(box), tuple(gaze) if gaze else None)
                for kind, colour, box, gaze in scene["things"]
            ),
            tuple(Word(text, quad) for text, quad in scene["words"]),
            scene["caption"],
        )
        for scene in json.loads(path.read_text(encoding="utf-8"))
    ]
