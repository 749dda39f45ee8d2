"""Images of one group that stand in different splits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def find_leaks(
    groups: NDArray[np.int64], splits: NDArray[np.int64], place: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """For each image, one of its group that stands in another split.

    Args:
        groups: int64 (images,): the group of each image, -1 for none.
        splits: int64 (images,): the split of each, -1 for none.
        place: int64 (images,): where each stands among all; of several the first is named.

    Returns:
        bool (images,): whether there is one; and int64 (images,): which, -1 where there is none.
    """
    leak = np.full(len(groups), -1, dtype=np.int64)
    known = np.flatnonzero((groups >= 0) & (splits >= 0))
    ordered = known[np.lexsort((place[known], groups[known]))]
    first = _first_of(ordered, groups)
    # A group leaks where an image stands elsewhere than the group's first one.
    elsewhere = ordered[splits[ordered] != splits[first[groups[ordered]]]]
    second = _first_of(elsewhere, groups)
    at_first = known[splits[known] == splits[first[groups[known]]]]
    leak[elsewhere] = first[groups[elsewhere]]
    leak[at_first] = second[groups[at_first]]
    return leak >= 0, leak


def choose_dropped(
    groups: NDArray[np.int64], splits: NDArray[np.int64], fixed: NDArray[np.bool_], sides: list[int]
) -> NDArray[np.bool_]:
    """Which images to drop so that no group stands in several splits, as far as that can be done.

    Args:
        groups: int64 (images,): the group of each image that leaks.
        splits: int64 (images,): its split.
        fixed: bool (images,): those that must stay.
        sides: Splits that images may be dropped from. Where a group stands in these alone, its images in the last of
            them stay.

    Returns:
        bool (images,).
    """
    numbers, group = np.unique(groups, return_inverse=True)
    stays = np.zeros((len(numbers), int(splits.max(initial=-1)) + 1), dtype=bool)
    staying = fixed | ~np.isin(splits, sides)
    stays[group[staying], splits[staying]] = True
    dropped = np.zeros(len(groups), dtype=bool)
    for side in reversed(sides):
        here = np.flatnonzero((splits == side) & ~fixed)
        if not len(here):
            continue
        elsewhere = stays.sum(axis=1) - stays[:, side] > 0
        dropped[here] = elsewhere[group[here]]
        stays[group[here[~dropped[here]]], side] = True
    return dropped


def _first_of(ordered: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first image of each group in a list of images; -1 for a group that has none there."""
    first = np.full(int(groups.max(initial=-1)) + 1, -1, dtype=np.int64)
    first[groups[ordered[::-1]]] = ordered[::-1]
    return first
