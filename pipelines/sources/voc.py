"""Images and labels of a Pascal VOC dataset (http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/)."""

from __future__ import annotations

import json
import math
import posixpath
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from labelmill.pipelines.sources.base import Entry, Refused, Source, SourceError, in_order, normal_key, problem_text
from labelmill.pipelines.sources.frames import Frame, extent, frame_of
from labelmill.pipelines.sources.labels import LARGEST, OVERFLOW, LabelError, clip, detection, stored_shape
from labelmill.pipelines.sources.storage import THREADS, Storage, Unavailable
from labelmill.pipelines.sources.uri import file_uri, is_http, is_remote, join
from labelmill.pipelines.sources.walk import Found, is_image_name, walk

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
        rescale: Whether labels of images that were evenly scaled since are scaled with them.
    """

    def __init__(self, root: str, storage: Storage, rescale: bool = False) -> None:
        super().__init__()
        self.root = root
        self.storage = storage
        self.rescale = rescale

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
                self._refuse(f"Annotations/{name}", "is left out: JPEGImages has no image of that name")
        for stem in sorted(set(splits) - set(images)):
            self._report(f"ImageSets/Main names {stem}, but JPEGImages has no image of that name")
        work = [
            _Image(found, annotations.get(f"{stem}.xml"), splits.get(stem, []), len(group))
            for stem, group in images.items()
            for found in group
        ]
        yield from in_order(self._entry, work, THREADS if is_remote(self.root) else LOCAL_THREADS)

    def looked_for(self) -> str:
        return f"{join(self.root, 'Annotations')}/*.xml with the names of the images"

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
        refused: list[Refused] = []
        labels = self._labels(image, problems, refused) if image.annotation is not None else None
        return Entry(
            normal_key(f"JPEGImages/{image.found.name}"),
            file_uri(image.found.location),
            image.found.version,
            labels if labels or not refused else None,
            image.splits[0] if image.splits else None,
            problem=problem_text([*problems, *map(str, refused)]),
            refused=tuple(refused),
        )

    def _labels(self, image: _Image, problems: list[str], refused: list[Refused]) -> list[dict[str, Any]] | None:
        assert image.annotation is not None
        shown = f"Annotations/{image.annotation.name}"
        try:
            root = _parsed(self.storage.read(image.annotation.location))
        except (Unavailable, LabelError) as error:
            refused.append(Refused(shown, str(error)))
            return None
        name = posixpath.basename(image.found.name)
        objects = root.findall("object")
        if image.sharers > 1 and root.findtext("filename", "").strip() != name:
            reason = f"is not used: {image.sharers} images have its name, and it does not name {name}"
            if objects:
                refused.append(Refused(shown, reason))
            else:
                problems.append(f"{shown} {reason}")
            return None
        if not objects:
            return []
        places = [f"{shown} object {number}" for number in range(1, len(objects) + 1)]
        try:
            shape = stored_shape(self.storage, image.found.location)
        except (Unavailable, LabelError) as error:
            refused += [Refused(each, f"is left out: the image's size is not known: {error}") for each in places]
            return None
        said = tuple(_number(root, f"size/{side}") for side in ("width", "height"))
        width, height = said
        drawn = None
        if width is not None and height is not None and min(width, height) >= 1:
            drawn = round(width), round(height)
        reach = extent([box for box in map(_corners, objects) if box is not None])
        try:
            frame, note = frame_of(drawn, shape, reach, self.rescale)
        except LabelError as error:
            refused += [Refused(each, f"is refused: its image's labels {error}") for each in places]
            return None
        problems += [note] if note else []
        labels = []
        for place, thing in zip(places, objects, strict=True):
            try:
                label, outside = _label(thing, frame)
            except LabelError as error:
                refused.append(Refused(place, str(error)))
                continue
            labels.append(label)
            if outside > OVERFLOW:
                problems.append(f"{place} leaves the image by {outside:g} pixels; it was clipped")
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


SAID = ("pose", "truncated", "difficult", "occluded")
"""What else an object says, where it is no default."""


def _label(thing: ElementTree.Element, frame: Frame) -> tuple[dict[str, Any], float]:
    name = (thing.findtext("name") or "").strip()
    if not name:
        raise LabelError("has no name")
    corners = _corners(thing)
    if corners is None:
        found = ", ".join(f"{thing.findtext(f'bndbox/{side}')}"[:30] for side in ("xmin", "ymin", "xmax", "ymax"))
        raise LabelError(f"must have a bndbox of four finite numbers but has {found}")
    if corners[2] <= corners[0] or corners[3] <= corners[1]:
        raise LabelError(f"has a box without area: {corners[2] - corners[0]:g} x {corners[3] - corners[1]:g}")
    box, outside = clip(frame.box(corners), frame.upright)
    said = {key: (thing.findtext(key) or "").strip() for key in SAID}
    extra = {key: value for key, value in said.items() if value not in ("", "0", "Unspecified")}
    return detection(box, name, extra=json.dumps(extra, sort_keys=True) if extra else None), outside


def _corners(thing: ElementTree.Element) -> tuple[float, float, float, float] | None:
    """Left, top, right and bottom edge in pixels: the devkit's whole pixels begin at 1, the last one is inside."""
    corners = [_number(thing, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    if None in corners:
        return None
    xmin, ymin, xmax, ymax = (float(corner) for corner in corners if corner is not None)
    return xmin - 1, ymin - 1, xmax, ymax


def _number(element: ElementTree.Element, path: str) -> float | None:
    try:
        value = float(element.findtext(path) or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and abs(value) < LARGEST else None
