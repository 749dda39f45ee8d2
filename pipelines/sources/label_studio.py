"""Images and labels of Label Studio's JSON (https://labelstud.io/guide/export#JSON)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from labelmill.pipelines.sources.base import (
    Entry,
    Refused,
    Shape,
    Sizes,
    Source,
    SourceError,
    in_order,
    normal_key,
    problem_text,
)
from labelmill.pipelines.sources.coco_folder import SPLITS
from labelmill.pipelines.sources.frames import same_aspect, shape_of
from labelmill.pipelines.sources.labels import (
    OVERFLOW,
    LabelError,
    clip,
    detection,
    mask_box,
    numbers,
    polygon_mask,
    same_objects,
)
from labelmill.pipelines.sources.names import Names
from labelmill.pipelines.sources.storage import THREADS, Missing, Storage, Unavailable
from labelmill.pipelines.sources.uri import below, file_uri, is_http, is_remote, join, parent, protocol

LOCAL_THREADS = 4
TASKS = re.compile(r"(tasks(_[\w.-]+)?|project-.*)\.json")
"""Files that a folder is looked through for: those of the export `label_studio`, and Label Studio's own."""

OBJECT_TYPES = ("rectanglelabels", "polygonlabels")
OBJECTS_UNREAD = ("brushlabels", "ellipselabels", "rectangle", "polygon", "brush", "ellipse")
"""Regions of objects that are refused by name."""

WORDS = ("word", "transcription")


@dataclass(frozen=True)
class _Task:
    """A task, where its image is, and its number in the file."""

    place: str
    task: dict[str, Any]
    location: str
    key: str


