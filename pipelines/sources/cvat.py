"""Images and labels of CVAT's XML (https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from labelmill.operators.wording import counted
from labelmill.pipelines.sources.base import (
    Entry,
    Refused,
    Sizes,
    Source,
    SourceError,
    in_order,
    normal_key,
    problem_text,
)
from labelmill.pipelines.sources.coco_folder import SPLITS
from labelmill.pipelines.sources.cvat_shapes import OTHERS, SHAPES, geometry, reach, turn
from labelmill.pipelines.sources.frames import Frame, extent, frame_of, shape_of
from labelmill.pipelines.sources.labels import OVERFLOW, LabelError, clip, detection, mask_box, same_objects
from labelmill.pipelines.sources.names import Names
from labelmill.pipelines.sources.storage import THREADS, Missing, Storage, Unavailable
from labelmill.pipelines.sources.uri import base_name, below, file_uri, is_http, is_remote, join, parent

FILE = "annotations.xml"
LOCAL_THREADS = 4

NOTED = ("polyline", "points")
"""Shapes that are no objects; they are counted and left out."""


@dataclass(frozen=True)
class _Image:
    """An ``<image>`` of a file, with where its picture is."""

    file: str
    element: ElementTree.Element
    location: str
    key: str
    split: str | None


class CvatSource(Source):
    """The images that ``annotations.xml`` lists, with its boxes, polygons, masks and ellipses as labels.

    A folder may have the file itself, or one for each split in folders of their own. A name is looked for in
    ``images/`` beside the file, then beside it. Polylines and points are counted and left out; skeletons, cuboids and
    tracks are refused. An image without a shape has nothing on it: CVAT does not say whether anybody looked.

    Args:
        where: The file, or a folder.
        storage: Reads everything.
        sizes: Width and height of the upright image by key, for labels whose images are not here.
        rescale: Whether labels of images that were evenly scaled since are scaled with them.
    """

    def __init__(self, where: str, storage: Storage, sizes: Sizes | None = None, rescale: bool = False) -> None:
        super().__init__()
        self.where = where
        self.storage = storage
        self.sizes = sizes
        self.rescale = rescale

    def __str__(self) -> str:
        return f"cvat {self.where}"

    @property
    def classes(self) -> list[str] | None:
        """The labels of the task, in its order; those that only tags or words have are left out."""
        found: dict[str, None] = {}
        for file, _ in self._files():
            root = self._parse(file)
            used = {shape.get("label", "") for image in root.iter("image") for shape in image if not _is_word(shape)}
            named = [label.findtext("name") or "" for label in root.iter("label")]
            found |= dict.fromkeys(name for name in named if name and (name in used or name != "word"))
            found |= dict.fromkeys(sorted(used - set(named) - {""}))
            for image in root.iter("image"):
                for tag in image.iter("tag"):
                    if tag.get("label") not in used:
                        found.pop(tag.get("label", ""), None)
        return list(found) or None

    def looked_for(self) -> str:
        return f"box, polygon, mask and ellipse in {', '.join(file for file, _ in self._files())}"

    def _files(self) -> list[tuple[str, str | None]]:
        """The files, with the split that each one's folder says."""
        if is_http(self.where) or not self.storage.is_folder(self.where):
            return [(self.where, None)]
        found: list[tuple[str, str | None]] = []
        if self.storage.is_file(join(self.where, FILE)):
            found.append((join(self.where, FILE), None))
        for name in self.storage.names(self.where):
            if "." not in name and self.storage.is_file(inside := join(join(self.where, name), FILE)):
                found.append((inside, SPLITS.get(name.lower(), name)))
        if not found:
            raise SourceError(f"{self.where} must have {FILE}, or folders of splits that have it")
        return found

    def _parse(self, location: str) -> ElementTree.Element:
        try:
            data = self.storage.read(location)
        except Missing as error:
            raise self.storage.missing(location, "the file") from error
        except Unavailable as error:
            raise SourceError(str(error)) from error
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data:  # entities can blow up a few bytes to gigabytes
            raise SourceError(f"{location} must be plain XML but has a document type")
        try:
            root = ElementTree.fromstring(data)
        except (ElementTree.ParseError, ValueError, LookupError) as error:
            raise SourceError(f"{location} must be XML but is not: {error}") from error
        if root.tag != "annotations":
            raise SourceError(f"{location} must be CVAT's annotations but is {root.tag[:60]!r}")
        return root

    def _entries(self) -> Iterator[Entry]:
        names, images = Names(self.storage), []
        others: Counter[str] = Counter()
        files = self._files()
        home = self.where if any(file != self.where for file, _ in files) else parent(self.where)
        for file, split in files:
            root = self._parse(file)
            for track in root.iter("track"):
                self._refuse(f"{file} track {track.get('id')}", "is one of a video; export as CVAT for images")
            for element in root.iter("image"):
                others.update(shape.tag for shape in element if shape.tag in NOTED)
                others.update("word" for shape in element if _is_word(shape))
                images.append(self._locate(file, element, split, home, names))
        if others:
            told = ", ".join(counted(count, what) for what, count in sorted(others.items()))
            self._report(f"{self.where} has {told}, which are no boxes or masks and are left out")
        workers = THREADS if is_remote(self.where) else LOCAL_THREADS
        yield from in_order(self._entry, _once(images, self._report), workers)

    def _locate(self, file: str, element: ElementTree.Element, split: str | None, home: str, names: Names) -> _Image:
        name = (element.get("name") or "").replace("\\", "/")
        beside = parent(file)
        places = [join(beside, "images"), beside, join(home, "images")]
        found = next((place for folder in places if (place := names.find(name, folder))), None) if name else None
        if self.sizes is not None:
            return _Image(file, element, join(beside, name), normal_key(name), split or _subset(element))
        location = found or join(places[0], name)
        key = normal_key(below(location, home) or name)
        return _Image(file, element, location, key, split or _subset(element))

    def _entry(self, image: _Image) -> Entry:
        problems: list[str] = []
        refused: list[Refused] = []
        version = self.storage.version_here(image.location, problems) if self.sizes is None else None
        labels = self._labels(image, problems, refused)
        return Entry(
            image.key,
            file_uri(image.location),
            version,
            labels if labels or not refused else None,
            image.split,
            problem=problem_text([*problems, *map(str, refused)]),
            refused=tuple(refused),
        )

    def _labels(self, image: _Image, problems: list[str], refused: list[Refused]) -> list[dict[str, Any]]:
        shown = f"{base_name(image.file)} image {image.element.get('id')}"
        shapes = [
            (f"{shown} {shape.tag} {number}", shape)
            for number, shape in enumerate(image.element, 1)
            if shape.tag in (*SHAPES, *OTHERS) and shape.tag not in NOTED and not _is_word(shape)
        ]
        if not shapes:
            return []
        said = _said(image.element)
        try:
            shape_here = shape_of(self.storage, image.location, image.key, self.sizes)
            boxes = [box for _, shape in shapes if (box := reach(shape)) is not None]
            frame, note = frame_of(said, shape_here, extent(boxes), self.rescale)
        except Unavailable as error:
            refused += [Refused(place, f"is left out: the image's size is not known: {error}") for place, _ in shapes]
            return []
        except LabelError as error:
            refused += [Refused(place, f"is refused: its image's labels {error}") for place, _ in shapes]
            return []
        problems += [note] if note else []
        labels, kept = [], []
        for place, shape in shapes:
            try:
                labels.append(_label(shape, place, frame, problems))
                kept.append(place)
            except LabelError as error:
                refused.append(Refused(place, str(error)))
        return same_objects(labels, kept, problems)

    def _empty(self) -> str:
        return f"{self.where} lists no image"


