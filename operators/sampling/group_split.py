"""Which split each group of images goes to, so that every split has the number of images it wants."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from labelmill.operators.sampling.seeded import key_bytes

Numbers = NDArray[np.int64]


def homes(groups: Numbers, splits: Numbers, count: int, sides: int) -> Numbers:
    """Where most of the images of each group are, the first split among equals; -1 for a new group.

    Args:
        groups: The group of each image, from 0.
        splits: The split of each image, from 0; -1 for one without.
        count: Number of groups.
        sides: Number of splits.

    Returns:
        int64 (count,).
    """
    placed = splits >= 0
    cells = groups[placed] * sides + splits[placed]
    votes = np.bincount(cells, minlength=count * sides).reshape(count, sides)
    return np.where(votes.any(axis=1), votes.argmax(axis=1), -1)


def first_keys(keys: pa.ChunkedArray, owner: Numbers, sizes: Numbers) -> list[bytes]:
    """The smallest key of each group."""
    first = np.zeros(len(sizes), dtype=np.int64)
    first[owner] = np.arange(len(owner))
    several = np.flatnonzero(sizes[owner] > 1)
    last_to_first = several[pc.sort_indices(keys.take(pa.array(several)), sort_keys=[("", "descending")]).to_numpy()]
    first[owner[last_to_first]] = last_to_first
    return key_bytes(keys.take(pa.array(first)))


def place(sizes: Numbers, order: Numbers, draws: NDArray[np.uint64], room: list[int]) -> Numbers:
    """Choose a split for every new group: one with room for all of it, else the one with the most room.

    Args:
        sizes: Images in each group.
        order: Which group is placed when.
        draws: The chance of each group.
        room: How many images each split still takes. Changed in place.
    """
    chosen = []
    for size, draw in zip(sizes[order].tolist(), draws[order].tolist(), strict=True):
        fits = 0
        for free in room:
            if free >= size:
                fits += free
        if fits:
            point = draw % fits
            split = -1
            while point >= 0:
                split += 1
                if room[split] >= size:
                    point -= room[split]
        else:
            split = room.index(max(room))
        room[split] -= size
        chosen.append(split)
    placed = np.zeros(len(sizes), dtype=np.int64)
    placed[order] = chosen
    return placed


def fill_empty(placed: Numbers, sizes: Numbers, order: Numbers, room: list[int], members: Numbers) -> None:
    """Give a split that has no group the one whose move makes the counts worse by the least. Changes `placed`."""
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    free, members = np.array(room), members + np.bincount(placed, minlength=len(room))
    for target in np.flatnonzero(members == 0).tolist():
        movable = np.flatnonzero(members[placed] > 1)
        if not len(movable):
            continue
        source, size = free[placed[movable]], sizes[movable]
        harm = abs(source + size) + abs(free[target] - size) - abs(source) - abs(free[target])
        group = movable[np.lexsort((rank[movable], harm))[0]]
        free[placed[group]] += sizes[group]
        free[target] -= sizes[group]
        members[placed[group]] -= 1
        members[target] += 1
        placed[group] = target
