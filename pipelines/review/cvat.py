"""Reads what CVAT exports as *CVAT for images 1.1*: the XML, or the zip that it comes in."""

from __future__ import annotations

import io
import posixpath
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

from labelmill.pipelines.errors import UserError
from labelmill.pipelines.exports.cvat import WORD, free_name, object_shape
from labelmill.pipelines.review.answers import Answer, Report, Returned, alike, answer, moment, shown_labels
from labelmill.pipelines.review.manifest import Given
from labelmill.pipelines.sources.cvat_shapes import OTHERS, PLACE, SHAPES, SIDES, figures, geometry, runs, turn
from labelmill.pipelines.sources.frames import Frame
from labelmill.pipelines.sources.labels import LabelError

WITHIN = 0.0101
"""Pixels by which CVAT may move what nobody touched: it writes two decimals."""


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
    if shape.tag != was.tag or shape.get("label") != was.get("label") or turn(shape) != 0:
        return False
    try:
        if shape.tag == "mask":
            return runs(shape) == runs(was) and figures(shape, PLACE) == figures(was, PLACE)
        return alike(figures(shape, SIDES), figures(was, SIDES), WITHIN)
    except LabelError:
        return False


def _returned(shape: ElementTree.Element, given: Given, name: str, report: Report) -> Returned:
    size = given.image.width, given.image.height
    box, mask, note = geometry(shape, Frame(size, size))
    if note is not None:
        report.problems.append(f"{name} {note}")
    return Returned(shape.get("label", ""), box, mask=mask)
