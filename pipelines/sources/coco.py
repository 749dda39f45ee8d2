"""Images and labels of a COCO instances file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from pipelines.sources.base import (
    Entry,
    Refused,
    Sizes,
    Source,
    SourceError,
    in_order,
    normal_key,
    problem_text,
    valid_text,
)
from pipelines.sources.coco_file import CocoFile, Record, image_size_of, named, read_coco
from pipelines.sources.coco_labels import Taken, is_id, read_labels
from pipelines.sources.labels import LabelError, stored_size
from pipelines.sources.metadata import scalars
from pipelines.sources.storage import THREADS, Missing, Storage, Unavailable
from pipelines.sources.uri import below, file_uri, is_http, is_remote, join, parent, protocol, resolve
from pipelines.sources.walk import list_remote

SAMPLE = 20
"""Images looked for in each place where the folder of images may be."""


@dataclass(frozen=True)
class _Image:
    """One file and the records that name it (more than one is a fault of the annotation file)."""

    key: str
    location: str
    records: list[Record]


class CocoSource(Source):
    """The images that a COCO file lists, with its objects as labels.

    Boxes become ``xyxy`` and are clipped to the image; polygons and RLE become compressed RLE. A crowd is a label with
    `crowd`; where all of a file is crowds, as CVAT writes masks, they are objects. What cannot be used is refused.

    Args:
        annotations: The file.
        images: The folder that its file names are relative to; None to find it beside the file.
        storage: Reads both. A file on another machine cannot name files of this one.
        sizes: Width and height of the upright image by key, for labels whose images are not here; then no image is
            looked for.
    """

    def __init__(self, annotations: str, images: str | None, storage: Storage, sizes: Sizes | None = None) -> None:
        super().__init__()
        self.sizes = sizes
        self.annotations = annotations
        self.images = images
        self.storage = storage
        self._content: CocoFile | None = None
        self._classes: list[str] | None = None
        self._read_problems: list[str] = []
        self._read_refused: list[tuple[str, str]] = []

    def __str__(self) -> str:
        return f"coco {self.annotations}"

    @property
    def classes(self) -> list[str]:
        if self._classes is None:
            self._read()
        assert self._classes is not None
        return list(self._classes)

    def _read(self) -> CocoFile:
        if self._content is None:
            try:
                data = self.storage.read(self.annotations)
            except Missing as error:
                raise self.storage.missing(self.annotations, "the annotation file") from error
            except Unavailable as error:
                raise SourceError(str(error)) from error
            self._read_problems, self._read_refused = [], []
            self._content = read_coco(
                data,
                self.annotations,
                self._read_problems.append,
                lambda place, reason: self._read_refused.append((place, reason)),
            )
            self._classes = self._content.classes
        return self._content

    def _entries(self) -> Iterator[Entry]:
        content = self._read()
        for problem in self._read_problems:
            self._report(problem)
        for place, reason in self._read_refused:
            self._refuse(place, reason)
        root = parent(self.annotations) if self.sizes is not None else self._root(content)
        images = self._locate(content, root)
        versions: dict[str, str | None] | None = None
        if root is not None and is_remote(root) and not is_http(root):
            versions = {found.location: found.version for found in list_remote(self.storage, root)}
        sized = all(image_size_of(image.records[0]) for image in images)
        workers = THREADS if root is None or is_remote(root) else 1
        yield from in_order(lambda image: self._entry(image, content, root, versions), images, 1 if sized else workers)
        self._content = None  # a large file's content is worth gigabytes

    def _empty(self) -> str:
        return f"{self.annotations} lists no image that can be used" + "".join(
            f"; {text}" for text in self.problems[:3]
        )

    def _root(self, content: CocoFile) -> str | None:
        """The folder of images; None to take every image from its coco_url."""
        names = sorted({record["file_name"] for record in content.images if not protocol(record["file_name"])})
        if self.images is not None:
            if is_http(self.images) or not names:
                return self.images
            if not self.storage.is_folder(self.images):
                raise self.storage.missing(self.images, "the folder of images")
            if any(self._is_there(name, self.images) for name in (names[:SAMPLE] if is_remote(self.images) else names)):
                return self.images
            raise SourceError(f"none of the images of {self.annotations}, such as {names[0]}, is in {self.images}")
        beside = parent(self.annotations)
        linked = any(isinstance(record.get("coco_url"), str) for record in content.images)
        if not names or (is_http(beside) and not linked):
            return beside
        if is_http(beside):
            return None
        above = parent(beside)
        stem = self.annotations.rpartition("/")[2].rpartition(".")[0].rpartition("_")[2]  # instances_val2017 → val2017
        places = [beside, join(beside, "images"), join(above, "images"), join(above, stem), above]
        found = [sum(self._is_there(name, place) for name in names[:SAMPLE]) for place in places]
        if max(found):
            return places[found.index(max(found))]
        if linked:
            return None
        raise SourceError(
            f"the images of {self.annotations}, such as {names[0]}, must be beside it but are not in "
            f"{', '.join(places)}; say where they are with coco: {{annotations: …, images: FOLDER}}"
        )

    def _is_there(self, name: str, folder: str) -> bool:
        try:
            return self.storage.is_file(resolve(name, folder))
        except ValueError:
            return False

    def _locate(self, content: CocoFile, root: str | None) -> list[_Image]:
        """Bring the records of one file together."""
        images: dict[str, _Image] = {}
        for record in content.images:
            name = record["file_name"]
            reference = name
            if root is None and isinstance(record.get("coco_url"), str):
                reference = record["coco_url"]
            try:
                location = resolve(reference, root or parent(self.annotations))
            except ValueError as error:
                self._report(f"image id {record.get('id')!r} is left out: {error}")
                continue
            inside = below(location, root) if root and not is_http(root) else None
            if inside is None and is_remote(self.annotations) and not is_remote(location):
                self._report(f"image id {record.get('id')!r} is left out: {name!r} must lie in {root}")
                continue
            if inside is None:
                split = urlsplit(name) if protocol(name) else None
                inside = f"{split.netloc}/{unquote(split.path)}" if split else name
            image = images.setdefault(location, _Image(normal_key(inside), location, []))
            if record not in image.records:
                image.records.append(record)
        return list(images.values())

    def _entry(
        self, image: _Image, content: CocoFile, root: str | None, versions: dict[str, str | None] | None
    ) -> Entry:
        problems: list[str] = []
        version = self._version(image.location, root, versions, problems)
        size = next(filter(None, map(image_size_of, image.records)), None)
        if len(image.records) > 1:
            numbers_of = ", ".join(repr(record.get("id")) for record in image.records)
            problems.append(f"this file is listed more than once, under image ids {numbers_of}")
        annotations, lost = _annotations(image, content)
        if annotations and size is None and self.sizes is not None:
            size = self.sizes(image.key)
        if annotations and size is None:
            try:
                size = stored_size(self.storage, image.location)
            except (Unavailable, LabelError) as error:
                problems.append(f"the image's width and height are not known: {error}")
        taken = Taken() if annotations is None else read_labels(annotations, content, size)
        metadata: dict[str, Any] = {}
        for record in image.records:
            metadata = {**(scalars({k: v for k, v in record.items() if k != "file_name"}) or {}), **metadata}
        refused = (*lost, *taken.refused)
        return Entry(
            image.key,
            file_uri(image.location),
            version,
            None if annotations is None or (refused and not taken.labels) else taken.labels,
            metadata=metadata or None,
            problem=problem_text([*problems, *taken.notes, *map(str, refused)]),
            refused=refused,
        )

    def _version(
        self, location: str, root: str | None, versions: dict[str, str | None] | None, problems: list[str]
    ) -> str | None:
        if self.sizes is not None:
            return None
        if not is_remote(location):
            try:
                return self.storage.info(location).version
            except Unavailable as error:
                problems.append(str(error))
        elif versions is not None and root is not None and below(location, root) is not None:
            if location not in versions:
                problems.append(f"the file is gone: {location}")
            return versions.get(location)
        return None


def _annotations(image: _Image, content: CocoFile) -> tuple[list[Record] | None, list[Refused]]:
    """The annotations of an image, and those of which nobody knows whether they are its; None where there is nothing to
    know."""
    if content.annotations is None:
        return None, []
    found: list[Record] = []
    for number in dict.fromkeys(record.get("id") for record in image.records if is_id(record.get("id"))):
        mine = content.annotations.get(number, [])  # type: ignore[arg-type]
        if number in content.ambiguous:
            files = " and ".join(map(valid_text, content.ambiguous[number]))  # type: ignore[index]
            reason = f"belongs to image id {number!r}, which must be one file but is {files}"
            return None, [Refused(named(annotation), reason) for annotation in mine]
        found += mine
    return found, []
