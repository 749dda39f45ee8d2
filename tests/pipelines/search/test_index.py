from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from labelmill.operators.base import TableOperator
from labelmill.operators.columns.schemas import embedding
from labelmill.pipelines.run_folder.layout import Layout
from labelmill.pipelines.run_folder.store import Store
from labelmill.pipelines.search.index import SearchIndex, open_index
from labelmill.pipelines.steps import Input, Step

SHARD = 256


class Written(TableOperator):
    """A step whose results are written by the tests."""

    def writes(self) -> pa.Schema:
        raise NotImplementedError

    def compute(self, table: pa.Table) -> Any:
        raise NotImplementedError


def stored(vectors: Sequence[Any] | np.ndarray, dimensions: int, folder: str = "run") -> tuple[Layout, Input, dict]:
    """A run whose only step has written vectors, null where None; its column, and its shards."""
    step = Step(0, "embed", "embed", Written(None), fingerprint="f" * 12)
    layout = Layout(Store(folder), (step,), (step.folder,))
    shards = {}
    for shard, start in enumerate(range(0, len(vectors), SHARD)):
        part = vectors[start : start + SHARD]
        values = [None if vector is None else np.asarray(vector, dtype=np.float16) for vector in part]
        columns = {
            "image_id": pa.array(range(start + 1, start + len(part) + 1), pa.int64()),
            "embedding": pa.array(values, embedding(dimensions)),
            "decision": ["kept"] * len(part),
        }
        layout.store.write_table(layout.file(0, shard), pa.table(columns))
        shards[shard] = len(part)
    return layout, Input(0, "embedding", embedding(dimensions)), shards


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def drawn(count: int, seed: int = 0) -> np.ndarray:
    """Vectors in groups of uneven size, as those of images are."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(40, 32))
    chosen = (40 * generator.random(count) ** 2).astype(int)
    return unit(centres[chosen] + 0.7 * generator.normal(size=(count, 32)))


def bits(ids: Sequence[int] | np.ndarray, highest: int) -> np.ndarray:
    mask = np.zeros(highest + 1, dtype=bool)
    mask[np.asarray(ids, dtype=int)] = True
    return np.packbits(mask, bitorder="little")


def recall(index: SearchIndex, vectors: np.ndarray, queries: np.ndarray, allowed: np.ndarray | None = None) -> float:
    """Share of the ten nearest that are among the candidates. `allowed`: image_ids."""
    exact = vectors.astype(np.float16).astype(np.float32)
    cosines = queries @ exact.T
    mask = None
    if allowed is not None:
        mask = bits(allowed, len(vectors))
        cosines[:, np.setdiff1d(np.arange(len(vectors)), allowed - 1)] = -2
    shares = []
    for query, row in zip(queries, cosines, strict=True):
        true = np.argsort(-row)[:10] + 1
        shares.append(np.isin(true, index.candidates(query, 10, mask)).mean())
    return float(np.mean(shares))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, tuple[Layout, Input, dict]]:
    """4,000 vectors, of which an index that is not exact is made."""
    vectors = drawn(4000)
    return vectors, stored(vectors, 32, str(tmp_path_factory.mktemp("large")))


class TestAFlatIndex:
    def test_is_exact(self) -> None:
        vectors = drawn(700)
        index = open_index(*stored(vectors, 32))
        assert (index.facts.kind, index.facts.vectors, index.facts.recall) == ("flat", 700, None)
        assert recall(index, vectors, drawn(50, seed=1)) == 1

    def test_finds_only_what_is_allowed(self) -> None:
        index = open_index(*stored(drawn(600), 32))
        few = np.array([3, 256, 257, 600])
        assert sorted(index.candidates(drawn(1, seed=1)[0], 10, bits(few, 600))) == few.tolist()
        assert len(index.candidates(drawn(1)[0], 10, bits([], 600))) == 0

    def test_leaves_out_what_cannot_be_used(self) -> None:
        vectors: list[Any] = list(drawn(300))
        vectors[0], vectors[7], vectors[299] = None, np.zeros(32), np.full(32, np.nan)
        index = open_index(*stored(vectors, 32))
        assert index.facts.vectors == 297
        assert set(index.candidates(drawn(1)[0], 300)) == set(range(1, 301)) - {1, 8, 300}

    @pytest.mark.parametrize("count", [1, 2])
    def test_of_few(self, count: int) -> None:
        index = open_index(*stored(drawn(count), 32))
        assert sorted(index.candidates(drawn(1)[0], 10)) == list(range(1, count + 1))

    @pytest.mark.parametrize("vectors", [[None], [np.zeros(32)], [None] * 300])
    def test_of_nothing_finds_nothing(self, vectors: list[Any]) -> None:
        index = open_index(*stored(vectors, 32))
        assert index.facts.vectors == 0
        assert len(index.candidates(drawn(1)[0], 10)) == 0


Large = tuple[np.ndarray, tuple[Layout, Input, dict]]


class TestAnIndexOfMany:
    def test_finds_nearly_all(self, large: Large) -> None:
        vectors, run = large
        index = open_index(*run, flat_up_to=1000)
        assert (index.facts.kind, index.facts.vectors) == ("ivf-pq", 4000)
        assert index.facts.recall is not None
        assert index.facts.recall >= 0.95
        assert recall(index, vectors, drawn(100, seed=1)) >= 0.98

    def test_says_truly_how_many_it_finds(self, large: Large, monkeypatch: pytest.MonkeyPatch) -> None:
        vectors, run = large
        index = open_index(*run, flat_up_to=1000)
        monkeypatch.setattr("labelmill.pipelines.search.index.MARGIN", 1)
        queries = vectors[np.random.default_rng(3).choice(4000, 200, replace=False)]
        assert recall(index, vectors, queries) == pytest.approx(index.facts.recall, abs=0.03)

    @pytest.mark.parametrize("share", [0.5, 0.02])
    def test_finds_nearly_all_of_what_is_allowed(self, large: Large, share: float) -> None:
        vectors, run = large
        index = open_index(*run, flat_up_to=1000)
        allowed = np.flatnonzero(np.random.default_rng(4).random(4000) < share) + 1
        queries = drawn(50, seed=1)
        assert recall(index, vectors, queries, allowed) >= 0.95
        assert np.isin(index.candidates(queries[0], 10, bits(allowed, 4000)), allowed).all()

    def test_finds_all_that_are_allowed_where_they_are_few(self, large: Large) -> None:
        _, run = large
        index = open_index(*run, flat_up_to=1000)
        assert sorted(index.candidates(drawn(1)[0], 10, bits([5, 2000, 3999], 4000))) == [5, 2000, 3999]

    def test_is_the_same_file_however_it_is_built(self, large: Large, monkeypatch: pytest.MonkeyPatch) -> None:
        from threadpoolctl import threadpool_limits

        vectors, run = large
        with threadpool_limits(4):
            open_index(*stored(vectors, 32, "again"), flat_up_to=1000)
        open_index(*run, flat_up_to=1000)
        first, second = (next(Path(folder).rglob("*.faiss")) for folder in (run[0].store.path(), "again"))
        assert first.read_bytes() == second.read_bytes()

    def test_of_copies_of_one_vector(self) -> None:
        vectors = np.repeat(drawn(1), 1500, axis=0)
        index = open_index(*stored(vectors, 32), flat_up_to=1000)
        assert (index.facts.kind, index.facts.recall) == ("ivf-pq", 1)
        assert len(set(index.candidates(vectors[0], 10))) >= 10

    @pytest.mark.parametrize("usable", [0, 3])
    def test_is_flat_where_few_can_be_used(self, usable: int) -> None:
        vectors = [*drawn(usable), *[np.zeros(32)] * 1500] if usable else [np.zeros(32)] * 1500
        index = open_index(*stored(vectors, 32), flat_up_to=1000)
        assert (index.facts.kind, index.facts.vectors) == ("flat", usable)

    def test_must_be_of_enough_to_learn_from(self, large: Large) -> None:
        with pytest.raises(ValueError, match="at least 1000"):
            open_index(*large[1], flat_up_to=10)
