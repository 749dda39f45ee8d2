from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.operators.detections.sightings import probability, sightings
from labelmill.operators.errors import OperatorError
from labelmill.operators.label_errors import LabelErrors
from labelmill.operators.labels.findings import KINDS, LABEL_ERRORS, pool
from labelmill.operators.ontology import Ontology

ONTOLOGY = Ontology({"car": ("car", "taxi"), "bus": ("bus",), "traffic light": ("traffic light",)})
CAR = (10.0, 10.0, 50.0, 50.0)
FAR = (200.0, 200.0, 260.0, 260.0)


def box(xyxy: Any, name: str | None = "car", score: float | None = None) -> dict[str, Any]:
    values = dict(zip(("x1", "y1", "x2", "y2"), xyxy, strict=True))
    return {**values, "class": name, "score": score, "prompt": None, "mask": None, "models": None}


def table(*images: tuple[Any, Any], **more: Any) -> pa.Table:
    """Images as (labels, detections)."""
    columns = {
        "image_id": pa.array(range(1, len(images) + 1), pa.int64()),
        "key": [f"{number}.jpg" for number in range(len(images))],
        "source.labels": pa.array([labels for labels, _ in images], DETECTIONS),
        "detections": pa.array([found for _, found in images], DETECTIONS),
    }
    return pa.table({**columns, **more})


def run(*images: tuple[Any, Any], more: Any = None, **params: Any) -> list[dict[str, Any]]:
    operator = LabelErrors(LabelErrors.Params(**params))
    result = operator.compute(table(*images, **(more or {})))
    assert result.columns is not None and result.columns.schema == operator.writes()
    return list(result.columns.to_pylist())


def one(labels: Any, found: Any, **params: Any) -> list[dict[str, Any]]:
    errors = run((labels, found), **params)[0]["errors"]
    assert [error["score"] for error in errors] == sorted((error["score"] for error in errors), reverse=True)
    return list(errors)


