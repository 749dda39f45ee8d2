from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.operators.errors import OperatorError
from labelmill.operators.review import REVIEWS, Review
from tests.pipelines.exports.scenes import detection

WHEN = datetime(2026, 3, 1, 12, tzinfo=UTC)


def review(path: Path) -> Review:
    return Review(Review.Params(decisions=str(path)))


def decide(path: Path, decisions: dict[str, list[dict[str, Any]]]) -> Review:
    rows = [
        {"key": key, "image_id": 99, "detections": labels, "reviewer": "ada", "reviewed_at": WHEN}
        for key, labels in decisions.items()
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=REVIEWS), path)
    operator = review(path)
    operator.digest()
    operator.ready()
    operator.load()
    return operator


def images(**labels: list[dict[str, Any]] | None) -> pa.Table:
    columns = {"image_id": list(range(1, len(labels) + 1)), "key": list(labels)}
    return pa.table({**columns, "detections": pa.array(list(labels.values()), DETECTIONS)})


def test_a_person_wins_and_other_images_stay(tmp_path: Path) -> None:
    model, person = detection("car", (1, 1, 9, 9), models=["m@1"]), detection("bus", (2, 2, 8, 8), score=None)
    operator = decide(tmp_path / "d.parquet", {"b": [person], "c": [], "z": [person]})
    table = images(a=[model], b=[model, model], c=[model], d=[])
    result = operator.compute(table)
    assert result.columns is not None
    rows = result.columns.to_pylist()
    assert [[label["class"] for label in row["detections"]] for row in rows] == [["car"], ["bus"], [], []]
    assert rows[0]["detections"][0]["models"] == ["m@1"]
    assert [row["reviewer"] for row in rows] == [None, "ada", "ada", None]
    assert [row["reviewed_at"] for row in rows] == [None, WHEN, WHEN, None]


def test_a_decision_stands_where_no_model_looked(tmp_path: Path) -> None:
    operator = decide(tmp_path / "d.parquet", {"b": [detection("bus", (2, 2, 8, 8))]})
    result = operator.compute(images(a=None, b=None))
    assert result.decisions is not None
    assert [decision.decision for decision in result.decisions] == ["failed", "kept"]
    nothing = operator.compute(images().cast(images(a=None).schema))
    assert nothing.columns is not None
    assert nothing.columns.num_rows == 0


def test_the_content_is_in_the_fingerprint_and_the_place_is_not(tmp_path: Path) -> None:
    first = decide(tmp_path / "a.parquet", {"a": []})
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes())
    second = review(tmp_path / "b.parquet")
    assert first.digest() == second.digest() != decide(tmp_path / "c.parquet", {"b": []}).digest()
    assert first.params.result_params() == second.params.result_params()


def test_what_is_no_file_of_decisions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="there is none at"):
        review(tmp_path / "none.parquet").ready()
    assert review(tmp_path / "none.parquet").digest() == ""
    (tmp_path / "text").write_text("PAR1")
    with pytest.raises(OperatorError, match=r"review import` wrote but"):
        review(tmp_path / "text").ready()
    rows = [{"key": "a", "image_id": 1, "detections": []}] * 2
    pq.write_table(pa.Table.from_pylist(rows, schema=REVIEWS), tmp_path / "twice")
    with pytest.raises(OperatorError, match="several for 'a'"):
        review(tmp_path / "twice").ready()


def test_a_file_that_changes_during_the_run_is_noticed(tmp_path: Path) -> None:
    operator = decide(tmp_path / "d.parquet", {"a": []})
    decide(tmp_path / "d.parquet", {"b": []})
    with pytest.raises(OperatorError, match="has changed"):
        operator.load()
