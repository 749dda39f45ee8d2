"""`select`: which detections become labels, and why the others do not."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from labelmill.operators.applying.apply import Job, apply
from labelmill.operators.applying.worker import Worker
from labelmill.operators.base import KEPT
from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.operators.errors import OperatorError
from labelmill.operators.ontology import Ontology
from labelmill.operators.select import Select

ONTOLOGY = {"car": ["car", "taxi"], "truck": "truck", "stop sign": "stop sign"}


def box(
    x1: float, y1: float, x2: float, y2: float, name: str | None = "car", score: float | None = 0.9
) -> dict[str, Any]:
    return {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "class": name, "score": score, "prompt": None, "mask": None}


def table(*images: list[Any] | None, column: str = "detections") -> pa.Table:
    ids = range(1, len(images) + 1)
    return pa.table({"image_id": ids, "key": [f"{n}.jpg" for n in ids], column: pa.array(list(images), DETECTIONS)})


def select(*images: list[Any] | None, **params: Any) -> list[dict[str, Any]]:
    operator = Select(Select.Params(**params))
    operator.check({operator.reads()[0]: DETECTIONS})
    result = operator.compute(table(*images, column=operator.reads()[0]))
    assert result.columns is not None and result.columns.schema.equals(operator.writes())
    assert result.columns.num_rows == len(images)
    return result.columns.to_pylist()


def one(boxes: list[Any], **params: Any) -> tuple[list[Any], list[str | None]]:
    row = select(boxes, **params)[0]
    return row["detections"], row["reasons"]


def test_the_score_has_one_threshold_or_one_by_class() -> None:
    boxes = [box(0, 0, 9, 9, "car", 0.4), box(20, 0, 29, 9, "truck", 0.4), box(40, 0, 49, 9, "stop sign", 0.25)]
    assert one(boxes)[1] == [None, None, "score is below 0.3"]
    assert one(boxes, score=0.4)[1] == [None, None, "score is below 0.4"]
    assert one(boxes, score={"car": 0.5, "default": 0.1})[1] == ["score is below 0.5", None, None]
    assert one(boxes, score={"car": 0.5})[1] == ["score is below 0.5", None, "score is below 0.3"]
    assert one(boxes, score=0)[1] == [None, None, None]


@pytest.mark.parametrize("score", [0.1, 0.3, 0.7, 1.0, 0.0])
def test_a_score_at_the_threshold_stays(score: float) -> None:
    assert one([box(0, 0, 9, 9, score=score)], score=score)[1] == [None]


def test_non_maximum_suppression_is_by_class() -> None:
    boxes = [box(0, 0, 10, 9.5, score=0.8), box(0, 0, 10, 10), box(0, 0, 10, 10, "truck", 0.5)]
    picked, reasons = one(boxes)
    assert [(item["class"], round(item["score"], 2)) for item in picked] == [("car", 0.9), ("truck", 0.5)]
    assert reasons == ["overlaps a better car by IoU 0.95, over 0.7", None, None]
    assert one(boxes, nms=None)[1] == [None, None, None]
    assert one(boxes, nms=0.96)[1] == [None, None, None]


def test_the_box_around_several_of_its_class_goes() -> None:
    around = box(0, 0, 100, 100, score=0.99)
    two = [box(5, 5, 20, 20), box(50, 50, 80, 80)]
    assert one([around, *two])[1] == ["contains 2 other boxes of its class", None, None]
    assert one([around, two[0]])[1] == [None, None]
    assert one([around, two[0], box(50, 50, 80, 80, "truck")])[1] == [None, None, None]
    assert one([around, *two], containment=None)[1] == [None, None, None]
    twice = [two[0], box(5, 5, 20, 19.9, score=0.5)]
    assert one([around, *twice])[1] == [None, None, "overlaps a better car by IoU 0.99, over 0.7"]
    faint = [two[0], box(50, 50, 80, 80, score=0.1)]
    assert one([around, *faint])[1] == [None, None, "score is below 0.3"]


def test_classes_may_overlap_unless_told_otherwise() -> None:
    boxes = [box(0, 0, 10, 10, "car", 0.6), box(0, 0, 10, 10, "truck", 0.7), box(0, 0, 10, 8, "car", 0.5)]
    assert one(boxes, nms=None)[1] == [None, None, None]
    reasons = one(boxes, nms=None, across=0.9)[1]
    assert reasons == ["overlaps a better truck by IoU 1.00, over 0.9", None, None]
    assert one([boxes[0], boxes[2]], nms=None, across=0.1)[1] == [None, None]


def test_no_more_than_max_per_image() -> None:
    boxes = [box(20 * n, 0, 20 * n + 9, 9, score=0.3 + n / 10) for n in range(4)]
    picked, reasons = one(boxes, max_per_image=2)
    assert [item["x1"] for item in picked] == [60, 40]
    assert reasons == ["2 better ones are enough"] * 2 + [None, None]


def test_labels_without_a_score_pass_and_win() -> None:
    boxes = [box(0, 0, 10, 10, score=1.0), box(0, 0, 10, 10, score=None)]
    picked, reasons = one(boxes, score=1.0)
    assert [item["score"] for item in picked] == [None]
    assert reasons[1] is None and reasons[0] is not None


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (box(5, 5, 5, 9), "box is empty or inverted"),
        (box(9, 0, 2, 9), "box is empty or inverted"),
        (box(0, float("nan"), 9, 9), "box is not four finite numbers"),
        (box(0, 0, float("inf"), 9), "box is not four finite numbers"),
        (box(0, 0, 9, 9, score=float("nan")), "score is not a number"),
        (box(0, 0, 9, 9, name=None), "has no class"),
        (box(0, 0, 9, 9, name="taxi"), "class 'taxi' is not in the ontology"),
        (None, "box is not four finite numbers"),
    ],
)
def test_an_invalid_detection_goes_and_harms_nobody(bad: Any, reason: str) -> None:
    good = box(0, 0, 8, 8, score=0.5)
    picked, reasons = one([bad, good], ontology=ONTOLOGY)
    assert reasons == [reason, None]
    assert [item["score"] for item in picked] == [0.5]


def test_without_objects_an_image_is_kept_and_unseen_it_fails() -> None:
    operator = Select(Select.Params())
    images = table([], None, [box(0, 0, 9, 9, score=0.1)], [box(0, 0, 9, 9)])
    found, _ = apply(Job(Worker(operator), images, np.ones(4, bool)))
    assert found.column("decision").to_pylist() == ["kept", "failed", "kept", "kept"]
    assert "nobody looked" in found.column("decision.reason")[1].as_py()
    assert [item if item is None else len(item) for item in found.column("detections").to_pylist()] == [0, None, 0, 1]
    assert found.column("reasons").to_pylist() == [[], None, ["score is below 0.3"], [None]]


def test_tables_of_any_shape() -> None:
    operator = Select(Select.Params())
    whole = table([box(0, 0, 9, 9)], None, [], [box(0, 0, 9, 9, "truck"), box(0, 0, 9, 9)])
    expected = operator.compute(whole).columns.to_pylist()  # type: ignore[union-attr]
    for part in (whole.slice(1, 3), whole.slice(3), pa.concat_tables([whole.slice(1, 1), whole.slice(2, 2)])):
        start = part.column("image_id")[0].as_py() - 1
        result = operator.compute(part)
        assert result.columns is not None and result.columns.to_pylist() == expected[start : start + part.num_rows]
    empty = operator.compute(whole.slice(0, 0))
    assert empty.columns is not None and empty.columns.num_rows == 0 and list(empty.decisions or []) == []
    no_chunks = pa.table({"image_id": [], "key": [], "detections": pa.chunked_array([], DETECTIONS)})
    assert operator.compute(no_chunks).columns.num_rows == 0  # type: ignore[union-attr]


def test_prompt_and_mask_stay_with_their_box() -> None:
    first = {**box(0, 0, 9, 9), "prompt": "taxi", "mask": "abc"}
    second = {**box(20, 0, 29, 9, score=0.95), "prompt": "car", "mask": None}
    picked, _ = one([first, second])
    assert [(item["prompt"], item["mask"]) for item in picked] == [("car", None), ("taxi", "abc")]


def test_another_column_can_be_read() -> None:
    assert Select(Select.Params(detections="source.labels")).reads() == ("source.labels",)
    assert select([box(0, 0, 9, 9)], detections="source.labels")[0]["reasons"] == [None]
    with pytest.raises(OperatorError, match="'detections' must be"):
        Select(Select.Params()).check({"detections": pa.list_(pa.float32())})


def test_class_names_are_checked_against_the_ontology() -> None:
    ontology = Ontology.model_validate(ONTOLOGY)
    with pytest.raises(OperatorError, match="did you mean 'stop sign'") as caught:
        Select(Select.Params(score={"stop sing": 0.5}, ontology=ontology))
    assert caught.value.param == ("score", "stop sing")
    with pytest.raises(OperatorError, match="car, truck, stop sign"):
        Select(Select.Params(score={"zebra": 0.5}, ontology=ontology))
    with pytest.raises(OperatorError, match="'default'"):
        Select(Select.Params(score={"default": 0.5}, ontology=Ontology.model_validate(["default"])))
    Select(Select.Params(score={"stop sign": 0.5, "default": 0.2}, ontology=ontology))
    Select(Select.Params(score=0.5, ontology=Ontology.model_validate(["default"])))


@pytest.mark.parametrize(
    "params",
    [{"score": 1.5}, {"score": {"car": -1}}, {"score": "high"}, {"nms": 2}, {"containment": 0}, {"across": -0.1},
     {"max_per_image": 0}, {"threshold": 0.3}],
)  # fmt: skip
def test_parameters_out_of_range_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Select.Params(**params)


# A grid gives many equal scores, equal coordinates and equal overlaps.
POINTS = st.integers(0, 4)
BOXES = st.builds(
    lambda x, y, w, h, name, score, prompt: {**box(x, y, x + w, y + h, name, score), "prompt": prompt},
    POINTS, POINTS, POINTS, POINTS, st.sampled_from(["car", "truck", "stop sign", "zebra"]),
    st.sampled_from([None, 0.2, 0.5, 0.9]), st.sampled_from([None, "a", "b"]),
)  # fmt: skip
PARAMS = st.fixed_dictionaries(
    {
        "nms": st.sampled_from([None, 0.3, 0.7]),
        "across": st.sampled_from([None, 0.5]),
        "containment": st.sampled_from([None, 0.9]),
        "max_per_image": st.sampled_from([None, 3]),
        "ontology": st.sampled_from([None, ONTOLOGY]),
    }
)


@settings(max_examples=100, deadline=None)
@given(boxes=st.lists(BOXES, max_size=12), params=PARAMS, seed=st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(boxes: list[Any], params: dict[str, Any], seed: random.Random) -> None:
    picked, reasons = one(boxes, **params)
    places = list(range(len(boxes)))
    seed.shuffle(places)
    again, shuffled = one([boxes[place] for place in places], **params)
    assert again == picked
    pairs = [(str(boxes[place]), str(reason)) for place, reason in zip(places, shuffled, strict=True)]
    assert sorted(pairs) == sorted((str(item), str(reason)) for item, reason in zip(boxes, reasons, strict=True))
    stays = [item for item, reason in zip(boxes, reasons, strict=True) if reason is None]
    as_stored = pa.array(stays, DETECTIONS.value_type).to_pylist()
    assert sorted(map(str, as_stored)) == sorted(map(str, picked))
    scores = [2 if item["score"] is None else item["score"] for item in picked]
    assert scores == sorted(scores, reverse=True)


@settings(max_examples=100, deadline=None)
@given(boxes=st.lists(BOXES, max_size=12), threshold=st.sampled_from([0.3, 0.7]))
def test_what_stays_does_not_overlap_and_what_went_did(boxes: list[Any], threshold: float) -> None:
    from labelmill.operators.detections.boxes import iou

    picked, reasons = one(boxes, nms=threshold, containment=None, score=0)
    corners = np.array([[item[side] for side in ("x1", "y1", "x2", "y2")] for item in picked], float).reshape(-1, 4)
    names = np.array([item["class"] for item in picked], dtype=object)
    assert not ((np.triu(iou(corners, corners), 1) > threshold) & (names[:, None] == names[None])).any()
    for item, reason in zip(boxes, reasons, strict=True):
        if reason is not None and reason.startswith("overlaps"):
            alone = np.array([[item[side] for side in ("x1", "y1", "x2", "y2")]], float)
            overlaps = iou(alone, corners)[0] > threshold
            assert any(hit and other["class"] == item["class"] for hit, other in zip(overlaps, picked, strict=True))


def test_images_do_not_touch_each_other() -> None:
    images = [[box(0, 0, 10, 10, score=0.5 + n / 100)] for n in range(20)]
    together = select(*images, max_per_image=1)
    assert together == [select(image, max_per_image=1)[0] for image in images]
    assert all(row["reasons"] == [None] for row in together)


def test_a_shard_of_raw_detections_is_quick() -> None:
    rng = np.random.default_rng(0)
    corners = rng.random((64, 300, 2)) * 500
    sides = 10 + rng.random((64, 300, 2)) * 100
    names, scores = rng.integers(0, 20, (64, 300)), rng.random((64, 300))
    images: list[Any] = [
        [
            box(x, y, x + width, y + height, f"c{name}", score)
            for (x, y), (width, height), name, score in zip(corners[i], sides[i], names[i], scores[i], strict=True)
        ]
        for i in range(64)
    ]
    operator, whole = Select(Select.Params()), table(*images)
    started = time.perf_counter()
    result = operator.compute(whole)
    assert time.perf_counter() - started < 3
    assert list(result.decisions or []) == [KEPT] * 64


# ---------------------------------------------------------------- what others think


def agreeing(images: list[list[Any] | None], agreement: list[Any], **params: Any) -> list[dict[str, Any]]:
    given = table(*images).append_column("agreement", pa.array(agreement, pa.list_(pa.float32())))
    operator = Select(Select.Params(agreement=0.5, **params))
    assert operator.reads() == ("detections", "agreement")
    operator.check({"detections": DETECTIONS, "agreement": pa.list_(pa.float32())})
    worker = Worker(operator)
    found, _ = apply(Job(worker, given, np.ones(len(images), dtype=bool)))
    return found.to_pylist()


def test_what_others_agree_with_too_little_goes_before_it_can_suppress() -> None:
    doubted, trusted, unknown = box(0, 0, 10, 10, score=0.9), box(0, 0, 10, 9, score=0.6), box(40, 0, 50, 10, score=0.5)
    rows = agreeing([[doubted, trusted, unknown], None, [trusted]], [[0.49, 0.5, None], None, [1.0]])
    assert [each["score"] for each in rows[0]["detections"]] == pytest.approx([0.6, 0.5])
    assert rows[0]["reasons"] == ["agreement is below 0.5", None, None]
    assert rows[1]["decision"] == "failed"
    assert rows[2]["reasons"] == [None]
    low = agreeing([[box(0, 0, 9, 9, score=0.1)]], [[0.1]])[0]["reasons"]
    assert low == ["score is below 0.3"], "the first reason is told"


def test_agreement_about_other_detections_fails_the_image() -> None:
    rows = agreeing([[box(0, 0, 9, 9)], [box(0, 0, 9, 9)], [], [box(0, 0, 9, 9)]], [[0.9], [0.9, 0.9], None, []])
    assert [row["decision"] for row in rows] == ["kept", "failed", "failed", "failed"]
    assert "one number for each detection, 1 but has 2" in rows[1]["decision.reason"]
    assert "0 but has none" in rows[2]["decision.reason"]


def test_agreement_must_be_a_list_of_numbers() -> None:
    with pytest.raises(OperatorError, match="column 'agreement' must be list"):
        Select(Select.Params(agreement=0.5)).check({"detections": DETECTIONS, "agreement": pa.float32()})
