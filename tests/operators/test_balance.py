from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from random import Random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from labelmill.operators.applying.results import join_result
from labelmill.operators.balance import Balance
from labelmill.operators.base import Decision
from labelmill.operators.columns.image_classes import NONE
from labelmill.operators.columns.schemas import DETECTIONS, embedding
from labelmill.operators.columns.vectors import Vectors
from labelmill.operators.errors import OperatorError

CLASSES = pa.list_(pa.string())


def operator(**params: object) -> Balance:
    return Balance(Balance.Params.model_validate(params))


def table(
    count: int, first: int = 1, name: str = "{:04d}.jpg", **columns: tuple[Sequence[object], pa.DataType]
) -> pa.Table:
    found = {
        "image_id": pa.array(range(first, first + count), pa.int64()),
        "key": pa.array([name.format(number) for number in range(first, first + count)], pa.string()),
    }
    return pa.table(found | {name: pa.array(values, kind) for name, (values, kind) in columns.items()})


def decided(rows: pa.Table, decisions: Sequence[Decision]) -> pa.Table:
    return rows.append_column("decision", pa.array([one.decision for one in decisions], pa.string()))


def run(op: Balance, new: pa.Table, old: pa.Table | None = None) -> list[Decision]:
    op.check({name: new.schema.field(name).type for name in op.reads()})
    result = op.compute(new, decided(new.slice(0, 0), []) if old is None else old)
    assert result.decisions is not None
    join_result(op, new.column("image_id"), np.arange(new.num_rows), result)
    return list(result.decisions)


def kept(decisions: Sequence[Decision]) -> list[int]:
    return [row for row, one in enumerate(decisions) if one.decision == "kept"]


def chance(seed: int, text: str) -> bytes:
    return blake2b(f"balance\0{seed}\0{text}".encode(), digest_size=24).digest()


