"""What people drew, as detections: boxes clipped to the image, masks as COCO compressed RLE.

RLE counts run down the columns of a mask of height by width, first zeros, then ones, in turn (pycocotools).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from labelmill.pipelines.sources.base import Shape, valid_text
from labelmill.pipelines.sources.storage import Storage

HEADER_BYTES = 128 * 1024
OVERFLOW = 1.0
"""Pixels by which a box may leave its image before it is worth a note: rounding does that."""


LARGEST = 1e12
"""No pixel coordinate or count reaches this, and float64 holds every whole number up to it."""


class LabelError(ValueError):
    """One label cannot be used; the message completes a sentence that begins with its name."""


def detection(
    box: Sequence[float],
    name: str,
    score: float | None = None,
    mask: str | None = None,
    prompt: str | None = None,
    models: list[str] | None = None,
    crowd: bool | None = None,
    extra: str | None = None,
) -> dict[str, Any]:
    """A dict with the fields of `operators.columns.schemas.DETECTION`; `box` is ``x1, y1, x2, y2``."""
    x1, y1, x2, y2 = map(float, box)
    name = valid_text(name)
    return {
        "x1": x1,
        "y1": y1,
        "x2": x2,
        "y2": y2,
        "class": name,
        "score": score,
        "prompt": prompt,
        "mask": mask,
        "models": models,
        "crowd": crowd,
        "extra": extra,
    }


def numbers(values: Any, count: int | None = None) -> list[float]:
    """A list of finite numbers, `count` of them.

    Raises:
        LabelError: It is something else.
    """
    if not isinstance(values, (list, tuple)) or (count is not None and len(values) != count):
        raise LabelError(f"must have {count or 'a list of'} numbers but has {_short(values)}")
    if not set(map(type, values)) <= {int, float}:
        raise LabelError(f"must have numbers but has {_short(values)}")
    # a NaN can hide from min and max, but not from the sum
    if values and not (min(values) > -LARGEST and max(values) < LARGEST and not math.isnan(sum(values))):
        raise LabelError(f"must have finite numbers but has {_short(values)}")
    return list(map(float, values))


def clip(box: Sequence[float], size: tuple[int, int] | None) -> tuple[tuple[float, float, float, float], float]:
    """The part of a box inside the image, and by how many pixels it left it.

    Args:
        box: ``x1, y1, x2, y2`` in pixels.
        size: Width and height; None where unknown, and then only the left and upper edges clip.

    Raises:
        LabelError: The box has no area, or none inside the image.
    """
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        raise LabelError(f"has a box without area: {x2 - x1:g} x {y2 - y1:g}")
    width, height = size or (math.inf, math.inf)
    inside = (min(max(x1, 0.0), width), min(max(y1, 0.0), height), min(max(x2, 0.0), width), min(max(y2, 0.0), height))
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        shown = f" of {width} x {height}" if size else ""
        raise LabelError(f"has a box outside the image{shown}: {x1:g}, {y1:g}, {x2:g}, {y2:g}")
    return inside, max(abs(a - b) for a, b in zip(box, inside, strict=True))


def polygon_mask(
    polygons: Sequence[Any],
    size: tuple[int, int],
    fault: Callable[[str], None] | None = None,
    place: Callable[[Sequence[float]], list[float]] = list,
) -> str:
    """RLE counts of the union of polygons ``[x, y, x, y, …]`` in pixels.

    Args:
        polygons: One ring each.
        size: Width and height of the image.
        fault: Told of each ring that cannot be used, where others can. None: one such ring is an error.
        place: From the points as they stand to points of the image.

    Raises:
        LabelError: A polygon has fewer than three points or half a point, or points far outside the image, or together
            they cover no pixel.
    """
    from pycocotools import mask

    width, height = size
    checked, faults = [], []
    for polygon in polygons:
        try:
            checked.append(_ring(polygon, size, place))
        except LabelError as error:
            faults.append(error)
    if faults and (fault is None or not checked):
        raise faults[0]
    if not checked:
        raise LabelError("has no polygon")
    merged = mask.merge(mask.frPyObjects(checked, height, width))
    if mask.area(merged) == 0:
        raise LabelError("has a mask that covers no pixel")
    for each in faults:
        assert fault is not None
        fault(str(each))
    return str(merged["counts"].decode("ascii"))


def _ring(polygon: Any, size: tuple[int, int], place: Callable[[Sequence[float]], list[float]]) -> list[float]:
    points = numbers(polygon)
    if len(points) < 6 or len(points) % 2:
        raise LabelError(f"has a polygon of {len(points)} numbers; it must be x, y of three points or more")
    points = place(points)
    if max(max(points), -min(points)) > 10 * max(size):  # pycocotools draws every pixel on the way there
        raise LabelError("has a polygon far outside the image")
    return points


def same_objects(labels: list[dict[str, Any]], names: Sequence[str], notes: list[str]) -> list[dict[str, Any]]:
    """The labels, the same one once: equal box, class, mask and `crowd`. `names` are theirs, for `notes`."""
    first: dict[tuple[Any, ...], int] = {}
    left = []
    for index, label in enumerate(labels):
        what = tuple(label[key] for key in ("x1", "y1", "x2", "y2", "class", "mask", "crowd"))
        earlier = first.setdefault(what, index)
        if earlier == index:
            left.append(label)
        else:
            notes.append(f"{names[index]} is the same object as {names[earlier]}; it is taken once")
    return left


def mask_area(counts: str, size: tuple[int, int]) -> float:
    """Pixels of a mask."""
    from pycocotools import mask

    return float(mask.area({"size": [size[1], size[0]], "counts": counts.encode("ascii")}))


def painted_mask(polygon: Sequence[tuple[float, float]], size: tuple[int, int]) -> str:
    """RLE counts of the pixels that OpenCV's `fillPoly` paints: the inside and the border of a polygon through pixels.

    Args:
        polygon: x and y of its corners in pixels, within the image. The pixel that a corner lies in is its corner.
        size: Width and height of the image.
    """
    import cv2
    from pycocotools import mask

    width, height = size
    corners = np.minimum(np.array(polygon, np.float64).astype(np.int32), [width - 1, height - 1])
    (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
    # A row of zeros above, so that the runs of two columns never touch in here.
    crop = np.zeros((bottom - top + 2, right - left + 1), np.uint8)
    cv2.fillPoly(crop, [corners - [left, top - 1]], 1)
    flat = np.concatenate([crop.T.ravel(), [0]]).astype(np.int8)
    edges = np.flatnonzero(np.diff(flat, prepend=0))
    columns, rows = np.divmod(edges, crop.shape[0])
    # An end in the row of zeros of the next column is the end of its own.
    over = (np.arange(edges.size) % 2 == 1) & (rows == 0)
    columns, rows = columns - over, np.where(over, crop.shape[0], rows)
    places = (columns + left) * height + rows - 1 + top
    starts, ends = places[::2], places[1::2]
    apart = starts[1:] != ends[:-1]
    starts, ends = starts[np.append(True, apart)], ends[np.append(apart, True)]
    runs = np.diff(np.stack([starts, ends], axis=1).ravel(), prepend=0, append=width * height).tolist()
    packed = mask.frPyObjects({"size": [height, width], "counts": runs if runs[-1] else runs[:-1]}, height, width)
    return str(packed["counts"].decode("ascii"))


def rle_mask(segmentation: dict[str, Any], size: tuple[int, int]) -> str:
    """RLE counts of COCO's ``{"size": [height, width], "counts": …}``, compressed or not.

    The counts are checked here, because decoders read past the end of counts that do not fill the mask.

    Raises:
        LabelError: The size is not the image's, or the counts do not fill it, or no pixel is covered.
    """
    from pycocotools import mask

    width, height = size
    counts = segmentation.get("counts")
    given = segmentation.get("size")
    if given is not None and given != [height, width]:
        raise LabelError(f"has a mask of size {_short(given)}; it must be [{height}, {width}], the image's")
    if isinstance(counts, list):
        runs = np.array(numbers(counts), dtype=np.float64)
        if (runs != np.floor(runs)).any():
            raise LabelError("has a mask with counts that are not whole numbers")
    elif isinstance(counts, str):
        runs = _runs(counts).astype(np.float64)
    else:
        raise LabelError("has a mask without counts")
    if (runs < 0).any() or runs.sum() != width * height:
        raise LabelError(f"has a mask with counts that do not fill {width} x {height} pixels")
    if runs[1::2].sum() == 0:
        raise LabelError("has a mask that covers no pixel")
    if isinstance(counts, str):
        return counts
    packed = mask.frPyObjects({"size": [height, width], "counts": [int(run) for run in runs]}, height, width)
    return str(packed["counts"].decode("ascii"))


def mask_box(counts: str, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """``x1, y1, x2, y2`` around a mask."""
    from pycocotools import mask

    x, y, width, height = map(float, mask.toBbox({"size": [size[1], size[0]], "counts": counts.encode("ascii")}))
    return x, y, x + width, y + height


def stored_size(storage: Storage, location: str) -> tuple[int, int]:
    """Width and height of an image upright, reading no more of the file than it takes.

    Raises:
        LabelError: It is not an image.
        pipelines.sources.storage.Unavailable: It cannot be read.
    """
    return stored_shape(storage, location).upright


def stored_shape(storage: Storage, location: str) -> Shape:
    """Likewise, with its orientation."""
    data = storage.read(location, 0, HEADER_BYTES)
    if len(data) == HEADER_BYTES:
        if data.startswith(b"\xff\xd8"):  # other formats may hold the orientation behind the pixels
            with contextlib.suppress(LabelError):  # a longer header: read on
                return bytes_shape(data)
        data = storage.read(location)
    return bytes_shape(data)


def bytes_size(data: bytes) -> tuple[int, int]:
    """Width and height of an encoded image upright. Raises: LabelError."""
    return bytes_shape(data).upright


def bytes_shape(data: bytes) -> Shape:
    """Size and orientation of an encoded image. Raises: LabelError."""
    from labelmill.operators.images.decoded import DecodeError, image_orientation, image_size

    try:
        return Shape(image_size(data), image_orientation(data))
    except DecodeError as error:
        raise LabelError(str(error)) from error


def _runs(counts: str) -> np.ndarray:
    """The run lengths of compressed counts: base-32 digits, then differences to the run before the last."""
    try:
        digits = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        raise LabelError("has a mask with counts that are not COCO's compressed RLE") from None
    more = (digits & 0x20) != 0
    if not digits.size or (digits < 0).any() or (digits > 63).any() or more[-1]:
        raise LabelError("has a mask with counts that are not COCO's compressed RLE")
    last = np.flatnonzero(~more)
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    if lengths.max() > 7:
        raise LabelError("has a mask with counts that are not COCO's compressed RLE")
    place = np.arange(digits.size) - np.repeat(first, lengths)
    values = np.add.reduceat((digits & 0x1F) << (5 * place), first)
    values -= np.where(digits[last] & 0x10, np.int64(1) << (5 * lengths), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "…"
