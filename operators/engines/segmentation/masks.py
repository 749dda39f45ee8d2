"""From the logits of a mask decoder, which are small, to masks of an image, as COCO compressed RLE.

Every pixel of the image is a weighted mean of a few neighbouring logits (bilinear interpolation), so where all of them
say no, it is not in the mask: only the rectangle around the others is ever computed at the image's resolution.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

STABILITY_OFFSET = 1.0
"""Distance of the two thresholds around 0 whose masks are compared; SamAutomaticMaskGenerator's default."""

_NO = -1e9  # a logit
_MARGIN = 1e-3  # far more than rounding makes of a mean
_PIXELS = 1 << 26  # computed at a time on a GPU: 256 MB of logits


@dataclass(frozen=True, slots=True)
class Mask:
    """The mask of one prompt.

    Attributes:
        counts: COCO compressed RLE over (height, width) of the image.
        box: Extent of the mask, xyxy in pixels of the image; None for an empty mask.
        predicted_iou: What the model expects the mask's IoU with the object to be; not held to 0…1.
        stability: 0…1, IoU of the masks at logits above +1 and above −1; 0 where both are empty.
    """

    counts: str
    box: tuple[float, float, float, float] | None
    predicted_iou: float
    stability: float


class Axis:
    """How logits lie along one side of an image: linear interpolation, corners not aligned, in one or more stages.

    Args:
        logits: How many there are along this side.
        stages: For each resizing the size, and how much of it, from the start, is image; the rest is padding. The
            last stage's is the image's side in pixels.
        device: Where to compute.
    """

    def __init__(self, logits: int, stages: tuple[tuple[int, int], ...], device: torch.device) -> None:
        import torch
        from torch.nn.functional import interpolate

        weights = torch.eye(logits, device=device)[None]
        for size, kept in stages:
            weights = interpolate(weights, size=size, mode="linear", align_corners=False)[..., :kept]
        self.weights = weights[0].T.contiguous()
        """float32 (pixels, logits): the weight of each logit in each pixel."""
        used = self.weights != 0
        ends = torch.stack([used.byte().argmax(dim=1), logits - used.flip(1).byte().argmax(dim=1)])
        self._first, self._stop = ends.cpu().numpy()
        self.pixels = len(self.weights)

    def around(self, first: int, stop: int) -> tuple[slice, slice]:
        """The pixels in which any of the logits from `first` to before `stop` has weight, and all logits of these."""
        start, end = np.searchsorted(self._stop, first, "right"), np.searchsorted(self._first, stop, "left")
        if start >= end:  # nothing but padding
            return slice(0, 0), slice(0, 0)
        return slice(int(start), int(end)), slice(int(self._first[start]), int(self._stop[end - 1]))


def masks(logits: torch.Tensor, predicted_iou: torch.Tensor, rows: Axis, columns: Axis) -> list[Mask | None]:
    """The masks where logits are above 0.

    Args:
        logits: float32 (n, h, w); n may be 0.
        predicted_iou: float32 (n,).
        rows: How the h logits of a column lie over the image's height.
        columns: How the w logits of a row lie over the image's width.

    Returns:
        n of them; None where logits or the predicted IoU are not finite.
    """
    import torch

    finite = torch.isfinite(logits).flatten(1).all(dim=1) & torch.isfinite(predicted_iou)
    logits = torch.where(finite[:, None, None], logits, _NO)
    near = logits > -STABILITY_OFFSET - _MARGIN
    spans = torch.cat([_span(near.any(dim=2)), _span(near.any(dim=1))], dim=1).cpu().numpy()
    together = _together(logits.device, rows.pixels * columns.pixels)
    encoded: list[dict[str, Any]] = []
    stability: list[float] = []
    for start in range(0, len(logits), together):
        stop = start + together
        top, bottom, left, right = _rectangle(spans[start:stop])
        y, v = rows.around(top, bottom)
        x, u = columns.around(left, right)
        across = rows.weights[y, v] @ logits[start:stop, v, u]
        part = columns.weights[x, u] @ across.transpose(1, 2)  # RLE runs down the columns
        stability += _stability(part)
        runs = _runs(part > 0, x.start * rows.pixels + y.start, rows.pixels)
        encoded += [_uncompressed(each, rows.pixels, columns.pixels) for each in runs]
    return _compress(encoded, finite.tolist(), predicted_iou.tolist(), stability)


