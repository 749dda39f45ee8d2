"""Reads what Label Studio exports as JSON (https://labelstud.io/guide/export#JSON)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from labelmill.operators.wording import counted
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.exports.label_studio import OBJECT_TYPES, regions
from labelmill.pipelines.review.answers import Answer, Report, Returned, alike, answer, moment, shown_labels
from labelmill.pipelines.review.manifest import Given
from labelmill.pipelines.sources.labels import LabelError, numbers, polygon_mask

WITHIN = 1e-3
"""Percent by which Label Studio may move what nobody touched: a tenth of a pixel in an image 10,000 pixels wide."""

OTHER_CONTROLS = ("word", "transcription", "caption", "class")
"""Controls of the labelling interface that hold no objects."""


def read_label_studio(path: Path, given: dict[int, Given], report: Report) -> Iterator[Answer]:
    """The answers in a file. Of several annotations of an image the one that was changed last counts.

    Args:
        path: A JSON list of tasks with their annotations.
        given: What was given out, by image_id.
        report: Is added to.

    Raises:
        UserError: The file is no such list.
    """
    best: dict[int, tuple[datetime, dict[str, Any], str]] = {}
    passed_over: set[int] = set()
    waiting: set[int] = set()
    for place, task in enumerate(_tasks(path), 1):
        where = f"task {task['id'] if isinstance(task, dict) and 'id' in task else f'number {place}'}"
        try:
            image_id = _image_id(task, given)
            annotations = task.get("annotations", task.get("completions"))
            if not isinstance(annotations, list):
                raise LabelError("must have a list of annotations; export as JSON, not JSON-MIN")
        except LabelError as error:
            report.problems.append(f"{where} {error}")
            continue
        whole = [each for each in annotations if isinstance(each, dict) and isinstance(each.get("result"), list)]
        if len(whole) < len(annotations):
            report.problems.append(
                f"{where} has {counted(len(annotations) - len(whole), 'annotation')} without a result; left out"
            )
        done = [each for each in whole if not each.get("was_cancelled")]
        if not done:
            (passed_over if whole else waiting).add(image_id)
        for annotation in done:
            when = moment(annotation.get("updated_at")) or moment(annotation.get("created_at"))
            entry = (when or datetime.min.replace(tzinfo=UTC), annotation, where)
            if image_id in best:
                report.problems.append(
                    f"{where} is another annotation of {given[image_id].image.key}, after {best[image_id][2]}; "
                    "the one that was changed last counts"
                )
            if image_id not in best or entry[0] >= best[image_id][0]:
                best[image_id] = entry
    report.not_reviewed += len(waiting - best.keys())
    report.skipped += len(passed_over - best.keys())
    for image_id in sorted(best):
        _, annotation, where = best[image_id]
        when = moment(annotation.get("updated_at")) or moment(annotation.get("created_at"))
        objects = _objects(annotation["result"], given[image_id], where, report)
        yield answer(given[image_id], objects, _person(annotation.get("completed_by")), when, report)


def _tasks(path: Path) -> list[Any]:
    import orjson

    try:
        tasks = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise UserError(f"{path} must be JSON as Label Studio exports it but is not: {error}") from error
    if not isinstance(tasks, list):
        raise UserError(f"{path} must be a list of tasks as Label Studio exports it but is a {type(tasks).__name__}")
    return tasks


def _image_id(task: Any, given: dict[int, Given]) -> int:
    data = task.get("data") if isinstance(task, dict) else None
    if not isinstance(data, dict) or "image_id" not in data:
        raise LabelError("must have data with the image_id that it was given out with but has none")
    value = data["image_id"]
    image_id = int(value) if isinstance(value, str) and value.isdecimal() else value
    if not isinstance(image_id, int) or image_id not in given:
        raise LabelError(f"is about image_id {value!r}, which was not given out for review")
    key = given[image_id].image.key
    if data.get("key", key) != key:
        raise LabelError(f"is about {data['key']!r} as image_id {image_id}, which is {key!r} in this run")
    return image_id


def _person(completed_by: Any) -> str | None:
    if isinstance(completed_by, dict):
        name = completed_by.get("email") or completed_by.get("username") or completed_by.get("id")
        return None if name is None else str(name)
    return None if completed_by is None else f"user {completed_by}"


def _objects(result: list[Any], given: Given, where: str, report: Report) -> Iterator[tuple[str, Returned]]:
    """Regions as objects; the polygons of one object are those that name its first as their parent."""
    whole: list[tuple[str, dict[str, Any]]] = []
    parts: dict[str, list[dict[str, Any]]] = {}
    for place, region in enumerate(result, 1):
        name = f"{where}, region {region['id'] if isinstance(region, dict) and 'id' in region else f'number {place}'}"
        kind = region.get("type") if isinstance(region, dict) else None
        if kind is None or not isinstance(region.get("value"), dict):
            if kind != "relation":
                report.problems.append(f"{name} must have a type and a value; left out")
        elif region.get("from_name") in OTHER_CONTROLS:
            continue
        elif kind not in OBJECT_TYPES:
            report.problems.append(
                f"{name} is of type {kind}, which must be one of {', '.join(OBJECT_TYPES)}; left out"
            )
        else:
            whole.append((name, region))
    ids = {region.get("id"): region for _, region in whole}
    roots = []
    for name, region in whole:
        parent = ids.get(region.get("parentID"))
        if (
            parent is not None
            and parent is not region
            and _label(parent) == _label(region)
            and _both_polygons(parent, region)
        ):
            parts.setdefault(str(region["parentID"]), []).append(region)
        else:
            roots.append((name, region))
    shown = [(label, regions(given.image, label, given.details.classes)) for label in shown_labels(given)]
    free = {label.position for label, _ in shown}
    for name, region in roots:
        group = [region, *parts.get(str(region.get("id")), [])]
        same = next((each.position for each, was in shown if each.position in free and _unchanged(group, was)), None)
        if same is not None:
            free.discard(same)
            yield name, Returned(_label(region) or "", same_as=same)
            continue
        try:
            yield name, _returned(group, given, name, report)
        except LabelError as error:
            report.problems.append(f"{name} {error}; left out")


def _both_polygons(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first["type"] == second["type"] == "polygonlabels"


def _label(region: dict[str, Any]) -> str | None:
    names = region["value"].get(region["type"])
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None


def _unchanged(group: list[dict[str, Any]], was: list[dict[str, Any]]) -> bool:
    """Whether regions are those that were shown, to within Label Studio's rounding."""
    if len(group) != len(was) or any(
        _label(a) != _label(b) or a["type"] != b["type"] for a, b in zip(group, was, strict=True)
    ):
        return False
    try:
        return all(alike(_figures(a), _figures(b), WITHIN) for a, b in zip(group, was, strict=True))
    except LabelError:
        return False


