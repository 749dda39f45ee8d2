"""Small pictures of the images that a report shows, within a budget."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from labelmill.operators.errors import RowError
from labelmill.operators.images.decoded import decode
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.report.limits import MAX_PICTURE_BYTES
from labelmill.pipelines.sources.base import in_order

QUALITY = 78

READERS = 4
"""Images read at once: enough to hide some of an object store's delay; each may be large while it is decoded."""


@dataclass(frozen=True)
class Picture:
    """A small picture of an image.

    Attributes:
        url: JPEG as a data URL (RFC 2397); empty where there is none.
        width, height: Pixels of the upright image itself, 0 where it is not known.
        problem: Why there is none.
    """

    url: str = ""
    width: int = 0
    height: int = 0
    problem: str = ""


class Pictures:
    """What to make small pictures of: the earlier an image is asked for, the sooner it gets one."""

    def __init__(self) -> None:
        self._sides: dict[int, int] = {}

    def ask(self, ids: Iterable[int], side: int) -> None:
        """Ask for pictures whose longer side has so many pixels; an image that is asked for twice gets the larger."""
        for image_id in ids:
            self._sides[image_id] = max(side, self._sides.get(image_id, 0))

    @property
    def ids(self) -> list[int]:
        return list(self._sides)

    def make(
        self,
        uris: dict[int, str],
        fetch: Callable[[str], bytes],
        budget: int = MAX_PICTURE_BYTES,
        on_progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> dict[int, Picture]:
        """Make them, in order, until the budget is spent.

        Args:
            uris: Of each image that was asked for.
            fetch: Gives the bytes behind a uri, or raises RowError.
            budget: Characters that they may have together in the page.
            on_progress: Told how many of how many are done.

        Returns:
            By image_id. One that cannot be shown has its problem; one beyond the budget is not there.
        """
        made: dict[int, Picture] = {}
        pictures = in_order(lambda asked: _make(uris[asked[0]], asked[1], fetch), self._sides.items(), READERS)
        for image_id, picture in zip(self._sides, pictures, strict=True):
            budget -= len(picture.url)
            if budget < 0:
                break
            made[image_id] = picture
            on_progress(len(made), len(self._sides))
        return made


def _make(uri: str, side: int, fetch: Callable[[str], bytes]) -> Picture:
    try:
        image = decode(fetch(uri))
    except (RowError, UserError) as error:
        return Picture(problem=str(error))
    small = _shrink(image.pil(), side)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return Picture("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(), image.width, image.height)


def _shrink(image: Image.Image, side: int) -> Any:
    """The image with its longer side no longer than `side`, its aspect kept; at least one pixel wide and high."""
    scale = side / max(image.size)
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
