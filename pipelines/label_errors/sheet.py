"""The contact sheet of label errors: one HTML page that needs nothing but itself, with both boxes drawn on crops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from labelmill.operators.columns.schemas import SIDES
from labelmill.operators.errors import RowError
from labelmill.operators.images.data_url import data_url
from labelmill.operators.images.decoded import DecodedImage, decode
from labelmill.pipelines.label_errors.print import headline
from labelmill.pipelines.sheets import READERS, SIDE, render_sheet, write_page
from labelmill.pipelines.sources.base import in_order

MARGIN = 0.4
"""How much of its surroundings a crop shows on each side, as a share of the boxes' longer side."""

LEAST_MARGIN = 24.0
"""The same in pixels, at least."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Crop:
    """What is shown of an image; or why nothing is.

    Attributes:
        url: The cut out pixels as a data URL.
        width, height: Size of the cut in pixels of the image.
        given, suggested: Boxes in pixels from the cut's top left corner.
    """

    url: str = ""
    width: int = 0
    height: int = 0
    given: Box | None = None
    suggested: Box | None = None
    problem: str = ""


def write_sheet(found: dict[str, Any]) -> str:
    """Write the sheet into the run, in ``errors/``. One file for each choice of kinds and score.

    Args:
        found: What `pipelines.label_errors.collect.list_label_errors` gave.

    Returns:
        The file's address.

    Raises:
        UserError: It cannot be written there.
    """
    name = "errors/" + "-".join(["label-errors", *found["kinds"], f"{found['least']:g}"]) + ".html"
    return write_page(found["run"], name, lambda fetch: render(found, fetch))


def render(found: dict[str, Any], fetch: Callable[[str], bytes]) -> str:
    """The page.

    Args:
        found: What `pipelines.label_errors.collect.list_label_errors` gave.
        fetch: Gives the bytes behind a uri, or raises RowError.
    """
    crops = in_order(lambda row: _crop(row, fetch), found["errors"], READERS)
    shown = list(zip(found["errors"], crops, strict=True))
    return render_sheet("label_errors_sheet.html", {"found": found, "headline": headline(found), "shown": shown})


def _crop(row: dict[str, Any], fetch: Callable[[str], bytes]) -> Crop:
    given = _box(row, "")
    suggested = _box(row, "suggested_")
    try:
        image = decode(fetch(row["uri"]))
    except RowError as error:
        return Crop(problem=str(error))
    x1, y1, x2, y2 = window([box for box in (given, suggested) if box is not None], image.width, image.height)
    pixels = np.ascontiguousarray(image.pixels[y1:y2, x1:x2])
    url = data_url(DecodedImage(pixels, b"", "", "RGB", 1, 1), max_side=SIDE)
    if given == suggested:
        suggested = None
    return Crop(url, x2 - x1, y2 - y1, _moved(given, x1, y1), _moved(suggested, x1, y1))


def window(boxes: Sequence[Box], width: int, height: int) -> tuple[int, int, int, int]:
    """The part of an image to show, xyxy in whole pixels: around the boxes; all of it where none of them is in it."""
    inside = [box for box in boxes if box[0] < width and box[1] < height and box[2] > 0 and box[3] > 0]
    if not inside:
        return 0, 0, width, height
    low, high = np.min(inside, axis=0)[:2], np.max(inside, axis=0)[2:]
    margin = max(LEAST_MARGIN, MARGIN * float((high - low).max()))
    x1, y1 = (max(0, math.floor(at - margin)) for at in low)
    x2, y2 = (min(side, math.ceil(at + margin)) for at, side in zip(high, (width, height), strict=True))
    return x1, y1, x2, y2


def _box(row: dict[str, Any], prefix: str) -> Box | None:
    """Four finite numbers, in order; None where they are not."""
    values = [row[prefix + side] for side in SIDES]
    if any(value is None or not math.isfinite(value) for value in values):
        return None
    x1, y1, x2, y2 = values
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _moved(box: Box | None, x: int, y: int) -> Box | None:
    return None if box is None else (box[0] - x, box[1] - y, box[2] - x, box[3] - y)
