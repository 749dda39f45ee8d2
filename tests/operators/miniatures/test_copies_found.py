"""Copies of drawn scenes, of every kind, as `inspect` and `deduplicate` see them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from operators.deduplicate import Deduplicate
from operators.miniatures.duplicates import DUPLICATES, duplicate
from operators.miniatures.world import World
from operators.quality import measure
from tests.operators.generations import earlier

SCENES = 40


@pytest.fixture(scope="module")
def hashes() -> NDArray[np.uint64]:
    """uint64 (scenes, 1 + kinds, 8): of each scene, then of its copies."""
    world, rng = World(5, 320), np.random.default_rng(0)
    found = []
    for number in range(SCENES):
        scene = world.scene(number)
        copies = [scene, *(duplicate(scene, kind, rng) for kind in DUPLICATES)]
        found.append([measure(copy.pixels, False)["phash_variants"] for copy in copies])
    return np.array(found, np.uint64)


def removed(hashes: NDArray[np.uint64], kind: str, distance: int, flips: bool = False) -> tuple[float, float]:
    """Recall and precision, where every scene stands beside its copy of one kind."""
    shown = hashes[:, [0, 1 + DUPLICATES.index(kind)]].reshape(-1, 8)
    columns = {
        "image_id": pa.array(range(len(shown)), pa.int64()),
        "key": pa.array([f"{number:04d}" for number in range(len(shown))]),
        "phash": pa.array(shown[:, 0]),
        "phash_variants": pa.FixedSizeListArray.from_arrays(pa.array(shown.ravel()), 8),
    }
    operator = Deduplicate(Deduplicate.Params(by=(), distance=distance, flips=flips))
    new = pa.table(columns).select(["image_id", "key", *operator.reads()])
    result = operator.compute(new, earlier(operator, new))
    assert result.columns is not None
    groups = np.array(result.columns.column("group").to_pylist())
    gone = np.flatnonzero(groups != np.arange(len(groups)))
    right = int((groups[gone] // 2 == gone // 2).sum())
    return right / len(hashes), right / max(1, len(gone))


@pytest.mark.parametrize(
    ("kind", "distance"), [("exact", 4), ("reencoded", 4), ("resized", 4), ("recoloured", 6), ("rotated", 8)]
)
def test_copies_are_found_and_nothing_else(hashes: NDArray[np.uint64], kind: str, distance: int) -> None:
    recall, precision = removed(hashes, kind, distance)
    assert recall >= 0.99 and precision >= 0.99


def test_mirrored_copies_are_found_where_they_are_looked_for(hashes: NDArray[np.uint64]) -> None:
    assert removed(hashes, "flipped", 4)[0] == 0
    recall, precision = removed(hashes, "flipped", 4, flips=True)
    assert recall >= 0.99 and precision >= 0.99
