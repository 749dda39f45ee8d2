"""`fuse`: weighted boxes fusion."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.operators.errors import OperatorError
from labelmill.operators.fuse import Fuse, Platt
from tests.operators.test_select import box

SIDES = ("x1", "y1", "x2", "y2")
NAMES = ("car", "truck")


def fuse(*columns: list[list[Any] | None], **params: Any) -> list[Any]:
    names = [f"step_{number}.detections" for number in range(len(columns))]
    operator = Fuse(Fuse.Params(detections=names, **params))
    operator.check(dict.fromkeys(operator.reads(), DETECTIONS))
    table = pa.table({name: pa.array(column, DETECTIONS) for name, column in zip(names, columns, strict=True)})
    result = operator.compute(table)
    assert result.columns is not None and result.decisions is not None
    return [
        row if decision.decision == "kept" else decision
        for row, decision in zip(result.columns.column("detections").to_pylist(), result.decisions, strict=True)
    ]


def one(*columns: list[Any], **params: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = fuse(*([column] for column in columns), **params)[0]
    return found


# ---------------------------------------------------------------- against the paper, done by hand


def by_hand(columns: list[list[dict[str, Any]]], weights: list[float], threshold: float) -> list[tuple[Any, ...]]:
    """The algorithm of section 3 of the paper, number by number, with one detector counted once (see `Fuse`)."""
    fused = []
    for name in NAMES:
        members = [
            (each["score"] * weight, weight, source, [each[side] for side in SIDES])
            for source, (column, weight) in enumerate(zip(columns, weights, strict=True))
            for each in column
            if each["class"] == name
        ]
        clusters: list[list[Any]] = []
        for member in sorted(members, key=lambda member: (-member[0], member[3], member[2])):
            best, overlap = None, threshold
            for cluster in clusters:
                found = _iou(_mean(cluster), member[3])
                if found > overlap:
                    best, overlap = cluster, found
            clusters.append([member]) if best is None else best.append(member)
        for cluster in clusters:
            mean = sum(member[0] for member in cluster) / sum(member[1] for member in cluster)
            share = sum(weights[source] for source in {member[2] for member in cluster}) / sum(weights)
            fused.append((name, mean * share, *_mean(cluster)))
    return sorted(fused, key=lambda each: (-each[1], each[0], each[2:]))


def _mean(cluster: list[Any]) -> list[float]:
    total = sum(member[0] for member in cluster)
    return [sum(member[0] * member[3][side] for member in cluster) / total for side in range(4)]


def _iou(one: list[float], other: list[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0
    area = sum((each[2] - each[0]) * (each[3] - each[1]) for each in (one, other))
    return width * height / (area - width * height)


@st.composite
def detectors(draw: st.DrawFn) -> tuple[list[list[dict[str, Any]]], list[float]]:
    """What two or three detectors say of one image: the same things, about where they are, or not at all."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    things = [
        (rng.uniform(0, 60, 2), rng.uniform(10, 40, 2), NAMES[rng.integers(2)]) for _ in range(rng.integers(1, 8))
    ]
    columns = []
    for _ in range(draw(st.integers(2, 3))):
        column = []
        for corner, size, name in things:
            for _ in range(rng.integers(0, 3)):
                low, high = corner + rng.normal(0, 2, 2), corner + size + rng.normal(0, 2, 2)
                values = np.float32([*low.clip(0, 99), *high.clip(low + 1, 100)])
                column.append(box(*values.tolist(), name, float(np.float32(rng.uniform(0.05, 1)))))
        columns.append(column)
    return columns, [float(weight) for weight in rng.choice([1, 1, 2, 0.5], len(columns))]


@given(detectors(), st.sampled_from([0.4, 0.55, 0.7]))
@settings(max_examples=100, deadline=None)
def test_fused_boxes_are_those_of_the_paper(given: Any, threshold: float) -> None:
    columns, weights = given
    found = one(*columns, weights=weights, iou=threshold)
    expected = by_hand(columns, weights, threshold)
    assert [each["class"] for each in found] == [each[0] for each in expected]
    np.testing.assert_allclose([each["score"] for each in found], [each[1] for each in expected], rtol=1e-5)
    boxes = [[each[side] for side in SIDES] for each in found]
    np.testing.assert_allclose(
        np.reshape(boxes, (-1, 4)), np.reshape([each[2:] for each in expected], (-1, 4)), rtol=1e-4
    )
    reversed_ = one(*(column[::-1] for column in columns), weights=weights, iou=threshold)
    assert reversed_ == found, "the order of the input does not matter"


