"""Images and labels of a YOLO dataset (https://docs.ultralytics.com/datasets/detect/)."""

from __future__ import annotations

import posixpath
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from operators.wording import counted
from pipelines.sources.base import Entry, Source, SourceError, in_order, normal_key, problem_text, valid_text
from pipelines.sources.labels import OVERFLOW, LabelError, stored_size
from pipelines.sources.storage import THREADS, Missing, Storage, Unavailable
from pipelines.sources.uri import below, file_uri, is_http, is_remote, join, parent, resolve
from pipelines.sources.walk import is_image_name, walk
from pipelines.sources.yolo_labels import parse_labels, to_detection

SPLITS = ("train", "val", "test")
LOCAL_THREADS = 4
NOT_LABELS = ("classes.txt", "train.txt", "val.txt", "test.txt")
"""What other tools put into a folder of labels."""


@dataclass(frozen=True, slots=True)
class _Image:
    location: str
    split: str
    version: str | None = None
    problem: str | None = None
    listed: bool = False  # in a text file, so that nobody has looked yet whether it is there


class YoloSource(Source):
    """The images of a ``data.yaml`` with their boxes and polygons as labels, in the splits train, val and test.

    The label of ``…/images/a.jpg`` is ``…/labels/a.txt``; without a folder ``images`` in its path it lies beside the
    image. An image without label file is a negative where there is a folder of labels; else it has none.
    A polygon's class, box and mask are taken; an oriented box looks like a polygon and becomes one.

    Args:
        data: The ``data.yaml``.
        storage: Reads everything.
    """

    def __init__(self, data: str, storage: Storage) -> None:
        super().__init__()
        self.data = data
        self.storage = storage
        self._folders: dict[str, bool] = {}
        self._walked: set[str] = set()
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return f"yolo {self.data}"

    @property
    def classes(self) -> list[str]:
        return list(dict.fromkeys(_names(self._document(), self.data).values()))

    def _document(self) -> dict[str, Any]:
        import yaml

        try:
            document = yaml.safe_load(self.storage.read(self.data))
        except Missing as error:
            raise self.storage.missing(self.data, "the file") from error
        except Unavailable as error:
            raise SourceError(str(error)) from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise SourceError(f"{self.data} must be YAML but is not: {error}") from error
        if not isinstance(document, dict):
            raise SourceError(f"{self.data} must be a mapping with train, val and names but is {document!r:.60}")
        return document

    def _entries(self) -> Iterator[Entry]:
        if is_http(self.data):
            raise SourceError(f"{self.data} cannot be used over http, which cannot list folders; download the dataset")
        document = self._document()
        names = _names(document, self.data)
        if len(set(names.values())) < len(names):
            self._report(f"{self.data} gives one name to several classes; they are taken for the same class")
        keypoints = _keypoint_values(document)
        if keypoints:
            self._report(f"{self.data} describes keypoints (kpt_shape); boxes are read, keypoints are not")
        self._folders, self._walked = {}, set()
        root = self._root(document)
        images, others = self._images(document, root)
        workers = THREADS if is_remote(root) else LOCAL_THREADS
        yield from in_order(lambda image: self._entry(image, others, root, names, keypoints), images, workers)

    def _empty(self) -> str:
        return f"the folders and lists of {self.data} hold no images; saw {self._seen()}"

    def _root(self, document: dict[str, Any]) -> str:
        """The folder that splits are relative to: ``path`` where it exists, else the folder of the data.yaml."""
        beside = parent(self.data)
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
                for image in self._split(str(reference), split, root):
                    first = images.setdefault(image.location, image)
                    if first.split != split and split not in others.setdefault(image.location, []):
                        others[image.location].append(split)
        if not any(document.get(split) for split in SPLITS):
            raise SourceError(f"{self.data} must have train, val or test but has {', '.join(map(str, document))}")
        return list(images.values()), others

    def _split(self, reference: str, split: str, root: str) -> Iterator[_Image]:
        try:
            location = resolve(reference, root)
            inside = resolve(reference.removeprefix("../"), root)
        except ValueError as error:
            raise SourceError(f"{split} in {self.data}: {error}") from error
        for place in dict.fromkeys((location, inside)):  # Roboflow writes ../train/images and means train/images
            if self.storage.is_folder(place):
                expected = set()
                for found in walk(self.storage, place, self._report):
                    if is_image_name(found.name):
                        expected.add(label_location(found.location))
                        yield _Image(found.location, split, found.version, found.problem)
                    else:
                        self._ignore(found.name)
                self._report_orphans(place, expected, root)
                return
            if self.storage.is_file(place):
                yield from self._listed(place, split)
                return
        missing = self.storage.missing(location, f"{split} in {self.data}:")
        if split != "test":  # many published datasets name a test split that is not handed out
            raise missing
        self._report(str(missing))

    def _report_orphans(self, images: str, expected: set[str], root: str) -> None:
        """Name the label files that belong to no image of a folder."""
        folder = parent(label_location(join(images, "x.jpg")))
        if folder == images or folder in self._walked or not self.storage.is_folder(folder):
            return
        self._walked.add(folder)
        for found in walk(self.storage, folder, self._report):
            listed = found.name.rpartition("/")[2] in NOT_LABELS
            if found.name.endswith(".txt") and not listed and found.location not in expected:
                self._report(f"{below(found.location, root) or found.location} is left out: it has no image")

    def _listed(self, listing: str, split: str) -> Iterator[_Image]:
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
                yield _Image(resolve(reference, parent(listing)), split, listed=True)
            except ValueError as error:
                self._report(f"{listing}: {error}")

    def _entry(
        self, image: _Image, others: dict[str, list[str]], root: str, names: dict[int, str], keypoints: int
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
        labels = self._labels(image, root, names, keypoints, problems)
        inside = below(image.location, root)
        key = normal_key(inside if inside is not None else image.location.partition("://")[2] or image.location)
        return Entry(key, file_uri(image.location), version, labels, image.split, problem=problem_text(problems))

    def _labels(
        self, image: _Image, root: str, names: dict[int, str], keypoints: int, problems: list[str]
    ) -> list[dict[str, Any]] | None:
        location = label_location(image.location)
        try:
            data = self.storage.read(location)
        except Missing:
            return [] if self._has_labels(location, image.location) else None
        except Unavailable as error:
            problems.append(str(error))
            return None
        shown = below(location, root) or location
        objects, wrong = parse_labels(data, shown, max(names, default=-1) + 1, keypoints)
        problems += wrong
        if not objects:
            return []
        try:
            size = stored_size(self.storage, image.location)
        except (Unavailable, LabelError) as error:
            problems.append(
                f"{counted(len(objects), 'label is', 'labels are')} left out, because its size is not known: {error}"
            )
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
                problems.append(f"{shown}:{item.line} {error}")
        return labels

    def _has_labels(self, label: str, image: str) -> bool:
        """Whether an image without label file lies in a place where others have theirs."""
        folder = parent(label)
        with self._lock:
            if folder not in self._folders:
                apart = folder != parent(image)
                self._folders[folder] = (
                    self.storage.is_folder(folder)
                    if apart
                    else any(name.endswith(".txt") for name in self.storage.names(folder))
                )
            return self._folders[folder]


def label_location(image: str) -> str:
    """Where an image's labels are: the last folder ``images`` in its path becomes ``labels``, the suffix ``.txt``."""
    before, folder, after = image.rpartition("/images/")
    place = f"{before}/labels/{after}" if folder else image
    return posixpath.splitext(place)[0] + ".txt"


def _names(document: dict[str, Any], where: str) -> dict[int, str]:
    """Class number → name, in order."""
    names = document.get("names")
    if names is None and isinstance(document.get("nc"), int):
        names = [str(number) for number in range(document["nc"])]
    if isinstance(names, list):
        names = dict(enumerate(names))
    try:
        found = {int(number): valid_text(str(name).strip()) for number, name in dict(names or ()).items()}
    except (ValueError, TypeError):
        raise SourceError(
            f"names in {where} must list the classes or map numbers to them but is {names!r:.80}"
        ) from None
    if not found or min(found) < 0 or not all(found.values()):
        raise SourceError(f"names in {where} must have at least one class and no empty name but is {names!r:.80}")
    return dict(sorted(found.items()))


def _keypoint_values(document: dict[str, Any]) -> int:
    shape = document.get("kpt_shape")
    if isinstance(shape, list) and len(shape) == 2 and all(isinstance(value, int) for value in shape):
        return int(shape[0] * shape[1])
    return 0
