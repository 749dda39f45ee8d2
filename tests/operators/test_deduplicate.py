"""`deduplicate`: groups of exact copies against brute force, whatever the order of the rows."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from labelmill.operators.base import KEPT, TableResult
from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.operators.deduplicate import Deduplicate
from tests.operators.engines.image_text_to_text.generations import earlier

SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64()),
        pa.field("key", pa.string()),
        pa.field("file_hash", pa.string()),
        pa.field("pixel_hash", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("sharpness", pa.float32()),
        pa.field("source.labels", DETECTIONS),
    ]
)
LABEL = {"x1": 0, "y1": 0, "x2": 1, "y2": 1, "class": "a", "score": None, "prompt": None, "mask": None}


def image(number: int, file: str | None, pixels: str | None, **more: Any) -> dict[str, Any]:
    base = {"image_id": number, "key": f"{number:03d}.jpg", "file_hash": file, "pixel_hash": pixels}
    return {**base, "width": 10, "height": 10, "sharpness": 0.5, "source.labels": None, **more}


def rows(*images: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(images), SCHEMA)


def first_run(operator: Deduplicate, new: pa.Table) -> TableResult:
    return operator.compute(new, earlier(operator, new))


def deduplicate(*images: dict[str, Any], old: tuple[dict[str, Any], ...] = (), **params: Any) -> list[tuple[Any, ...]]:
    operator = Deduplicate(Deduplicate.Params(**params))
    names = ["image_id", "key", *operator.reads()]
    before = rows(*old).select(names)
    new = rows(*images).select(names)
    result = operator.compute(new, earlier(operator, before, first_run(operator, before)))
    assert result.columns is not None and result.columns.schema.equals(operator.writes())
    columns = result.columns.to_pylist()
    return [
        (decision.decision, decision.reason, row["group"], row["kind"])
        for decision, row in zip(result.decisions or [], columns, strict=True)
    ]


def test_the_same_file_and_the_same_pixels() -> None:
    found = deduplicate(
        image(1, "A", "p"), image(2, "A", "p"), image(3, "B", "p"), image(4, "C", "q"), image(5, "C", "q")
    )
    assert found == [
        ("kept", "", 1, None),
        ("duplicate", "same file as 001.jpg", 1, "file"),
        ("duplicate", "same pixels as 001.jpg", 1, "pixels"),
        ("kept", "", 4, None),
        ("duplicate", "same file as 004.jpg", 4, "file"),
    ]


def test_by_one_kind_only() -> None:
    images = (image(1, "A", "p"), image(2, "A", "p"), image(3, "B", "p"))
    assert [row[3] for row in deduplicate(*images, by=["file"])] == [None, "file", None]
    assert [row[2] for row in deduplicate(*images, by=["file"])] == [1, 1, 3]
    assert [row[3] for row in deduplicate(*images, by=["pixels"])] == [None, "pixels", "pixels"]


def test_only_what_is_needed_is_read() -> None:
    def reads(**params: Any) -> tuple[str, ...]:
        return Deduplicate(Deduplicate.Params(**params)).reads()

    assert reads() == ("file_hash", "pixel_hash")
    assert reads(by=["pixels"], keep="largest") == ("pixel_hash", "width", "height")
    assert reads(by=["file"], keep="sharpest") == ("file_hash", "sharpness")
    assert reads(by=["pixels", "file"], keep="labelled") == ("file_hash", "pixel_hash", "source.labels")


@pytest.mark.parametrize(
    ("keep", "best", "worst"),
    [
        ("largest", {"width": 20, "height": 20}, {"width": 30, "height": 10}),
        ("largest", {"width": 2, "height": 2}, {"width": None, "height": 9000}),
        ("sharpest", {"sharpness": 0.6}, {"sharpness": 0.5}),
        ("sharpest", {"sharpness": 0.0}, {"sharpness": None}),
        ("sharpest", {"sharpness": 0.0}, {"sharpness": float("nan")}),
        ("labelled", {"source.labels": [LABEL, LABEL]}, {"source.labels": [LABEL]}),
        ("labelled", {"source.labels": []}, {"source.labels": None}),
        ("first", {"key": "a.jpg"}, {"key": "b.jpg"}),
        ("first", {"key": "Z.jpg"}, {"key": "a.jpg"}),
        ("largest", {"key": "a.jpg"}, {"key": "b.jpg"}),
    ],
)
def test_the_best_is_kept(keep: str, best: dict[str, Any], worst: dict[str, Any]) -> None:
    for order in ((best, worst), (worst, best)):
        images = [image(number, "A", "p", **more) for number, more in enumerate(order, 1)]
        found = deduplicate(*images, keep=keep)
        assert found[order.index(best)][0] == "kept" and found[order.index(worst)][0] == "duplicate"
        assert found[0][2] == found[1][2] == order.index(best) + 1


def test_an_image_without_a_hash_fails_and_is_nobodys_duplicate() -> None:
    found = deduplicate(image(1, None, None), image(2, None, None), image(3, "A", None), image(4, "A", "p"))
    assert found == [
        ("failed", "no hash: file_hash and pixel_hash is null", None, None),
        ("failed", "no hash: file_hash and pixel_hash is null", None, None),
        ("failed", "no hash: pixel_hash is null", None, None),
        ("kept", "", 4, None),
    ]
    by_file = deduplicate(image(1, "A", None), image(2, "A", None), by=["file"])
    assert [row[0] for row in by_file] == ["kept", "duplicate"]


def test_what_was_kept_before_stays() -> None:
    old = (image(1, "A", "p"), image(2, "A", "p"), image(3, None, None))
    found = deduplicate(
        image(257, "B", "p", width=900), image(258, "C", "q"), image(259, "A", "p", key="000.jpg"),
        image(260, "D", "q", width=99), old=old, keep="largest",
    )  # fmt: skip
    assert found == [
        ("duplicate", "same pixels as 001.jpg", 1, "pixels"),
        ("duplicate", "same pixels as 260.jpg", 260, "pixels"),
        ("duplicate", "same file as 001.jpg", 1, "file"),
        ("kept", "", 260, None),
    ]


def test_a_run_without_new_images_or_without_rows_at_all() -> None:
    assert deduplicate(old=(image(1, "A", "p"),)) == []
    assert deduplicate() == []


def test_memory_mapped_rows_in_chunks(tmp_path: Path) -> None:
    operator = Deduplicate(Deduplicate.Params(keep="sharpest"))
    names = ["image_id", "key", *operator.reads()]
    shards = [rows(*(image(256 * shard + row, f"{row % 5}", f"{row % 5}") for row in range(8))) for shard in range(3)]
    with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for shard in shards:
            writer.write_table(shard)
    mapped = pa.ipc.open_file(pa.memory_map(str(tmp_path / "rows.arrow"))).read_all().select(names)
    result = first_run(operator, mapped)
    expected = first_run(operator, pa.concat_tables(shards).combine_chunks().select(names))
    assert mapped.column("key").num_chunks == 3
    assert result.columns == expected.columns and result.decisions == expected.decisions
    assert sum(decision == KEPT for decision in result.decisions or []) == 5


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_hashes_of_any_type(kind: pa.DataType) -> None:
    operator = Deduplicate(Deduplicate.Params(by=("pixels",)))
    table = rows(image(1, "A", "p"), image(2, "B", "p"), image(3, "C", None)).select(["image_id", "key", "pixel_hash"])
    table = table.set_column(2, "pixel_hash", table.column("pixel_hash").cast(kind))
    result = first_run(operator, table)
    assert [decision.decision for decision in result.decisions or []] == ["kept", "duplicate", "failed"]


@pytest.mark.parametrize(
    "params",
    [
        {"by": []},
        {"by": ["name"]},
        {"threshold": 1.5},
        {"threshold": 0},
        {"distance": 17},
        {"distance": -1},
        {"flips": True},
        {"similarity": 0.9},
    ],
)
def test_unknown_parameters_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Deduplicate.Params(**params)


def brute_force(
    images: list[dict[str, Any]], old: list[dict[str, Any]], by: set[str], keep: str
) -> dict[int, tuple[Any, ...]]:
    """Every pair compared, straight from the words of the specification."""
    hashes = [name for kind, name in (("file", "file_hash"), ("pixels", "pixel_hash")) if kind in by]

    def measure(item: dict[str, Any]) -> float:
        labels = item["source.labels"]
        return {"first": 0.0, "largest": item["width"] * item["height"], "sharpest": item["sharpness"],
                "labelled": -1 if labels is None else len(labels)}[keep]  # fmt: skip

    def copies(one: dict[str, Any], other: dict[str, Any]) -> bool:
        return all(one[name] and other[name] for name in hashes) and one[hashes[-1]] == other[hashes[-1]]

    found: dict[int, tuple[Any, ...]] = {}
    for item in images:
        if not all(item[name] for name in hashes):
            found[item["image_id"]] = ("failed", None, None)
            continue
        before = [other for other in old if copies(item, other)]
        group = before or [other for other in images if copies(item, other)]
        best = min(group, key=lambda other: (-measure(other), other["key"]))
        if best is item:
            found[item["image_id"]] = ("kept", item["image_id"], None)
        else:
            kind = "file" if "file" in by and best["file_hash"] == item["file_hash"] else "pixels"
            found[item["image_id"]] = ("duplicate", best["image_id"], kind)
    return found


FILES = st.sampled_from([None, ("A", "p"), ("B", "p"), ("C", "q"), ("D", "q"), ("E", "r"), ("F", None)])
IMAGES = st.lists(
    st.tuples(FILES, st.integers(1, 3), st.sampled_from([0.25, 0.5]), st.integers(-1, 2), st.booleans()), max_size=14
)


@settings(max_examples=100, deadline=None)
@given(
    drawn=IMAGES,
    by=st.sampled_from([("file",), ("pixels",), ("file", "pixels"), ("pixels", "file")]),
    keep=st.sampled_from(["first", "largest", "sharpest", "labelled"]),
    shuffle=st.randoms(use_true_random=False),
)
def test_agrees_with_brute_force_in_any_order(
    drawn: list[Any], by: tuple[str, ...], keep: str, shuffle: random.Random
) -> None:
    names = list(range(len(drawn)))
    shuffle.shuffle(names)
    images: list[dict[str, Any]] = []
    later: list[dict[str, Any]] = []
    for number, (file, width, sharpness, labels, is_later) in enumerate(drawn, 1):
        hashes = file or (None, None)
        known = None if labels < 0 else [LABEL] * labels
        more = {"width": width, "sharpness": sharpness, "source.labels": known, "key": f"{names[number - 1]:02d}"}
        (later if is_later else images).append(image(number, *hashes, **more))
    operator = Deduplicate(Deduplicate.Params.model_validate({"by": by, "keep": keep}))
    columns = ["image_id", "key", *operator.reads()]

    def run(new: list[dict[str, Any]], old: pa.Table | None) -> tuple[dict[int, tuple[Any, ...]], pa.Table]:
        table = rows(*new).select(columns)
        result = operator.compute(table, earlier(operator, table) if old is None else old)
        assert result.columns is not None
        found = {
            item["image_id"]: (decision.decision, row["group"], row["kind"])
            for item, decision, row in zip(new, result.decisions or [], result.columns.to_pylist(), strict=True)
        }
        return found, earlier(operator, table, result)

    found, old = run(images, None)
    assert found == brute_force(images, [], set(by), keep)
    shuffle.shuffle(images)
    assert run(images, None)[0] == found
    kept = [item for item in images if found[item["image_id"]][0] == "kept"]
    found_later, _ = run(later, old)
    assert found_later == brute_force(later, kept, set(by), keep)
    shuffle.shuffle(later)
    places = pa.array(shuffle.sample(range(old.num_rows), old.num_rows), pa.int64())
    assert run(later, old.take(places))[0] == found_later


@pytest.mark.slow
def test_a_million_rows_take_seconds() -> None:
    count, rng = 1_000_000, np.random.default_rng(0)
    hashes = pa.array(rng.integers(0, count, count)).cast(pa.string())
    table = pa.table({"image_id": np.arange(1, count + 1), "key": pa.array(np.arange(count)).cast(pa.string()),
                      "file_hash": hashes, "pixel_hash": hashes})  # fmt: skip
    started = time.perf_counter()
    result = first_run(Deduplicate(Deduplicate.Params()), table)
    assert time.perf_counter() - started < 60
    assert sum(decision == KEPT for decision in result.decisions or []) == len(hashes.unique())
