"""Calibration: scores that are best by brute force, and what is written of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.operators.measures.curves import Curve
from labelmill.operators.measures.detections import match
from labelmill.operators.ontology import Ontology
from labelmill.operators.select import Select
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.evaluation.calibrate import Sweep, calibrate, choose, sweep, threshold_figures
from labelmill.pipelines.evaluation.calibrate_file import fragment, write_fragment
from labelmill.pipelines.evaluation.labels import as_label
from labelmill.pipelines.evaluation.truth import Truth
from labelmill.pipelines.run_folder.finished_run import FinishedRun

NAMES = ("car", "bus")


class Run(FinishedRun):
    """Detections of images, by key, as if a run had made them."""

    folder = "runs/test"

    def __init__(self, detections: dict[str, list[dict[str, Any]] | None]) -> None:
        self.detections = detections
        self.outcome = dict.fromkeys(detections, "kept")
        self.pipeline: Any = SimpleNamespace(settings=SimpleNamespace(ontology=Ontology(list(NAMES))))

    def tables(self, columns: Any, only: Any) -> Iterator[tuple[list[str], pa.Table]]:
        keys = [key for key in self.detections if key in only]
        for half in (keys[::2], keys[1::2]):
            column = pa.array([self.detections[key] for key in half], DETECTIONS)
            yield half, pa.table({"detections": column})


def detection(box: list[float], name: str, score: float | None) -> dict[str, Any]:
    corners = dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))
    return {**corners, "class": name, "score": score, "prompt": None, "mask": None, "models": None}


def drawn(seed: int, images: int = 8, persons: bool = False) -> tuple[Truth, Run]:
    """Objects in rows; found near where they are, twice, not at all, beside; and now and then a box around several."""
    rng = np.random.default_rng(seed)
    objects, found = [], {}
    for image in range(1, images + 1):
        detections = []
        for place in range(int(rng.integers(0, 6))):
            number = int(rng.integers(1, 3))
            left, top, width, height = place * 40, float(rng.integers(0, 60)), 30, float(rng.integers(15, 40))
            box = [left, top, width, height]
            objects.append({"image_id": image, "category_id": number, "bbox": box, "segmentation": None})
            for _ in range(int(rng.integers(0, 4))):
                moved = np.array([left, top, left + width, top + height]) + rng.normal(0, 4, 4)
                name = NAMES[number - 1] if rng.random() < 0.8 else NAMES[2 - number]
                score = np.round(rng.beta(4, 3), 2) if rng.random() < 0.95 or not persons else None
                detections.append(detection(np.float32(moved).tolist(), name, score))
        for _ in range(int(rng.integers(0, 3))):
            wide = [0, 0, float(rng.integers(60, 200)), 100]
            around = rng.random() < 0.5
            corner = rng.uniform(0, 150, 2)
            box = wide if around else [*corner, *(corner + 20)]
            detections.append(
                detection(np.float32(box).tolist(), NAMES[int(rng.integers(2))], np.round(rng.beta(2, 3), 2))
            )
        found[f"{image}.jpg"] = detections if rng.random() < 0.95 else None
    truth = Truth(NAMES, {f"{image}.jpg": image for image in range(1, images + 1)},
                  {image: [100, 200] for image in range(1, images + 1)}, objects)  # fmt: skip
    return truth, Run(found)


def step(**params: Any) -> Any:
    return SimpleNamespace(name="select", operator=Select(Select.Params(**params)), inputs={"detections": None})


def counted(truth: Truth, run: Run, name: str, **params: Any) -> tuple[int, int]:
    """Labels, and right ones, of one class by `select` itself."""
    number = NAMES.index(name) + 1
    looked = {key: found for key, found in run.detections.items() if found is not None}
    table = pa.table({"detections": pa.array(list(looked.values()), DETECTIONS)})
    columns = Select(Select.Params(**params)).compute(table).columns
    assert columns is not None
    selected = zip(looked, columns.column("detections").to_pylist(), strict=True)
    labels = [
        as_label(each, truth.images[key], number) for key, found in selected for each in found if each["class"] == name
    ]
    images = {truth.images[key] for key in looked}
    there = [each for each in truth.objects if each["category_id"] == number and each["image_id"] in images]
    return len(labels), len(match(there, labels))


RULES = [{}, {"nms": None, "containment": None}, {"nms": 0.4, "containment": 0.8}, {"nms": None, "containment": 0.7},
         {"max_per_image": 3, "containment": None}]  # fmt: skip


@given(st.integers(0, 10_000), st.sampled_from(RULES), st.booleans())
@settings(max_examples=20, deadline=None)
def test_counts_are_those_of_select_at_every_score(seed: int, rules: dict[str, Any], persons: bool) -> None:
    truth, run = drawn(seed, images=4, persons=persons)
    swept = sweep(truth, run, step(**rules))
    scores = {each["score"] for found in run.detections.values() for each in found or () if each["score"] is not None}
    for threshold in sorted({0.0, 0.33, 1.0, *sorted(scores)[::3]}):
        # One score for all: with a limit on the labels of an image, other classes matter too.
        for name in NAMES:
            assert swept.curves[name].at(np.float32(threshold)) == counted(truth, run, name, score=threshold, **rules)


@given(st.integers(0, 10_000), st.sampled_from(RULES[:4]))
@settings(max_examples=10, deadline=None)
def test_no_other_score_has_a_better_f1(seed: int, rules: dict[str, Any]) -> None:
    truth, run = drawn(seed)
    swept = sweep(truth, run, step(**rules))
    every = {each["score"] for found in run.detections.values() for each in found or ()}
    for name, curve in swept.curves.items():
        place = curve.best()

        def f1(score: float, name: str = name, objects: int = curve.objects) -> float:
            labels, right = counted(truth, run, name, score={name: score}, **rules)
            return 2 * right / (labels + objects) if labels + objects else 0.0

        if place is None:
            assert all(f1(score) == 0 for score in every)
            continue
        best = f1(curve.between(place))
        assert best == pytest.approx(float(curve.f1[place]))
        assert best >= max(f1(score) for score in every) - 1e-12


@given(st.integers(0, 10_000), st.floats(0.3, 1.0))
@settings(max_examples=10, deadline=None)
def test_no_lower_score_is_as_precise(seed: int, wanted: float) -> None:
    truth, run = drawn(seed)
    curve = sweep(truth, run, step()).curves["car"]
    place, every = curve.lowest(wanted, 3), sorted(curve.scores.tolist())
    counts = {score: counted(truth, run, "car", score={"car": score}) for score in every}
    good = [score for score, (labels, right) in counts.items() if labels >= 3 and right >= wanted * labels]
    assert (place is None) == (not good)
    if place is not None:
        labels, right = counted(truth, run, "car", score={"car": curve.between(place)})
        assert labels >= 3 and right / labels >= wanted
        assert curve.scores[place] == min(good)


@given(st.lists(st.integers(1, 2**20), min_size=1, max_size=9, unique=True))
def test_a_short_number_stands_for_a_threshold(scores: list[int]) -> None:
    curve = Curve.of([(score / 2**20, 1, 1) for score in scores], 20)
    for place, score in enumerate(curve.scores):
        found = np.float32(curve.between(place))
        assert found <= score
        assert place + 1 == len(scores) or found > curve.scores[place + 1]
    assert Curve.of([(0.5, 1, 1), (0.3, 1, 0)], 5).between(0) == 0.4


def test_a_class_with_too_little_to_go_by_keeps_the_default() -> None:
    many = Curve.of([(0.9 - number / 100, 1, number % 2) for number in range(40)], 20)
    assert choose(many, None).score is not None
    assert "9 objects are too few" in choose(Curve(many.scores, many.labels, many.right, 9), None).reason
    assert choose(many, 0.9).reason == "no score with 10 labels or more reaches a precision of 0.9"
    assert choose(Curve.of([(0.9, 1, 0)], 20), None).reason == "no detection is right"
    assert choose(Curve.of([], 20), None).reason == "no detection is right"


@pytest.fixture(scope="module")
def case() -> tuple[Truth, Run]:
    return drawn(3, images=60)


@pytest.mark.parametrize("precision", [None, 0.5])
def test_the_fragment_is_what_select_takes(case: tuple[Truth, Run], precision: float | None) -> None:
    truth, run = case
    swept = sweep(truth, run, step(score={"default": 0.2, "bus": 0.9}, across=0.6))
    found = calibrate(truth, run, swept, precision)
    text = fragment(found, "runs/a\nb", "truth.json")
    written = yaml.safe_load(text)
    assert list(written) == ["score"]
    params = Select.Params(**written, across=0.6, ontology=list(NAMES))
    assert params.score == {"default": 0.2, **{name: each["score"] for name, each in found["classes"].items()}}
    # What is said of it is what `select` gives with it.
    for name in NAMES:
        labels, right = counted(truth, run, name, **written, across=0.6)
        after = found["classes"][name]["after"]
        assert (after["labels"], after["precision"]) == (labels, pytest.approx(right / labels))
        assert f"{after['labels']} labels" in text
    if precision is None:
        assert found["after"]["f1"] > found["before"]["f1"]


def test_a_class_that_keeps_its_score_says_so(case: tuple[Truth, Run]) -> None:
    truth, run = case
    few = Truth((*truth.classes, "yes"), truth.images, truth.sizes, truth.objects)
    run.pipeline.settings.ontology = Ontology([*NAMES, "yes"])
    swept = sweep(few, run, step(score={"yes": 0.7}))
    text = fragment(calibrate(few, run, swept, None), "run", "truth")
    assert yaml.safe_load(text)["score"]["yes"] == 0.7
    assert "'yes': 0.7  # keeps 0.7: 0 objects are too few" in text
    text = fragment(calibrate(few, run, sweep(few, run, step()), None), "run", "truth")
    assert "yes" not in yaml.safe_load(text)["score"]
    assert "# 'yes': keeps 0.3: 0 objects are too few" in text
    run.pipeline.settings.ontology = Ontology([*NAMES])


def test_a_class_called_default_is_refused() -> None:
    truth, run = drawn(1)
    swept = Sweep(step(), curves={"default": Curve.of([], 0)})
    with pytest.raises(UserError, match="no class must be called 'default'"):
        calibrate(truth, run, swept, None)


def test_a_file_that_cannot_be_written_is_said() -> None:
    with pytest.raises(UserError, match="--calibrate must be a file that can be written"):
        write_fragment(Path("nowhere/scores.yaml"), "")


def test_thresholds_are_told(case: tuple[Truth, Run]) -> None:
    truth, run = case
    found = threshold_figures(truth, sweep(truth, run, step()))
    points = found["classes"]["car"]["points"]
    assert [point["score"] for point in points][:2] == [0.05, 0.1]
    recalls = [point["recall"] for point in points]
    assert recalls == sorted(recalls, reverse=True)
    middle = points[9]
    labels, right = counted(truth, run, "car", score=0.5)
    assert (middle["score"], middle["labels"], middle["precision"]) == (0.5, labels, pytest.approx(right / labels))
    assert 0 < found["ap"] < found["ap50"] < 1
    assert found["ap"] == pytest.approx(np.mean([found["classes"][name]["ap"] for name in NAMES]))
