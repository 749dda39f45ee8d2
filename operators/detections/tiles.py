"""Large images in overlapping tiles, and one detection for each object that several of them see."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from labelmill.operators.detections.boxes import Boxes, Classes, intersections, iou

SAME = 0.5
"""Two views see one object if what each says about the pixels that both see has at least this IoU."""

MARGIN = 0.02
"""How far from a tile's border a box may end that is cut by it, as a share of the tile's side."""

Windows = NDArray[np.int64]
"""Views of an image, (n, 4): xyxy in whole pixels of the image."""


class Tiles(BaseModel):
    """How an image is cut up. Images no larger than a tile are seen whole, as if there were no tiles.

    Attributes:
        size: Side of a tile in pixels. Where an image ends before its last tile does, that tile moves back.
        overlap: Share of the side that neighbouring tiles have in common at least. Objects smaller than that are seen
            whole by some tile.
        whole: Look at the whole image too, for objects larger than a tile.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(1024, ge=32)
    overlap: float = Field(0.2, ge=0, le=0.9)
    whole: bool = True

    def windows(self, width: int, height: int) -> Windows:
        """The views of an image of that size in pixels: the whole image if it is one of them, then tiles row by row."""
        if max(width, height) <= self.size:
            return np.array([[0, 0, width, height]])
        tiles = [
            [left, top, min(left + self.size, width), min(top + self.size, height)]
            for top in self._starts(height)
            for left in self._starts(width)
        ]
        return np.array([[0, 0, width, height], *tiles] if self.whole else tiles)

    def _starts(self, length: int) -> list[int]:
        last = max(0, length - self.size)
        return [*range(0, last, max(1, int(self.size * (1 - self.overlap)))), last]


def merge(boxes: Boxes, classes: Classes, views: NDArray[np.int64], windows: Windows) -> tuple[list[int], Boxes]:
    """One box for what several views see of an object; other detections of one view stay as raw as they were.

    Two detections of one class in two views are the same object if their parts inside what both views see have an IoU
    of at least `SAME`, and if wherever one of them sticks out of the other's view, the other is cut by that border.
    Intersection over the smaller area, which SAHI (Akyon et al. 2022) compares, cannot tell a part of an object from a
    whole one inside a box around several. Greedily, best first, a detection takes the same ones of other views with it,
    and keeps its score. If it is cut, so does whatever they continue in further tiles, and its box becomes that of the
    first of them that is not cut, or the box around all. What is cut and belongs to an object that has been made goes.

    Args:
        boxes: Best first, in pixels of the image.
        classes: int, shape ``(n,)``.
        views: The window that each was found in, as an index.
        windows: See `Windows`.

    Returns:
        Which detections stay, ascending; and their boxes, which may have grown.
    """
    cut = _cut(boxes, windows[views], windows)
    neighbours = _same(boxes, classes, views, windows, cut)
    cut_at_all: NDArray[np.bool_] = np.asarray(cut.any(axis=1))
    merged = boxes.copy()
    taken = np.zeros(len(boxes), dtype=bool)
    stays = []
    for best in range(len(boxes)):
        if taken[best]:
            continue
        around = neighbours.get(best, [])
        if cut_at_all[best] and taken[around].any():
            taken[best] = True
            continue
        stays.append(best)
        parts = _parts(best, neighbours, cut_at_all, views, taken) if cut_at_all[best] else [best]
        if cut_at_all[best]:
            whole = next((part for part in parts if not cut_at_all[part]), None)
            merged[best] = _around(boxes[parts]) if whole is None else boxes[whole]
        for part in parts:
            taken[neighbours.get(part, [])] = True
        taken[parts] = True
    return stays, merged[stays]


def _parts(
    best: int, neighbours: dict[int, list[int]], cut: NDArray[np.bool_], views: NDArray[np.int64], taken: NDArray
) -> list[int]:
    """A cut detection and what continues it: the best in each view, near views first."""
    parts, seen = [best], {int(views[best])}
    for part in parts:  # grows
        for other in neighbours.get(part, []) if cut[part] else []:
            if not taken[other] and int(views[other]) not in seen:
                seen.add(int(views[other]))
                parts.append(other)
    return parts


def _around(boxes: Boxes | Windows) -> NDArray:
    found: NDArray = np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])
    return found


def _cut(boxes: Boxes, own: Windows, windows: Windows) -> NDArray[np.bool_]:
    """Which sides of each box, (n, 4), end at a border of its view that is not the image's."""
    image = _around(windows)
    return (np.abs(boxes - own) <= _margin(own)) & (own != image)


def _margin(windows: Windows) -> NDArray[np.float64]:
    """How near is near, on each side of each window, (n, 4), in pixels."""
    sides = windows[:, 2:] - windows[:, :2]
    return MARGIN * np.concatenate([sides, sides], axis=1)


def _same(
    boxes: Boxes, classes: Classes, views: NDArray[np.int64], windows: Windows, cut: NDArray[np.bool_]
) -> dict[int, list[int]]:
    """For each detection those of other views that are the same object, best first."""
    found: dict[int, list[int]] = {}
    members = {view: np.flatnonzero(views == view) for view in np.unique(views).tolist()}
    there = np.array(list(members), dtype=np.int64)
    seen = windows[there].astype(np.float64)
    overlapping = intersections(seen, seen) > 0
    for one, other in combinations(range(len(there)), 2):
        if overlapping[one, other]:
            first, second = members[int(there[one])], members[int(there[other])]
            pair = windows[there[[one, other]]]
            alike = classes[first, None] == classes[None, second]
            alike &= _agree(boxes[first], boxes[second], pair)
            alike &= _continued(boxes[first], cut[second], pair[1]) & _continued(boxes[second], cut[first], pair[0]).T
            for row, column in np.argwhere(alike).tolist():
                found.setdefault(int(first[row]), []).append(int(second[column]))
                found.setdefault(int(second[column]), []).append(int(first[row]))
    return {index: sorted(others) for index, others in found.items()}


def _agree(first: Boxes, second: Boxes, pair: Windows) -> NDArray[np.bool_]:
    """Whether the parts inside both windows overlap enough, (n, m)."""
    low, high = pair[:, :2].max(axis=0), pair[:, 2:].min(axis=0)
    clipped = [np.clip(boxes.astype(np.float64), [*low, *low], [*high, *high]) for boxes in (first, second)]
    with np.errstate(invalid="ignore"):  # nothing of either is in both windows: 0 / 0
        return iou(*clipped) >= SAME


def _continued(boxes: Boxes, cut: NDArray[np.bool_], window: Windows) -> NDArray[np.bool_]:
    """Whether each of m detections in a window is cut wherever each of n boxes sticks out of that window: (n, m)."""
    margin = _margin(window[None])[0]
    out = np.concatenate([boxes[:, :2] < (window - margin)[:2], boxes[:, 2:] > (window + margin)[2:]], axis=1)
    missing: NDArray[np.int64] = out.astype(np.int64) @ (~cut).T.astype(np.int64)
    return missing == 0
