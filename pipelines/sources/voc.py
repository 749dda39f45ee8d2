"""Images and labels of a Pascal VOC dataset (http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/)."""

from __future__ import annotations

import math
import posixpath
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from operators.wording import counted
from pipelines.sources.base import Entry, Source, SourceError, in_order, normal_key, problem_text
from pipelines.sources.labels import LARGEST, OVERFLOW, LabelError, clip, detection, stored_size
from pipelines.sources.storage import THREADS, Storage, Unavailable
from pipelines.sources.uri import file_uri, is_http, is_remote, join
from pipelines.sources.walk import Found, is_image_name, walk

SPLITS = ("train", "val", "test")
LOCAL_THREADS = 4


class VocSource(Source):
    """The images in ``JPEGImages`` with the boxes of ``Annotations/*.xml``, in the splits of ``ImageSets/Main``.

    An annotation belongs to the image whose name without extension is its own. Coordinates are taken as the devkit
    means them: whole pixels from 1, the last one inside the box, so ``xmin - 1`` is the left edge and ``xmax`` the
    right one. Objects marked as difficult or truncated are labels like the others. An image without annotation file has
    no labels. Segmentation images are not read.

    Args:
        root: The folder that holds the three, such as ``VOCdevkit/VOC2012``.
        storage: Reads everything.
    """

    def __init__(self, root: str, storage: Storage) -> None:
        super().__init__()
        self.root = root
        self.storage = storage

    def __str__(self) -> str:
        return f"voc {self.root}"

    def _entries(self) -> Iterator[Entry]:
        if is_http(self.root):
            raise SourceError(f"{self.root} cannot be used over http, which cannot list folders; download the dataset")
        for folder in ("JPEGImages", "Annotations"):
            if not self.storage.is_folder(join(self.root, folder)):
                raise self.storage.missing(join(self.root, folder), f"the folder {folder}")
        annotations = {found.name: found for found in self._files("Annotations") if found.name.endswith(".xml")}
        splits = self._splits()
        images: dict[str, list[Found]] = defaultdict(list)
        for found in self._files("JPEGImages"):
            if is_image_name(found.name):
                images[posixpath.splitext(found.name)[0]].append(found)
            else:
                self._ignore(found.name)
        for name in sorted(annotations):
            if posixpath.splitext(name)[0] not in images:
                self._report(f"Annotations/{name} is left out: JPEGImages has no image of that name")
        for stem in sorted(set(splits) - set(images)):
            self._report(f"ImageSets/Main names {stem}, but JPEGImages has no image of that name")
        work = [
            _Image(found, annotations.get(f"{stem}.xml"), splits.get(stem, []), len(group))
            for stem, group in images.items()
            for found in group
        ]
        yield from in_order(self._entry, work, THREADS if is_remote(self.root) else LOCAL_THREADS)

    def _empty(self) -> str:
        return f"{join(self.root, 'JPEGImages')} holds no images; saw {self._seen()}"

    def _files(self, folder: str) -> Iterator[Found]:
        yield from walk(self.storage, join(self.root, folder), self._report)

    def _splits(self) -> dict[str, list[str]]:
        """Image name without extension → its splits. The other sets, such as trainval and those of classes, are not
        read."""
        found: dict[str, list[str]] = defaultdict(list)
        for split in SPLITS:
            location = join(self.root, "ImageSets", "Main", f"{split}.txt")
            if not self.storage.is_file(location):
                continue
            try:
                lines = self.storage.read(location).decode("utf-8-sig", "surrogateescape").splitlines()
            except Unavailable as error:
                raise SourceError(str(error)) from error
            for line in lines:
                if line.strip() and split not in found[line.strip()]:
                    found[line.strip()].append(split)
        return dict(found)

    def _entry(self, image: _Image) -> Entry:
        problems = [image.found.problem] if image.found.problem else []
        if len(image.splits) > 1:
            problems.append(f"this image is in {image.splits[0]} and also in {' and '.join(image.splits[1:])}")
        labels = self._labels(image, problems) if image.annotation is not None else None
        return Entry(
            normal_key(f"JPEGImages/{image.found.name}"),
            file_uri(image.found.location),
            image.found.version,
            labels,
            image.splits[0] if image.splits else None,
            problem=problem_text(problems),
        )

    def _labels(self, image: _Image, problems: list[str]) -> list[dict[str, Any]] | None:
        assert image.annotation is not None
        shown = f"Annotations/{image.annotation.name}"
        try:
            root = _parsed(self.storage.read(image.annotation.location))
        except (Unavailable, LabelError) as error:
            problems.append(f"{shown} {error}")
            return None
        name = posixpath.basename(image.found.name)
        if image.sharers > 1 and root.findtext("filename", "").strip() != name:
            problems.append(f"{shown} is not used: {image.sharers} images have its name, and it does not name {name}")
            return None
        objects = root.findall("object")
        if not objects:
            return []
        try:
            size = stored_size(self.storage, image.found.location)
        except (Unavailable, LabelError) as error:
            problems.append(
                f"{counted(len(objects), 'label is', 'labels are')} left out, because its size is not known: {error}"
            )
            return None
        said = tuple(_number(root, f"size/{side}") for side in ("width", "height"))
        if None not in said and said != size:
            problems.append(f"{shown} says {said[0]:g} x {said[1]:g} pixels, but the image has {size[0]} x {size[1]}")
        labels = []
        for number, thing in enumerate(objects, 1):
            try:
                label, outside = _label(thing, size)
            except LabelError as error:
                problems.append(f"{shown} object {number} {error}")
                continue
            labels.append(label)
            if outside > OVERFLOW:
                problems.append(f"{shown} object {number} leaves the image by {outside:g} pixels; it was clipped")
        return labels


@dataclass(frozen=True, slots=True)
class _Image:
    """An image file, its annotation file, its splits, and how many images have its name without extension."""

    found: Found
    annotation: Found | None
    splits: list[str]
    sharers: int


def _parsed(data: bytes) -> ElementTree.Element:
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:  # entities can blow up a few bytes to gigabytes
        raise LabelError("must be plain XML but has a document type")
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise LabelError(f"must be XML but is not: {error}") from error
    if root.tag != "annotation":
        raise LabelError(f"must be an annotation but is {root.tag[:60]!r}")
    return root


def _label(thing: ElementTree.Element, size: tuple[int, int]) -> tuple[dict[str, Any], float]:
    name = (thing.findtext("name") or "").strip()
    if not name:
        raise LabelError("has no name")
    corners = [_number(thing, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    if None in corners:
        found = ", ".join(f"{thing.findtext(f'bndbox/{side}')}"[:30] for side in ("xmin", "ymin", "xmax", "ymax"))
        raise LabelError(f"must have a bndbox of four finite numbers but has {found}")
    xmin, ymin, xmax, ymax = (float(corner) for corner in corners if corner is not None)
    box, outside = clip((xmin - 1, ymin - 1, xmax, ymax), size)
    return detection(box, name), outside


def _number(element: ElementTree.Element, path: str) -> float | None:
    try:
        value = float(element.findtext(path) or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and abs(value) < LARGEST else None