def _authors() -> Any:
    """The authors' module, by its file: their package imports numba for something else."""
    spec = importlib.util.find_spec("ensemble_boxes")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package ensemble-boxes")
    file = Path(spec.origin).with_name("ensemble_boxes_wbf.py")
    found = importlib.util.spec_from_file_location("ensemble_boxes_wbf", file)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_fused_boxes_are_those_of_the_authors_package() -> None:
    authors = _authors()

    @given(detectors())
    @settings(max_examples=100, deadline=None)
    def check(given: Any) -> None:
        columns, weights = given
        boxes, scores, labels = authors.weighted_boxes_fusion(
            [[[each[side] / 100 for side in SIDES] for each in column] for column in columns],
            [[each["score"] for each in column] for column in columns],
            [[NAMES.index(each["class"]) for each in column] for column in columns],
            weights=weights,
            conf_type="box_and_model_avg",
        )
        order = np.lexsort((*boxes.T[::-1], labels, -scores))
        found = one(*columns, weights=weights)
        np.testing.assert_allclose([each["score"] for each in found], scores[order], atol=1e-5)
        mine = np.array([[each[side] / 100 for side in SIDES] for each in found]).reshape(-1, 4)
        np.testing.assert_allclose(mine, boxes[order], atol=1e-5)

    check()


# ---------------------------------------------------------------- what becomes of the rest


def test_agreement_raises_and_solitude_halves() -> None:
    first, second = [box(0, 0, 10, 10, score=0.8), box(50, 50, 60, 60, score=0.6)], [box(0, 0, 10, 9, score=0.4)]
    both, alone = one(first, second)
    assert both["score"] == pytest.approx(0.6)
    assert both["y2"] == pytest.approx((10 * 0.8 + 9 * 0.4) / 1.2)
    assert alone["score"] == pytest.approx(0.3)
    assert one(first, first)[0]["score"] == pytest.approx(0.8)
    assert one([*first, *first], [])[0]["score"] == pytest.approx(0.4), "one detector twice is one detector"


def test_models_are_those_of_all_members_and_the_rest_is_the_best_ones() -> None:
    best = {**box(0, 0, 10, 10, score=0.9), "models": ["b@2", "c@3"], "prompt": "taxi", "mask": "xyz"}
    other = {**box(0, 0, 10, 10, score=0.5), "models": ["a@1", "c@3"], "prompt": "car"}
    (found,) = one([other], [best])
    assert (found["models"], found["prompt"], found["mask"]) == (["b@2", "c@3", "a@1"], "taxi", None)
    (found,) = one([box(0, 0, 10, 10)], [])
    assert found["models"] is None


def test_what_cannot_be_fused_is_left_out() -> None:
    nan = {**box(0, 0, 9, 9), "x1": float("nan")}
    bad = [box(5, 5, 5, 9), box(9, 9, 3, 3), nan, box(0, 0, 9, 9, None), {**box(0, 0, 9, 9), "y2": None}]
    assert one(bad, [box(0, 0, 9, 9, "truck", None)]) == one([], [box(0, 0, 9, 9, "truck", 1.0)])
    assert fuse([[], None, []], [[], [], None])[0] == []
    failed = fuse([[], None, []], [[], [], None])[1:]
    assert [each.reason.split(":")[0] for each in failed] == ["no step_0.detections", "no step_1.detections"]


def test_scores_of_zero_and_nan_do_no_harm() -> None:
    zero, nan = box(0, 0, 9, 9, score=0.0), box(0, 0, 9, 9, score=float("nan"))
    (found,) = one([zero], [nan])
    assert found["score"] == 0 and found["x2"] == 9


def test_calibrated_scores_are_compared() -> None:
    timid, bold = [box(0, 0, 10, 10, score=0.2)], [box(0, 0, 10, 9, score=0.9)]
    scores = [{"slope": 1, "intercept": 4}, None]
    (found,) = one(timid, bold, scores=scores)
    lifted = 1 / (1 + np.exp(-(np.log(0.2 / 0.8) + 4)))
    assert found["score"] == pytest.approx((lifted + 0.9) / 2)
    assert one(timid, bold, scores=[None, None]) == one(timid, bold)


@given(st.floats(0, 1), st.floats(0, 1))
def test_calibration_keeps_the_order_and_the_range(first: float, second: float) -> None:
    low, high = Platt(slope=0.7, intercept=-1).probability(np.array(sorted([first, second])))
    assert 0 <= low <= high <= 1
    np.testing.assert_allclose(Platt().probability(np.array([first])), [first], atol=2e-6)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"detections": ["a"]}, "at least 2"),
        ({"detections": ["a", "a"]}, "must be different columns"),
        ({"detections": ["a", "b"], "weights": [1]}, "weights must be one for each of the 2 columns but are 1"),
        ({"detections": ["a", "b"], "weights": [1, 0]}, "greater than 0"),
        ({"detections": ["a", "b"], "scores": [None]}, "scores must be one for each"),
        ({"detections": ["a", "b"], "iou": 1}, "less than 1"),
    ],
)
def test_parameters_that_do_not_fit(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Fuse.Params(**params)


def test_columns_must_be_detections() -> None:
    operator = Fuse(Fuse.Params(detections=["a", "b"]))
    with pytest.raises(OperatorError, match="column 'b' must be"):
        operator.check({"a": DETECTIONS, "b": pa.string()})


def test_many_do_not_take_long() -> None:
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 500, (2, 20, 200, 2))
    columns = [
        [[box(*corner, *(corner + 20), "car", 0.5) for corner in image.tolist() and image] for image in column]
        for column in low
    ]
    started = time.process_time()
    fuse(*columns)
    assert time.process_time() - started < 5
