"""Puts every image into train, val or test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from hashlib import blake2b

import pyarrow as pa
from pydantic import Field, model_validator

from operators.base import DatasetOperator, OperatorError, OperatorParams, TableResult

SPLITS = ("train", "val", "test")
TOLERANCE = 1e-6


class Split(DatasetOperator):
    """Train, val and test in given shares, whole groups on one side.

    Rows with the same value of the `group` column share a split, so near-duplicates, frames of one film or pictures of
    one person never stand on both sides of an evaluation. A row whose group is null is a group of its own; so is every
    row when no `group` is given.

    Shares are met in images, not in groups. The wanted counts are the shares of all images, rounded by largest
    remainder. Groups are placed from the largest to the smallest, in the order of a seeded hash (BLAKE2b of the seed
    and the smallest key in the group) where sizes are equal; each goes to a split that still has room for all of it,
    drawn by the same hash in proportion to the room left, so that large groups are not all sent to train. A group that
    fits nowhere goes where the most room is left. With single images the counts are exact; with groups no split gets
    more than its count and the largest group less an image. Then a split that got nothing, however small its share,
    takes the group whose move harms the counts least, as long as another split keeps one.

    Images that arrive later: those whose group is known join it, the other new groups fill the shares of the total.
    Earlier images never move, so the shares are met as nearly as the new groups allow.

    Column `split`: string, one of the names with a positive share.
    """

    name = "split"

    class Params(OperatorParams):
        """Shares of train, val and test, which must sum to 1; one left out is 0.

        Attributes:
            train: Share of the images, 0…1.
            val: Share of the images, 0…1.
            test: Share of the images, 0…1.
            seed: Another seed gives another split.
            group: Column whose equal values keep images together, such as ``deduplicate.group``.
        """

        train: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
        val: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
        test: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
        seed: int = 0
        group: str | None = Field(None, min_length=1)

        @model_validator(mode="after")
        def _check(self) -> Split.Params:
            total = self.train + self.val + self.test
            if abs(total - 1) > TOLERANCE:
                raise ValueError(f"train, val and test must sum to 1 but sum to {round(total, 9):.9g}")
            return self

    def reads(self) -> tuple[str, ...]:
        return () if self.params.group is None else (self.params.group,)

    def writes(self) -> pa.Schema:
        return pa.schema([pa.field("split", pa.string())])

    def check(self, columns: Mapping[str, pa.DataType]) -> None:
        """Refuse a group column whose values cannot be compared, such as a vector or a list of detections."""
        super().check(columns)
        for column, found in columns.items():
            if pa.types.is_nested(found):
                raise OperatorError(
                    f"column {column!r} must hold one number or string an image but is {found}", ("group",)
                )

    def compute(self, new: pa.Table, old: pa.Table) -> TableResult:
        groups, before = self._groups(new), old.column("split").to_pylist()
        homes = _homes(self._groups(old), before)
        counts = Counter(split for split in before if split is not None)
        arrivals: dict[Hashable, list[str]] = {}
        for group, key in zip(groups, new.column("key").to_pylist(), strict=True):
            if group in homes:
                counts[homes[group]] += 1
            else:
                arrivals.setdefault(group, []).append(key)
        placed = _place(
            [_Group(name, keys, self.params.seed) for name, keys in arrivals.items()],
            {name: getattr(self.params, name) for name in SPLITS if getattr(self.params, name) > 0},
            counts,
            Counter(homes.values()),
        )
        splits = [homes[group] if group in homes else placed[group] for group in groups]
        return TableResult(pa.table({"split": pa.array(splits, pa.string())}))

    def _groups(self, table: pa.Table) -> list[Hashable]:
        """What each row's group is called; a pair for a row that stands alone among named groups."""
        ids = table.column("image_id").to_pylist()
        if self.params.group is None:
            return ids
        values = table.column(self.params.group).to_pylist()
        return [(None, image_id) if value is None else value for value, image_id in zip(values, ids, strict=True)]


class _Group:
    """Images that stay together: how many, and where the seeded hash puts them."""

    __slots__ = ("draw", "name", "rank", "size")

    def __init__(self, name: Hashable, keys: list[str], seed: int) -> None:
        digest = blake2b(f"{seed}\0{min(keys)}".encode("utf-8", "surrogatepass"), digest_size=24).digest()
        self.name = name
        self.size = len(keys)
        self.rank = digest[:16]
        self.draw = int.from_bytes(digest[16:], "big")


def _homes(groups: list[Hashable], splits: list[str | None]) -> dict[Hashable, str]:
    """Where each known group is: where most of its images are, the first of train, val, test among equals."""
    votes: dict[Hashable, Counter[str]] = {}
    for group, split in zip(groups, splits, strict=True):
        if split is not None:
            votes.setdefault(group, Counter())[split] += 1
    return {group: min(count, key=lambda name: (-count[name], SPLITS.index(name))) for group, count in votes.items()}


def _quotas(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole counts that sum to `total`, by largest remainder (Hamilton's method)."""
    scale = sum(shares.values())
    exact = {name: share / scale * total for name, share in shares.items()}
    quotas = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(shares, key=lambda name: (quotas[name] - exact[name], SPLITS.index(name)))
    for name in by_remainder[: total - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


def _place(
    groups: list[_Group], shares: Mapping[str, float], counts: Mapping[str, int], members: Counter[str]
) -> dict[Hashable, str]:
    """Choose a split for every new group.

    Args:
        groups: New groups.
        shares: Positive share of each split.
        counts: Images that each split has already.
        members: Groups that each split has already.
    """
    quotas = _quotas(shares, sum(counts.values()) + sum(group.size for group in groups))
    room = {name: quotas[name] - counts[name] for name in shares}
    placed: dict[Hashable, str] = {}
    members = Counter(members)
    for group in sorted(groups, key=lambda group: (-group.size, group.rank)):
        name = _draw(group, room)
        placed[group.name] = name
        members[name] += 1
        room[name] -= group.size
    for name in shares:
        if members[name]:
            continue
        movable = [group for group in groups if members[placed[group.name]] > 1]
        if movable:
            group = min(movable, key=lambda group: (_harm(group, room, placed[group.name], name), group.rank))
            room[placed[group.name]] += group.size
            room[name] -= group.size
            members[placed[group.name]] -= 1
            members[name] += 1
            placed[group.name] = name
    return placed


def _draw(group: _Group, room: Mapping[str, int]) -> str:
    """A split with room for the whole group, in proportion to the room; the one with the most room if there is none."""
    fits = [name for name in room if room[name] >= group.size]
    point = group.draw % sum(room[name] for name in fits) if fits else 0
    for name in fits:
        point -= room[name]
        if point < 0:
            return name
    return max(room, key=lambda name: room[name])


def _harm(group: _Group, room: Mapping[str, int], source: str, target: str) -> int:
    """By how many images the counts get worse when a group moves."""
    before = abs(room[source]) + abs(room[target])
    return abs(room[source] + group.size) + abs(room[target] - group.size) - before