def _figures(region: dict[str, Any]) -> list[float]:
    value = region["value"]
    if region["type"] == "polygonlabels":
        return _points(value)
    return numbers([value.get(name) for name in ("x", "y", "width", "height")] + [value.get("rotation") or 0])


def _points(value: dict[str, Any]) -> list[float]:
    points = value.get("points")
    if not isinstance(points, list):
        raise LabelError("must have points")
    return [number for point in points for number in numbers(point, 2)]


def _returned(group: list[dict[str, Any]], given: Given, name: str, report: Report) -> Returned:
    width, height = given.image.width, given.image.height
    label = _label(group[0])
    if label is None:
        raise LabelError("has no label")
    if group[0]["type"] == "polygonlabels":
        polygons = []
        for region in group:
            points = _points(region["value"])
            polygons.append([v / 100 * (height if at % 2 else width) for at, v in enumerate(points)])
        return Returned(label, mask=polygon_mask(polygons, (width, height)))
    x, y, w, h, rotation = _figures(group[0])
    x, y, w, h = x / 100 * width, y / 100 * height, w / 100 * width, h / 100 * height
    if rotation % 360 == 0:
        return Returned(label, (x, y, x + w, y + h))
    if w <= 0 or h <= 0:
        raise LabelError(f"has a box without area: {w:g} x {h:g}")
    report.problems.append(f"{name} is turned by {rotation:g} degrees; the upright box around it was taken")
    cos, sin = math.cos(math.radians(rotation)), math.sin(math.radians(rotation))
    corners = [(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in ((0, 0), (w, 0), (w, h), (0, h))]
    xs, ys = zip(*corners, strict=True)
    return Returned(label, (min(xs), min(ys), max(xs), max(ys)))
