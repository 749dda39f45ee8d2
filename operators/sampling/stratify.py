"""Iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011): every class in every split, in the same shares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labelmill.operators.columns.rows import spans

_EXACT = 1e-6
"""Shares of counts are figures such as 0.1 × 30 = 3.0000000000000004."""


@dataclass(frozen=True, slots=True)
class Strata:
    """Which classes are in which group.

    Attributes:
        groups: int64 (pairs,): the group; every group is in at least one pair.
        classes: int64 (pairs,): the class.
        images: int64 (pairs,): how many images of the group show the class.
        wanted: float64 (classes, splits): how many images of the class a split is to have, less those it has already.
        last: The class that is placed last, however rare: that of images that show nothing and can go anywhere; or -1.
    """

    groups: NDArray[np.int64]
    classes: NDArray[np.int64]
    images: NDArray[np.int64]
    wanted: NDArray[np.float64]
    last: int


def place_by_class(
    sizes: NDArray[np.int64], order: NDArray[np.int64], strata: Strata, shares: list[float], room: list[int]
) -> NDArray[np.int64]:
    """Choose a split for every group, the rarest class first.

    The class with the fewest images that have no place yet is placed next, group after group: larger ones first, and
    those of the same classes together. A group goes to a split that has room for all of it and wants as many images of
    the class as it has, or else to one that wants any; of several to the one that is furthest behind, which is by how
    many images it lacks its share of what was placed so far, summed over the group's classes and that of all images.

    The order of classes and what a split wants are the paper's. There, the split that wants most of the class is next.
    For shares such as 0.8 and 0.1 that is the same one again and again, so what the first groups have in common (their
    size, their other classes) all goes there; and the counts of the splits become what they become.

    Args:
        sizes: int64 (groups,): images in each group.
        order: int64 (groups,): all groups in random order.
        strata: Classes of the groups.
        shares: Of each split, summing to 1.
        room: How many images each split still takes, summing to all of them. Changed in place.

    Returns:
        int64 (groups,): the split of each.
    """
    placing = _Placing(sizes, order, strata, shares, room)
    while placing.unplaced:
        placing.rarest_class()
    return placing.split_of


class _Placing:
    def __init__(
        self, sizes: NDArray[np.int64], order: NDArray[np.int64], strata: Strata, shares: list[float], room: list[int]
    ) -> None:
        self.sizes, self.strata, self.shares, self.room = sizes, strata, shares, room
        self.split_of = np.full(len(sizes), -1, dtype=np.int64)
        self.unplaced = int(sizes.sum())
        self.wanted: list[list[float]] = strata.wanted.tolist()
        total = len(self.wanted)
        self.remaining = np.bincount(strata.classes, weights=strata.images, minlength=total).astype(np.int64)
        self.left: list[int] = self.remaining.tolist()

        self.by_group = np.lexsort((strata.classes, strata.groups))
        self.of_group = np.searchsorted(strata.groups[self.by_group], np.arange(len(sizes) + 1))
        self.starts = self.of_group.tolist()
        self.classes = strata.classes[self.by_group].tolist()
        self.images = strata.images[self.by_group].tolist()
        self.alone = (sizes == 1) & (np.diff(self.of_group) == 1)

        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        alike = np.add.reduceat(_mix(strata.classes[self.by_group]), self.of_group[:-1]) if len(sizes) else place
        groups = strata.groups
        self.by_class = np.lexsort((place[groups], alike[groups], -sizes[groups], strata.classes))
        self.of_class = np.searchsorted(strata.classes[self.by_class], np.arange(total + 1))

    def rarest_class(self) -> None:
        """Place all groups of the class with the fewest images without a place."""
        open_classes = np.flatnonzero(self.remaining)
        later = open_classes == self.strata.last
        rarest = int(open_classes[np.lexsort((self.remaining[open_classes], later))[0]])
        pairs = self.by_class[self.of_class[rarest] : self.of_class[rarest + 1]]
        pairs = pairs[self.split_of[self.strata.groups[pairs]] < 0]
        groups, counts = self.strata.groups[pairs], self.strata.images[pairs]
        alone = self.alone[groups]
        self._one_by_one(rarest, groups[~alone], counts[~alone])
        # Single images of this class alone touch no other class: all but the last few are placed at once.
        rest = self._at_once(rarest, groups[alone])
        self._one_by_one(rarest, rest, np.ones(len(rest), dtype=np.int64))
        placed = self.by_group[spans(self.of_group, groups)]
        np.subtract.at(self.remaining, self.strata.classes[placed], self.strata.images[placed])

    def _one_by_one(self, rarest: int, groups: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        """Place groups in their order; `counts` is how many images of each show the rarest class."""
        chosen = []
        for group, size, count in zip(groups.tolist(), self.sizes[groups].tolist(), counts.tolist(), strict=True):
            pairs = range(self.starts[group], self.starts[group + 1])
            self.unplaced -= size
            for pair in pairs:
                self.left[self.classes[pair]] -= self.images[pair]
            split = self._choose(size, count, self.wanted[rarest], [self.classes[pair] for pair in pairs])
            chosen.append(split)
            self.room[split] -= size
            for pair in pairs:
                self.wanted[self.classes[pair]][split] -= self.images[pair]
        self.split_of[groups] = chosen

    def _choose(self, size: int, count: int, wanted: list[float], classes: list[int]) -> int:
        """The split for a group of `size` images with `classes`, `count` of them of the class of which `wanted` is."""
        room = self.room
        fits = [split for split, free in enumerate(room) if free >= size]
        if not fits:
            return room.index(max(room))
        wanting = [split for split in fits if wanted[split] >= count - _EXACT]
        wanting = wanting or [split for split in fits if wanted[split] > _EXACT]
        if not wanting:
            return max(fits, key=lambda split: wanted[split])
        if len(wanting) == 1:
            return wanting[0]
        best, most = -1, 0.0
        for split in wanting:
            share = self.shares[split]
            behind = room[split] - share * self.unplaced
            for number in classes:
                behind += self.wanted[number][split] - share * self.left[number]
            if best < 0 or behind > most + _EXACT:
                best, most = split, behind
        return best

    def _at_once(self, rarest: int, groups: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give every split the whole images that it wants of the class; the groups that are left over."""
        wanted, room = self.wanted[rarest], self.room
        whole = np.clip(np.floor(np.array(wanted) + _EXACT), 0, np.maximum(room, 0)).astype(np.int64)
        if whole.sum() > len(groups):
            whole = round_shares(whole / whole.sum(), len(groups))
        many = int(whole.sum())
        self.split_of[groups[:many]] = np.repeat(np.arange(len(room)), whole)
        self.unplaced -= many
        self.left[rarest] -= many
        for split, number in enumerate(whole.tolist()):
            room[split] -= number
            wanted[split] -= number
        return groups[many:]


def round_shares(shares: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Whole counts that sum to `total`, by largest remainder (Hamilton's method); the first among equals.

    Args:
        shares: Summing to 1.
        total: How many there are to share out.
    """
    exact = shares * total
    counts = exact.astype(np.int64)
    by_remainder = np.argsort(counts - exact, kind="stable")
    counts[by_remainder[: total - counts.sum()]] += 1
    return counts


def _mix(numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Numbers of which hardly any two sums are equal (the finaliser of SplitMix64, Steele et al. 2014)."""
    mixed = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
