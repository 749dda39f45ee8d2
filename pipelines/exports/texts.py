"""Words of an image as every format can hold them: finite, inside the image, counted when left out."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from labelmill.pipelines.exports.dataset import ExportImage

Corner = tuple[float, float]

NOT_WHOLE = "word has no text or a coordinate that is missing or not finite"


@dataclass(frozen=True, slots=True)
class Text:
    """One word.

    Attributes:
        position: 1-based place among the image's words, those left out included.
        text: What it says.
        corners: Four points in pixels, clockwise from the top left of the text, clipped to the image.
        score: 0…1; None where not known.
    """

    position: int
    text: str
    corners: tuple[Corner, Corner, Corner, Corner]
    score: float | None


def read_texts(image: ExportImage, skipped: Counter[str]) -> list[Text]:
    """The words of an image that can be written; counts the others in `skipped`."""
    found = []
    for position, word in enumerate(image.words or [], 1):
        quad = word.get("quad")
        if not quad or len(quad) != 8:
            x1, y1, x2, y2 = (word.get(side) for side in ("x1", "y1", "x2", "y2"))
            quad = [x1, y1, x2, y1, x2, y2, x1, y2]
        if not word.get("text") or not all(value is not None and math.isfinite(value) for value in quad):
            skipped[NOT_WHOLE] += 1
            continue
        xs = [min(max(float(value), 0.0), float(image.width)) for value in quad[::2]]
        ys = [min(max(float(value), 0.0), float(image.height)) for value in quad[1::2]]
        a, b, c, d = zip(xs, ys, strict=True)
        score = word.get("confidence")
        found.append(
            Text(
                position,
                word["text"],
                (a, b, c, d),
                None if score is None or not math.isfinite(score) else float(score),
            )
        )
    return found
