"""Copies of a scene whose kind is known, for testing what finds duplicates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from labelmill.operators.miniatures.backgrounds import jpeg_round_trip
from labelmill.operators.miniatures.canvas import Canvas, Pixels, palette
from labelmill.operators.miniatures.exact import Matrix, blend, through
from labelmill.operators.miniatures.shapes import ellipse, rounded
from labelmill.operators.miniatures.transforms import inside, mirroring, move, scaling, shifting, turning
from labelmill.operators.miniatures.world import MOST_HIDDEN, Scene

DUPLICATES = ("exact", "reencoded", "resized", "cropped", "recoloured", "rotated", "watermarked", "flipped")
"""Kinds of copies. ``exact`` has the same pixels; a ``flipped`` one is mirrored, which is a kind of its own: whether it
counts as a duplicate is for whoever asks to say."""


def duplicate(scene: Scene, kind: str, rng: np.random.Generator) -> Scene:
    """A copy of the scene, with the truth that holds for the copy.

    ==============  ==========================================================================
    kind            what is done
    ==============  ==========================================================================
    exact           nothing
    reencoded       JPEG at quality 30…70
    resized         both sides × 0.6…0.85 or × 1.15…1.35
    cropped         5…20 % of the width and of the height cut off, where it harms least
    recoloured      white balance, saturation, gamma and brightness, each by up to a fifth
    rotated         turned by 2 degrees to either side, edges continued
    watermarked     a half transparent mark (no words) over a tenth of the picture or all over
    flipped         left and right swapped; its words are mirror writing
    ==============  ==========================================================================

    Raises:
        ValueError: `kind` is not one of `DUPLICATES`.
    """
    height, width = scene.pixels.shape[:2]
    if kind == "exact":
        return replace(scene, pixels=scene.pixels.copy())
    if kind == "reencoded":
        return replace(scene, pixels=jpeg_round_trip(scene.pixels, int(rng.integers(30, 71))))
    if kind == "resized":
        factor = rng.uniform(0.6, 0.85) if rng.random() < 0.5 else rng.uniform(1.15, 1.35)
        wide, high = round(width * factor), round(height * factor)
        return move(scene, scaling(wide / width, high / height), wide, high)
    if kind == "cropped":
        wide, high = (round(side * (1 - rng.uniform(0.05, 0.2))) for side in (width, height))
        return move(scene, crop_window(scene, wide, high, rng), wide, high)
    if kind == "recoloured":
        return replace(scene, pixels=_recolour(scene.pixels, rng))
    if kind == "rotated":
        return move(scene, turning(2.0 if rng.random() < 0.5 else -2.0, width, height), width, height)
    if kind == "watermarked":
        return replace(scene, pixels=_watermark(scene.pixels, rng))
    if kind == "flipped":
        return move(scene, mirroring(width), width, height)
    raise ValueError(f"kind must be one of {', '.join(DUPLICATES)} but is {kind!r}")


def crop_window(scene: Scene, width: int, height: int, rng: np.random.Generator) -> Matrix:
    """Where to cut out width × height: of 24 places the one that cuts through the fewest words, faces and objects."""
    room = np.array([scene.pixels.shape[1] - width, scene.pixels.shape[0] - height])
    places = np.floor(rng.random((24, 2)) * (room + 1)).astype(int)

    def harm(place: np.ndarray) -> int:
        x, y = place
        cut = sum(0.0 < inside(word.quad - place, width, height) < 0.999 for word in scene.words)
        for mask in (*(thing.mask for thing in scene.objects), *(face.mask for face in scene.faces)):
            left = int(np.count_nonzero(mask[y : y + height, x : x + width]))
            cut += 0 < left < (1 - MOST_HIDDEN) * int(np.count_nonzero(mask))
        return cut

    x, y = min(places, key=harm)
    return shifting(-float(x), -float(y))


def _recolour(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    import cv2

    curve = (np.arange(256) / 255) ** rng.uniform(0.82, 1.2) * 255
    gains = rng.uniform(0.88, 1.12, 3) * rng.uniform(0.9, 1.1)
    bright = np.dstack([through(pixels[:, :, channel], curve * gain) for channel, gain in enumerate(gains)])
    grey = cv2.cvtColor(cv2.cvtColor(bright, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return blend(bright, np.asarray(grey), rng.uniform(-0.2, 0.2))


def _watermark(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """A ring around a bar and a wedge, once near a corner or in rows over the whole picture."""
    height, width = pixels.shape[:2]
    canvas = Canvas(width, height, 2)
    if rng.random() < 0.5:
        size = min(width, height) * rng.uniform(0.16, 0.22)
        spots = [(rng.choice([1.2 * size, width - 1.2 * size]), rng.choice([1.2 * size, height - 1.2 * size]))]
    else:
        size = min(width, height) * 0.07
        spots = [
            (x + (row % 2) * 2 * size, y)
            for row, y in enumerate(np.arange(2 * size, height, 4 * size))
            for x in np.arange(2 * size, width, 4 * size)
        ]
    for x, y in spots:
        canvas.stroke(ellipse(x, y, size, size), size * 0.16, 1, closed=True)
        canvas.fill(rounded(x - 0.5 * size, y - 0.1 * size, x + 0.5 * size, y + 0.1 * size), 1)
        canvas.fill(np.array([(x, y)]) + size * np.array([(-0.4, 0.2), (0.4, 0.2), (0.0, 0.7)]), 1)
    tone = (1.0, 1.0, 1.0) if rng.random() < 0.7 else (0.0, 0.0, 0.0)
    marked = pixels.copy()
    canvas.layer(palette({1: tone})).over(marked, 0, 0)
    return blend(pixels, marked, rng.uniform(0.3, 0.5))