def _together(device: torch.device, pixels: int) -> int:
    """How many masks of so many pixels to compute at once.

    Masks lie apart, so a CPU saves most by taking one at a time; a GPU waits for every call.
    """
    return max(1, _PIXELS // pixels) if device.type == "cuda" else 1


def _span(near: torch.Tensor) -> torch.Tensor:
    """int64 (n, 2): first and one after the last that is true of bool (n, k); k and 0 where none is."""
    import torch

    places = torch.arange(near.shape[1], device=near.device)
    first = torch.where(near, places, near.shape[1]).amin(dim=1)
    return torch.stack([first, torch.where(near, places + 1, 0).amax(dim=1)], dim=1)


def _rectangle(spans: np.ndarray) -> list[int]:
    """First and stop, of rows and then of columns, of the rectangle around all spans that are not empty."""
    some = spans[spans[:, 0] < spans[:, 1]]
    if not len(some):
        return [0, 0, 0, 0]
    first, stop = some.min(axis=0), some.max(axis=0)
    return [int(first[0]), int(stop[1]), int(first[2]), int(stop[3])]


def _stability(part: torch.Tensor) -> list[float]:
    import torch

    sure, possible = (
        torch.count_nonzero(part > level, dim=(1, 2)).float() for level in (STABILITY_OFFSET, -STABILITY_OFFSET)
    )
    found: list[float] = (sure / possible.clamp(min=1)).tolist()
    return found


def _runs(inside: torch.Tensor, origin: int, height: int) -> Iterator[np.ndarray]:
    """Where the runs of each mask begin and end.

    Args:
        inside: bool (n, w, h): parts of masks, column by column.
        origin: Where the parts' first pixel lies in the image, counted down the columns.
        height: Of the image.

    Yields:
        int64 (runs, 2) for each mask: first pixel and the one after the last, counted down the columns.
    """
    import torch
    from torch.nn.functional import pad

    framed = pad(inside.to(torch.uint8), (1, 1))
    places = (framed[..., 1:] != framed[..., :-1]).nonzero().cpu().numpy()
    positions = (places[:, 1] * height + places[:, 2] + origin).reshape(-1, 2)
    for own in np.split(positions, np.searchsorted(places[::2, 0], np.arange(1, len(inside)))):
        apart = own[:-1, 1] != own[1:, 0]  # a run that reaches the bottom goes on at the top of the next column
        yield np.stack([own[np.append(True, apart), 0], own[np.append(apart, True), 1]], axis=1) if len(own) else own


def _uncompressed(runs: np.ndarray, height: int, width: int) -> dict[str, Any]:
    ends = np.append(runs.ravel(), height * width) if not len(runs) or runs[-1, 1] < height * width else runs.ravel()
    return {"size": [height, width], "counts": np.diff(ends, prepend=0)}


def _compress(
    encoded: list[dict[str, Any]], finite: list[bool], predicted_iou: list[float], stability: list[float]
) -> list[Mask | None]:
    from pycocotools import mask as coco_mask

    if not encoded:
        return []
    compressed = coco_mask.frPyObjects(encoded, *encoded[0]["size"])
    found: list[Mask | None] = []
    extents = coco_mask.toBbox(compressed).tolist()
    for rle, (x, y, wide, high), good, iou, steady in zip(
        compressed, extents, finite, predicted_iou, stability, strict=True
    ):
        box = (x, y, x + wide, y + high) if wide else None
        found.append(Mask(rle["counts"].decode("ascii"), box, iou, steady) if good else None)
    return found
