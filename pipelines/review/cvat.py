"""Reads what CVAT exports as *CVAT for images 1.1*: the XML, or the zip that it comes in."""

from __future__ import annotations

import io
import math
import posixpath
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

import numpy as np

from pipelines.errors import UserError
from pipelines.exports.cvat import WORD, free_name, object_shape
from pipelines.review.answers import Answer, Report, Returned, alike, answer, moment, shown_labels
from pipelines.review.manifest import Given
from pipelines.sources.labels import LabelError, numbers, polygon_mask, rle_mask

WITHIN = 0.0101
"""Pixels by which CVAT may move what nobody touched: it writes two decimals."""

SHAPES = ("box", "polygon", "mask")
OTHERS = ("polyline", "points", "ellipse", "cuboid", "skeleton")

_SIDES = ("xtl", "ytl", "xbr", "ybr")
_PLACE = ("left", "top", "width", "height")


def read_cvat(path: Path, given: dict[int, Given], report: Report) -> Iterator[Answer]:
    """The answers in a file. Every image in it counts as reviewed; of an image that stands twice the last counts.

    CVAT's XML says who and when for a whole task or job: its assignee, else its owner, and when it was updated.

    Args:
        path: ``annotations.xml``, or a zip that holds one or more.
        given: What was given out, by image_id.
        report: Is added to.

    Raises:
        UserError: The file is neither.
    """
    by_name = {each.file_name: each for each in given.values()} | {each.image.key: each for each in given.values()}
    answers: dict[int, Answer] = {}
    for name, file in _files(path):
        if b"<!DOCTYPE" in file.read(4096).upper():
            raise UserError(f"{name} must be XML as CVAT exports it but declares a document type; export it again")
        file.seek(0)
        try:
            for found in _answers(file, by_name, report):
                if found.image_id in answers:
                    key = given[found.image_id].image.key
                    report.problems.append(f"image {key} stands in the file twice; the last one counts")
                answers[found.image_id] = found
        except ElementTree.ParseError as error:
            raise UserError(f"{name} must be XML as CVAT exports it but is not: {error}") from error
    yield from (answers[image_id] for image_id in sorted(answers))


def _files(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            yield str(path), file
        return
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.lower().endswith(".xml"))
        if not names:
            raise UserError(f"{path} must hold annotations.xml, as CVAT exports it, but holds no XML")
        for name in names:
            yield f"{path}/{name}", io.BytesIO(archive.read(name))


def _answers(file: IO[bytes], by_name: dict[str, Given], report: Report) -> Iterator[Answer]:
    reviewer, when = None, None
    for _, element in ElementTree.iterparse(file):
        if element.tag == "meta":
            reviewer, when = _person(element), _when(element)
        elif element.tag == "track":
            report.problems.append(f"track {element.get('id')} must be shapes of an image: export as CVAT for images")
        elif element.tag == "image":
            name = element.get("name", "")
            given = by_name.get(name) or by_name.get(posixpath.basename(name))
            where = f"image {element.get('id')} ({name})"
            if given is None:
                report.problems.append(f"{where} was not given out for review")
            else:
                yield answer(given, _objects(element, given, where, report), reviewer, when, report)
            element.clear()


def _person(meta: ElementTree.Element) -> str | None:
    for role in ("assignee", "owner"):
        for found in meta.iter(role):
            name = found.findtext("username") or found.findtext("email") or (found.text or "").strip()
            if name:
                return str(name)
    return None


def _when(meta: ElementTree.Element) -> Any:
    return next((moment(each.text) for tag in ("updated", "dumped") for each in meta.iter(tag) if each.text), None)


def _objects(image: ElementTree.Element, given: Given, where: str, report: Report) -> Iterator[tuple[str, Returned]]:
    shown = [(label.position, object_shape(label, given.details.classes)[0]) for label in shown_labels(given)]
    was = {position: ElementTree.fromstring(f"<{shape} />") for position, shape in shown}
    word = free_name(WORD, given.details.classes)
    for place, shape in enumerate(image, 1):
        name = f"{where}, {shape.tag} {place}"
        if shape.tag in OTHERS:
            report.problems.append(f"{name} must be one of {', '.join(SHAPES)}; left out")
        if shape.tag not in SHAPES or shape.get("label") == word:
            continue
        same = next((position for position, each in was.items() if _unchanged(shape, each)), None)
        if same is not None:
            del was[same]
            yield name, Returned(shape.get("label", ""), same_as=same)
            continue
        try:
            yield name, _returned(shape, given, name, report)
        except LabelError as error:
            report.problems.append(f"{name} {error}; left out")


