"""In which pixels labels were drawn: those of the upright image, of the image as stored, or of another size of it.

EXIF and XMP say how a viewer turns an image. Tools that look at the stored pixels draw their labels there, and say the
stored width and height; others draw upright and say either.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from labelmill.pipelines.sources.base import Shape, Size, Sizes
from labelmill.pipelines.sources.labels import LabelError, stored_shape
from labelmill.pipelines.sources.storage import Storage

Box = tuple[float, float, float, float]

SAME_ASPECT = 1.0
"""Pixels by which a side of an image scaled evenly may miss the whole number."""

SLACK = 1.0
"""Pixels by which a label may leave the frame that it was drawn in: rounding does that."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The pixels that labels were drawn in, and the way from them to the upright image.

    Attributes:
        size: Width and height of the frame.
        upright: Width and height of the upright image.
        orientation: How the frame is turned to become upright; 1 for not at all.
    """

    size: Size
    upright: Size
    orientation: int = 1

    @property
    def turned(self) -> Size:
        """Width and height of the frame once it is upright."""
        return self.size[::-1] if self.orientation >= 5 else self.size  # type: ignore[return-value]

    @property
    def is_upright(self) -> bool:
        """Whether labels stay as they are."""
        return self.orientation == 1 and self.size == self.upright

    def points(self, values: Sequence[float]) -> list[float]:
        """``x, y, x, y, …`` of the frame, in pixels of the upright image."""
        if self.is_upright:
            return list(values)
        width, height = self.size
        x, y = np.array(values[0::2], np.float64), np.array(values[1::2], np.float64)
        x, y = {
            1: (x, y), 2: (width - x, y), 3: (width - x, height - y), 4: (x, height - y),
            5: (y, x), 6: (height - y, x), 7: (height - y, width - x), 8: (y, width - x),
        }[self.orientation]  # fmt: skip
        x, y = x * (self.upright[0] / self.turned[0]), y * (self.upright[1] / self.turned[1])
        return [float(value) for value in np.stack([x, y], axis=1).ravel()]

    def box(self, box: Sequence[float]) -> Box:
        """``x1, y1, x2, y2`` likewise."""
        if self.is_upright:
            return box[0], box[1], box[2], box[3]
        x1, y1, x2, y2 = self.points(box)
        return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)

    def mask(self, counts: str) -> str:
        """RLE counts over the frame, as counts over the upright image; scaled to the nearest pixel."""
        if self.is_upright:
            return counts
        from pycocotools import mask

        decoded = mask.decode({"size": [self.size[1], self.size[0]], "counts": counts.encode("ascii")})
        pixels: Any = np.asarray(decoded)
        pixels = {
            1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
            5: lambda a: a.T, 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).T, 8: lambda a: np.rot90(a),
        }[self.orientation](pixels)  # fmt: skip
        if self.turned != self.upright:
            width, height = self.upright
            rows = ((np.arange(height) + 0.5) * (pixels.shape[0] / height)).astype(int)
            columns = ((np.arange(width) + 0.5) * (pixels.shape[1] / width)).astype(int)
            pixels = pixels[rows][:, columns]
        if not pixels.any():
            raise LabelError("has a mask that covers no pixel once it is scaled to the image")
        return str(mask.encode(np.asfortranarray(pixels, np.uint8))["counts"].decode("ascii"))


def extent(boxes: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The largest x and y of boxes ``x1, y1, x2, y2``."""
    return max((box[2] for box in boxes), default=0.0), max((box[3] for box in boxes), default=0.0)


def fits(reach: tuple[float, float], size: Size) -> bool:
    """Whether labels that reach so far lie in a frame."""
    return reach[0] <= size[0] + SLACK and reach[1] <= size[1] + SLACK


def turned_sizes(said: Size, shape: Shape) -> bool:
    """Whether a size is that of the stored pixels of an image that a viewer shows as another size."""
    return shape.orientation >= 5 and said == shape.stored and said != shape.upright


def reading(said: Size | None, shape: Shape, reach: tuple[float, float]) -> bool | None:
    """How labels under the stored size of a turned image are meant, if they tell: True upright, False as stored."""
    if said is None or not turned_sizes(said, shape):
        return None
    upright, stored = fits(reach, shape.upright), fits(reach, shape.stored)
    return upright if upright != stored else None


def frame_of(
    said: Size | None,
    shape: Shape,
    reach: tuple[float, float],
    rescale: bool = False,
    usual: Collection[bool] = (),
) -> tuple[Frame, str | None]:
    """The frame that the labels of an image were drawn in, and a note where it is not the upright image.

    Args:
        said: Width and height that come with the labels; None where they do not say.
        shape: Of the file.
        reach: The largest x and y of its labels.
        rescale: Whether labels of an evenly scaled image are scaled to this one.
        usual: How other images of the same file are meant (see `reading`), for one that does not tell; empty where none
            of them does either: then the size that the file says holds.

    Raises:
        LabelError: Nobody can tell, or the size is another one altogether. Completes a sentence about the labels.
    """
    upright = shape.upright
    if said is None or said == upright:
        return Frame(upright, upright), None
    shown = f"{said[0]} x {said[1]} pixels, but the image has {upright[0]} x {upright[1]}"
    if turned_sizes(said, shape):
        as_stored = f"drawn on {said[0]} x {said[1]} pixels, the image as stored, before its EXIF orientation turns it"
        if not fits(reach, upright) and not fits(reach, said):
            raise LabelError(f"were {as_stored}, but fit it neither so nor upright")
        own = reading(said, shape, reach)
        if own is None and len(set(usual)) > 1:
            raise LabelError(f"were {as_stored}, and fit it both so and upright; others of the file are of either kind")
        if own is None and True in usual:
            return Frame(
                upright, upright
            ), f"its labels say {as_stored}, but others of the file are upright, so are they"
        if own:
            return Frame(upright, upright), f"its labels say {as_stored}, but only fit it upright: taken as upright"
        return Frame(said, upright, shape.orientation), f"its labels were {as_stored}: turned with it"
    for orientation, whole in ((1, upright), (shape.orientation, shape.stored)):
        if not same_aspect(said, whole):
            continue
        if not rescale:
            raise LabelError(f"were drawn on {shown}; `rescale: true` under `source:` scales them to it")
        turned = orientation if orientation >= 5 else 1
        return Frame(said, upright, turned), f"its labels were drawn on {shown}: scaled to it"
    raise LabelError(f"were drawn on {shown}, which is another shape: they are those of another image, or of a part")


def same_aspect(one: Size, other: Size) -> bool:
    """Whether two sizes are one image scaled evenly, to whole pixels."""
    scale = max(other[0] / one[0], other[1] / one[1])
    if scale < 1:
        return same_aspect(other, one)
    slack = SAME_ASPECT * max(1.0, scale)
    return abs(one[0] * scale - other[0]) <= slack and abs(one[1] * scale - other[1]) <= slack


def shape_of(storage: Storage, location: str, key: str, sizes: Sizes | None) -> Shape:
    """The size of an image file.

    Args:
        storage: Reads it.
        location: Where it is.
        key: Its key, for `sizes`.
        sizes: Where given, what is asked instead of the file.

    Raises:
        LabelError: It is no image, or nobody knows its size.
        pipelines.sources.storage.Unavailable: It cannot be read.
    """
    if sizes is None:
        return stored_shape(storage, location)
    size = sizes(key)
    if size is None:
        raise LabelError("it is not among the images that these labels are for")
    return size if isinstance(size, Shape) else Shape(size)
