"""Which of many images that resemble each other are kept, when resemblance is no equivalence.

A, B and C in a row may each resemble the next without A resembling C. Here images are looked at in a given order, the
best first, and one is removed if it resembles an earlier one that was *kept*. So no two kept images resemble each
other, and every removed one resembles a kept one, which is not true of connected components.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

TOGETHER = 4096
"""Images of chains that are compared with each other at once."""

NONE = np.iinfo(np.int64).max
"""Where there is no such image."""


class Near(Protocol):
    """A kind of resemblance between n images, numbered by their rank from 0, the best."""

    def first(
        self, asked: NDArray[np.bool_], among: NDArray[np.bool_], parts: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """The earliest image that resembles each.

        Args:
            asked: bool (n,): for which images.
            among: bool (n,): which images it may be.
            parts: int64 (n,): it must be of another part. Images that look exactly the same must be of one.

        Returns:
            int64 (n,): the lowest rank that is lower than the image's own; `NONE` where there is none, and for images
            that were not asked for.
        """
        ...

    def among(self, ranks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """bool (m, m): which of m images resemble which."""
        ...


def choose(kinds: Sequence[Near], count: int, settled: int = 0) -> NDArray[np.int64]:
    """Keep the best of what resembles each other, in any of several ways.

    Most images are decided by one look at all of them: one without an earlier look-alike is kept, one whose earliest
    look-alike is kept is removed. What is left, the later images of chains, is decided in order.

    Args:
        kinds: Ways to resemble.
        count: How many images there are.
        settled: So many of the best are kept whatever they resemble.

    Returns:
        int64 (count,): the earliest kept image that each resembles, itself if it is kept.
    """
    everything = np.ones(count, dtype=bool)
    itself = np.arange(count)
    first = _first(kinds, itself >= settled, everything)
    kept = first == NONE
    kept_by = np.where(kept, itself, -1)
    sure = ~kept & kept[np.where(kept, 0, first)]
    kept_by[sure] = first[sure]

    undecided = np.flatnonzero(kept_by < 0)
    if not len(undecided):
        return kept_by
    # What is kept by now is asked for once; what is kept of the undecided, by each lot of them.
    best, lately = _first(kinds, kept_by < 0, kept), np.zeros(count, dtype=bool)
    for start in range(0, len(undecided), TOGETHER):
        ranks = undecided[start : start + TOGETHER]
        if lately.any():
            asked = np.zeros(count, dtype=bool)
            asked[ranks] = True
            best[ranks] = np.minimum(best[ranks], _first(kinds, asked, lately)[ranks])
        alike = np.logical_or.reduce([kind.among(ranks) for kind in kinds])
        for place, rank in enumerate(ranks.tolist()):
            earlier = ranks[:place][alike[place, :place] & kept[ranks[:place]]]
            nearest = min(int(best[rank]), int(earlier[0]) if len(earlier) else NONE)
            kept[rank] = lately[rank] = nearest == NONE
            kept_by[rank] = rank if nearest == NONE else nearest
    return kept_by


def _first(kinds: Sequence[Near], asked: NDArray[np.bool_], among: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.minimum.reduce([kind.first(asked, among) for kind in kinds])
