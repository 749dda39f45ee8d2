from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from random import Random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.operators.errors import OperatorError
from labelmill.operators.split import SPLITS, Split

CLASSES = pa.list_(pa.string())
NAMES = ["ant", "bee", "cat", "dog"]

Row = tuple[list[str], int | None]


def operator(**params: object) -> Split:
    return Split(Split.Params.model_validate({"stratify": "c", **params}))


def table(
    classes: Sequence[object], kind: pa.DataType, groups: Sequence[int | None] | None = None, first: int = 1
) -> pa.Table:
    rows = range(first, first + len(classes))
    return pa.table(
        {
            "image_id": pa.array(rows, pa.int64()),
            "key": pa.array([f"{row:05d}.jpg" for row in rows], pa.string()),
            "c": pa.array(classes, kind),
            "g": pa.array(groups or [None] * len(classes), pa.int64()),
        }
    )


def decided(rows: pa.Table, splits: Sequence[str]) -> pa.Table:
    rows = rows.append_column("split", pa.array(splits, pa.string()))
    return rows.append_column("decision", pa.array(["kept"] * rows.num_rows, pa.string()))


def run(op: Split, new: pa.Table, old: pa.Table | None = None) -> list[str]:
    op.check({name: new.schema.field(name).type for name in op.reads()})
    result = op.compute(new, decided(new.slice(0, 0), []) if old is None else old)
    assert result.columns is not None and result.decisions is None
    return result.columns.column("split").to_pylist()


def iterative_stratification(lists: Sequence[Sequence[str]], shares: Sequence[float], random: Random) -> list[int]:
    """The paper's algorithm, word for word (Sechidis et al. 2011, figure 1), for single images."""
    left = list(range(len(lists)))
    random.shuffle(left)
    size = [share * len(left) for share in shares]
    total = Counter(name for names in lists for name in set(names))
    wanted = {name: [share * total[name] for share in shares] for name in total}
    placed = [-1] * len(lists)
    while left:
        remaining = Counter(name for row in left for name in set(lists[row]))
        rarest = min(remaining, key=lambda name: (remaining[name], random.random())) if remaining else None
        for row in [row for row in left if rarest is None or rarest in lists[row]]:
            need = wanted[rarest] if rarest is not None else size
            split = max(range(len(shares)), key=lambda one: (need[one], size[one], random.random()))
            placed[row] = split
            left.remove(row)
            size[split] -= 1
            for name in set(lists[row]):
                wanted[name][split] -= 1
    return placed


def distance(lists: Sequence[Sequence[str]], splits: Sequence[int], shares: Sequence[float]) -> float:
    """By how many images, on the average over classes and splits, the counts are off."""
    total = Counter(name for names in lists for name in set(names))
    have = Counter((name, split) for names, split in zip(lists, splits, strict=True) for name in set(names))
    return float(
        np.mean([abs(have[name, split] - share * total[name]) for name in total for split, share in enumerate(shares)])
    )


@st.composite
def shares(draw: st.DrawFn) -> dict[str, float]:
    parts = draw(st.lists(st.integers(0, 10), min_size=3, max_size=3).filter(any))
    return {name: part / sum(parts) for name, part in zip(SPLITS, parts, strict=True)}


rows_with_groups = st.lists(
    st.tuples(st.lists(st.sampled_from(NAMES), max_size=3), st.none() | st.integers(0, 12)), max_size=50
)


@pytest.mark.parametrize("kind", [pa.float32(), pa.list_(pa.float16(), 4), pa.list_(pa.struct([("x1", pa.int64())]))])
def test_a_column_without_classes_is_refused(kind: pa.DataType) -> None:
    with pytest.raises(OperatorError, match="must hold one class an image") as error:
        operator(train=1).check({"c": kind})
    assert error.value.param == ("stratify",)


def test_reads_the_group_and_the_classes() -> None:
    assert operator(train=1).reads() == ("c",)
    assert operator(train=1, group="g").reads() == ("g", "c")
    assert operator(train=1, group="c").reads() == ("c",)


