"""Copies of drawn scenes, of every kind, as `inspect` and `deduplicate` see them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from labelmill.operators.deduplicate import Deduplicate
from labelmill.operators.engines.embedding.encoder import image_encoder
from labelmill.operators.images.quality import measure
from labelmill.operators.miniatures.duplicates import DUPLICATES, duplicate
from labelmill.operators.miniatures.world import World
from labelmill.operators.models import load_card
from labelmill.operators.models.card import ROOT
from tests.operators.engines.image_text_to_text.generations import earlier

SCENES = 40
SAME = 0.9
"""Least cosine; chosen on other scenes (see `tests.benchmarks.compare`)."""


@dataclass(frozen=True)
class Seen:
    """Of each scene, then of its copies.

    Attributes:
        hashes: uint64 (scenes, 1 + kinds, 8).
        vectors: float16 (scenes, 1 + kinds, dimensions).
    """

    hashes: NDArray[np.uint64]
    vectors: NDArray[np.float16]


@pytest.fixture(scope="module")
def seen() -> Seen:
    world, rng = World(5, 320), np.random.default_rng(0)
    encoder = image_encoder(load_card(ROOT / "conf" / "models" / "clip-miniature.yaml"))
    hashes, vectors = [], []
    for number in range(SCENES):
        scene = world.scene(number)
        pictures = [scene.pixels, *(duplicate(scene, kind, rng).pixels for kind in DUPLICATES)]
        hashes.append([measure(pixels, False)["phash_variants"] for pixels in pictures])
        vectors.append(encoder.encode([encoder.prepare(pixels) for pixels in pictures]))
    return Seen(np.array(hashes, np.uint64), np.array(vectors, np.float16))


def removed(seen: Seen, kind: str, **params: Any) -> tuple[float, float]:
    """Recall and precision, where every scene stands beside its copy of one kind."""
    pair = [0, 1 + DUPLICATES.index(kind)]
    shown, vectors = seen.hashes[:, pair].reshape(-1, 8), seen.vectors[:, pair].reshape(2 * SCENES, -1)
    columns = {
        "image_id": pa.array(range(len(shown)), pa.int64()),
        "key": pa.array([f"{number:04d}" for number in range(len(shown))]),
        "phash": pa.array(shown[:, 0]),
        "phash_variants": pa.FixedSizeListArray.from_arrays(pa.array(shown.ravel()), 8),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
    }
    operator = Deduplicate(Deduplicate.Params(by=(), **params))
    new = pa.table(columns).select(["image_id", "key", *operator.reads()])
    result = operator.compute(new, earlier(operator, new))
    assert result.columns is not None
    groups = np.array(result.columns.column("group").to_pylist())
    gone = np.flatnonzero(groups != np.arange(len(groups)))
    right = int((groups[gone] // 2 == gone // 2).sum())
    return right / SCENES, right / max(1, len(gone))


@pytest.mark.parametrize(
    ("kind", "distance"), [("exact", 4), ("reencoded", 4), ("resized", 4), ("recoloured", 6), ("rotated", 8)]
)
def test_copies_are_found_and_nothing_else(seen: Seen, kind: str, distance: int) -> None:
    recall, precision = removed(seen, kind, distance=distance)
    assert recall >= 0.99 and precision >= 0.99


def test_mirrored_copies_are_found_where_they_are_looked_for(seen: Seen) -> None:
    assert removed(seen, "flipped", distance=4)[0] == 0
    recall, precision = removed(seen, "flipped", distance=4, flips=True)
    assert recall >= 0.99 and precision >= 0.99


@pytest.mark.parametrize(
    ("kind", "least"),
    [
        ("exact", 0.99),
        ("reencoded", 0.99),
        ("resized", 0.99),
        ("rotated", 0.99),
        ("watermarked", 0.75),
        ("recoloured", 0.6),
        ("cropped", 0.35),
    ],
)
def test_copies_are_found_by_embeddings_and_nothing_else(seen: Seen, kind: str, least: float) -> None:
    recall, precision = removed(seen, kind, threshold=SAME)
    assert recall >= least and precision >= 0.99


def test_embeddings_find_cropped_copies_that_hashes_miss(seen: Seen) -> None:
    hashes, vectors = removed(seen, "cropped", distance=4)[0], removed(seen, "cropped", threshold=SAME)[0]
    both, precision = removed(seen, "cropped", distance=4, threshold=SAME)
    assert hashes < 0.1 < vectors <= both and precision >= 0.99