class LabelStudioSource(Source):
    """The images of tasks, with rectangles and polygons as labels.

    Of several annotations of a task the one that was changed last counts; cancelled ones do not. A task that came out
    of Label Studio without an annotation is unread. Tasks that were never in it (the export `label_studio`) have
    predictions instead. Numbers are percent of the image as a browser shows it, upright.

    Args:
        where: The JSON file, or a folder with ``tasks*.json`` or ``project-*.json``.
        storage: Reads everything.
        sizes: Width and height of the upright image by key, for labels whose images are not here.
    """

    def __init__(self, where: str, storage: Storage, sizes: Sizes | None = None) -> None:
        super().__init__()
        self.where = where
        self.storage = storage
        self.sizes = sizes

    def __str__(self) -> str:
        return f"label_studio {self.where}"

    def looked_for(self) -> str:
        return "annotations with rectanglelabels or polygonlabels"

    def _empty(self) -> str:
        return f"{self.where} has no tasks"

    def _files(self) -> list[str]:
        if is_http(self.where) or not self.storage.is_folder(self.where):
            return [self.where]
        found = [name for name in self.storage.names(self.where) if TASKS.fullmatch(name)]
        if not found:
            raise SourceError(f"{self.where} must have tasks.json, or what Label Studio exports as JSON")
        return [join(self.where, name) for name in found]

    def _tasks(self, location: str) -> list[Any]:
        import orjson

        try:
            tasks = orjson.loads(self.storage.read(location))
        except Missing as error:
            raise self.storage.missing(location, "the file") from error
        except Unavailable as error:
            raise SourceError(str(error)) from error
        except orjson.JSONDecodeError as error:
            raise SourceError(f"{location} must be JSON as Label Studio exports it but is not: {error}") from error
        if not isinstance(tasks, list):
            raise SourceError(f"{location} must be a list of tasks but is a {type(tasks).__name__}")
        return tasks

    def _entries(self) -> Iterator[Entry]:
        names = Names(self.storage)
        tasks: dict[str, _Task] = {}
        for file in self._files():
            for number, task in enumerate(self._tasks(file), 1):
                place = f"task {task['id'] if isinstance(task, dict) and 'id' in task else f'number {number}'}"
                found = self._locate(place, task, parent(file), names)
                if found is None:
                    self._refuse(place, "must have data with an image; export as JSON, not JSON-MIN")
                elif found.key in tasks:
                    self._refuse(place, f"is about {found.key}, as {tasks[found.key].place} is")
                else:
                    tasks[found.key] = found
        workers = THREADS if is_remote(self.where) else LOCAL_THREADS
        yield from in_order(self._entry, tasks.values(), workers)

    def _locate(self, place: str, task: Any, folder: str, names: Names) -> _Task | None:
        data = task.get("data") if isinstance(task, dict) else None
        if not isinstance(data, dict):
            return None
        given = next((data[key] for key in ("image", "img", "url") if isinstance(data.get(key), str)), None)
        given = given or next((value for value in data.values() if isinstance(value, str) and "/" in value), None)
        if not given:
            return None
        key = data.get("key") if isinstance(data.get("key"), str) else None
        if protocol(given) and not is_remote(folder) and self.sizes is None and is_remote(given):
            return _Task(place, task, given, normal_key(key or urlsplit(given).path))
        split = urlsplit(given)
        path = unquote(parse_qs(split.query).get("d", [split.path])[0])
        last = path.rpartition("/")[2]
        plain = re.sub(r"^[0-9a-f]{6,8}-", "", last)  # Label Studio puts a few digits before names of uploads
        wanted = dict.fromkeys([path.lstrip("/"), f"images/{last}", last, f"images/{plain}", plain])
        found = next((there for name in wanted if (there := names.find(name, folder))), None)
        location = found or join(folder, path.lstrip("/"))
        inside = below(location, folder) or path
        return _Task(place, task, location, normal_key(key if self.sizes is not None and key else inside))

    def _entry(self, item: _Task) -> Entry:
        problems: list[str] = []
        refused: list[Refused] = []
        version = self.storage.version_here(item.location, problems) if self.sizes is None else None
        result = _result(item.task)
        labels = None if result is None else self._labels(item, result, problems, refused)
        split = item.task["data"].get("split")
        return Entry(
            item.key,
            file_uri(item.location),
            version,
            labels if labels or not refused else None,
            SPLITS.get(split.lower(), split) if isinstance(split, str) else None,
            problem=problem_text([*problems, *map(str, refused)]),
            refused=tuple(refused),
        )

    def _labels(
        self, item: _Task, result: list[Any], problems: list[str], refused: list[Refused]
    ) -> list[dict[str, Any]]:
        groups = _objects(item.place, result, problems, refused)
        if not groups:
            return []
        try:
            shape = shape_of(self.storage, item.location, item.key, self.sizes)
            _check_size(groups[0][1][0], shape)
        except (Unavailable, LabelError) as error:
            refused += [Refused(place, f"is refused: its image's labels {error}") for place, _ in groups]
            return []
        labels, kept = [], []
        for place, group in groups:
            try:
                labels.append(_label(place, group, shape, problems))
                kept.append(place)
            except LabelError as error:
                refused.append(Refused(place, str(error)))
        return same_objects(labels, kept, problems)


def _result(task: dict[str, Any]) -> list[Any] | None:
    """The regions that count; None where nobody looked."""
    annotations = task.get("annotations", task.get("completions"))
    if isinstance(annotations, list):
        done = [
            each
            for each in annotations
            if isinstance(each, dict) and isinstance(each.get("result"), list) and not each.get("was_cancelled")
        ]
        best = max(done, key=lambda each: str(each.get("updated_at") or each.get("created_at") or ""), default=None)
        return None if best is None else list(best["result"])
    predictions = task.get("predictions")
    for each in predictions if isinstance(predictions, list) else []:
        if isinstance(each, dict) and isinstance(each.get("result"), list):
            return list(each["result"])
    return None


