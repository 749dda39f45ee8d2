from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from random import Random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from labelmill.operators.applying.results import join_result
from labelmill.operators.base import KEPT, Decision
from labelmill.operators.errors import OperatorError
from labelmill.operators.split import Split

Row = tuple[int | None, str | None]


def operator(**params: object) -> Split:
    return Split(Split.Params.model_validate({"check": "source.split", "group": "g", **params}))


def table(rows: Sequence[Row], first: int = 1) -> pa.Table:
    numbers = range(first, first + len(rows))
    return pa.table(
        {
            "image_id": pa.array(numbers, pa.int64()),
            "key": pa.array([f"{number * 7919 % 10007:05d}.jpg" for number in numbers], pa.string()),
            "g": pa.array([group for group, _ in rows], pa.int64()),
            "source.split": pa.array([split for _, split in rows], pa.string()),
        }
    )


def decided(rows: pa.Table, leaks: Sequence[tuple[str | None, str | None]], decisions: Sequence[Decision]) -> pa.Table:
    for name, place in (("leak", 0), ("leak_split", 1)):
        rows = rows.append_column(name, pa.array([leak[place] for leak in leaks], pa.string()))
    return rows.append_column("decision", pa.array([one.decision for one in decisions], pa.string()))


def run(
    op: Split, new: pa.Table, old: pa.Table | None = None
) -> tuple[list[tuple[str | None, str | None]], list[Decision]]:
    op.check({name: new.schema.field(name).type for name in op.reads()})
    result = op.compute(new, decided(new.slice(0, 0), [], []) if old is None else old)
    assert result.columns is not None and result.columns.schema == op.writes()
    join_result(op, new.column("image_id"), np.arange(new.num_rows), result)
    leaks = list(zip(*(result.columns.column(name).to_pylist() for name in ("leak", "leak_split")), strict=True))
    return leaks, list(result.decisions or [KEPT] * new.num_rows)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"train": 0.8, "val": 0.2}, "check must stand without shares and stratify but stands with train"),
        ({"stratify": "c"}, "but stands with stratify"),
        ({"group": None}, "group must be given with check"),
        ({"check": None, "drop": "train", "train": 1}, "drop must stand with check"),
    ],
)
def test_parameters_that_do_not_fit_together_are_refused(params: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        operator(**params)


def test_columns_that_do_not_fit_are_refused() -> None:
    for kinds, param in (((pa.list_(pa.int8()), pa.string()), "group"), ((pa.int64(), pa.int64()), "check")):
        with pytest.raises(OperatorError) as error:
            operator().check(dict(zip(("g", "source.split"), kinds, strict=True)))
        assert error.value.param == (param,)


def test_it_decides_only_where_it_may_drop() -> None:
    assert operator().reads() == ("g", "source.split")
    assert [operator().decides, operator(drop="train").decides, Split.decides] == [False, True, False]
    assert operator().writes().names == ["leak", "leak_split"]


def test_an_image_on_the_other_side_is_named() -> None:
    rows = table(
        [(1, "train"), (1, "val"), (1, "test"), (2, "train"), (2, "train"), (None, "test"), (3, None), (3, "val")]
    )
    keys = rows.column("key").to_pylist()
    assert keys[2] < keys[1] < keys[0]
    leaks, decisions = run(operator(), rows)
    assert leaks == [(keys[2], "test"), (keys[2], "test"), (keys[1], "val"), *[(None, None)] * 5]
    assert decisions == [KEPT] * 8


def test_leaking_images_are_dropped_from_train() -> None:
    rows = table([(1, "train"), (1, "train"), (1, "test"), (2, "train"), (3, "val"), (3, "test")])
    keys = rows.column("key").to_pylist()
    leaks, decisions = run(operator(drop="train"), rows)
    dropped = Decision("dropped", f"leaks to test (same group as {keys[2]})")
    assert decisions == [dropped, dropped, *[KEPT] * 4]
    assert leaks[2] == (min(keys[:2]), "train")  # what was found stays to be read
    assert leaks[4] == (keys[5], "test")


def test_where_a_group_stands_only_in_splits_to_drop_from_one_stays() -> None:
    rows = table([(1, "train"), (1, "val"), (2, "train"), (2, "val"), (2, "test"), (3, "val"), (3, "test")])
    _, decisions = run(operator(drop=["train", "val"]), rows)
    assert [one.decision == "kept" for one in decisions] == [False, True, False, False, True, False, True]
    _, decisions = run(operator(drop=["val", "train"]), rows)
    assert [one.decision == "kept" for one in decisions] == [True, False, False, False, True, False, True]


def test_earlier_images_stay_and_later_ones_know_of_them() -> None:
    op = operator(drop=["train", "val"])
    first = table([(1, "train"), (2, "test"), (3, "train"), (3, "test")])
    leaks, decisions = run(op, first)
    keys = first.column("key").to_pylist()
    old = decided(first, leaks, decisions)
    new = table([(1, "test"), (1, "val"), (2, "train"), (3, "test")], 101)
    leaks, decisions = run(op, new, old)
    assert [one.decision for one in decisions] == ["kept", "dropped", "dropped", "kept"]
    assert leaks[2] == (keys[1], "test")
    assert leaks[3] == (keys[2], "train")  # it was found, though it was dropped
    assert {leak for leak, _ in leaks[:1]} <= {keys[0], new.column("key")[1].as_py()}


def test_hardly_any_images() -> None:
    for op in (operator(), operator(drop="train")):
        assert run(op, table([])) == ([], [])
        assert run(op, table([(1, "train")])) == ([(None, None)], [KEPT])
        assert run(op, table([(None, None)] * 2)) == ([(None, None)] * 2, [KEPT] * 2)


rows = st.lists(
    st.tuples(st.none() | st.integers(0, 8), st.none() | st.sampled_from(["train", "val", "test", "extra"])),
    max_size=40,
)
sides = st.lists(st.sampled_from(["train", "val", "test", "nowhere"]), unique=True, max_size=3)


@settings(max_examples=120, deadline=None)
@given(rows, sides, st.randoms(use_true_random=False))
def test_the_same_as_brute_force_in_any_order(found: list[Row], drop: list[str], random: Random) -> None:
    op, new = operator(drop=drop), table(found)
    keys = new.column("key").to_pylist()
    leaks, decisions = run(op, new)
    there = defaultdict(set)
    for group, split in found:
        if group is not None and split is not None:
            there[group].add(split)
    for row, (group, split) in enumerate(found):
        others = [
            (key, side)
            for key, (other, side) in zip(keys, found, strict=True)
            if group is not None and other == group and None not in (split, side) and side != split
        ]
        assert leaks[row] == min(others, default=(None, None))
        # The side of a group that is listed latest, or that is not listed, stays.
        order = {name: place for place, name in enumerate(drop)}
        goes = bool(others) and split in order and any(order.get(one, 99) > order[split] for one in there[group])
        assert decisions[row].decision == ("dropped" if goes else "kept")
    left = defaultdict(set)
    for (group, split), one in zip(found, decisions, strict=True):
        if one.decision == "kept" and group is not None and split is not None:
            left[group].add(split)
    assert all(len(splits - set(drop)) == len(splits) or len(splits) == 1 for splits in left.values())

    order = list(range(len(found)))
    random.shuffle(order)
    shuffled_leaks, shuffled = run(op, new.take(pa.array(order, pa.int64())))
    assert shuffled_leaks == [leaks[row] for row in order]
    assert shuffled == [decisions[row] for row in order]


@settings(max_examples=60, deadline=None)
@given(rows, rows)
def test_what_is_found_does_not_depend_on_when_images_came(first: list[Row], later: list[Row]) -> None:
    op = operator()
    together, _ = run(op, pa.concat_tables([table(first), table(later, 1000)]))
    old = decided(table(first), *run(op, table(first)))
    assert run(op, table(later, 1000), old)[0] == together[len(first) :]