def brute_force(
    rows: Sequence[tuple[str, Sequence[str], float]],
    before: Counter[str],
    wanted: int,
    limits: dict[str, int],
    seed: int,
) -> set[str]:
    """One image after the other, looking at all classes and all images each time.

    Args:
        rows: Key, classes and rank of each image; the least rank is first, keys' chances settle what is equal.
    """
    counts, left, chosen = Counter(before), list(rows), set()
    while left and len(chosen) < wanted:
        there = {name for _, names, _ in left for name in names if counts[name] < limits.get(name, 10**9)}
        if not there:
            break
        name = min(there, key=lambda name: (counts[name], chance(seed, name)[:8]))
        row = min((row for row in left if name in row[1]), key=lambda row: (row[2], chance(seed, row[0])))
        left.remove(row)
        if all(counts[one] < limits.get(one, 10**9) for one in row[1]):
            chosen.add(row[0])
            counts.update(row[1])
    return chosen


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"size": 0}, "number of images from 1 or a share above 0 up to 1.0 but is 0"),
        ({"size": 1.5}, "share above 0 up to 1.0 but is 1.5"),
        ({"size": True}, "share above 0 up to 1.0 but is True"),
        ({"size": float("nan")}, "share above 0 up to 1.0 but is nan"),
        ({"size": 5, "budget": -1}, "greater than or equal to 0"),
        ({"size": 5, "budget": {"car": -1}}, "greater than or equal to 0"),
        ({"size": 5, "pick": "best"}, "'random', 'hardest', 'typical' or 'diverse'"),
        ({"size": 5, "number": 5}, "Extra inputs"),
    ],
)
def test_bad_parameters_are_refused(params: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        Balance.Params.model_validate(params)


@pytest.mark.parametrize(
    ("params", "param", "message"),
    [
        ({}, "size", "size or budget must be given"),
        ({"budget": {"car": 5}}, "budget", "by must be given"),
        ({"size": 5, "pick": "hardest"}, "pick", "hardness must be given"),
        ({"size": 5, "hardness": "distance"}, "hardness", "pick is random"),
        ({"size": 5, "pick": "typical", "hardness": "1 +"}, "hardness", "expression"),
    ],
)
def test_parameters_that_do_not_fit_together_are_refused(params: dict[str, object], param: str, message: str) -> None:
    with pytest.raises(OperatorError, match=message) as error:
        operator(**params)
    assert error.value.param == (param,)


@pytest.mark.parametrize(
    ("params", "columns", "param"),
    [
        ({"by": "c"}, {"c": pa.float32()}, "by"),
        ({"by": "c"}, {"c": embedding(4)}, "by"),
        ({"by": "c"}, {"c": pa.list_(pa.struct([("x1", pa.float32())]))}, "by"),
        ({"pick": "diverse", "embedding": "e"}, {"e": pa.list_(pa.float32())}, "embedding"),
        ({"pick": "hardest", "hardness": "h"}, {"h": pa.string()}, "hardness"),
        ({"pick": "hardest", "hardness": "h + 1"}, {"h": DETECTIONS}, "hardness"),
    ],
)
def test_columns_that_do_not_fit_are_refused(
    params: dict[str, object], columns: dict[str, pa.DataType], param: str
) -> None:
    op = operator(size=5, **params)
    assert set(op.reads()) == set(columns)
    with pytest.raises(OperatorError) as error:
        op.check(columns)
    assert error.value.param == (param,)


def test_only_what_is_needed_is_read() -> None:
    assert operator(size=5).reads() == ()
    assert operator(size=5, by="cluster").reads() == ("cluster",)
    params = {"by": "cluster.cluster", "pick": "hardest", "hardness": "cluster.distance * width"}
    assert operator(size=5, **params).reads() == ("cluster.cluster", "cluster.distance", "width")
    assert operator(size=5, pick="diverse", embedding="embed.embedding").reads() == ("embed.embedding",)


def test_a_class_that_has_few_gives_all_and_the_others_make_up_for_it() -> None:
    names = ["car"] * 70 + ["bus"] * 25 + ["bird"] * 5
    decisions = run(operator(by="c", size=45), table(100, c=(names, pa.string())))
    assert Counter(names[row] for row in kept(decisions)) == {"car": 20, "bus": 20, "bird": 5}
    assert decisions[kept(decisions)[0]] == Decision("kept")
    assert {one.reason for one in decisions if one.decision == "dropped"} == {
        "over the share of car (20 of 70 images kept)",
        "over the share of bus (20 of 25 images kept)",
    }


def test_a_share_is_rounded_and_a_number_is_met() -> None:
    rows = table(201)
    assert len(kept(run(operator(size=0.25), rows))) == 50
    assert len(kept(run(operator(size=0.5), rows))) == 101
    assert len(kept(run(operator(size=1.0), rows))) == 201
    assert len(kept(run(operator(size=1), rows))) == 1
    assert run(operator(size=1), rows)[kept(run(operator(size=1), rows))[0] - 1].reason.startswith(
        "over the size wanted"
    )


def test_fewer_images_than_wanted_are_all_kept_and_told() -> None:
    decisions = run(operator(by="c", size=10), table(3, c=([1, 1, 2], pa.int32())))
    assert decisions == [Decision("kept", "fewer than wanted (3 of 10 images)")] * 3
    assert run(operator(by="c", size=3), table(3, c=([1, 1, 2], pa.int32()))) == [Decision("kept")] * 3


@pytest.mark.parametrize("params", [{}, {"by": "c"}, {"pick": "diverse", "embedding": "e"}])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_hardly_any_images(params: dict[str, object], count: int) -> None:
    rows = table(count, c=(["a"] * count, pa.string()), e=([[1, 0]] * count, embedding(2)))
    assert len(kept(run(operator(size=1, **params), rows))) == min(1, count)
    assert len(kept(run(operator(size=5, **params), rows))) == count
    assert len(kept(run(operator(budget=1, **params), rows))) == min(1, count)


def test_a_budget_limits_classes_by_name_and_says_so() -> None:
    values = [["car"], ["car", "bus"], ["bus"], ["bus"], [], None, ["bird"], ["bird"], [None]]
    op = operator(by="c", budget={"bus": 0, NONE: 1, "default": 1})
    decisions = run(op, table(9, c=(values, CLASSES)))
    assert Counter(str(values[row]) for row in kept(decisions))["['car']"] == 1
    assert all("bus" not in (values[row] or []) for row in kept(decisions))
    assert sum(row in kept(decisions) for row in (4, 5, 8)) == 1
    assert sum(row in kept(decisions) for row in (6, 7)) == 1
    assert decisions[2].reason == "over the budget of bus (0 of 3 images kept)"
    assert len(kept(run(operator(by="c", budget={"bus": 2}), table(9, c=(values, CLASSES))))) == 8


def test_a_budget_for_numbered_classes() -> None:
    rows = table(30, c=([-1] * 10 + [0] * 10 + [1] * 10, pa.int32()))
    assert kept(run(operator(by="c", budget={-1: 0, "1": 10, "default": 0}), rows)) == list(range(20, 30))
    assert len(kept(run(operator(by="c", budget=4), rows))) == 12
    decisions = run(operator(by="c", budget=4, size=20), rows)
    assert {decisions[row].reason for row in kept(decisions)} == {"fewer than wanted (12 of 20 images)"}


def test_detections_count_once_an_image() -> None:
    def detection(name: str | None) -> dict[str, object]:
        return {field.name: name if field.name == "class" else None for field in DETECTIONS.value_type}

    values = [[detection("car")] * 5, [detection("car"), detection("bus")], [detection(None)], [], None]
    decisions = run(operator(by="d", budget={"car": 2, NONE: 3}), table(5, d=(values, DETECTIONS)))
    assert kept(decisions) == [0, 1, 2, 3, 4]


NAMES = ["ant", "bee", "cat", "dog", NONE]


@st.composite
def datasets(draw: st.DrawFn) -> list[tuple[list[str], float | None]]:
    several = draw(st.booleans())
    lists = st.lists(st.sampled_from(NAMES[:-1]), max_size=3 if several else 1)
    hardness = st.none() | st.sampled_from([0.0, 1.0, 2.0, 3.5])
    return draw(st.lists(st.tuples(lists, hardness), max_size=40))


limits = st.none() | st.dictionaries(st.sampled_from(NAMES), st.integers(0, 8))


def rows_of(found: Sequence[tuple[list[str], float | None]], first: int = 1) -> pa.Table:
    return table(
        len(found),
        first,
        c=([names for names, _ in found], CLASSES),
        h=([hardness for _, hardness in found], pa.float32()),
    )


def ranked(
    found: Sequence[tuple[list[str], float | None]], pick: str, first: int = 1
) -> list[tuple[str, list[str], float]]:
    sign = {"random": 0, "hardest": -1, "typical": 1}[pick]
    return [
        (
            f"{row:04d}.jpg",
            sorted(set(names)) or [NONE],
            0.0 if not sign else 99.0 if hardness is None else sign * hardness,
        )
        for row, (names, hardness) in enumerate(found, first)
    ]


@settings(max_examples=80, deadline=None)
@given(
    datasets(),
    st.integers(1, 45),
    limits,
    st.sampled_from(["random", "hardest", "typical"]),
    st.integers(0, 2),
    st.randoms(use_true_random=False),
)
def test_the_same_as_brute_force_in_any_order(
    found: list[tuple[list[str], float | None]],
    size: int,
    budget: dict[str, int] | None,
    pick: str,
    seed: int,
    random: Random,
) -> None:
    hardness = {} if pick == "random" else {"hardness": "h"}
    op = operator(by="c", size=size, budget=budget, pick=pick, seed=seed, **hardness)
    new = rows_of(found)
    decisions = run(op, new)
    keys = new.column("key").to_pylist()
    expected = brute_force(ranked(found, pick), Counter(), size, budget or {}, seed)
    assert {keys[row] for row in kept(decisions)} == expected
    if budget is None:
        assert len(expected) == min(size, len(found))
    counts = Counter(name for row in kept(decisions) for name in set(found[row][0]) or {NONE})
    assert all(counts[name] <= most for name, most in (budget or {}).items())

    order = list(range(len(found)))
    random.shuffle(order)
    cut = random.randint(0, len(found))
    shuffled = new.take(pa.array(order, pa.int64()))
    shuffled = pa.concat_tables([shuffled.slice(0, cut).combine_chunks(), shuffled.slice(cut).combine_chunks()])
    assert run(op, shuffled) == [decisions[row] for row in order]


@settings(max_examples=60, deadline=None)
@given(datasets(), datasets(), st.integers(1, 45), limits)
def test_later_images_fill_up_what_earlier_ones_left(
    first: list[tuple[list[str], float | None]],
    later: list[tuple[list[str], float | None]],
    size: int,
    budget: dict[str, int] | None,
) -> None:
    op = operator(by="c", size=size, budget=budget)
    before = run(op, rows_of(first))
    after = run(op, rows_of(later, 1000), decided(rows_of(first), before))
    counts = Counter(name for row in kept(before) for name in set(first[row][0]) or {NONE})
    wanted = size - len(kept(before))
    expected = brute_force(ranked(later, "random", 1000), counts, wanted, budget or {}, 0)
    assert {f"{row + 1000:04d}.jpg" for row in kept(after)} == expected


def test_a_share_is_one_of_all_images_so_far() -> None:
    op = operator(size=0.5)
    first, later = table(100), table(100, 101)
    before = run(op, first)
    assert len(kept(before)) == 50
    assert len(kept(run(op, later, decided(first, before)))) == 50
    # Images that failed are none that could have been kept.
    failed = [Decision("failed")] * 40 + [Decision("kept")] * 60
    assert len(kept(run(op, later, decided(first, failed)))) == 20


def test_one_class_an_image_is_chosen_alike_from_a_column_and_from_lists() -> None:
    names = [f"class {number % 7 % 5}" for number in range(200)]
    flat, lists = table(200, c=(names, pa.string())), table(200, c=([[name] for name in names], CLASSES))
    coded = table(200, c=(names, pa.string()))
    coded = coded.set_column(2, "c", coded.column("c").dictionary_encode())
    results = [kept(run(operator(by="c", size=61), rows)) for rows in (flat, lists, coded)]
    assert results[0] == results[1] == results[2]
    # An image of two classes goes through the other way of counting.
    mixed = table(201, c=([[name] for name in names] + [["x", "y"]], CLASSES))
    assert len(set(kept(run(operator(by="c", size=62), mixed))) ^ set(results[0])) <= 3


def test_hardest_and_typical_say_what_was_compared() -> None:
    values = [0.5, None, 0.25, 3.0, float("nan"), 2.0]
    rows = table(6, h=(values, pa.float64()))
    hardest = run(operator(size=2, pick="hardest", hardness="h"), rows)
    assert kept(hardest) == [3, 5]
    assert hardest[0] == Decision("dropped", "over the size wanted (2 of 6 images kept)", 0.5, 2.0)
    assert hardest[1].score is None and hardest[1].threshold == 2.0
    assert kept(run(operator(size=2, pick="typical", hardness="h"), rows)) == [0, 2]
    assert kept(run(operator(size=2, pick="hardest", hardness="1 - h"), rows)) == [0, 2]
    assert kept(run(operator(size=4, pick="typical", hardness="h"), rows)) == [0, 2, 3, 5]


def test_a_seed_is_another_choice() -> None:
    rows = table(200, c=([number % 3 for number in range(200)], pa.int64()))
    first, again, other = (kept(run(operator(by="c", size=50, seed=seed), rows)) for seed in (0, 0, 1))
    assert first == again != other


def test_diverse_shows_all_there_is() -> None:
    """20 kinds of images, of one 1,000 and of the others one or two."""
    random = np.random.default_rng(0)
    kinds = random.normal(size=(20, 16))
    kind = np.array([0] * 1000 + [*range(1, 20), *range(1, 20)])
    vectors = kinds[kind] + random.normal(size=(len(kind), 16)) * 0.02
    rows = table(len(kind), e=(list(vectors.astype(np.float16)), embedding(16)))
    op = operator(size=20, pick="diverse", embedding="e")
    chosen = kept(run(op, rows))
    assert set(kind[chosen]) == set(range(20))
    assert len(set(kind[kept(run(operator(size=20), rows))])) < 5
    order = random.permutation(len(kind))
    shuffled = rows.take(pa.array(order))
    assert sorted(order[kept(run(op, shuffled))].tolist()) == chosen
    assert kept(run(operator(size=20, pick="diverse", embedding="e", memory_gb=1e-9), rows)) == chosen


def test_diverse_within_each_class_and_far_from_what_was_kept_before() -> None:
    circle = [[np.cos(angle), np.sin(angle)] for angle in np.linspace(0, 2 * np.pi, 9)[:-1]]
    op = operator(by="c", size=4, pick="diverse", embedding="e")
    rows = table(16, c=([[0], [1]] * 8, pa.list_(pa.int64())), e=([one for one in circle for _ in "ab"], embedding(2)))
    decisions = run(op, rows)
    for number in (0, 1):
        one, other = [row // 2 for row in kept(decisions) if row % 2 == number]
        assert abs(one - other) == 4  # across the circle
    old = decided(rows.slice(0, 2), [Decision("kept")] * 2)
    assert [row // 2 + 1 for row in kept(run(op, rows.slice(2), old))] == [4, 4]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
def test_diverse_with_several_classes_is_the_same_in_any_order(seed: int, random: Random) -> None:
    numbers = np.random.default_rng(seed)
    count = int(numbers.integers(2, 60))
    lists = [sorted({NAMES[one] for one in numbers.integers(0, 4, numbers.integers(0, 4))}) for _ in range(count)]
    values = numbers.integers(-2, 3, (count, 3)).astype(np.float16)
    rows = table(count, c=(lists, CLASSES), e=(list(values), embedding(3)))
    usable = np.flatnonzero(values.any(axis=1))
    size = int(numbers.integers(1, count))
    op = operator(by="c", size=size, pick="diverse", embedding="e", candidates=int(numbers.choice([2, 8, 100])))
    decisions = run(op, rows)
    assert len(kept(decisions)) == min(size, len(usable))
    assert [row for row, one in enumerate(decisions) if one.decision != "failed"] == usable.tolist()
    order = list(range(count))
    random.shuffle(order)
    assert run(op, rows.take(pa.array(order))) == [decisions[row] for row in order]


def farthest_by_brute_force(keys: list[str], lists: list[list[str]], points: np.ndarray, wanted: int) -> set[str]:
    """Every distance between whole numbers; images whose point is zero cannot be chosen."""
    left, chosen = [row for row in range(len(keys)) if points[row].any()], []
    while left and len(chosen) < wanted:
        counts = Counter(name for row in chosen for name in lists[row])
        name = min({one for row in left for one in lists[row]}, key=lambda name: (counts[name], chance(0, name)[:8]))
        near = [points[row] for row in chosen if name in lists[row]]
        distances = {
            row: min((((points[row] - one) ** 2).sum() for one in near), default=0)
            for row in left
            if name in lists[row]
        }
        chosen.append(min(distances, key=lambda row: (-distances[row], chance(0, keys[row]))))
        left.remove(chosen[-1])
    return {keys[row] for row in chosen}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_diverse_with_several_classes_is_the_same_as_brute_force(seed: int) -> None:
    numbers = np.random.default_rng(seed)
    count = int(numbers.integers(1, 40))
    lists = [sorted({NAMES[one] for one in numbers.integers(0, 4, numbers.integers(1, 4))}) for _ in range(count)]
    values = numbers.integers(-2, 3, (count, 3)).astype(np.float16)
    rows = table(count, c=(lists, CLASSES), e=(list(values), embedding(3)))
    size = int(numbers.integers(1, count + 1))
    unit = Vectors(rows.column("e")).take(np.arange(count))
    points = np.rint(unit * np.float32(4096 - np.sqrt(3) / 2)).astype(np.int64)
    keys = rows.column("key").to_pylist()
    chosen = kept(run(operator(by="c", size=size, pick="diverse", embedding="e"), rows))
    assert {keys[row] for row in chosen} == farthest_by_brute_force(keys, lists, points, size)


def test_what_has_no_usable_embedding_fails() -> None:
    values = [[1, 0], None, [0, 0], [float("nan"), 1], [0, 1], [float("inf"), 0]]
    decisions = run(operator(size=5, pick="diverse", embedding="e"), table(6, e=(values, embedding(2))))
    assert [one.decision for one in decisions] == ["kept", "failed", "failed", "failed", "kept", "failed"]
    assert decisions[2].reason == "the embedding must not be all zeros"
    assert decisions[0].reason == "fewer than wanted (2 of 5 images)"
    share = run(operator(size=0.5, pick="diverse", embedding="e"), table(6, e=(values, embedding(2))))
    assert len(kept(share)) == 1


def test_many_copies_of_one_image() -> None:
    count = 50_000
    column = pa.FixedSizeListArray.from_arrays(pa.array(np.tile([1, 0, 0, 0], count).astype(np.float16)), 4)
    rows = table(count).append_column("e", column)
    assert len(kept(run(operator(size=3_000, pick="diverse", embedding="e", candidates=2_000), rows))) == 3_000


def test_many_images_of_many_classes() -> None:
    count = 100_000
    classes = np.random.default_rng(0).zipf(1.3, count) % 1000
    rows = table(count).append_column("c", pa.array(classes))
    decisions = run(operator(by="c", size=20_000), rows)
    sizes = np.bincount(classes[kept(decisions)], minlength=1000)
    there = np.bincount(classes, minlength=1000)
    assert sizes.sum() == 20_000
    level = sizes.max()
    assert (sizes[there <= level - 1] == there[there <= level - 1]).all()
    assert (sizes[there > level] >= level - 1).all()