def test_every_class_is_split_in_the_same_shares() -> None:
    names = ["car"] * 700 + ["bus"] * 200 + ["bird"] * 100
    splits = run(operator(train=0.7, val=0.2, test=0.1), table(names, pa.string()))
    assert Counter(zip(names, splits, strict=True)) == {
        ("car", "train"): 490,
        ("car", "val"): 140,
        ("car", "test"): 70,
        ("bus", "train"): 140,
        ("bus", "val"): 40,
        ("bus", "test"): 20,
        ("bird", "train"): 70,
        ("bird", "val"): 20,
        ("bird", "test"): 10,
    }


def test_what_is_rounded_off_in_one_class_is_made_up_for_in_the_next() -> None:
    """100 classes of three images: 2.4, 0.3 and 0.3 of each."""
    names = [row % 100 for row in range(300)]
    splits = run(operator(train=0.8, val=0.1, test=0.1), table(names, pa.int64()))
    assert Counter(splits) == {"train": 240, "val": 30, "test": 30}
    of_class = defaultdict(Counter)
    for name, split in zip(names, splits, strict=True):
        of_class[name][split] += 1
    assert min(count["train"] for count in of_class.values()) == 2
    assert max(max(count["val"], count["test"]) for count in of_class.values()) == 1


def test_images_without_a_class_are_a_class() -> None:
    values = [["car"]] * 100 + [[]] * 50 + [None] * 50
    splits = run(operator(train=0.8, test=0.2), table(values, CLASSES))
    assert Counter(splits[:100]) == Counter(splits[100:]) == {"train": 80, "test": 20}


def test_detections_are_classes() -> None:
    def detection(name: str) -> dict[str, object]:
        return {field.name: name if field.name == "class" else None for field in DETECTIONS.value_type}

    lists = [["car"] * 3] * 60 + [["bus", "car"]] * 20 + [["bus"]] * 20
    values = [[detection(name) for name in names] for names in lists]
    op = operator(train=0.5, test=0.5)
    splits = run(op, table(values, DETECTIONS))
    assert splits == run(op, table(lists, CLASSES))
    for name, half in (("car", 40), ("bus", 20)):
        assert sum(split == "test" for names, split in zip(lists, splits, strict=True) if name in names) == half


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 20), max_size=80), shares(), st.integers(0, 2))
def test_single_classes_are_within_an_image_or_two(classes: list[int], wanted: dict[str, float], seed: int) -> None:
    splits = run(operator(**wanted, seed=seed), table(classes, pa.int64()))
    total, have = Counter(classes), Counter(zip(classes, splits, strict=True))
    counts = Counter(splits)
    for name, share in wanted.items():
        forced = sum(1 for share in wanted.values() if 0 < share * len(classes) < 1)
        assert abs(counts[name] - share * len(classes)) < 1 + forced
        assert all(abs(have[one, name] - share * total[one]) < 2 + forced for one in total)


@settings(max_examples=120, deadline=None)
@given(rows_with_groups, shares(), st.integers(0, 2), st.randoms(use_true_random=False))
def test_groups_stay_whole_shares_are_met_and_order_does_not_matter(
    rows: list[Row], wanted: dict[str, float], seed: int, random: Random
) -> None:
    op = operator(**wanted, seed=seed, group="g")
    new = table([names for names, _ in rows], CLASSES, [group for _, group in rows])
    splits = run(op, new)
    names = [group if group is not None else (None, row) for row, (_, group) in enumerate(rows)]
    homes = defaultdict(set)
    for name, split in zip(names, splits, strict=True):
        homes[name].add(split)
    assert all(len(home) == 1 for home in homes.values())
    positive = {name for name, share in wanted.items() if share > 0}
    assert set(splits) <= positive
    assert len(homes) < len(positive) or set(splits) == positive
    largest, counts = max(Counter(names).values(), default=0), Counter(splits)
    assert all(counts[name] - wanted[name] * len(rows) < 2 * largest + 1 for name in positive)

    order = list(range(len(rows)))
    random.shuffle(order)
    assert run(op, new.take(pa.array(order, pa.int64()))) == [splits[row] for row in order]


