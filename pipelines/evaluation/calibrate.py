"""The score that detections of each class should have, found by holding a finished run against truth."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from labelmill.operators.columns.schemas import SIDES
from labelmill.operators.detections.boxes import second_inside
from labelmill.operators.measures.curves import Curve, Event
from labelmill.operators.measures.detections import compare, is_crowd
from labelmill.operators.select import DEFAULT, Select
from labelmill.operators.wording import counted
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.evaluation.labels import as_label, judged_classes, judged_objects, precision_averages, shares
from labelmill.pipelines.evaluation.truth import Truth
from labelmill.pipelines.run_folder.finished_run import FinishedRun
from labelmill.pipelines.steps import Input, Step

Figures = dict[str, Any]
Label = dict[str, Any]

LEAST = 10
"""A class with fewer objects, or a precision that rests on fewer labels, keeps the default."""

SHOWN = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Thresholds for which precision and recall are told."""


@dataclass(frozen=True)
class Choice:
    """The score for one class.

    Attributes:
        score: What it should be; None for a class that keeps the default.
        reason: Why it does.
    """

    score: float | None
    reason: str = ""


@dataclass
class Sweep:
    """What a select step would make of its detections at every score.

    For a score that is the same for all classes, counts are exactly those that `select` would give; with one score for
    each class they differ a little where boxes of one class suppress those of another (`across`), or where there are
    too many (`max_per_image`).

    Attributes:
        step: The select step.
        images: How many images were looked at.
        there: The objects in them, in COCO's keys.
        found: What every threshold is about, in COCO's keys.
        curves: Each class of the truth that the run was asked for.
    """

    step: Step
    images: set[int] = field(default_factory=set)
    there: list[Label] = field(default_factory=list)
    found: list[Label] = field(default_factory=list)
    curves: dict[str, Curve] = field(default_factory=dict)


def select_step(run: FinishedRun) -> Step | None:
    """The select step that the run's labels come from, through steps that add to them; None without one."""
    column: Input | None = run.labels_column()
    while column is not None and column.step is not None:
        step = run.layout.steps[column.step]
        if isinstance(step.operator, Select):
            return step
        inputs = [each for name, each in step.inputs.items() if name == getattr(step.operator.params, "detections", "")]
        column = inputs[0] if inputs else None
    return None


def sweep(truth: Truth, run: FinishedRun, step: Step) -> Sweep:
    """Select without any score, and count what is right from each score on.

    Greedy suppression looks at better boxes only, so it can come first and scores after it. That a box around several
    others goes depends on their scores: it is there at the scores that no more than one of them reaches.
    """
    operator = step.operator
    assert isinstance(operator, Select)
    within = operator.params.containment
    params = operator.params.model_copy(update={"score": 0.0, "containment": None})
    numbers = judged_classes(truth, run)
    found = Sweep(step)
    objects: dict[tuple[int, int], list[Label]] = defaultdict(list)
    for each in judged_objects(truth, run, (key for key in truth.images if run.outcome.get(key) == "kept")):
        objects[each["image_id"], each["category_id"]].append(each)
    events: dict[int, list[Event]] = defaultdict(list)
    counts = Counter[int]()
    for key, detections in selected(truth, run, step.inputs, params):
        image = truth.images[key]
        found.images.add(image)
        by_class: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for detection in detections:
            by_class[detection["class"]].append(detection)
        for name, number in numbers.items():
            there = objects.get((image, number), [])
            labels = [as_label(each, image, number) for each in by_class[name]]
            found.there += there
            found.found += labels
            counts[number] += sum(not is_crowd(each) for each in there)
            events[number] += _events(there, labels, _gone_below(by_class[name], within))
    found.curves = {name: Curve.of(events[number], counts[number]) for name, number in numbers.items()}
    return found


def selected(
    truth: Truth, run: FinishedRun, inputs: Mapping[str, Input], params: Select.Params
) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """What a select step with these parameters makes of the images that the run kept and the truth knows.

    Args:
        truth: What is true.
        run: The run.
        inputs: What each column is that the step reads.
        params: Of the step.

    Yields:
        The key and the detections of each image in which somebody looked for objects.
    """
    operator = Select(params)
    for keys, table in run.tables(inputs, truth.images):
        looked = np.flatnonzero(table.column(params.detections).is_valid().to_numpy())
        columns = operator.compute(table.take(pa.array(looked))).columns
        assert columns is not None
        detections = columns.column("detections").to_pylist()
        yield from zip([keys[row] for row in looked.tolist()], detections, strict=True)


def _gone_below(detections: list[Mapping[str, Any]], within: float | None) -> np.ndarray:
    """For each detection of a class the score up to which it goes because of what it contains; −inf for most."""
    if within is None or len(detections) < 3:
        return np.full(len(detections), -np.inf)
    boxes = np.array([[each[side] for side in SIDES] for each in detections], np.float32)
    return second_inside(boxes, np.zeros(len(boxes), np.int64), _scores(detections), within)


def _scores(labels: list[Any]) -> np.ndarray:
    return np.array([np.inf if each["score"] is None else each["score"] for each in labels], np.float64)