def _unchanged(shape: ElementTree.Element, was: ElementTree.Element) -> bool:
    if shape.tag != was.tag or shape.get("label") != was.get("label") or _turn(shape) != 0:
        return False
    try:
        if shape.tag == "mask":
            return _runs(shape) == _runs(was) and _figures(shape, _PLACE) == _figures(was, _PLACE)
        return alike(_figures(shape, _SIDES), _figures(was, _SIDES), WITHIN)
    except LabelError:
        return False


def _turn(shape: ElementTree.Element) -> float:
    return _figures(shape, ("rotation",))[0] % 360 if shape.get("rotation") else 0.0


def _figures(shape: ElementTree.Element, names: tuple[str, ...]) -> list[float]:
    values = [shape.get(name) for name in names]
    try:
        return numbers([float(value or "") for value in values])
    except ValueError as error:
        raise LabelError(f"must have numbers as {', '.join(names)} but has {values}") from error


def _runs(shape: ElementTree.Element) -> list[int]:
    try:
        return [int(run) for run in (shape.get("rle") or "").split(",")]
    except ValueError as error:
        raise LabelError("has a mask whose rle is not whole numbers") from error


def _returned(shape: ElementTree.Element, given: Given, name: str, report: Report) -> Returned:
    size = given.image.width, given.image.height
    label = shape.get("label", "")
    if shape.tag == "mask":
        return Returned(label, mask=_mask(shape, size))
    if shape.tag == "polygon":
        try:
            points = [float(value) for pair in (shape.get("points") or "").split(";") for value in pair.split(",")]
        except ValueError as error:
            raise LabelError(f"must have points as x,y;x,y but has {shape.get('points')!r:.60}") from error
        return Returned(label, mask=polygon_mask([points], size))
    x1, y1, x2, y2 = _figures(shape, _SIDES)
    if _turn(shape) == 0:
        return Returned(label, (x1, y1, x2, y2))
    if x2 <= x1 or y2 <= y1:
        raise LabelError(f"has a box without area: {x2 - x1:g} x {y2 - y1:g}")
    report.problems.append(f"{name} is turned by {_turn(shape):g} degrees; the upright box around it was taken")
    angle, x, y = math.radians(_turn(shape)), (x1 + x2) / 2, (y1 + y2) / 2
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    w, h = ((x2 - x1) * cos + (y2 - y1) * sin) / 2, ((x2 - x1) * sin + (y2 - y1) * cos) / 2
    return Returned(label, (x - w, y - h, x + w, y + h))


def _mask(shape: ElementTree.Element, size: tuple[int, int]) -> str:
    """Counts of compressed RLE over the image, of run lengths row by row inside a box."""
    from pycocotools import mask as coco_mask

    left, top, width, height = (int(value) for value in _figures(shape, _PLACE))
    if width < 1 or height < 1:
        raise LabelError(f"has a mask without area: {width} x {height}")
    if left < 0 or top < 0 or left + width > size[0] or top + height > size[1]:
        raise LabelError(
            f"has a mask that leaves the image of {size[0]} x {size[1]}: {left}, {top}, {width} x {height}"
        )
    runs = _runs(shape)
    if min(runs) < 0 or sum(runs) != width * height:
        raise LabelError(f"has a mask whose rle does not fill {width} x {height} pixels")
    inside = np.repeat(np.arange(len(runs)) % 2, runs).astype(np.uint8).reshape(height, width)
    whole = np.zeros((size[1], size[0]), np.uint8, order="F")
    whole[top : top + height, left : left + width] = inside
    return rle_mask({"counts": coco_mask.encode(whole)["counts"].decode("ascii")}, size)