@settings(max_examples=80, deadline=None)
@given(rows_with_groups, rows_with_groups, shares())
def test_earlier_images_never_move_and_later_ones_join_their_group(
    first: list[Row], later: list[Row], wanted: dict[str, float]
) -> None:
    op = operator(**wanted, group="g")
    before_rows = table([names for names, _ in first], CLASSES, [group for _, group in first])
    before = run(op, before_rows)
    new = table([names for names, _ in later], CLASSES, [group for _, group in later], 1000)
    after = run(op, new, decided(before_rows, before))
    home: dict[int, str] = {}
    for (_, group), split in zip([*first, *later], [*before, *after], strict=True):
        if group is not None:
            assert home.setdefault(group, split) == split
    backwards = new.take(pa.array(range(new.num_rows - 1, -1, -1), pa.int64()))
    assert run(op, backwards, decided(before_rows, before)) == after[::-1]


def test_later_images_make_up_for_what_earlier_ones_lack() -> None:
    old = decided(table(["car"] * 100 + ["bus"] * 100, pa.string()), ["train"] * 150 + ["val"] * 50)
    new = table(["car"] * 100 + ["bus"] * 100, pa.string(), first=201)
    splits = run(operator(train=0.5, val=0.5), new, old)
    # Of 200 cars 100 are in train already; of 200 buses 50 are in each.
    assert Counter(splits[:100]) == {"val": 100}
    assert Counter(splits[100:]) == {"train": 50, "val": 50}


def test_large_groups_reach_every_split_in_proportion() -> None:
    """30 groups of 50 images among 1,500 single ones."""
    groups: list[int | None] = [None] * 1500 + [row // 50 for row in range(1500)]
    names = [["car", "bus"][row % 2] for row in range(3000)]
    splits = run(operator(train=0.8, val=0.1, test=0.1, group="g"), table(names, pa.string(), groups))
    assert Counter(splits) == {"train": 2400, "val": 300, "test": 300}
    assert Counter(zip(names, splits, strict=True))["car", "val"] == 150
    homes = Counter(splits[1500::50])
    assert homes["val"] + homes["test"] >= 2


def test_as_even_as_the_paper_and_much_more_even_than_chance() -> None:
    random = np.random.default_rng(0)
    ours, paper, chance = [], [], []
    parts = [0.7, 0.2, 0.1]
    for seed in range(8):
        odds = 0.5 / np.arange(1, 21)
        shown = random.random((300, 20)) < odds
        lists = [[f"class {name}" for name in np.flatnonzero(row)] for row in shown]
        wanted = dict(zip(SPLITS, parts, strict=True))
        splits = run(operator(**wanted, seed=seed), table(lists, CLASSES))
        plain = Split(Split.Params.model_validate({**wanted, "seed": seed}))
        assert Counter(splits) == {"train": 210, "val": 60, "test": 30}
        ours.append(distance(lists, [SPLITS.index(split) for split in splits], parts))
        paper.append(distance(lists, iterative_stratification(lists, parts, Random(seed)), parts))
        chance.append(distance(lists, [SPLITS.index(split) for split in run(plain, table(lists, CLASSES))], parts))
    assert np.mean(ours) < np.mean(paper) + 0.1
    assert np.mean(ours) < 0.4 * np.mean(chance)


def test_a_seed_is_another_split_of_the_same_counts() -> None:
    rows = table([name for name in NAMES for _ in range(50)], pa.string())
    first, again, other = (run(operator(train=0.5, val=0.5, seed=seed), rows) for seed in (0, 0, 1))
    assert first == again != other
    for start in range(0, 200, 50):
        assert Counter(first[start : start + 50]) == Counter(other[start : start + 50]) == {"train": 25, "val": 25}
