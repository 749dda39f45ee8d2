from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.operators.label_conflicts import LabelConflicts
from tests.operators.engines.image_text_to_text.generations import earlier
from tests.operators.test_label_errors import box

LEFT, RIGHT = (0, 0, 50, 50), (60, 0, 100, 40)


def rows(*images: dict[str, Any], first: int = 1) -> pa.Table:
    """Images as dicts: ``same`` (which picture), ``labels``, ``scale``."""
    count = len(images)
    scales = [image.get("scale", 1) for image in images]
    columns = {
        "image_id": pa.array(range(first, first + count), pa.int64()),
        "key": pa.array([image.get("key", f"{first + n}.jpg") for n, image in enumerate(images)], pa.string()),
        "file_hash": pa.array([f"{first + n}" for n in range(count)], pa.string()),
        "pixel_hash": pa.array([image["same"] for image in images], pa.string()),
        "phash": pa.array([image.get("phash", hash_of(image["same"])) for image in images], pa.uint64()),
        "width": pa.array([100 * scale for scale in scales], pa.int32()),
        "height": pa.array([100 * scale for scale in scales], pa.int32()),
        "source.labels": pa.array([image["labels"] for image in images], DETECTIONS),
    }
    return pa.table(columns)


def hash_of(name: str | None) -> int | None:
    return None if name is None else int(np.random.default_rng(ord(name)).integers(2**63))


def run(new: pa.Table, old: pa.Table | None = None, **params: Any) -> list[dict[str, Any]]:
    operator = LabelConflicts(LabelConflicts.Params(**params))
    picked = new.select(["image_id", "key", *operator.reads()])
    result = operator.compute(picked, earlier(operator, picked) if old is None else old)
    assert result.columns is not None and result.columns.schema == operator.writes()
    assert result.decisions is not None and {each.decision for each in result.decisions} <= {"kept"}
    return list(result.columns.to_pylist())


def told(row: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (error["class"], error["suggested"] and error["suggested"]["class"], round(error["score"], 2))
        for error in row["errors"]
    ]


def test_two_copies_with_two_classes_are_both_suspect() -> None:
    a, b = run(rows({"same": "a", "labels": [box(LEFT)]}, {"same": "a", "labels": [box(LEFT, "bus")]}))
    assert told(a) == [("car", "bus", 0.5)] and told(b) == [("bus", "car", 0.5)]
    assert a["errors"][0]["kind"] == "conflict" and a["errors"][0]["label"] == 0
    assert a["errors"][0]["reason"] == "2.jpg, a copy, has bus here, this image car; 1 of 2 copies disagree"
    assert (a["copy_of"], a["copy_kind"], b["copy_of"], b["copy_kind"]) == (1, None, 1, "pixels")


def test_what_most_copies_say_is_right() -> None:
    images = [{"same": "a", "labels": [box(LEFT, name)]} for name in ("car", "bus", "car")]
    assert [told(row) for row in run(rows(*images))] == [[], [("bus", "car", 0.67)], []]


def test_a_label_that_only_some_copies_have() -> None:
    both, one = [box(LEFT), box(RIGHT)], [box(LEFT)]
    first, *_, last = run(rows(*({"same": "a", "labels": labels} for labels in (both, both, one))))
    assert told(first) == [] and told(last) == [(None, "car", 0.67)]
    assert [last["errors"][0]["suggested"][side] for side in ("x1", "y1", "x2", "y2")] == list(RIGHT)
    first, *_, last = run(rows(*({"same": "a", "labels": labels} for labels in (both, one, one))))
    assert told(first) == [("car", None, 0.67)] and told(last) == [] and first["errors"][0]["label"] == 1


def test_copies_that_agree_have_no_conflict_whatever_their_size_and_the_order_of_their_labels() -> None:
    large = [box(tuple(3 * side for side in xyxy)) for xyxy in (RIGHT, LEFT)]
    images = [{"same": "a", "labels": [box(LEFT), box(RIGHT)]}, {"same": "a", "labels": large, "scale": 3}]
    assert [row["errors"] for row in run(rows(*images))] == [[], []]
    wrong = [{**images[0], "labels": [box(LEFT), box(RIGHT, "bus")]}, images[1]]
    first, second = run(rows(*wrong))
    assert told(first) == [("bus", "car", 0.5)] and told(second) == [("car", "bus", 0.5)]
    assert first["errors"][0]["suggested"]["x1"] == 60 and second["errors"][0]["suggested"]["x1"] == 180


def test_other_pictures_are_not_compared() -> None:
    found = run(rows({"same": "a", "labels": [box(LEFT)]}, {"same": "b", "labels": [box(LEFT, "bus")]}))
    assert [(row["errors"], row["copy_of"]) for row in found] == [([], 1), ([], 2)]


def test_perceptual_copies_count_up_to_their_distance() -> None:
    near = hash_of("a") ^ 0b111  # type: ignore[operator]
    images = [{"same": "a", "labels": [box(LEFT)]}, {"same": "b", "phash": near, "labels": [box(LEFT, "bus")]}]
    assert [len(row["errors"]) for row in run(rows(*images))] == [1, 1]
    assert [len(row["errors"]) for row in run(rows(*images), distance=2)] == [0, 0]
    assert [len(row["errors"]) for row in run(rows(*images), distance=None)] == [0, 0]


