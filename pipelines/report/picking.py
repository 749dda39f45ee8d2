"""Few out of many, while they pass by: the best by a figure, or drawn evenly. The order of passing does not matter."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labelmill.operators.sampling.seeded import seeded_hashes


class Lowest:
    """The images with the lowest figures; of equal ones those with the lowest image_id.

    Args:
        count: How many.

    Attributes:
        seen: How many images passed by.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self.seen = 0
        self.figures: NDArray[np.float64] = np.empty(0)
        self.ids: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def add(self, ids: NDArray[np.int64], figures: NDArray[np.floating]) -> NDArray[np.int64]:
        """Look at some more.

        Returns:
            Which of the candidates there are now: places among those of before followed by the new ones.
        """
        self.seen += len(ids)
        all_ids = np.concatenate([self.ids, ids])
        all_figures = np.concatenate([self.figures, figures.astype(np.float64)])
        best = np.lexsort((all_ids, all_figures))[: self._count]
        self.ids, self.figures = all_ids[best], all_figures[best]
        return best


def draw(ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """A figure for each image_id, evenly spread over 0…1 and the same in every report; the lowest are an even draw."""
    hashes = seeded_hashes((str(image_id).encode() for image_id in ids.tolist()), "report:")
    return hashes[:, 0].astype(np.float64) / 2.0**64