def _objects(
    place: str, result: list[Any], problems: list[str], refused: list[Refused]
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Regions of objects, those of one object together: further polygons name the first as their parent."""
    whole: list[tuple[str, dict[str, Any]]] = []
    for number, region in enumerate(result, 1):
        name = f"{place} region {region['id'] if isinstance(region, dict) and 'id' in region else f'number {number}'}"
        kind = region.get("type") if isinstance(region, dict) else None
        if not isinstance(region, dict) or (kind != "relation" and not isinstance(region.get("value"), dict)):
            refused.append(Refused(name, "must have a type and a value"))
        elif kind in OBJECT_TYPES and region.get("from_name") not in WORDS:
            whole.append((name, region))
        elif kind in OBJECTS_UNREAD:
            refused.append(Refused(name, f"is of type {kind}, which is not read; export it to COCO for its mask"))
        elif kind == "keypointlabels":
            problems.append(f"{name} is a keypoint, which is left out")
    ids = {region.get("id"): region for _, region in whole}
    groups: dict[str, list[dict[str, Any]]] = {}
    for name, region in whole:
        owner = ids.get(region.get("parentID"))
        same = owner is not None and owner is not region and _name(owner) == _name(region)
        if same and region["type"] == "polygonlabels":
            first = next(each for each, other in whole if other is owner)
            groups.setdefault(first, [])
            groups[first].append(region)
        else:
            groups.setdefault(name, []).insert(0, region)
    return [(name, group) for name, group in groups.items() if group]


def _name(region: dict[str, Any]) -> str | None:
    names = region["value"].get(region["type"])
    return names[0].strip() if isinstance(names, list) and names and isinstance(names[0], str) else None


def _check_size(region: dict[str, Any], shape: Shape) -> None:
    """Refuse labels of another image: percent fit any size of this one, upright or as stored."""
    said = region.get("original_width"), region.get("original_height")
    if not all(isinstance(side, int) and side > 0 for side in said):
        return
    size: tuple[int, int] = said  # type: ignore[assignment]
    if not same_aspect(size, shape.upright) and not same_aspect(size, shape.stored):
        raise LabelError(
            f"were drawn on {size[0]} x {size[1]} pixels, but the image has {shape.upright[0]} x {shape.upright[1]}, "
            "which is another shape"
        )


def _label(place: str, group: list[dict[str, Any]], shape: Shape, notes: list[str]) -> dict[str, Any]:
    first, (width, height) = group[0], shape.upright
    name = _name(first)
    if not name:
        raise LabelError("has no label")
    if first["type"] == "polygonlabels":
        rings = []
        for region in group:
            points = region["value"].get("points")
            if not isinstance(points, list):
                raise LabelError("must have points")
            flat = [number for point in points for number in numbers(point, 2)]
            rings.append([value / 100 * (height if at % 2 else width) for at, value in enumerate(flat)])
        mask = polygon_mask(rings, shape.upright)
        return detection(mask_box(mask, shape.upright), name, mask=mask, **_told(first))
    box, note, extra = _box(first["value"], width, height)
    if note:
        notes.append(f"{place} {note}")
    inside, outside = clip(box, shape.upright)
    if outside > OVERFLOW:
        notes.append(f"{place} leaves the image by {outside:g} pixels; it was clipped")
    return detection(inside, name, extra=extra, **_told(first))


def _box(
    value: dict[str, Any], width: int, height: int
) -> tuple[tuple[float, float, float, float], str | None, str | None]:
    """``x1, y1, x2, y2`` of a rectangle, a note, and its turn, where it has one: about its top left corner."""
    x, y, w, h, turn = numbers([*(value.get(key) for key in ("x", "y", "width", "height")), value.get("rotation") or 0])
    x, y, w, h = x / 100 * width, y / 100 * height, w / 100 * width, h / 100 * height
    if w <= 0 or h <= 0:
        raise LabelError(f"has a box without area: {w:g} x {h:g}")
    if turn % 360 == 0:
        return (x, y, x + w, y + h), None, None
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    corners = [(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in ((0, 0), (w, 0), (w, h), (0, h))]
    xs, ys = zip(*corners, strict=True)
    note = f"is turned by {turn:g} degrees; the upright box around it was taken"
    return (min(xs), min(ys), max(xs), max(ys)), note, json.dumps({"rotation": turn % 360})


def _told(region: dict[str, Any]) -> dict[str, Any]:
    """Score, prompt and models, as the export `label_studio` notes them."""
    found: dict[str, Any] = {"score": None, "prompt": None, "models": None}
    score = region.get("score")
    if isinstance(score, (int, float)) and not isinstance(score, bool) and 0 <= score <= 1:
        found["score"] = float(score)
    texts = (region.get("meta") or {}).get("text") if isinstance(region.get("meta"), dict) else None
    for text in texts if isinstance(texts, list) else []:
        if isinstance(text, str) and text.startswith("prompt: "):
            found["prompt"] = text.removeprefix("prompt: ")
        elif isinstance(text, str) and text.startswith("model: "):
            found["models"] = [*(found["models"] or []), text.removeprefix("model: ")]
    return found
