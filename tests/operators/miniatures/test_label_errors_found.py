"""Errors put into one in ten of the labels of drawn scenes, and how many of them `label_errors` finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from labelmill.operators.columns.schemas import DETECTIONS, SIDES
from labelmill.operators.detect import Detect
from labelmill.operators.detections.boxes import iou
from labelmill.operators.images.decoded import decode
from labelmill.operators.images.quality import measure as measure_pixels
from labelmill.operators.label_conflicts import LabelConflicts
from labelmill.operators.label_errors import LabelErrors
from labelmill.operators.miniatures.duplicates import duplicate
from labelmill.operators.miniatures.world import World
from labelmill.operators.miniatures.write import CATEGORIES, encode
from labelmill.operators.models.card import load_card
from labelmill.operators.ontology import Ontology
from tests.operators.engines.image_text_to_text.generations import earlier

pytestmark = pytest.mark.slow

CARD = Path(__file__).resolve().parents[3] / "conf/models/grounding-dino-miniature.yaml"
SCENES, SIDE, SEED = 40, 320, 4711
SHARE = 0.1
ROUNDS = 3
"""Times that errors are put in anew: each puts in about 15 of a kind."""

Label = tuple[str, tuple[float, ...]]
Mark = tuple[int, Any]


@pytest.fixture(scope="module")
def scenes() -> tuple[list[list[Label]], list[Any]]:
    """The true labels of each scene, and the raw detections of its picture."""
    ontology = Ontology.model_validate(list(CATEGORIES))
    detect = Detect(Detect.Params(model=load_card(CARD), ontology=ontology))
    detect.load()
    labels, found, items = [], [], []
    for number in range(SCENES):
        scene = World(SEED, SIDE).scene(number)
        things = [(thing.kind, thing.box) for thing in scene.objects]
        things += [("face", face.box) for face in scene.faces] + [("sign", sign.box) for sign in scene.signs]
        labels.append(things)
        items.append(detect.prepare(decode(encode(scene.pixels, ".jpg", 90)), {}))
    for start in range(0, SCENES, 10):
        found += [answer["detections"] for answer in detect.infer(items[start : start + 10])]  # type: ignore[index]
    return labels, found


def one_iou(first: Any, second: Any) -> float:
    return float(iou(np.array([first], dtype=float), np.array([second], dtype=float))[0, 0])


def moved(box: tuple[float, ...], rng: np.random.Generator) -> tuple[float, ...]:
    """A box beside the true one, larger or smaller: IoU 0.2 to 0.6 with it."""
    size = np.array(box[2:]) - box[:2]
    while True:
        middle = (np.array(box[:2]) + box[2:]) / 2 + rng.uniform(-0.5, 0.5, 2) * size
        half = size * np.exp(rng.uniform(-0.5, 0.5, 2)) / 2
        other = np.clip([*(middle - half), *(middle + half)], 0, SIDE)
        if (other[2:] > other[:2]).all() and 0.2 <= one_iou(box, other) <= 0.6:
            return tuple(other)


def empty_place(box: tuple[float, ...], labels: list[Label], rng: np.random.Generator) -> tuple[float, ...] | None:
    """A box of the same size where nothing is."""
    width, height = box[2] - box[0], box[3] - box[1]
    for _ in range(200):
        x, y = rng.uniform(0, SIDE - width), rng.uniform(0, SIDE - height)
        other = (x, y, x + width, y + height)
        if all(one_iou(other, there) < 0.1 for _, there in labels):
            return other
    return None


def spoil(labels: list[list[Label]], kind: str, seed: int) -> tuple[list[list[Label]], set[Mark]]:
    """Labels with errors of one kind, and where they are: image, and places of labels or the box that is gone."""
    rng = np.random.default_rng(seed)
    places = [(image, place) for image, group in enumerate(labels) for place in range(len(group))]
    chosen = {places[at] for at in rng.choice(len(places), round(SHARE * len(places)), replace=False)}
    spoilt: list[list[Label]] = []
    marks: set[Mark] = set()
    for image, group in enumerate(labels):
        new: list[Label] = []
        for place, (name, box) in enumerate(group):
            if (image, place) not in chosen:
                new.append((name, box))
            elif kind == "missing":
                marks.add((image, box))
            elif kind in ("class", "location"):
                marks.add((image, (len(new),)))
                others = [other for other in CATEGORIES if other != name]
                new.append((str(rng.choice(others)), box) if kind == "class" else (name, moved(box, rng)))
            else:
                new.append((name, box))
                jitter = rng.uniform(-0.06, 0.06, 4) * np.tile([box[2] - box[0], box[3] - box[1]], 2)
                extra = (
                    np.clip(np.array(box) + jitter, 0, SIDE) if kind == "duplicate" else empty_place(box, group, rng)
                )
                if extra is not None:
                    either = (len(new) - 1, len(new)) if kind == "duplicate" else (len(new),)
                    marks.add((image, either))
                    new.append((name if kind == "duplicate" else str(rng.choice(CATEGORIES)), tuple(extra)))
        spoilt.append(new)
    return spoilt, marks


def row(name: str, box: tuple[float, ...]) -> dict[str, Any]:
    values = dict(zip(SIDES, map(float, box), strict=True))
    return {**values, "class": name, "score": None, "prompt": None, "mask": None, "models": None}


def ranked(labels: list[list[Label]], found: list[Any]) -> list[tuple[int, dict[str, Any]]]:
    """Every error with its image, the surest first."""
    table = pa.table(
        {
            "source.labels": pa.array([[row(*label) for label in group] for group in labels], DETECTIONS),
            "detections": pa.array(found, DETECTIONS),
        }
    )
    ontology = Ontology.model_validate(list(CATEGORIES))
    result = LabelErrors(LabelErrors.Params(ontology=ontology, floor=0.05)).compute(table)
    assert result.columns is not None
    rows = enumerate(result.columns.column("errors").to_pylist())
    return sorted(((image, error) for image, errors in rows for error in errors), key=lambda each: -each[1]["score"])


def hits(errors: list[tuple[int, dict[str, Any]]], kind: str, marks: set[Mark]) -> list[bool]:
    """For each error of a kind whether it is one that was put in, counted once."""
    free = set(marks)
    told = []
    for image, error in errors:
        if kind == "missing":
            box = [error["suggested"][side] for side in SIDES]
            near = [mark for mark in free if mark[0] == image and one_iou(mark[1], box) >= 0.5]
        else:
            near = [mark for mark in free if mark[0] == image and error["label"] in mark[1]]
        told.append(bool(near))
        free -= set(near[:1])
    return told


def measure(scenes: Any, kind: str, seed: int) -> tuple[float, float, float]:
    """Recall among the first 1.5 × as many as were put in, precision there, and average precision of the ranking."""
    spoilt, marks = spoil(scenes[0], kind, seed)
    errors = [(image, error) for image, error in ranked(spoilt, scenes[1]) if error["kind"] == kind]
    told = np.array(hits(errors, kind, marks), dtype=float)
    top = told[: round(1.5 * len(marks))]
    precision = np.cumsum(told) / np.arange(1, len(told) + 1)
    return top.sum() / len(marks), top.mean(), float((precision * told).sum() / len(marks))


@pytest.mark.parametrize(
    ("kind", "recall", "average"),
    [
        ("missing", 0.75, 0.7),
        ("spurious", 0.9, 0.75),
        ("location", 0.65, 0.65),
        ("class", 0.75, 0.7),
        ("duplicate", 0.9, 0.9),
    ],
)
def test_errors_that_were_put_in_stand_first(scenes: Any, kind: str, recall: float, average: float) -> None:
    found = np.mean([measure(scenes, kind, seed) for seed in range(ROUNDS)], axis=0)
    assert found[0] >= recall and found[2] >= average, f"recall, precision, average precision: {found.round(3)}"


def test_a_detector_that_sees_nothing_finds_no_wrong_class(scenes: Any) -> None:
    """The figures come from the detections: without them nothing but duplicates stands out."""
    blind: list[Any] = [[] for _ in scenes[1]]
    for kind in ("missing", "location", "class"):
        spoilt, marks = spoil(scenes[0], kind, 0)
        errors = [(image, error) for image, error in ranked(spoilt, blind) if error["kind"] == kind]
        assert not any(hits(errors, kind, marks))


def test_images_with_errors_have_the_lower_quality(scenes: Any) -> None:
    """The pooled score orders images too: the area under the ROC curve is well above one half."""
    labels, found = scenes
    spoilt, marks = spoil(labels, "class", 1)
    wrong = {image for image, _ in marks}
    table = pa.table(
        {
            "source.labels": pa.array([[row(*label) for label in group] for group in spoilt], DETECTIONS),
            "detections": pa.array(found, DETECTIONS),
        }
    )
    result = LabelErrors(LabelErrors.Params()).compute(table)
    assert result.columns is not None
    quality = np.array(result.columns.column("label_quality").to_pylist())
    bad = np.array([image in wrong for image in range(len(labels))])
    assert (quality[bad][:, None] < quality[~bad]).mean() >= 0.7


def test_copies_that_disagree_are_found() -> None:
    """Each scene stands beside a copy; of one label in ten the copy's class is another, or the copy lacks it."""
    rng, rows, wrong = np.random.default_rng(0), [], set()
    for number in range(SCENES):
        scene = World(SEED, 160).scene(number)
        copy = duplicate(scene, ("reencoded", "resized", "recoloured")[number % 3], rng)
        for each in (scene, copy):
            labels = [row(thing.kind, thing.box) for thing in each.objects]
            if each is copy:
                for place in np.flatnonzero(rng.random(len(labels)) < SHARE)[::-1].tolist():
                    wrong.add(number)
                    if rng.random() < 0.5:
                        del labels[place]
                    else:
                        labels[place]["class"] = "zebra"
            height, width = each.pixels.shape[:2]
            found = measure_pixels(each.pixels, False)
            hashes = {"file_hash": str(len(rows)), "pixel_hash": str(len(rows)), "phash": found["phash_variants"][0]}
            rows.append({"width": width, "height": height, "source.labels": labels, **hashes})
    operator = LabelConflicts(LabelConflicts.Params(distance=6))
    kinds = {"phash": pa.uint64(), "source.labels": DETECTIONS}
    columns = {name: pa.array([each[name] for each in rows], kinds.get(name)) for name in operator.reads()}
    ids = {"image_id": pa.array(range(1, len(rows) + 1), pa.int64()), "key": [f"{n:03d}" for n in range(len(rows))]}
    table = pa.table({**ids, **columns})
    result = operator.compute(table, earlier(operator, table))
    assert result.columns is not None
    flagged = [bool(errors) for errors in result.columns.column("errors").to_pylist()]
    pairs = np.array(flagged).reshape(-1, 2)
    hit = {number for number in range(SCENES) if pairs[number].all()}
    assert len(wrong) >= 5 and len(hit & wrong) >= 0.8 * len(wrong), "recall"
    assert len(hit & wrong) >= 0.8 * len(hit), "precision"
