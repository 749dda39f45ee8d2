"""Pairs of 64-bit hashes at most a few bits apart, all of them, without comparing all with all.

By the pigeonhole principle: cut the 64 bits into `parts`; at most `distance` of them hold a bit that differs, so two
hashes that near agree in some `parts - distance` parts. For each choice of that many parts, hashes that agree there
are compared and no others (Norouzi et al. 2012, Multi-Index Hashing, is the case of one part). More parts mean more
choices, each with fewer hashes to compare. With N hashes spread evenly a choice that fixes b bits costs N²/2ᵇ/2
comparisons, so it pays to fix about log2 N bits: ten million hashes at distance 4 are cut into 6 parts, and each of
the 15 choices of 2 fixes 21 bits.

Hashes of real pictures are not spread evenly: many agree on many bits. Those that agree are looked at from the
earliest on, and one that has found its answer is looked at no more, so a million copies cost a million comparisons.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise
from math import comb

import numpy as np
from numpy.typing import NDArray

from labelmill.operators.duplicates.representatives import NONE

BITS = 64
KEY_BITS = 27
"""Bits by which images are sorted; the other 37 of a number hold the entry."""


class NearHashes:
    """`operators.duplicates.representatives.Near`, by Hamming distance.

    Args:
        hashes: uint64 (n,) in order of rank, or (n, variants): an image resembles an earlier one if its first hash is
            near any of the earlier one's.
        distance: Bits that may differ, 0 to 16.
    """

    def __init__(self, hashes: NDArray[np.uint64], distance: int) -> None:
        if hashes.dtype != np.uint64 or hashes.ndim not in (1, 2):
            raise ValueError(f"hashes must be uint64 of 1 or 2 dimensions but are {hashes.dtype} of {hashes.ndim}")
        if not 0 <= distance <= 16:
            raise ValueError(f"distance must be from 0 to 16 but is {distance}")
        self._hashes = hashes if hashes.ndim == 2 else hashes[:, None]
        self._distance = distance
        self._distinct: NDArray[np.bool_] | None = None

    def first(
        self, asked: NDArray[np.bool_], among: NDArray[np.bool_], parts: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """See `Near`."""
        count, variants = self._hashes.shape
        if parts is not None:
            # What the first of equal ones has no near one in another part for, none of them has.
            distinct = self._first_of_equal()
            asked, among = asked & distinct, among & distinct
        found = np.full(count, NONE)
        if not (asked.any() and among.any()):
            return found
        # An entry is a variant of an image that may be found, or the first hash of one that asks.
        wanted = np.repeat(among, variants)
        wanted[::variants] |= asked
        entries = np.flatnonzero(wanted)
        for chosen in _choices(len(entries), self._distance):
            self._first_agreeing(chosen, entries, asked, among, parts, found)
        return found

    def _first_of_equal(self) -> NDArray[np.bool_]:
        if self._distinct is None:
            self._distinct = np.zeros(len(self._hashes), dtype=bool)
            self._distinct[np.unique(self._hashes, axis=0, return_index=True)[1]] = True
        return self._distinct

    def among(self, ranks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """See `Near`."""
        own, other = self._hashes[ranks, 0], self._hashes[ranks]
        far = np.full((len(ranks), len(ranks)), BITS, dtype=np.uint8)
        for variant in range(other.shape[1]):
            np.minimum(far, np.bitwise_count(own[:, None] ^ other[None, :, variant]), out=far)
        near = far <= self._distance
        # The later one asks with its first hash; the relation is used from later to earlier only.
        lower = np.tril(near)
        return lower | lower.T

    def _first_agreeing(
        self,
        chosen: Choice,
        entries: NDArray[np.int64],
        asked: NDArray[np.bool_],
        among: NDArray[np.bool_],
        parts: NDArray[np.int64] | None,
        found: NDArray[np.int64],
    ) -> None:
        """Lower `found` to the earliest among those that agree in the chosen bits."""
        variants = self._hashes.shape[1]
        flat = self._hashes.reshape(-1)
        keys = _bits(flat[entries], chosen)
        if not asked.all():
            with_asker = np.zeros(1 << KEY_BITS, dtype=bool)
            with_asker[_bits(self._hashes[asked, 0], chosen)] = True
            some = with_asker[keys]
            entries, keys = entries[some], keys[some]
        # One number sorts by key, and within a key by entry, which is by rank.
        joined = np.sort(keys << np.uint64(64 - KEY_BITS) | entries.astype(np.uint64))
        keys = joined >> np.uint64(64 - KEY_BITS)
        entries = (joined & np.uint64((1 << (64 - KEY_BITS)) - 1)).astype(np.int64)
        begins = np.ones(len(keys), dtype=bool)
        begins[1:] = keys[1:] != keys[:-1]
        start = np.flatnonzero(begins)[np.cumsum(begins) - 1]
        ranks, hashes = entries // variants, flat[entries]
        place = np.flatnonzero(asked[ranks] & (entries % variants == 0) & ~begins)
        other = start[place]
        while len(place):
            own, candidate = ranks[place], ranks[other]
            # Candidates come in order of rank: after this one none is earlier than the image or than what is found.
            useful = candidate < np.minimum(own, found[own])
            hit = useful & among[candidate]
            if parts is not None:
                hit &= parts[own] != parts[candidate]
            hit &= np.bitwise_count(hashes[place] ^ hashes[other]) <= self._distance
            found[own[hit]] = candidate[hit]
            place, other = place[useful & ~hit], other[useful & ~hit] + 1
            going = other < place
            place, other = place[going], other[going]


Choice = tuple[tuple[int, int], ...]
"""Runs of bits: the lowest, and how many."""


def _bits(hashes: NDArray[np.uint64], chosen: Choice) -> NDArray[np.uint64]:
    """The chosen bits of each hash in one number, at most `KEY_BITS` of them."""
    joined = np.zeros_like(hashes)
    for low, width in chosen:
        joined = joined << np.uint64(width) | (hashes >> np.uint64(low) & np.uint64((1 << width) - 1))
    return joined & np.uint64((1 << KEY_BITS) - 1)


def _choices(count: int, distance: int) -> Iterator[Choice]:
    """Choices of bits such that hashes at most `distance` apart agree in all bits of at least one of them."""

    def cost(parts: int) -> float:
        """Of sorting and comparing, for each choice; what is learned from bits is worth less than what they promise."""
        bits = min(KEY_BITS, BITS * (parts - distance) / parts)
        return comb(parts, distance) * (20 + count / 2**bits)

    parts = min(range(distance + 1, min(BITS, distance + 12) + 1), key=cost)
    edges = [round(BITS * number / parts) for number in range(parts + 1)]
    runs = [(low, high - low) for low, high in pairwise(edges)]
    yield from combinations(runs, parts - distance)
