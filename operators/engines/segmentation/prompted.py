"""What the engines of promptable segmentation models share: prompts in, masks out, a few at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from labelmill.operators.engines.segmentation.masks import Axis, Mask, masks
from labelmill.operators.models.device import inference

if TYPE_CHECKING:
    import torch

Kind = Literal["box", "point"]


class Prompted(ABC):
    """A `Segmenter` whose mask decoder gives small logits.

    Attributes:
        device: Where the model is.
        dtype: Arithmetic of its image encoder and its mask decoder.
    """

    device: torch.device
    dtype: torch.dtype

    @abstractmethod
    def prepare(self, pixels: np.ndarray) -> Any:
        """See `Segmenter`."""

    @abstractmethod
    def encode(self, items: Sequence[Any]) -> Sequence[Any]:
        """See `Segmenter`."""

    @abstractmethod
    def _predict(
        self,
        embedded: Any,
        prompts: np.ndarray,
        kind: Kind,
        size: tuple[int, int],
        labels: np.ndarray | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the mask decoder.

        Args:
            embedded: One image.
            prompts: float32 (n, 4), boxes as xyxy, or (n, 2 k), k points each as xy; in pixels of the image, n ≥ 1.
            kind: Which of the two. A box has one mask; a point, which could mean a whole or its parts, several.
            size: Height and width of the image.
            labels: int (n, k), of points: 1 for one on the object, 0 for one beside it; None if all are on it.

        Returns:
            Logits (n, masks of a prompt, h, w) and predicted IoU (n, masks of a prompt), float32.
        """

    @abstractmethod
    def _stages(self, height: int, width: int) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]:
        """How logits become the image's height, and its width: `Axis`'s `stages`."""

    def decode(self, embedded: Any, boxes: np.ndarray, height: int, width: int, chunk: int) -> list[Mask | None]:
        """See `Segmenter`."""
        return [mask for part in self._decode(embedded, boxes, "box", (height, width), chunk, None) for mask in part]

    def decode_points(
        self, embedded: Any, points: np.ndarray, height: int, width: int, chunk: int, floor: float
    ) -> list[Mask | None]:
        """See `Segmenter`."""
        parts = self._decode(embedded, points, "point", (height, width), chunk, floor)
        return [mask for part in parts for mask in part]

    def decode_labelled(
        self, embedded: Any, points: np.ndarray, labels: np.ndarray, height: int, width: int
    ) -> list[Mask | None]:
        """See `Segmenter`."""
        import torch

        prompts = points.reshape(1, -1)
        logits, predicted = self._predict(embedded, prompts, "point", (height, width), labels[None])
        with inference(self.device, torch.float32):
            pairs = zip(logits.shape[-2:], self._stages(height, width), strict=True)
            axes = [Axis(count, stages, self.device) for count, stages in pairs]
            return masks(logits[0], predicted[0], *axes)

    def _decode(
        self, embedded: Any, prompts: np.ndarray, kind: Kind, size: tuple[int, int], chunk: int, floor: float | None
    ) -> Iterator[list[Mask | None]]:
        """The masks of each chunk, prompt by prompt; with a floor, only of those whose predicted IoU is above it."""
        import torch

        axes: list[Axis] | None = None
        for start in range(0, len(prompts), chunk):
            logits, predicted = self._predict(embedded, prompts[start : start + chunk], kind, size)
            with inference(self.device, torch.float32):
                if axes is None:
                    pairs = zip(logits.shape[-2:], self._stages(*size), strict=True)
                    axes = [Axis(count, stages, self.device) for count, stages in pairs]
                logits, predicted = logits.flatten(0, 1), predicted.flatten()
                if floor is not None:
                    broken = ~(torch.isfinite(logits).flatten(1).all(dim=1) & torch.isfinite(predicted))
                    wanted = (predicted > floor) | broken
                    logits, predicted = logits[wanted], predicted[wanted]
                yield masks(logits, predicted, *axes)