class TestKinds:
    def test_nothing_is_wrong_where_both_agree(self) -> None:
        row = run(([box(CAR), box(FAR, "bus")], [box(CAR, "car", 0.9), box(FAR, "bus", 0.8)]))[0]
        assert [error for error in row["errors"] if error["score"] > 0.2] == []
        assert row["label_quality"] > 0.8

    def test_missing(self) -> None:
        (error,) = one([box(CAR)], [box(CAR, "car", 0.95), box(FAR, "bus", 0.8)])
        assert (error["kind"], error["label"], error["class"], error["x1"]) == ("missing", None, None, None)
        assert error["suggested"] == dict(zip(("class", "x1", "y1", "x2", "y2"), ("bus", *FAR), strict=True))
        assert error["reason"] == "the detector sees bus (0.80) and no label covers it"
        # odds of 4, over those of a score of 0.3
        assert error["score"] == pytest.approx(4 / (4 + 3 / 7), abs=1e-6)

    def test_spurious(self) -> None:
        (error,) = one([box(FAR), box(CAR)], [box(CAR, "car", 0.95)])
        assert (error["kind"], error["label"], error["class"], error["suggested"]) == ("spurious", 0, "car", None)
        assert error["reason"] == "the detector sees nothing here"
        assert error["score"] == pytest.approx(0.9)

    def test_spurious_is_less_sure_the_more_the_detector_suspects_something(self) -> None:
        scores = [one([box(CAR)], [box(CAR, "car", score)])[0]["score"] for score in (0.1, 0.15, 0.2, 0.3)]
        assert scores == sorted(scores, reverse=True) and scores[-1] == pytest.approx(0.5)

    def test_class(self) -> None:
        (error,) = one([box(CAR)], [box(CAR, "bus", 0.9), box(CAR, "car", 0.1)])
        assert (error["kind"], error["label"], error["class"]) == ("class", 0, "car")
        assert error["suggested"] == dict(zip(("class", "x1", "y1", "x2", "y2"), ("bus", *CAR), strict=True))
        assert error["reason"] == "the detector sees bus (0.90) here, not car (0.10)"
        torn = one([box(CAR)], [box(CAR, "bus", 0.9), box(CAR, "car", 0.85)])
        assert torn[0]["score"] < error["score"]

    def test_location(self) -> None:
        beside = (30.0, 10.0, 70.0, 50.0)
        (error,) = one([box(beside)], [box(CAR, "car", 0.9)])
        assert (error["kind"], error["label"], error["class"]) == ("location", 0, "car")
        assert [error["suggested"][side] for side in ("x1", "y1", "x2", "y2")] == list(CAR)
        assert error["reason"] == "the detector sees car (0.90) elsewhere: IoU 0.33"

    def test_location_grows_as_the_boxes_part(self) -> None:
        def score(shift: float) -> float:
            errors = one([box((10 + shift, 10, 50 + shift, 50))], [box(CAR, "car", 0.9)], floor=0)
            return float(sum(error["score"] for error in errors if error["kind"] == "location"))

        scores = [score(shift) for shift in (0, 4, 8, 12)]
        assert scores == sorted(scores) and scores[0] == 0 and scores[-1] > 0.7

    def test_a_label_far_from_its_object_is_spurious_and_the_object_is_missing(self) -> None:
        errors = one([box((45, 45, 85, 85))], [box(CAR, "car", 0.9)])
        assert {error["kind"] for error in errors} == {"spurious", "missing"}

    def test_duplicate(self) -> None:
        labels = [box((11, 10, 50, 51)), box(CAR), box(FAR)]
        (error,) = one(labels, [box(CAR, "car", 0.9), box(FAR, "car", 0.95)])
        assert (error["kind"], error["label"], error["suggested"]) == ("duplicate", 0, None)
        assert error["reason"].startswith("overlaps label 1 (car) by IoU 0.95")

    def test_two_labels_of_two_overlapping_objects_are_none(self) -> None:
        second = (22.0, 10.0, 62.0, 50.0)
        found = [box(CAR, "car", 0.9), box(second, "car", 0.9)]
        assert [error for error in one([box(CAR), box(second)], found) if error["score"] > 0.2] == []

    def test_neighbours_are_not_mistaken_for_each_other(self) -> None:
        """Each label is nearest to the other one's sighting; one to one they fit."""
        left, right = (0, 0, 40, 40), (20, 0, 60, 40)
        errors = one([box(left), box(right, "bus")], [box(left, "car", 0.5), box(right, "bus", 0.9)])
        assert [error for error in errors if error["score"] > 0.4] == []

    def test_a_label_has_one_error_at_most(self) -> None:
        rng = np.random.default_rng(0)
        for _ in range(20):
            corners = rng.uniform(0, 60, (12, 2, 2))
            boxes = [(*low, *(low + 5 + size)) for low, size in corners]
            names = rng.choice(["car", "bus"], 12)
            labels = [box(each, str(name)) for each, name in zip(boxes[:6], names, strict=False)]
            found = [box(each, str(name), 0.6) for each, name in zip(boxes[6:], names[6:], strict=True)]
            places = [error["label"] for error in one(labels, found, floor=0) if error["label"] is not None]
            assert sorted(places) == list(range(6))


