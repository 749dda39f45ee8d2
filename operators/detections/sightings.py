"""What a detector says about an image, object by object: raw detections of one place are one sighting."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from labelmill.operators.columns.schemas import SIDES
from labelmill.operators.detections.boxes import areas, intersections, iou, suppress

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Detections:
    """Detections or labels of many images as arrays.

    Args:
        column: `operators.columns.schemas.DETECTIONS`.

    Attributes:
        known: bool (images,): false where the column is null.
        starts: int64 (images + 1,): image i has the rows from ``starts[i]`` up to ``starts[i + 1]``.
        boxes: float64 (rows, 4), xyxy in pixels, NaN where null.
        scores: float64 (rows,), NaN where null.
        names: Distinct classes in alphabetical order.
        codes: int64 (rows,), places in `names`, -1 where null.
        crowds: bool (rows,): regions to ignore.
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.known = column.is_valid().to_numpy().astype(bool)
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
        self.starts: Integers = np.concatenate([[0], np.cumsum(lengths)])
        rows = pc.list_flatten(column)
        sides = [pc.struct_field(rows, side).to_numpy() for side in SIDES]
        self.boxes: Floats = np.stack(sides, axis=1).astype(np.float64)
        self.scores: Floats = pc.struct_field(rows, "score").to_numpy().astype(np.float64)
        classes = pc.struct_field(rows, "class")
        self.names: list[str] = sorted(name for name in pc.unique(classes).to_pylist() if name is not None)
        found = pc.index_in(classes, value_set=pa.array(self.names, pa.string()))
        self.codes: Integers = pc.fill_null(found, -1).to_numpy().astype(np.int64)
        self.crowds = pc.fill_null(pc.struct_field(rows, "crowd"), False).to_numpy().astype(bool)

    def __len__(self) -> int:
        return len(self.known)

    def rows(self, image: int) -> slice:
        """The rows of an image."""
        return slice(int(self.starts[image]), int(self.starts[image + 1]))


def usable(boxes: Floats) -> NDArray[np.bool_]:
    """Whether each box is four finite numbers and has an area."""
    with np.errstate(invalid="ignore"):
        filled = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return np.asarray(filled & np.isfinite(boxes).all(axis=1))


def probability(scores: Floats, even: float) -> Floats:
    """Probabilities that detections with these scores are right.

    The odds of the score, divided by the odds of a score that is as often right as wrong: what Bayes' rule gives when
    the prior odds change (Saerens, Latinne and Decaestecker 2002). With 0.5, scores are taken as they are.

    Args:
        scores: 0…1; NaN (a person's label) counts as 1.
        even: Between 0 and 1.
    """
    given = np.clip(np.nan_to_num(scores, nan=1.0), 0.0, 1.0)
    right = given * (1 - even)
    return np.asarray(right / (right + (1 - given) * even))


@dataclass(frozen=True)
class Sightings:
    """The objects that a detector may have seen in one image, the surest first.

    Attributes:
        boxes: float64 (n, 4): of the best detection of each.
        scores: float64 (n, classes): the best raw score of each class there; 0 where it was not named.
        chances: float64 (n, classes): the same as probabilities.
    """

    boxes: Floats
    scores: Floats
    chances: Floats

    def __len__(self) -> int:
        return len(self.boxes)


def sightings(boxes: Floats, codes: Integers, scores: Floats, classes: int, even: float, same: float) -> Sightings:
    """Raw detections of one image, put together where they mean one place: what class it is stays open.

    The best detection, of whatever class, is a sighting with all others that overlap it; then the best of the rest.

    Args:
        boxes: (n, 4). Those that are not usable are passed over.
        codes: (n,), class numbers; -1 is passed over.
        scores: (n,).
        classes: How many there are.
        even: See `probability`.
        same: Detections with a larger IoU are one sighting.
    """
    good = np.flatnonzero(usable(boxes) & (codes >= 0))
    order = good[np.lexsort((codes[good], *boxes[good].T[::-1], -np.nan_to_num(scores[good], nan=1.0)))]
    boxes, codes, scores = boxes[order], codes[order], scores[order]
    by, _ = suppress(boxes, np.zeros(len(boxes), dtype=np.int64), same)
    first = np.flatnonzero(by < 0)
    number = np.full(len(boxes), -1)
    number[first] = np.arange(len(first))
    owner = np.where(by < 0, number, number[np.maximum(by, 0)])
    best = np.zeros((len(first), classes))
    np.maximum.at(best, (owner, codes), np.clip(np.nan_to_num(scores, nan=1.0), 0.0, 1.0))
    return Sightings(boxes[first], best, probability(best, even))


def overlaps(first: Floats, second: Floats) -> Floats:
    """IoU of each pair; of shape (n, m) also where one of them is empty."""
    return iou(first, second) if len(first) and len(second) else np.zeros((len(first), len(second)))


def shares_inside(boxes: Floats, regions: Floats) -> Floats:
    """The share of each box (n, 4) that lies in each region (m, 4), 0…1: (n, m), also where one of them is empty."""
    if not len(boxes) or not len(regions):
        return np.zeros((len(boxes), len(regions)))
    return np.asarray(intersections(boxes, regions) / areas(boxes)[:, None])
