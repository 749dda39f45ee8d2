"""`cluster` steps and the tables that they are shown."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from labelmill.operators.applying.results import to_array
from labelmill.operators.base import TableResult
from labelmill.operators.cluster import Cluster
from labelmill.operators.columns.schemas import embedding
from labelmill.operators.models import load_card
from labelmill.operators.models.card import ROOT
from tests.operators.engines.image_text_to_text.generations import earlier

WIDTH = 32
SIZES = [120, 80, 60, 40, 20]
METHODS: list[dict[str, Any]] = [
    {},
    {"method": "hdbscan", "min_size": 8},
    {"method": "kmeans", "clusters": 5},
    {"method": "hierarchical"},
]
NAMED = {"model": load_card(ROOT / "conf" / "models" / "clip-random.yaml"), "vocabulary": ["cat", "dog", "fire truck"]}
SEVERAL = pytest.mark.parametrize("params", METHODS, ids=lambda params: params.get("method", "auto"))


def table(vectors: Any, keys: list[str] | None = None, first: int = 1, kind: pa.DataType | None = None) -> pa.Table:
    count = len(vectors)
    keys = [f"{row:06d}.jpg" for row in range(first, first + count)] if keys is None else keys
    columns = {
        "image_id": pa.array(range(first, first + count), pa.int64()),
        "key": pa.array(keys, pa.string()),
        "embedding": to_array(vectors, kind or embedding(WIDTH)),
    }
    return pa.table(columns)


def build(**params: Any) -> Cluster:
    operator = Cluster(Cluster.Params.model_validate(params))
    operator.check({operator.params.embedding: embedding(WIDTH)})
    operator.ready()
    operator.load()
    return operator


def run(operator: Cluster, new: pa.Table, old: pa.Table | None = None) -> TableResult:
    result = operator.compute(new, earlier(operator, new) if old is None else old)
    assert result.columns is not None and result.decisions is not None
    assert result.columns.schema.equals(operator.writes())
    assert result.columns.num_rows == len(result.decisions) == new.num_rows
    result.columns.validate(full=True)
    return result


def values(result: TableResult, name: str) -> list[Any]:
    assert result.columns is not None
    return result.columns.column(name).to_pylist()