def _label(shape: ElementTree.Element, place: str, frame: Frame, notes: list[str]) -> dict[str, Any]:
    name = (shape.get("label") or "").strip()
    if not name:
        raise LabelError("has no label")
    if shape.tag in ("cuboid", "skeleton"):
        raise LabelError("is neither a box nor a mask")
    box, mask, note = geometry(shape, frame)
    if note is not None:
        notes.append(f"{place} {note}")
    if box is None:
        assert mask is not None
        inside, outside = mask_box(mask, frame.upright), 0.0
    else:
        inside, outside = clip(box, frame.upright)
    if outside > OVERFLOW:
        notes.append(f"{place} leaves the image by {outside:g} pixels; it was clipped")
    told = {each.get("name", ""): each.text or "" for each in shape.iter("attribute")}
    score, prompt, models = (told.pop(key, None) for key in ("score", "prompt", "models"))
    extra: dict[str, Any] = {"attributes": told} if told else {}
    if shape.get("occluded") == "1":
        extra["occluded"] = True
    if turn(shape):
        extra["rotation"] = turn(shape)
    return detection(
        inside,
        name,
        _score(score),
        mask,
        prompt or None,
        [each.strip() for each in models.split(",") if each.strip()] or None if models else None,
        extra=json.dumps(extra, ensure_ascii=False, sort_keys=True) if extra else None,
    )


def _score(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None


def _said(element: ElementTree.Element) -> tuple[int, int] | None:
    try:
        width, height = int(element.get("width") or ""), int(element.get("height") or "")
    except ValueError:
        return None
    return (width, height) if width > 0 and height > 0 else None


def _subset(element: ElementTree.Element) -> str | None:
    found = element.get("subset")
    return None if not found or found == "default" else SPLITS.get(found.lower(), found)


def _is_word(shape: ElementTree.Element) -> bool:
    """Whether it is a word as the export `cvat` writes it: a polygon with its text."""
    return shape.tag == "polygon" and any(each.get("name") == "text" for each in shape.iter("attribute"))


def _once(images: Sequence[_Image], report: Any) -> list[_Image]:
    """Every image once; of one that stands twice the last counts."""
    found: dict[str, _Image] = {}
    for image in images:
        if image.key in found:
            report(f"image {image.key} stands twice; the last one counts")
        found[image.key] = image
    return list(found.values())
