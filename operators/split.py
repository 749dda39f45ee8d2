"""Puts every image into train, val or test; or finds what leaks between the splits that a dataset came with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from labelmill.operators.base import KEPT, DatasetOperator, Decision, OperatorParams, TableResult
from labelmill.operators.columns.image_classes import NONE, check_classes, read_classes
from labelmill.operators.columns.rows import codes, old_then_new
from labelmill.operators.errors import OperatorError
from labelmill.operators.sampling.group_split import fill_empty, first_keys, homes, place
from labelmill.operators.sampling.leaks import choose_dropped, find_leaks
from labelmill.operators.sampling.seeded import seeded_hashes
from labelmill.operators.sampling.stratify import Strata, place_by_class, round_shares

SPLITS = ("train", "val", "test")
TOLERANCE = 1e-6

Numbers = NDArray[np.int64]


class Split(DatasetOperator):
    """Train, val and test in given shares, whole groups on one side; or a check of the splits that are there.

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

    With `stratify` every class is split in the same shares too, by iterative stratification (Sechidis, Tsoumakas and
    Vlahavas 2011; operators/sampling/stratify.py): the rarest class is placed first, and its groups go to the splits
    that still want images of it, instead of by that draw. An image may show several classes; one without a class (null,
    or an empty list) is of class ``none``. Of a class that is met alone in its images, every split gets its share to
    within an image or two; whatever the classes, all that is said above about counts and groups holds.

    Images that arrive later: those whose group is known join it, the other new groups fill the shares of the total.
    Earlier images never move, so the shares are met as nearly as the new groups allow.

    Column `split`: string, one of the names with a positive share.

    With `check` no split is made. ``split: {check: source.split, group: deduplicate.group}`` finds the images whose
    group stands in several splits of an imported dataset. Columns `leak`, the key of an image of the same group in
    another split (the first by key), and `leak_split`, the split of that image; both are null where nothing leaks. All
    images stay, unless `drop` names splits to drop them from: with ``drop: train`` an image of train leaves where its
    group stands in another split as well. Copies that a step above has dropped are not seen: group by a hash above
    that step, such as ``inspect.pixel_hash``, or let it drop none. Earlier images stay: a new image of test is told
    that it leaks to an earlier one of train, but neither is dropped.
    """

    name = "split"

    class Params(OperatorParams):
        """Shares of train, val and test, which must sum to 1; one left out is 0. Or what to check.

        Attributes:
            train: Share of the images, 0…1.
            val: Share of the images, 0…1.
            test: Share of the images, 0…1.
            seed: Another seed gives another split.
            group: Column whose equal values keep images together, such as ``deduplicate.group``.
            stratify: Column of the classes to split evenly: one class an image such as ``classify.class``, a list of
                classes, or detections such as ``source.labels``.
            check: Column of the splits to check instead of making some, such as ``source.split``; needs `group`.
            drop: With `check`, the splits to drop leaking images from, such as ``train`` or ``[train, val]``. Where a
                group stands in these alone, its images in the last of them stay.
        """

        train: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
        val: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
        test: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
        seed: int = 0
        group: str | None = Field(None, min_length=1)
        stratify: str | None = Field(None, min_length=1)
        check: str | None = Field(None, min_length=1)
        drop: tuple[str, ...] = ()

        @field_validator("drop", mode="before")
        @classmethod
        def _one(cls, value: Any) -> Any:
            return (value,) if isinstance(value, str) else value

        @model_validator(mode="after")
        def _check(self) -> Split.Params:
            if self.check is not None:
                given = [name for name in (*SPLITS, "stratify") if getattr(self, name)]
                if given:
                    raise ValueError(f"check must stand without shares and stratify but stands with {given[0]}")
                if self.group is None:
                    raise ValueError("group must be given with check: the column whose equal values must not be apart")
                return self
            if self.drop:
                raise ValueError("drop must stand with check, the column of the splits to drop from, but stands alone")
            total = self.train + self.val + self.test
            if abs(total - 1) > TOLERANCE:
                raise ValueError(f"train, val and test must sum to 1 but sum to {round(total, 9):.9g}")
            return self

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        # Splitting drops nothing: steps below must not run again when it changes.
        self.decides = bool(params.drop)  # type: ignore[misc]

    def reads(self) -> tuple[str, ...]:
        wanted = (self.params.group, self.params.stratify, self.params.check)
        return tuple(dict.fromkeys(column for column in wanted if column is not None))

    def writes(self) -> pa.Schema:
        names = ["split"] if self.params.check is None else ["leak", "leak_split"]
        return pa.schema([pa.field(name, pa.string()) for name in names])

    def check(self, columns: Mapping[str, pa.DataType]) -> None:
        """Refuse a group that cannot be compared, classes that are none, and splits that are not names."""
        super().check(columns)
        group, stratify, check = self.params.group, self.params.stratify, self.params.check
        if group is not None and pa.types.is_nested(columns[group]):
            message = f"column {group!r} must hold one number or string an image but is {columns[group]}"
            raise OperatorError(message, ("group",))
        if stratify is not None:
            check_classes(stratify, columns[stratify], "stratify")
        if check is not None and not pa.types.is_string(columns[check]):
            raise OperatorError(f"column {check!r} must hold the names of splits but is {columns[check]}", ("check",))

    def compute(self, new: pa.Table, old: pa.Table) -> TableResult:
        return self._split(new, old) if self.params.check is None else self._leaks(new, old)

    def _split(self, new: pa.Table, old: pa.Table) -> TableResult:
        before, groups = _numbers(old.column("split")), self._groups(new, old)
        home = homes(groups[: old.num_rows], before, int(groups.max(initial=-1)) + 1, len(SPLITS))
        known, splits = home[groups[old.num_rows :]], np.full(new.num_rows, -1, dtype=np.int64)
        counts = np.bincount(np.concatenate([before[before >= 0], known[known >= 0]]), minlength=len(SPLITS))

        arrivals = np.flatnonzero(known < 0)
        _, owner, sizes = np.unique(groups[old.num_rows + arrivals], return_inverse=True, return_counts=True)
        hashes = seeded_hashes(
            first_keys(new.column("key").take(pa.array(arrivals)), owner, sizes), f"{self.params.seed}\0"
        )
        order = np.lexsort((hashes[:, 1], hashes[:, 0], -sizes))

        used = [number for number, name in enumerate(SPLITS) if getattr(self.params, name) > 0]
        shares = np.array([getattr(self.params, SPLITS[number]) for number in used])
        shares /= shares.sum()
        quotas = round_shares(shares, int(counts.sum() + sizes.sum()))
        room = (quotas - counts[used]).tolist()
        if self.params.stratify is None:
            placed = place(sizes, order, hashes[:, 2], room)
        else:
            rows = np.concatenate([before, known])
            strata = self._strata(new, old, rows, owner, [*used], shares)
            placed = place_by_class(sizes, order, strata, shares.tolist(), room)
        members = np.bincount(home[home >= 0], minlength=len(SPLITS))[used]
        fill_empty(placed, sizes, order, room, members)
        splits = known.copy()
        splits[arrivals] = np.array(used, dtype=np.int64)[placed[owner]]
        return TableResult(pa.table({"split": _texts(splits)}))

    def _groups(self, new: pa.Table, old: pa.Table) -> Numbers:
        """A number for the group of each row, the old ones first."""
        rows = old.num_rows + new.num_rows
        if self.params.group is None:
            return np.arange(rows)
        groups, distinct = codes(old_then_new(self.params.group, new, old))
        return np.where(groups >= 0, groups, len(distinct) + np.arange(rows))

    def _strata(
        self,
        new: pa.Table,
        old: pa.Table,
        splits: Numbers,
        owner: Numbers,
        used: list[int],
        shares: NDArray[np.float64],
    ) -> Strata:
        """What each class is to have, less what it has in rows with a split already; and the classes of the new groups.

        Args:
            new: The new rows.
            old: The old rows.
            splits: Of all rows, the old ones first; -1 for those without one.
            owner: The group of each new row without a split.
            used: Splits with a positive share.
            shares: Theirs.
        """
        found = read_classes(old_then_new(self.params.stratify, new, old))
        total = len(found.names)
        where = splits[found.images]
        seen = (found.images >= old.num_rows) | (where >= 0)
        have = np.bincount(found.classes[where >= 0] * len(SPLITS) + where[where >= 0], minlength=total * len(SPLITS))
        images = np.bincount(found.classes[seen], minlength=total)
        wanted = images[:, None] * shares - have.reshape(total, len(SPLITS))[:, used]

        group = np.full(len(splits), -1, dtype=np.int64)
        group[old.num_rows + np.flatnonzero(splits[old.num_rows :] < 0)] = owner
        of_group = group[found.images]
        pairs, counts = np.unique(of_group[of_group >= 0] * total + found.classes[of_group >= 0], return_counts=True)
        groups, classes = np.divmod(pairs, max(1, total))
        last = found.names.index(NONE) if NONE in found.names else -1
        return Strata(groups, classes, counts.astype(np.int64), wanted, last)

    def _leaks(self, new: pa.Table, old: pa.Table) -> TableResult:
        groups, _ = codes(old_then_new(self.params.group, new, old))
        splits, distinct = codes(old_then_new(self.params.check, new, old))
        names = distinct.to_pylist()
        keys = old_then_new("key", new, old).cast(pa.large_string())
        place = np.empty(len(keys), dtype=np.int64)
        place[pc.sort_indices(keys).to_numpy()] = np.arange(len(keys))
        leaking, other = find_leaks(groups, splits, place)

        where = pa.array(other[old.num_rows :], mask=~leaking[old.num_rows :])
        leak = keys.take(where).cast(pa.string()).combine_chunks()
        of_other = np.where(leaking, splits[other], -1)[old.num_rows :]
        leak_split = pa.array(names, pa.string()).take(pa.array(of_other, mask=of_other < 0))
        columns = pa.table([leak, leak_split], schema=self.writes())
        if not self.params.drop:
            return TableResult(columns)
        fixed = np.zeros(len(keys), dtype=bool)
        fixed[: old.num_rows] = pc.equal(old.column("decision"), "kept").to_numpy()
        there = np.flatnonzero(leaking & (fixed | (np.arange(len(keys)) >= old.num_rows)))
        sides = [names.index(name) for name in self.params.drop if name in names]
        dropped = there[choose_dropped(groups[there], splits[there], fixed[there], sides)] - old.num_rows
        decisions = [KEPT] * new.num_rows
        where = pa.array(dropped)
        for row, key, split in zip(
            dropped.tolist(), leak.take(where).to_pylist(), leak_split.take(where).to_pylist(), strict=True
        ):
            decisions[row] = Decision("dropped", f"leaks to {split} (same group as {key})")
        return TableResult(columns, decisions)


def _numbers(splits: pa.ChunkedArray) -> Numbers:
    """Places in `SPLITS`, -1 for null."""
    return pc.fill_null(pc.index_in(splits, pa.array(SPLITS)), -1).to_numpy().astype(np.int64)


def _texts(splits: Numbers) -> pa.Array:
    return pa.array(SPLITS, pa.string()).take(pa.array(splits))
