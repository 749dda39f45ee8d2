"""Images and labels of a YOLO dataset (https://docs.ultralytics.com/datasets/detect/)."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from labelmill.pipelines.sources.base import Entry, Refused, Source, SourceError, in_order, normal_key, problem_text
from labelmill.pipelines.sources.labels import OVERFLOW, LabelError, stored_size
from labelmill.pipelines.sources.names import Names
from labelmill.pipelines.sources.storage import THREADS, Missing, Storage, Unavailable
from labelmill.pipelines.sources.uri import below, file_uri, is_http, is_remote, join, parent, resolve
from labelmill.pipelines.sources.walk import Found, is_image_name, walk
from labelmill.pipelines.sources.yolo_data import (
    ALL,
    FOLDER,
    class_names,
    find_document,
    keypoint_values,
    read_document,
)
from labelmill.pipelines.sources.yolo_labels import parse_labels, to_detection

SPLITS = ("train", "val", "test")
LOCAL_THREADS = 4
NOT_LABELS = ("classes.txt", "train.txt", "val.txt", "test.txt")
"""What other tools put into a folder of labels."""


@dataclass(frozen=True, slots=True)
class _Image:
    location: str
    split: str | None
    version: str | None = None
    problem: str | None = None
    listed: bool = False  # in a text file, so that nobody has looked yet whether it is there


class YoloSource(Source):
    """The images of a ``data.yaml`` with their boxes and polygons as labels, in the splits train, val and test.

    The label of ``…/images/a.jpg`` is ``…/labels/a.txt``, whatever the case of the two folders, else it lies beside the
    image. An empty file says that nothing is there; without a file nobody looked. Lines that cannot be used are
    refused. A polygon's class, box and mask are taken; an oriented box looks like a polygon and becomes one.

    Args:
        data: The ``data.yaml``, or a folder that has one, or has images, labels and ``classes.txt``.
        storage: Reads everything.
    """

    def __init__(self, data: str, storage: Storage) -> None:
        super().__init__()
        self.data = data
        self.storage = storage
        self._walked: set[str] = set()
        self._names = Names(storage)

    def __str__(self) -> str:
        return f"yolo {self.data}"

    @property
    def classes(self) -> list[str]:
        return list(dict.fromkeys(class_names(self._document(), self.data).values()))

    def _document(self) -> dict[str, Any]:
        if not is_http(self.data) and self.storage.is_folder(self.data):
            self.data, found = find_document(self.storage, self.data)
            if found is not None:
                return found
        return read_document(self.storage, self.data)

    def _entries(self) -> Iterator[Entry]:
        if is_http(self.data):
            raise SourceError(f"{self.data} cannot be used over http, which cannot list folders; download the dataset")
        document = self._document()
        names = class_names(document, self.data)
        if len(set(names.values())) < len(names):
            self._report(f"{self.data} gives one name to several classes; they are taken for the same class")
        keypoints = keypoint_values(document)
        if keypoints:
            self._report(f"{self.data} describes keypoints (kpt_shape); boxes are read, keypoints are not")
        self._walked, self._names = set(), Names(self.storage)
        root = self._root(document)
        images, others = self._images(document, root)
        shared = _shared(images)
        workers = THREADS if is_remote(root) else LOCAL_THREADS
        yield from in_order(lambda image: self._entry(image, others, shared, root, names, keypoints), images, workers)

    def _empty(self) -> str:
        return f"the folders and lists of {self.data} hold no images; saw {self._seen()}"

    def looked_for(self) -> str:
        return (
            "label files beside the images, and in a folder labels where their path has one called images "
            "(images/train/a.jpg: labels/train/a.txt)"
        )

    def _root(self, document: dict[str, Any]) -> str:
        """The folder that splits are relative to: ``path`` where it exists, else the folder of the data.yaml."""
        beside = self.data if document.get(FOLDER) else parent(self.data)
        given = document.get("path")
        if not given:
            return beside
        try:
            root = resolve(str(given), beside)
        except ValueError as error:
            self._report(f"path in {self.data} was not used: {error}")
            return beside
        if self.storage.is_folder(root):
            return root
        self._report(f"path in {self.data} is {given}, which does not exist; the folder of the file itself was used")
        return beside

    def _images(self, document: dict[str, Any], root: str) -> tuple[list[_Image], dict[str, list[str]]]:
        """Every image once, in its first split; and the further splits of those that are in several."""
        images: dict[str, _Image] = {}
        others: dict[str, list[str]] = {}
        named: dict[str, str] = {}
        for split in SPLITS:
            value = document.get(split)
            for reference in value if isinstance(value, list) else [value]:
                if not reference:
                    continue
                first_split = named.setdefault(posixpath.normpath(str(reference)), split)
                if first_split != split:
                    self._report(f"{split} in {self.data} is {reference}, which is {first_split} already")
                    continue
                for image in self._split(str(reference), None if document.get(FOLDER) == ALL else split, root):
                    first = images.setdefault(image.location, image)
                    if first.split != split and split not in others.setdefault(image.location, []):
                        others[image.location].append(split)
        if not any(document.get(split) for split in SPLITS):
            raise SourceError(f"{self.data} must have train, val or test but has {', '.join(map(str, document))}")
        return list(images.values()), others

    def _split(self, reference: str, split: str | None, root: str) -> Iterator[_Image]:
        try:
            location = resolve(reference, root)
            inside = resolve(reference.removeprefix("../"), root)
        except ValueError as error:
            raise SourceError(f"{split} in {self.data}: {error}") from error
        other_case = (
            None if is_remote(root) or reference.startswith(("/", "..")) else self._names.any_case(reference, root)
        )
        # Roboflow writes ../train/images and means train/images
        for place in dict.fromkeys(filter(None, (location, inside, other_case))):
            if self.storage.is_folder(place):
                expected: set[str] = set()
                passed: list[Found] = []
                for found in walk(self.storage, place, self._report):
                    if is_image_name(found.name):
                        expected.update(place.lower() for place in label_places(found.location))
                        yield _Image(found.location, split, found.version, found.problem)
                    else:
                        passed.append(found)
                for found in passed:
                    if found.location.lower() not in expected:
                        self._ignore(found.name)
                self._report_orphans(place, expected, root)
                return
            if self.storage.is_file(place):
                yield from self._listed(place, split)
                return
        missing = self.storage.missing(location, f"{split or 'images'} in {self.data}:")
        if split != "test":  # many published datasets name a test split that is not handed out
            raise missing
        self._report(str(missing))

    def _report_orphans(self, images: str, expected: set[str], root: str) -> None:
        """Refuse the label files that belong to no image of a folder."""
        place = parent(label_places(join(images, "x.jpg"))[0])
        folder = place if is_remote(place) else self._names.any_case(place.lstrip("/"), "/") or place
        if folder == images or folder in self._walked or not self.storage.is_folder(folder):
            return
        self._walked.add(folder)
        for found in walk(self.storage, folder, self._report):
            listed = found.name.rpartition("/")[2] in NOT_LABELS
            if found.name.endswith(".txt") and not listed and found.location.lower() not in expected:
                self._refuse(below(found.location, root) or found.location, "is left out: it has no image")

    def _listed(self, listing: str, split: str | None) -> Iterator[_Image]:
        """The images that a text file lists, relative to the file's own folder."""
        try:
            lines = self.storage.read(listing).decode("utf-8-sig", "surrogateescape").splitlines()
        except Unavailable as error:
            raise SourceError(str(error)) from error
        references = [text.strip() for text in lines if text.strip()]
        for reference in references:
            if not is_image_name(reference):
                self._ignore(reference)
                continue
            try:
                location = resolve(reference, parent(listing))
                found = None if self.storage.is_file(location) else self._names.find(reference, parent(listing))
                yield _Image(found or location, split, listed=True)
            except ValueError as error:
                self._report(f"{listing}: {error}")

    def _entry(
        self,
        image: _Image,
        others: dict[str, list[str]],
        shared: dict[str, list[str]],
        root: str,
        names: dict[int, str],
        keypoints: int,
    ) -> Entry:
        problems = [image.problem] if image.problem else []
        version = image.version
        if image.listed:
            try:
                version = self.storage.info(image.location).version
            except Unavailable as error:
                problems.append(str(error))
        if image.location in others:
            problems.append(f"this image is in {image.split} and also in {' and '.join(others[image.location])}")
        refused: list[Refused] = []
        labels = self._labels(image, shared, root, names, keypoints, problems, refused)
        inside = below(image.location, root)
        key = normal_key(inside if inside is not None else image.location.partition("://")[2] or image.location)
        return Entry(
            key,
            file_uri(image.location),
            version,
            labels if labels or not refused else None,
            image.split,
            problem=problem_text([*problems, *map(str, refused)]),
            refused=tuple(refused),
        )

    def _labels(
        self,
        image: _Image,
        shared: dict[str, list[str]],
        root: str,
        names: dict[int, str],
        keypoints: int,
        problems: list[str],
        refused: list[Refused],
    ) -> list[dict[str, Any]] | None:
        location, data = None, b""
        try:
            for place in self._places(image.location):
                try:
                    data, location = self.storage.read(place), place
                    break
                except Missing:
                    continue
        except Unavailable as error:
            refused.append(Refused(_shown(place, root), f"cannot be read: {error}"))
            return None
        if location is None:
            return None
        shown = _shown(location, root)
        if sharers := [other for other in shared.get(_stem(image.location), []) if other != image.location]:
            found = " and ".join(_shown(other, root) for other in sharers)
            if data.strip():
                refused.append(
                    Refused(shown, f"is not used: it would be that of {_shown(image.location, root)} and of {found}")
                )
                return None
        objects, repeated, wrong = parse_labels(data, max(names, default=-1) + 1, keypoints)
        problems += [f"{shown}:{line} {reason}" for line, reason in repeated]
        refused += [Refused(f"{shown}:{line}", reason) for line, reason in wrong]
        if not objects:
            return []
        try:
            size = stored_size(self.storage, image.location)
        except (Unavailable, LabelError) as error:
            reason = f"is left out, because the image's size is not known: {error}"
            refused += [Refused(f"{shown}:{item.line}", reason) for item in objects]
            return None
        labels = []
        for item in objects:
            try:
                if item.number not in names:
                    raise LabelError(f"names class {item.number}, which has no name")
                label, outside = to_detection(item, names[item.number], size)
                labels.append(label)
                if outside > OVERFLOW:
                    problems.append(f"{shown}:{item.line} leaves the image by {outside:g} pixels; it was clipped")
            except LabelError as error:
                refused.append(Refused(f"{shown}:{item.line}", str(error)))
        return labels

    def _places(self, image: str) -> Iterator[str]:
        """Where an image's label file may be, the likeliest first; in a local folder also in other case."""
        places = label_places(image)
        yield from places
        if is_remote(image):
            return
        for place in places:
            found = self._names.any_case(place.lstrip("/"), "/")
            if found is not None and found not in places:
                yield found


def _shown(location: str, root: str) -> str:
    return below(location, root) or location


def _stem(location: str) -> str:
    return posixpath.splitext(location)[0]


def _shared(images: list[_Image]) -> dict[str, list[str]]:
    """Path without suffix → the images that have it, where several do and so share one label file."""
    stems: dict[str, list[str]] = {}
    for image in images:
        stems.setdefault(_stem(image.location), []).append(image.location)
    return {stem: found for stem, found in stems.items() if len(found) > 1}


def label_places(image: str) -> list[str]:
    """Where an image's labels may be: for each folder ``images`` in its path, the last first, in ``labels`` instead of
    it; and beside the image."""
    stem = _stem(image) + ".txt"
    parts = stem.split("/")
    places = []
    for index in range(len(parts) - 2, -1, -1):
        if parts[index].lower() == "images":
            places.append("/".join([*parts[:index], "labels", *parts[index + 1 :]]))
        if places and is_remote(image):
            break
    return [*places, stem]
