"""Images and labels of COCO instances files."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

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
    valid_text,
)
from labelmill.pipelines.sources.coco_file import CocoFile, Record, image_size_of, named, read_coco
from labelmill.pipelines.sources.coco_folder import coco_files, image_places, split_of
from labelmill.pipelines.sources.coco_labels import Taken, is_id, reach_of, read_labels
from labelmill.pipelines.sources.frames import Frame, frame_of, reading, shape_of
from labelmill.pipelines.sources.labels import LabelError
from labelmill.pipelines.sources.metadata import scalars
from labelmill.pipelines.sources.names import Names
from labelmill.pipelines.sources.storage import THREADS, Missing, Storage, Unavailable
from labelmill.pipelines.sources.uri import below, file_uri, is_http, is_remote, parent, protocol, resolve
from labelmill.pipelines.sources.walk import list_remote

SAMPLE = 20
"""Images looked for in each place where the folder of images may be."""

LOCAL_THREADS = 4


@dataclass
class _File:
    """One annotation file, read.

    Attributes:
        location: Where it is.
        content: What it says.
        root: The folder of its images; None to take every image from its coco_url.
        split: That its name or folder says, where several files or a folder were given.
        usual: How labels under the stored size of turned images are meant; see `pipelines.sources.frames.reading`.
    """

    location: str
    content: CocoFile
    root: str | None = None
    split: str | None = None
    usual: set[bool] = field(default_factory=set)


@dataclass
class _Image:
    """One file and the records that name it (more than one in one annotation file is a fault of it)."""

    key: str
    location: str
    records: list[tuple[_File, Record]] = field(default_factory=list)
    shape: Shape | None = None
    unknown: str = ""

    def of(self, file: _File) -> list[Record]:
        return [record for owner, record in self.records if owner is file]

    @property
    def files(self) -> list[_File]:
        found: list[_File] = []
        for file, _ in self.records:
            if not any(file is other for other in found):
                found.append(file)
        return found

    @property
    def said(self) -> tuple[int, int] | None:
        return next(filter(None, (image_size_of(record) for _, record in self.records)), None)


class CocoSource(Source):
    """The images that COCO files list, with their objects as labels.

    Boxes become ``xyxy`` and are clipped to the image; polygons and RLE become compressed RLE. A crowd is a label with
    `crowd`; where all of a file is crowds, as CVAT writes masks, they are objects. What cannot be used is refused.

    The width and height of a record are compared with the file's (over http they are believed, as a look at each image
    would cost a request). Where they are those of the stored pixels of a photo that its EXIF orientation turns, labels
    are turned with it, or taken as upright if that is the only way in which they fit.

    Args:
        annotations: A file, several, or a folder that has them; of a folder or several files, images are in the split
            that the name of their file says.
        images: The folder that file names are relative to; None to find it beside each file.
        storage: Reads both. A file on another machine cannot name files of this one.
        sizes: Width and height of the upright image by key, for labels whose images are not here; then no image is
            looked for.
        rescale: Whether labels of images that were evenly scaled since are scaled with them.
    """

    def __init__(
        self,
        annotations: str | Sequence[str],
        images: str | None,
        storage: Storage,
        sizes: Sizes | None = None,
        rescale: bool = False,
    ) -> None:
        super().__init__()
        self.annotations = [annotations] if isinstance(annotations, str) else list(annotations)
        self.images = images
        self.storage = storage
        self.sizes = sizes
        self.rescale = rescale
        self._files: list[_File] = []
        self._classes: list[str] | None = None
        self._categories: dict[str, dict[str, Any]] | None = None
        self._read_problems: list[str] = []
        self._read_refused: list[tuple[str, str]] = []

    def __str__(self) -> str:
        return f"coco {', '.join(self.annotations)}"

    @property
    def classes(self) -> list[str]:
        if self._classes is None:
            self._read()
        assert self._classes is not None
        return list(self._classes)

    @property
    def categories(self) -> dict[str, dict[str, Any]]:
        if self._categories is None:
            self._read()
        return dict(self._categories or {})

    def _read(self) -> list[_File]:
        if not self._files:
            self._read_problems, self._read_refused = [], []
            locations, several = self._locations()
            for location in locations:
                file = _File(location, self._read_file(location))
                file.split = split_of(location) if several else None
                self._files.append(file)
            self._categories = {name: more for file in self._files for name, more in file.content.categories.items()}
            self._classes = list(dict.fromkeys(name for file in self._files for name in file.content.classes))
        return self._files

    def _locations(self) -> tuple[list[str], bool]:
        """The annotation files, and whether their names say which split their images are in."""
        found: list[str] = []
        for location in self.annotations:
            if is_http(location) or not self.storage.is_folder(location):
                found.append(location)
                continue
            inside = coco_files(self.storage, location)
            if not inside:
                raise SourceError(
                    f"there is no COCO file in {location}: looked for annotations/*.json, */_annotations.coco.json and "
                    "*.json that have images and annotations"
                )
            found += inside
        found = list(dict.fromkeys(found))
        return found, found != self.annotations or len(found) > 1

    def _read_file(self, location: str) -> CocoFile:
        try:
            data = self.storage.read(location)
        except Missing as error:
            raise self.storage.missing(location, "the annotation file") from error
        except Unavailable as error:
            raise SourceError(str(error)) from error
        return read_coco(
            data,
            location,
            self._read_problems.append,
            lambda place, reason: self._read_refused.append((place, reason)),
        )

    def _entries(self) -> Iterator[Entry]:
        files = self._read()
        for problem in self._read_problems:
            self._report(problem)
        for place, reason in self._read_refused:
            self._refuse(place, reason)
        names = Names(self.storage)
        for file in files:
            file.root = parent(file.location) if self.sizes is not None else self._root(file, names)
        images = self._locate(files, names)
        remote = any(file.root is None or is_remote(file.root) for file in files)
        self._measure(images, THREADS if remote else LOCAL_THREADS)
        versions = self._versions(files)
        workers = THREADS if remote else 1
        yield from in_order(lambda image: self._entry(image, versions), images, workers)
        self._files = []  # a large file's content is worth gigabytes

    def _empty(self) -> str:
        return f"{', '.join(self.annotations)} lists no image that can be used" + "".join(
            f"; {text}" for text in self.problems[:3]
        )

    def _root(self, file: _File, names: Names) -> str | None:
        """The folder of images; None to take every image from its coco_url."""
        listed = sorted({record["file_name"] for record in file.content.images if not protocol(record["file_name"])})
        if self.images is not None:
            if is_http(self.images) or not listed:
                return self.images
            if not self.storage.is_folder(self.images):
                raise self.storage.missing(self.images, "the folder of images")
            looked = listed[:SAMPLE] if is_remote(self.images) else listed
            if any(names.find(name, self.images) for name in looked):
                return self.images
            raise SourceError(f"none of the images of {file.location}, such as {listed[0]}, is in {self.images}")
        beside = parent(file.location)
        linked = any(_link(record) for record in file.content.images)
        if not listed or (is_http(beside) and not linked):
            return beside
        if is_http(beside):
            return None
        places = image_places(file.location)
        found = [sum(bool(names.find(name, place)) for name in listed[:SAMPLE]) for place in places]
        if max(found):
            return places[found.index(max(found))]
        if linked:
            return None
        raise SourceError(
            f"the images of {file.location}, such as {listed[0]}, must be beside it but are not in "
            f"{', '.join(places)}; say where they are with coco: {{annotations: …, images: FOLDER}}"
        )

    def _locate(self, files: Sequence[_File], names: Names) -> list[_Image]:
        """Bring the records of one image together."""
        roots = [file.root for file in files if file.root is not None and not is_http(file.root)]
        common = _common(roots)
        images: dict[str, _Image] = {}
        for file in files:
            for record in file.content.images:
                self._locate_record(file, record, common, images, names)
        return list(images.values())

    def _locate_record(
        self, file: _File, record: Record, common: str | None, images: dict[str, _Image], names: Names
    ) -> None:
        root, name = file.root, record["file_name"]
        reference = (_link(record) or name) if root is None else name
        home = root or parent(file.location)
        try:
            location = resolve(reference, home)
        except ValueError as error:
            self._report(f"image id {record.get('id')!r} is left out: {error}")
            self._refuse_all(file, record, str(error))
            return
        if self.sizes is not None:
            location = resolve(reference.replace("\\", "/"), home)
        elif not is_http(location):
            location = names.find(reference, home) or location
        inside = below(location, common or root or "") if root and not is_http(root) else None
        if inside is None and is_remote(file.location) and not is_remote(location):
            self._report(f"image id {record.get('id')!r} is left out: {name!r} must lie in {root}")
            self._refuse_all(file, record, f"belongs to {name!r}, which must lie in {root}")
            return
        if inside is None:
            split = urlsplit(name) if protocol(name) else None
            inside = f"{split.netloc}/{unquote(split.path)}" if split else name.replace("\\", "/")
        image = images.setdefault(location, _Image(normal_key(inside), location))
        if record not in image.of(file):
            image.records.append((file, record))

    def _refuse_all(self, file: _File, record: Record, reason: str) -> None:
        number = record.get("id")
        for annotation in (file.content.annotations or {}).get(number, []) if is_id(number) else []:  # type: ignore[arg-type]
            self._refuse(named(annotation), reason)

    def _measure(self, images: Sequence[_Image], workers: int) -> None:
        """Read the sizes of the images that have labels, and see how those of turned ones are meant."""

        def measure(image: _Image) -> None:
            labelled = any(_mine(file, image.of(file)) for file in image.files)
            if not labelled or (self.sizes is None and is_http(image.location) and image.said is not None):
                return
            try:
                image.shape = shape_of(self.storage, image.location, image.key, self.sizes)
            except (Unavailable, LabelError) as error:
                image.unknown = str(error)

        for image, _ in zip(images, in_order(measure, images, workers), strict=True):
            if image.shape is None or image.shape.orientation < 5:
                continue
            for file in image.files:
                told = reading(image.said, image.shape, reach_of(_mine(file, image.of(file))))
                if told is not None:
                    file.usual.add(told)

    def _entry(self, image: _Image, versions: dict[str, dict[str, str | None]]) -> Entry:
        problems: list[str] = []
        version = self._version(image, versions, problems)
        splits = list(dict.fromkeys(file.split for file in image.files if file.split is not None))
        if len(splits) > 1:
            problems.append(f"this image is in {splits[0]} and also in {' and '.join(splits[1:])}")
        metadata: dict[str, Any] = {}
        taken, looked = Taken(), False
        for file in image.files:
            records = image.of(file)
            if len(records) > 1:
                numbers_of = ", ".join(repr(record.get("id")) for record in records)
                problems.append(f"this file is listed more than once, under image ids {numbers_of}")
            looked |= self._take(image, file, records, taken, problems)
            for record in records:
                metadata = {**(scalars({k: v for k, v in record.items() if k != "file_name"}) or {}), **metadata}
        return Entry(
            image.key,
            file_uri(image.location),
            version,
            taken.labels if looked and (taken.labels or not taken.refused) else None,
            splits[0] if splits else None,
            metadata or None,
            problem_text([*problems, *taken.notes, *map(str, taken.refused)]),
            tuple(taken.refused),
        )

    def _take(self, image: _Image, file: _File, records: list[Record], taken: Taken, problems: list[str]) -> bool:
        """Read what one file says of an image; whether it says anything."""
        annotations, lost = _annotations(records, file.content)
        taken.refused += lost
        if annotations is None:
            return bool(lost)
        frame: Frame | None = None
        if annotations and image.shape is not None:
            try:
                reach = reach_of(annotations)
                frame, note = frame_of(image.said, image.shape, reach, self.rescale, file.usual)
            except LabelError as error:
                taken.refused += [
                    Refused(named(annotation), f"is refused: its image's labels {error}") for annotation in annotations
                ]
                return True
            problems += [note] if note else []
        elif image.said is not None:
            frame = Frame(image.said, image.said)
        elif annotations:
            problems.append(f"the image's width and height are not known: {image.unknown}")
        mine = read_labels(annotations, file.content, frame)
        taken.labels += mine.labels
        taken.refused += mine.refused
        taken.notes += mine.notes
        return True

    def _versions(self, files: Sequence[_File]) -> dict[str, dict[str, str | None]]:
        """Versions of the images in object stores, by root and location: from listings, without a look at each."""
        roots = {file.root for file in files if file.root is not None} if self.sizes is None else set()
        return {
            root: {found.location: found.version for found in list_remote(self.storage, root)}
            for root in roots
            if is_remote(root) and not is_http(root)
        }

    def _version(self, image: _Image, versions: dict[str, dict[str, str | None]], problems: list[str]) -> str | None:
        location = image.location
        if self.sizes is not None:
            return None
        if not is_remote(location):
            return self.storage.version_here(location, problems)
        for root, listed in versions.items():
            if below(location, root) is not None:
                if location not in listed:
                    problems.append(f"the file is gone: {location}")
                return listed.get(location)
        return None


def _link(record: Record) -> str | None:
    """Where a record says that its image is in the web; an empty link is none."""
    link = record.get("coco_url")
    return link if isinstance(link, str) and protocol(link) else None


def _common(roots: Sequence[str]) -> str | None:
    """The folder that holds all of these; None where there is no one."""
    if not roots:
        return None
    if len(set(roots)) == 1:
        return roots[0]
    if any(is_remote(root) for root in roots):
        schemes = {root.partition("://")[0] for root in roots}
        if len(schemes) > 1:
            return None
        shared = posixpath.commonpath([root.partition("://")[2] for root in roots])
        return f"{schemes.pop()}://{shared}" if shared else None
    return os.path.commonpath(roots)


def _mine(file: _File, records: Sequence[Record]) -> list[Record]:
    return _annotations(records, file.content)[0] or []


def _annotations(records: Sequence[Record], content: CocoFile) -> tuple[list[Record] | None, list[Refused]]:
    """The annotations of an image, and those of which nobody knows whether they are its; None where there is nothing to
    know."""
    if content.annotations is None or any(record.get("label_state") == "unread" for record in records):
        return None, []
    found: list[Record] = []
    for number in dict.fromkeys(record.get("id") for record in records if is_id(record.get("id"))):
        mine = content.annotations.get(number, [])  # type: ignore[arg-type]
        if number in content.ambiguous:
            files = " and ".join(map(valid_text, content.ambiguous[number]))  # type: ignore[index]
            reason = f"belongs to image id {number!r}, which must be one file but is {files}"
            return None, [Refused(named(annotation), reason) for annotation in mine]
        found += mine
    return found, []