def _events(there: list[Label], found: list[Label], gone_below: np.ndarray) -> list[Event]:
    """How labels, and right ones, of one class in one image grow while the threshold falls."""
    scores = _scores(found)
    if not np.isfinite(gone_below).any():
        # Matching goes from the best down too, so what comes later changes nothing.
        compared = compare(there, found)
        right = {pair.found for pair in compared.pairs}
        return [
            (float(score), 1, int(place in right))
            for place, score in enumerate(scores)
            if place not in compared.ignored
        ]
    events, before = [], (0, 0)
    for score in np.unique([*scores, *gone_below[np.isfinite(gone_below)]])[::-1].tolist():
        active = np.flatnonzero((scores >= score) & (gone_below < score)).tolist()
        compared = compare(there, [found[place] for place in active])
        now = compared.labels, len(compared.pairs)
        events.append((score, now[0] - before[0], now[1] - before[1]))
        before = now
    return events


def choose(curve: Curve, precision: float | None) -> Choice:
    """The score of one class that maximises F1, or the lowest one that reaches a precision."""
    if curve.objects < LEAST:
        return Choice(None, f"{counted(curve.objects, 'object is', 'objects are')} too few, there must be {LEAST}")
    if precision is None:
        place = curve.best()
        return Choice(None, "no detection is right") if place is None else Choice(curve.between(place))
    place = curve.lowest(precision, LEAST)
    if place is None:
        return Choice(None, f"no score with {LEAST} labels or more reaches a precision of {precision:g}")
    return Choice(curve.between(place))


def calibrate(truth: Truth, run: FinishedRun, swept: Sweep, precision: float | None) -> Figures:
    """Choose a score for each class, and say what the step would give with them.

    Args:
        truth: What is true.
        run: The run whose select step was swept.
        swept: See `sweep`.
        precision: Reach this one with the lowest score; None: maximise F1.

    Returns:
        ``step``, ``precision``, ``default``; under ``classes`` each class's ``score`` (null if it keeps the default,
        with a ``reason``) and its figures ``before`` and ``after``; and those of all classes together.

    Raises:
        UserError: A class of the run is called "default".
    """
    operator = swept.step.operator
    assert isinstance(operator, Select)
    params = operator.params
    given = params.score if isinstance(params.score, dict) else {DEFAULT: params.score}
    default = given.get(DEFAULT, Select.Params().score)
    if DEFAULT in swept.curves:
        raise UserError(
            f"no class must be called {DEFAULT!r} where scores are written by class; call it something else"
        )
    choices = {name: choose(curve, precision) for name, curve in swept.curves.items()}
    chosen = {name: choice.score for name, choice in choices.items() if choice.score is not None}
    # Classes without a score of their own keep the one they have.
    kept = {name: score for name, score in given.items() if name != DEFAULT and name not in chosen}
    scores = {DEFAULT: default, **kept, **chosen}
    before, after = (
        _counted(truth, run, swept, params.model_copy(update={"score": each})) for each in (params.score, scores)
    )
    return {
        "step": swept.step.name,
        "images": len(swept.images),
        "precision": precision,
        "default": default,
        "before": before.pop(""),
        "after": after.pop(""),
        "classes": {
            name: {
                "score": scores.get(name),
                "was": given.get(name, default),
                "reason": choice.reason,
                "before": before[name],
                "after": after[name],
            }
            for name, choice in choices.items()
        },
    }


def _counted(truth: Truth, run: FinishedRun, swept: Sweep, params: Select.Params) -> dict[str, Figures]:
    """Figures of each class, and under "" of all, of what `select` really gives with these parameters."""
    numbers = judged_classes(truth, run)
    found = [
        as_label(each, truth.images[key], numbers[each["class"]])
        for key, detections in selected(truth, run, swept.step.inputs, params)
        for each in detections
        if each["class"] in numbers
    ]
    compared = compare(swept.there, found)
    right = Counter(found[pair.found]["category_id"] for pair in compared.pairs)
    objects = Counter(each["category_id"] for each in swept.there if not is_crowd(each))
    labels = Counter(each["category_id"] for place, each in enumerate(found) if place not in compared.ignored)
    return {
        "": shares(objects.total(), labels.total(), right.total()),
        **{name: shares(objects[number], labels[number], right[number]) for name, number in numbers.items()},
    }


def threshold_figures(truth: Truth, swept: Sweep) -> Figures:
    """Precision and recall of each class at every threshold of `SHOWN`, and average precision without any."""
    averages = precision_averages(swept.there, swept.found, swept.images, truth.classes, "bbox")

    def average(name: str, number: int | None = None) -> float | None:
        if averages is None:
            return None
        values = getattr(averages, name) if number is None else getattr(averages, name)[number - 1 : number]
        return float(np.nanmean(values)) if np.isfinite(values).any() else None

    classes = {}
    for name, curve in swept.curves.items():
        if curve.objects or len(curve.scores):
            number = truth.classes.index(name) + 1
            points = [{"score": score, **shares(curve.objects, *curve.at(score))} for score in SHOWN]
            classes[name] = {"ap50": average("ap50", number), "ap": average("ap", number), "points": points}
    return {"step": swept.step.name, "ap50": average("ap50"), "ap": average("ap"), "classes": classes}