def test_images_that_only_look_alike_are_compared_by_counts() -> None:
    vectors = pa.array([[1, 0, 0], [1, 0.1, 0], [0, 1, 0]], pa.list_(pa.float16(), 3))
    elsewhere = [box(RIGHT), box((0, 60, 40, 100), "bus")]
    images = [{"same": "a", "labels": [box(LEFT)]}, {"same": "b", "labels": elsewhere}, {"same": "c", "labels": []}]
    table = rows(*images).append_column("embedding", vectors)
    found = run(table, threshold=0.95, by=[], distance=None)
    assert [len(row["errors"]) for row in found] == [0, 1, 0] and found[1]["copy_kind"] == "semantic"
    assert found[1]["errors"][0]["reason"] == "1.jpg, which looks alike, has 0 bus, this image 1"


def test_a_copy_with_a_region_to_ignore_says_nothing_of_what_is_in_it() -> None:
    """COCO's crowd in one copy, the same cars one by one in the others."""
    crowd = {**box((50, 0, 100, 50)), "crowd": True}
    with_crowd = {"same": "a", "labels": [box(LEFT), crowd]}
    apart = {"same": "a", "labels": [box(LEFT), box(RIGHT)]}
    assert [told(row) for row in run(rows(with_crowd, apart))] == [[], []]
    assert [told(row) for row in run(rows(with_crowd, apart, apart))] == [[], [], []]
    # Of the two copies that tell them apart, one has none.
    first, *rest = run(rows(with_crowd, apart, {"same": "a", "labels": [box(LEFT)]}))
    assert told(first) == []
    assert [told(row) for row in rest] == [[("car", None, 0.5)], [(None, "car", 0.5)]]
    # A region of another class says nothing of cars.
    bus = {"same": "a", "labels": [box(LEFT), {**crowd, "class": "bus"}]}
    assert [told(row) for row in run(rows(bus, apart))] == [[(None, "car", 0.5)], [("car", None, 0.5)]]
    # Two regions are no two labels of one object.
    assert [told(row) for row in run(rows(with_crowd, {**with_crowd, "scale": 1}))] == [[], []]


def test_counts_say_nothing_where_they_were_not_told_apart() -> None:
    crowd = {**box((50, 0, 100, 50)), "crowd": True}
    phash = hash_of("a")
    assert phash is not None
    labels = [[box(LEFT), crowd], [box(LEFT), box(RIGHT), box(LEFT, "bus")]]
    embedding = pa.array([[1.0, 0.0], [0.999, 0.0447]], pa.list_(pa.float32(), 2))
    images = rows(*({"same": name, "labels": each} for name, each in zip("ab", labels, strict=True)))
    images = images.append_column("embedding", embedding)
    _, second = run(images, threshold=0.99, distance=None)
    assert [(error["kind"], error["reason"]) for error in second["errors"]] == [
        ("conflict", "1.jpg, which looks alike, has 0 bus, this image 1")
    ]


def test_null_labels_are_no_opinion_and_no_labels_are_one() -> None:
    images = [{"same": "a", "labels": [box(LEFT)]}, {"same": "a", "labels": None}]
    assert [row["errors"] for row in run(rows(*images))] == [[], None]
    images[1]["labels"] = []
    assert [told(row) for row in run(rows(*images))] == [[("car", None, 0.5)], [(None, "car", 0.5)]]


def test_bad_labels_and_images_without_a_hash_are_passed_over() -> None:
    bad = [box((5, 5, 5, 9)), box((float("nan"), 0, 9, 9)), box(LEFT, None), box(LEFT)]
    images = [{"same": "a", "labels": [box(LEFT)]}, {"same": "a", "labels": bad}, {"same": None, "labels": [box(LEFT)]}]
    found = run(rows(*images))
    assert [row["errors"] for row in found] == [[], [], []] and found[2]["copy_of"] == 3


def test_new_copies_are_held_against_old_ones() -> None:
    operator = LabelConflicts(LabelConflicts.Params())
    first = rows(
        {"same": "a", "labels": [box(LEFT)]}, {"same": "b", "labels": []}, {"same": "a", "labels": [box(LEFT)]}
    )
    first = first.select(["image_id", "key", *operator.reads()])
    old = earlier(operator, first, operator.compute(first, earlier(operator, first)))
    later = rows({"same": "a", "labels": [box(LEFT, "bus")]}, {"same": "c", "labels": []}, first=4)
    found = run(later, old)
    assert told(found[0]) == [("bus", "car", 0.67)] and (found[0]["copy_of"], found[0]["copy_kind"]) == (1, "pixels")
    assert (found[1]["errors"], found[1]["copy_of"]) == ([], 5)


def test_no_rows() -> None:
    assert run(rows()) == []


def test_the_order_of_rows_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    images = [
        {
            "same": str(rng.choice(list("abc"))),
            "key": f"{n}.jpg",
            "labels": [box(LEFT, str(rng.choice(["car", "bus"])))],
        }
        for n in range(12)
    ]
    table = rows(*images)
    found = {key: told(row) for key, row in zip(table.column("key").to_pylist(), run(table), strict=True)}
    order = rng.permutation(12)
    again = table.take(pa.array(order)).set_column(0, "image_id", table.column("image_id"))
    assert found == {key: told(row) for key, row in zip(again.column("key").to_pylist(), run(again), strict=True)}
    assert any(found.values())


def test_some_kind_of_copy_must_count() -> None:
    with pytest.raises(ValidationError, match="by must name file or pixels where neither distance nor threshold"):
        LabelConflicts.Params(by=(), distance=None)
