"""`connected`: groups through chains, against components of all pairs; and `deduplicate` that removes none."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from labelmill.operators.columns.vectors import Vectors
from labelmill.operators.deduplicate import Deduplicate
from labelmill.operators.duplicates import vectors_of_a_cell, voronoi
from labelmill.operators.duplicates.components import connect
from labelmill.operators.duplicates.near_hashes import NearHashes
from labelmill.operators.duplicates.near_vectors import NearVectors
from labelmill.operators.split import Split
from tests.operators.duplicates.test_representatives import Pairs, clustered, column, flipped, hamming
from tests.operators.engines.image_text_to_text.generations import earlier
from tests.operators.test_deduplicate_near import FAR, SCHEMA, image, operator_of, run


def components(near: NDArray[np.bool_]) -> list[int]:
    """The first of what is connected, for each."""
    labels = connected_components(coo_array(near), directed=False)[1]
    return np.unique(labels, return_index=True)[1][labels].tolist()


def random_pairs(count: int, share: float, seed: int) -> NDArray[np.bool_]:
    near = np.random.default_rng(seed).random((count, count)) < share
    return np.asarray(near | near.T)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.floats(0, 0.1), st.floats(0, 0.1), st.integers(0, 2**32))
def test_groups_are_connected_components(count: int, one: float, two: float, seed: int) -> None:
    first, second = random_pairs(count, one, seed), random_pairs(count, two, seed + 1)
    best, links = connect([Pairs(first), Pairs(second)], count)
    assert best.tolist() == components(first | second)
    for rank, link in enumerate(links.tolist()):
        assert (link == rank) == (best[rank] == rank)
        assert link == rank or (first | second)[rank, link]
        assert best[link] == best[rank]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 40), st.floats(0, 0.15), st.integers(0, 2**32))
def test_settled_images_stand_for_their_groups(count: int, old: int, share: float, seed: int) -> None:
    near, settled = random_pairs(count, share, seed), min(old, count)
    best, links = connect([Pairs(near)], count, settled)
    assert best[:settled].tolist() == list(range(settled))
    among_new = np.array(components(near[settled:, settled:]), dtype=np.int64) + settled
    for rank in range(settled, count):
        direct = np.flatnonzero(near[rank, :settled])
        if len(direct):
            assert best[rank] == direct[0] and links[rank] == direct[0]
        touching = near[:settled, among_new[rank - settled] == np.concatenate([np.full(settled, -1), among_new])]
        assert (best[rank] < settled) == bool(touching.any())
        if not touching.any():
            assert best[rank] == among_new[rank - settled]


@pytest.mark.parametrize("variants", [1, 8])
@pytest.mark.parametrize("distance", [0, 2, 6])
def test_hashes_in_chains(distance: int, variants: int) -> None:
    rng = np.random.default_rng(distance)
    base = rng.integers(2**64, size=60, dtype=np.uint64)
    hashes = rng.integers(2**64, size=(400, variants), dtype=np.uint64)
    hashes[:, 0] = flipped(rng, base[rng.integers(60, size=400)], distance)
    hashes[:15, -1] = flipped(rng, base[rng.integers(60, size=15)], distance)
    near = np.tril(hamming(hashes, distance), -1)
    best, links = connect([NearHashes(hashes, distance)], 400)
    assert best.tolist() == components(near) and 1 < len(set(best.tolist())) < 400
    for rank, link in enumerate(links.tolist()):
        assert link == rank or near[max(rank, link), min(rank, link)]


@pytest.mark.parametrize("cell", [30, 10_000])
def test_vectors_in_chains(cell: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voronoi, "CELL", cell)
    monkeypatch.setattr(voronoi, "TAKING", 0)
    monkeypatch.setattr(vectors_of_a_cell, "ROWS", 64)
    rng = np.random.default_rng(3)
    found = clustered(rng, 300, spread=0.2)
    found[250:] = clustered(rng, 1, spread=0) + np.linspace(0, 3, 50)[:, None] * rng.normal(size=16)  # a long chain
    vectors, order = Vectors(column(found)), rng.permutation(300)
    exact = vectors.block(0, 300).astype(np.float64)[order]
    near = exact @ exact.T >= 0.95 - vectors_of_a_cell.ROUNDING
    best, _ = connect([NearVectors(vectors, order, 0.95)], 300)
    assert best.tolist() == components(near) and 10 < len(set(best.tolist())) < 250


def test_a_hundred_thousand_of_a_kind_are_not_compared_with_each_other() -> None:
    hashes = np.full(100_000, 7, np.uint64)
    assert not connect([NearHashes(hashes, 4)], len(hashes))[0].any()
    close = 1 + 0.001 * np.random.default_rng(0).normal(size=(20_000, 32))
    close[-3:] = [[1, -1] * 16, [-1] * 32, [1, -1] * 16]
    best = connect([NearVectors(Vectors(column(close)), np.arange(20_000), 0.95)], 20_000)[0]
    assert not best[:-3].any() and best[-3:].tolist() == [19_997, 19_998, 19_997]


# ---------------------------------------------------------------- deduplicate: {remove: false}


def groups(operator: Deduplicate, images: list[dict[str, Any]], old: pa.Table | None = None) -> list[tuple[Any, ...]]:
    result = run(operator, images, old)
    assert result.columns is not None and result.columns.schema.equals(operator.writes())
    return [
        (decision.decision, row["group"], row["kind"])
        for decision, row in zip(result.decisions or [], result.columns.to_pylist(), strict=True)
    ]


def test_nothing_is_removed_and_chains_are_one_group() -> None:
    images = [image(number, turned=15.0 * number) for number in range(1, 6)] + [image(6, turned=180)]
    operator = operator_of(by=[], threshold=0.95, remove=False)
    assert not operator.decides and operator_of().decides
    wanted: list[tuple[Any, ...]] = [("kept", 1, None), *[("kept", 1, "semantic")] * 4, ("kept", 6, None)]
    assert groups(operator, images) == wanted
    # The best of the chain gives the name, wherever it stands.
    images[3]["sharpness"] = 0.9
    found = groups(operator_of(by=[], threshold=0.95, remove=False, keep="sharpest"), images)
    assert [row[1] for row in found] == [4] * 5 + [6] and [row[2] is None for row in found].index(True) == 3


def test_every_kind_connects() -> None:
    images = [
        image(1),
        image(2, file_hash="f1", pixel_hash="p1"),
        image(3, pixel_hash="p1"),
        image(4, bits=2),
        image(5, bits=40, turned=5),
        image(6, bits=42, turned=90),
        image(7, bits=20, turned=200),
    ]
    found = groups(operator_of(distance=4, threshold=0.95, remove=False), images)
    kinds = [None, "file", "pixels", "perceptual", "semantic", "perceptual", None]
    assert found == [("kept", 1 if number < 7 else 7, kind) for number, kind in enumerate(kinds, 1)]


def test_mirrored_copies_have_a_kind_whichever_comes_first() -> None:
    one = {"phash": 0, "phash_variants": [0, FAR, *[0] * 6]}
    other = {"phash": FAR, "phash_variants": [FAR, *[FAR] * 7]}
    operator = operator_of(by=[], distance=4, flips=True, remove=False)
    assert groups(operator, [{**image(1), **one}, {**image(2), **other}])[1] == ("kept", 1, "perceptual")


def test_what_cannot_be_compared_still_fails() -> None:
    found = groups(operator_of(distance=4, remove=False), [image(1), image(2, bits=None), image(3)])
    assert found == [("kept", 1, None), ("failed", None, None), ("kept", 1, "perceptual")]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_images(count: int) -> None:
    found = groups(operator_of(distance=4, threshold=0.9, remove=False), [image(n) for n in range(count)])
    assert found == [("kept", 0, None), ("kept", 0, "perceptual")][:count]


def test_images_that_come_later_join_earlier_groups_and_change_none() -> None:
    operator = operator_of(by=[], threshold=0.95, remove=False)
    before = [image(1, turned=0), image(2, turned=15), image(3, turned=50)]
    table = pa.Table.from_pylist(before, SCHEMA).select(["image_id", "key", *operator.reads()])
    old = earlier(operator, table, run(operator, before))
    assert old.column("group").to_pylist() == [1, 1, 3]
    later = [image(4, turned=30), image(5, turned=36), image(6, turned=70), image(7, turned=170), image(8, turned=171)]
    # 4 resembles 2, of group 1; 5 resembles 4 and 3; 6 resembles none of the earlier ones but 9, which resembles 3.
    later.append(image(9, turned=60))
    found = {row["image_id"]: each for row, each in zip(later, groups(operator, later, old), strict=True)}
    assert {number: each[1] for number, each in found.items()} == {4: 1, 5: 3, 6: 3, 7: 7, 8: 7, 9: 3}
    assert found[7] == ("kept", 7, None) and found[8][2] == "semantic"


def test_the_order_of_rows_changes_nothing() -> None:
    rng = random.Random(0)
    images = [image(number, bits=rng.randrange(60), turned=rng.uniform(0, 360)) for number in range(120)]
    operator = operator_of(distance=0, threshold=0.9995, remove=False)
    wanted = {row["image_id"]: each for row, each in zip(images, groups(operator, images), strict=True)}
    assert 10 < len({each[1] for each in wanted.values()}) < 80
    for _ in range(3):
        rng.shuffle(images)
        assert {row["image_id"]: each for row, each in zip(images, groups(operator, images), strict=True)} == wanted


def test_copies_share_a_split_and_leaks_of_a_dataset_are_seen() -> None:
    images = [image(number, turned=number // 3 * 36.0 + number % 3 * 8) for number in range(30)]
    result = run(operator_of(by=[], threshold=0.95, remove=False), images)
    assert result.columns is not None
    table = pa.table(
        {
            "image_id": pa.array([each["image_id"] for each in images], pa.int64()),
            "key": pa.array([each["key"] for each in images]),
            "deduplicate.group": result.columns.column("group"),
        }
    )
    split = Split(Split.Params.model_validate({"train": 0.5, "val": 0.5, "group": "deduplicate.group"}))
    none = table.slice(0, 0).append_column("split", pa.array([], pa.string()))
    sides = split.compute(table, none.append_column("decision", pa.array([], pa.string()))).columns
    assert sides is not None
    side = sides.column("split").to_pylist()
    angles = [number // 3 * 36.0 + number % 3 * 8 for number in range(30)]
    near = [(a, b) for a, b in pairwise(range(30)) if abs(angles[a] - angles[b]) < 18]
    assert near and all(side[a] == side[b] for a, b in near) and len(set(side)) == 2

    came = table.append_column("source.split", pa.array(["train", "test"] * 15))
    check = Split(Split.Params.model_validate({"check": "source.split", "group": "deduplicate.group"}))
    leaks = check.compute(came, earlier(check, came)).columns
    assert leaks is not None
    leak = leaks.column("leak").to_pylist()
    assert all(leak[a] is not None and leak[b] is not None for a, b in near)