class TestBadLabels:
    @pytest.mark.parametrize(
        ("bad", "kind", "reason"),
        [
            (box((math.nan, 0, 9, 9)), "invalid", "the box is not four finite numbers"),
            (box((0, 0, math.inf, 9)), "invalid", "the box is not four finite numbers"),
            (box((None, 0, 9, 9)), "invalid", "the box is not four finite numbers"),
            (box((9, 0, 2, 9)), "invalid", "the box is inverted"),
            (box((5, 5, 5, 9)), "invalid", "the box has no area: 0 x 4 pixels"),
            (box((400, 0, 420, 9)), "invalid", "the box lies outside the image of 320 x 240 pixels"),
            (box((-9, -9, 0, 0)), "invalid", "the box lies outside the image of 320 x 240 pixels"),
            (box(FAR, None), "class", "the label has no class"),
            (box(FAR, "spaceship"), "class", "class 'spaceship' is not in the ontology"),
            (box(FAR, "Taxi"), "class", "class 'Taxi' is not in the ontology, which calls it 'car'"),
            (box(FAR, "trafic light"), "class", "class 'trafic light' is not in the ontology; did they mean"),
            (box(FAR, ""), "class", "class '' is not in the ontology"),
        ],
    )
    def test_is_an_error_and_harms_no_other(self, bad: Any, kind: str, reason: str) -> None:
        size = {"width": pa.array([320]), "height": pa.array([240])}
        found = [box(CAR, "car", 0.95)]
        errors = one([bad, box(CAR)], found, ontology=ONTOLOGY, size=True, more=size)
        assert len(errors) == 1 and errors[0]["label"] == 0 and errors[0]["kind"] == kind
        assert errors[0]["reason"].startswith(reason)
        assert errors[0]["score"] == 1

    def test_the_suggested_class_is_the_nearest_name_or_what_the_detector_sees(self) -> None:
        names = ("spaceship", "trafic light", "TAXI", None)
        labels = [box((100 * n, 0, 100 * n + 50, 50), name) for n, name in enumerate(names)]
        found = [box((100 * n, 0, 100 * n + 50, 50), "bus", 0.9) for n in range(4)]
        errors = sorted(one(labels, found, ontology=ONTOLOGY), key=lambda error: error["label"])
        assert [error["suggested"]["class"] for error in errors] == ["bus", "traffic light", "car", "bus"]
        nothing = one([box(CAR, "spaceship")], [], ontology=ONTOLOGY)
        assert nothing[0]["suggested"] is None

    def test_the_part_inside_is_suggested(self) -> None:
        size = {"width": pa.array([320]), "height": pa.array([None], pa.int32())}
        (error,) = one([box((300, 0, 340, 40))], [box((300, 0, 320, 40), "car", 0.9)], size=True, more=size)
        assert error["kind"] == "location" and error["suggested"]["x2"] == 320 and error["suggested"]["y2"] == 40
        (error,) = one([box((304, 0, 324, 40))], [box((304, 0, 320, 40), "car", 0.9)], size=True, more=size)
        assert error["reason"] == "20% of the box lies outside the image" and error["score"] == pytest.approx(0.2)

    def test_sizes_are_only_read_when_asked_for(self) -> None:
        assert LabelErrors(LabelErrors.Params()).reads() == ("source.labels", "detections")
        assert one([box((400, 0, 440, 40))], [box((400, 0, 440, 40), "car", 0.95)]) == []

    def test_bad_detections_are_passed_over(self) -> None:
        found = [box((5, 5, 5, 9), "car", 0.9), box(CAR, None, 0.9), box((math.nan, 0, 9, 9), "car", 0.9)]
        assert [error["kind"] for error in one([box(CAR)], found)] == ["spurious"]

    def test_null_is_not_nothing(self) -> None:
        rows = run((None, [box(CAR, "car", 0.9)]), ([], [box(CAR, "car", 0.9)]), ([box(CAR)], None), ([], []))
        assert [row["errors"] if row["errors"] is None else len(row["errors"]) for row in rows] == [None, 1, None, 0]
        assert [row["label_quality"] is None for row in rows] == [True, False, True, False]
        assert rows[3]["label_quality"] == 1

    def test_no_rows(self) -> None:
        assert run() == []

    @given(
        st.lists(
            st.tuples(*[st.floats(width=32) | st.none()] * 4, st.sampled_from(["car", "bus", "cat", None])), max_size=6
        ),
        st.lists(st.tuples(*[st.floats(width=32)] * 4, st.floats(width=32) | st.none()), max_size=6),
    )
    @settings(max_examples=60, deadline=None)
    def test_whatever_comes_each_label_is_judged(self, labels: Any, found: Any) -> None:
        given_labels = [box(each[:4], each[4]) for each in labels]
        detections = [box(each[:4], "car", each[4]) for each in found]
        size = {"width": pa.array([320]), "height": pa.array([240])}
        row = run((given_labels, detections), ontology=ONTOLOGY, size=True, floor=0, more=size)[0]
        places = sorted(error["label"] for error in row["errors"] if error["label"] is not None)
        assert places == list(range(len(labels)))
        assert all(0 <= error["score"] <= 1 and error["kind"] in KINDS for error in row["errors"])
        assert 0 <= row["label_quality"] <= 1


