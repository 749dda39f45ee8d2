"""The contact sheet of label errors: one HTML page that needs nothing but itself, with both boxes drawn on crops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from operators.base import RowError
from operators.engines.data_url import data_url
from operators.images import DecodedImage, decode
from operators.schemas import SIDES
from pipelines.contact_sheet import READERS, SIDE
from pipelines.errors import UserError
from pipelines.inspect_run import reopen
from pipelines.print_label_errors import headline
from pipelines.sources import Fetcher
from pipelines.sources.base import in_order

TEMPLATE = Path(__file__).with_name("label_errors_sheet.html")

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
        found: What `pipelines.label_errors.list_label_errors` gave.

    Returns:
        The file's address.

    Raises:
        UserError: It cannot be written there.
    """
    pipeline, layout, _ = reopen(found["run"])
    fetch = Fetcher(dict(pipeline.settings.source.storage_options))
    name = "errors/" + "-".join(["label-errors", *found["kinds"], f"{found['least']:g}"]) + ".html"
    page = render(found, fetch).encode("utf-8", "backslashreplace")
    try:
        layout.store.write(name, page)
    except OSError as error:
        raise UserError(f"the contact sheet cannot be written to {layout.store.address(name)}: {error}") from error
    return layout.store.address(name)


def render(found: dict[str, Any], fetch: Callable[[str], bytes]) -> str:
    """The page.

    Args:
        found: What `pipelines.label_errors.list_label_errors` gave.
        fetch: Gives the bytes behind a uri, or raises RowError.
    """
    from jinja2 import Environment, StrictUndefined

    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(TEMPLATE.read_text("utf-8"))
    crops = in_order(lambda row: _crop(row, fetch), found["errors"], READERS)
    return template.render(found=found, headline=headline(found), shown=list(zip(found["errors"], crops, strict=True)))


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
