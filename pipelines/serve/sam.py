"""Promptable segmentation as its clients ask for it: an image embedded once, then prompted by boxes and points."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from labelmill.operators.applying.bisect import bisect, failed
from labelmill.operators.applying.memory import free_memory
from labelmill.operators.engines.segmentation.masks import Mask
from labelmill.operators.errors import RowError
from labelmill.operators.images.decoded import DecodedImage
from labelmill.pipelines.serve.work import refusal

REMEMBERED = 32
"""Embedded images of a model that can be asked again by their id."""

NOT_FINITE = "the model gave masks that are not finite; try dtype: float32"


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one mask is wanted for.

    Attributes:
        box: xyxy in pixels; None for points.
        points: float32 (k, 2), xy in pixels.
        labels: int (k,): 1 for a point on the object, 0 for one beside it.
    """

    box: tuple[float, float, float, float] | None
    points: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, slots=True)
class Embedded:
    """An image that the model has seen.

    Attributes:
        maps: What the engine's `encode` gave.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
    """

    maps: Any
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Item:
    """One image with its prompts: prepared, or embedded before."""

    given: Any
    known: Embedded | None
    prompts: Sequence[Prompt]
    height: int
    width: int


class SamWork:
    """Images of many requests through the encoder together, each one's prompts through the decoder.

    Args:
        engine: A loaded `Segmenter`.
        batch: Images per call of the encoder.
        chunk: Boxes per call of the decoder.
    """

    def __init__(self, engine: Any, batch: int | None, chunk: int) -> None:
        self._engine, self._batch, self._chunk = engine, batch or 1, chunk
        self._kept: OrderedDict[str, Embedded] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def batch(self) -> int:
        """Images per call; less than at first when memory ran out."""
        return self._batch

    def prepare(self, image: DecodedImage, row: Any) -> Item:
        """One image and its ``prompts``; in a thread.

        Raises:
            ApiError: The model cannot see this image.
        """
        try:
            given = self._engine.prepare(image.pixels)
        except Exception as error:
            raise refusal(failed(error)) from error
        return Item(given, None, row["prompts"], image.height, image.width)

    def bucket(self, item: Item) -> Hashable:
        """See `Work`. Engines take images of any sizes together."""
        return None

    def remember(self, name: str, embedded: Embedded) -> None:
        """Keep an embedded image under an id, for `known`."""
        with self._lock:
            self._kept[name] = embedded
            self._kept.move_to_end(name)
            while len(self._kept) > REMEMBERED:
                self._kept.popitem(last=False)

    def known(self, name: str) -> Embedded | None:
        """The embedded image of that id, if it is still remembered."""
        with self._lock:
            return self._kept.get(name)

    def run(self, items: list[Item]) -> list[Any]:
        """For each the embedded image and the masks of each prompt, best first; or its ApiError."""
        return bisect(self._run, items, lambda error: [refusal(failed(error))], self._halve)

    def _run(self, items: list[Item]) -> list[tuple[Embedded, list[list[Mask]]]]:
        new = [place for place, item in enumerate(items) if item.known is None]
        maps = self._engine.encode([items[place].given for place in new]) if new else ()
        made = dict(zip(new, maps, strict=True))
        results = []
        for place, item in enumerate(items):
            embedded = item.known or Embedded(made[place], item.height, item.width)
            results.append((embedded, self._masks(embedded, item.prompts)))
        return results

    def _masks(self, embedded: Embedded, prompts: Sequence[Prompt]) -> list[list[Mask]]:
        boxes = np.array([each.box for each in prompts if each.box is not None], np.float32).reshape(-1, 4)
        size = embedded.height, embedded.width
        around = iter(self._engine.decode(embedded.maps, boxes, *size, self._chunk))
        found = []
        for each in prompts:
            if each.box is not None:
                masks = [next(around)]
            else:
                masks = self._engine.decode_labelled(embedded.maps, each.points, each.labels, *size)
            if any(mask is None for mask in masks):
                raise RowError(NOT_FINITE)
            found.append(sorted(masks, key=lambda mask: -mask.predicted_iou))
        return found

    def _halve(self, items: list[Item]) -> None:
        self._batch = max(1, min(self._batch, (len(items) + 1) // 2))
        free_memory()