class TestScores:
    def test_the_order_of_labels_and_detections_does_not_matter(self) -> None:
        rng = np.random.default_rng(1)
        corners = rng.uniform(0, 200, (14, 2))
        boxes = [(x, y, x + 40, y + 40) for x, y in corners]
        labels = [box(each, str(rng.choice(["car", "bus"]))) for each in boxes[:7]]
        found = [box(each, str(rng.choice(["car", "bus"])), float(rng.uniform(0.1, 1))) for each in boxes[2:]]
        first = one(labels, found, floor=0)
        order = rng.permutation(7)
        again = one([labels[n] for n in order], found[::-1], floor=0)
        for error in again:
            error["label"] = None if error["label"] is None else int(order[error["label"]])

        def told(errors: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
            return sorted((e["kind"], str(e["label"]), e["score"], str(e["suggested"])) for e in errors)

        assert told(first) == told(again)

    def test_images_do_not_touch_each_other(self) -> None:
        images = [([box(CAR)], [box(CAR, "bus", 0.9)]), ([box(FAR, "bus")], []), ([], [box(FAR, "zebra", 0.8)])]
        together = run(*images)
        assert together == [run(image)[0] for image in images]

    def test_the_floor_leaves_out_errors_but_not_their_part_of_the_quality(self) -> None:
        all_of_them = run(([box(CAR)], [box(CAR, "car", 0.5)]), floor=0)[0]
        none = run(([box(CAR)], [box(CAR, "car", 0.5)]), floor=0.9)[0]
        assert len(all_of_them["errors"]) == 2 and none["errors"] == []
        assert none["label_quality"] == all_of_them["label_quality"] < 1

    @pytest.mark.parametrize(("agreement", "way"), [(0.0, 1), (0.5, 0), (1.0, -1), (None, 0), (math.nan, 0)])
    def test_a_second_opinion_makes_it_surer_or_less_sure(self, agreement: float | None, way: int) -> None:
        labels, found = [box(CAR)], [box(CAR, "bus", 0.7), box(CAR, "car", 0.2)]
        alone = one(labels, found, floor=0)[0]["score"]
        more = {"agreement": pa.array([[agreement]], pa.list_(pa.float32()))}
        errors = one(labels, found, floor=0, agreement="agreement", more=more)
        together = {error["kind"]: error["score"] for error in errors}.get("class", 0.0)
        assert np.sign(round(together - alone, 6)) == way

    def test_opinions_about_other_labels_fail_the_row(self) -> None:
        operator = LabelErrors(LabelErrors.Params(agreement="agreement"))
        rows = table(([box(CAR)], []), agreement=pa.array([[0.5, 0.5]], pa.list_(pa.float32())))
        result = operator.compute(rows)
        assert result.decisions is not None and result.decisions[0].decision == "failed"
        assert result.decisions[0].reason == "agreement must have a number for each of 1 labels but has 2"

    def test_calibrated_scores_are_taken_as_they_are(self) -> None:
        scores = np.array([0.0, 0.2, 0.5, 0.9, 1.0])
        assert probability(scores, 0.5) == pytest.approx(scores)
        assert probability(np.array([0.3]), 0.3) == pytest.approx([0.5])
        assert (np.diff(probability(scores, 0.2)) > 0).all()

    def test_pooling_is_near_the_worst(self) -> None:
        assert pool([]) == 1 and pool([0.25]) == 0.75
        assert 0.1 < pool([0.9, 0.0, 0.0]) < 0.11
        assert pool([0.9, 0.9]) == pytest.approx(0.1)

    def test_a_sighting_keeps_every_class_that_was_named_there(self) -> None:
        boxes = np.array([CAR, (11, 10, 51, 50), FAR, (10, 12, 50, 50)], dtype=float)
        seen = sightings(boxes, np.array([0, 1, 1, 0]), np.array([0.9, 0.4, 0.6, 0.3]), 2, 0.5, 0.5)
        assert seen.boxes.tolist() == [list(CAR), list(FAR)]
        assert seen.scores.tolist() == [[0.9, 0.4], [0.0, 0.6]]


class TestParams:
    def test_what_does_not_fit_is_refused(self) -> None:
        operator = LabelErrors(LabelErrors.Params(detections="labels", labels="labels"))
        with pytest.raises(OperatorError, match="must be two columns"):
            operator.check({"labels": DETECTIONS})
        operator = LabelErrors(LabelErrors.Params(agreement="scores"))
        columns = {"source.labels": DETECTIONS, "detections": DETECTIONS}
        with pytest.raises(OperatorError, match="agreement must be a list of numbers for each image but is string"):
            operator.check({**columns, "scores": pa.string()})
        operator.check({**columns, "scores": pa.list_(pa.float32())})
        with pytest.raises(OperatorError, match="column 'detections' must be"):
            operator.check({**columns, "detections": pa.string()})

    def test_what_is_written(self) -> None:
        schema = LabelErrors(LabelErrors.Params()).writes()
        assert schema.names == ["errors", "label_quality"] and schema.field("errors").type == LABEL_ERRORS


class TestRegionsToIgnore:
    """COCO's crowds: nobody told the objects in them apart."""

    crowd = {**box((100, 100, 200, 200)), "crowd": True}  # noqa: RUF012
    seen = [box((110, 110, 140, 140), "car", 0.95), box((150, 150, 190, 190), "car", 0.9)]  # noqa: RUF012

    def test_what_is_seen_in_one_is_not_missing(self) -> None:
        without = one([box(CAR)], [box(CAR, "car", 0.95), *self.seen])
        assert [error["kind"] for error in without if error["score"] > 0.5] == ["missing", "missing"]
        assert [each for each in one([box(CAR), self.crowd], [box(CAR, "car", 0.95), *self.seen])
                if each["score"] > 0.2] == []  # fmt: skip

    def test_what_is_seen_beside_it_or_is_of_another_class_is(self) -> None:
        beside = box((196, 100, 216, 120), "car", 0.95)
        bus = box((110, 110, 140, 140), "bus", 0.9)
        errors = [each for each in one([self.crowd], [beside, bus]) if each["score"] > 0.5]
        assert [(each["kind"], each["suggested"]["class"]) for each in errors] == [
            ("missing", "car"),
            ("missing", "bus"),
        ]

    def test_it_is_not_on_trial_itself(self) -> None:
        """Where the detector sees nothing of its shape it is neither spurious, nor a second label of what is in it."""
        assert one([self.crowd], []) == []
        own = [{**box((110, 110, 140, 140))}, self.crowd]
        assert [each for each in one(own, self.seen[:1]) if each["score"] > 0.2] == []

    def test_one_that_cannot_be_used_is_named_all_the_same(self) -> None:
        (error,) = one([{**self.crowd, "x2": 100.0}], [])
        assert (error["kind"], error["label"]) == ("invalid", 0)
        (error,) = one([{**self.crowd, "class": "lorry"}], [], ontology=ONTOLOGY)
        assert error["kind"] == "class"
