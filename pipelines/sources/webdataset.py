"""Images in tar files, as WebDataset writes them (https://github.com/webdataset/webdataset)."""

from __future__ import annotations

import json
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from labelmill.operators.wording import counted
from labelmill.pipelines.sources.base import (
    Entry,
    Refused,
    Shape,
    Source,
    SourceError,
    in_order,
    normal_key,
    problem_text,
    valid_text,
)
from labelmill.pipelines.sources.labels import LabelError, bytes_shape
from labelmill.pipelines.sources.metadata import bounded_text, json_value, said_size
from labelmill.pipelines.sources.object_rows import read_objects
from labelmill.pipelines.sources.patterns import Container, locate
from labelmill.pipelines.sources.storage import FileInfo, Storage, Unavailable
from labelmill.pipelines.sources.uri import is_http, is_remote, join, member_uri, parent
from labelmill.pipelines.sources.walk import is_hidden, is_image_name

MAX_SIDECAR = 64 * 1024
"""Bytes of a .json, .txt or .cls beside an image that are carried as metadata."""
MAX_LABELS = 16 * 1024 * 1024
"""Bytes of a .json whose objects are read."""
SIDECARS = ("json", "txt", "cls")
TARS_AT_ONCE = 8
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    offset: int
    size: int
    problem: str | None = None


@dataclass
class _Index:
    """What a tar holds: images, and by the name that they share with an image, sidecars."""

    container: Container
    version: str | None = None
    images: list[_Member] = field(default_factory=list)
    sidecars: dict[str, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))
    labels: dict[str, dict[str, Any]] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    ignored: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    broken: bool = False


class WebDatasetSource(Source):
    """Every image in tar files. Nothing is extracted: an image is a range of bytes of its tar.

    Keys are ``shard.tar/member.jpg``. What lies before the first dot of a member's name is its sample; the sample's
    .json, .txt and .cls become metadata of each of its images; ``objects`` with ``bbox`` in a .json become labels.

    Args:
        patterns: Each a file, a folder, a glob pattern or a brace pattern such as ``shard-{000..009}.tar``.
        storage: Reads the files.
        rescale: Whether labels of images that were evenly scaled since are scaled with them.
    """

    def __init__(self, patterns: Sequence[str], storage: Storage, rescale: bool = False) -> None:
        super().__init__()
        self.rescale = rescale
        self.patterns = list(patterns)
        self.storage = storage

    def __str__(self) -> str:
        return f"webdataset {', '.join(self.patterns)}"

    def _entries(self) -> Iterator[Entry]:
        containers = locate(self.patterns, ".tar", self.storage, self._report, braces=True)
        workers = TARS_AT_ONCE if any(is_remote(container.location) for container in containers) else 1
        broken = []
        for index in in_order(self._index, containers, workers):
            for problem in index.problems:
                self._report(problem)
            for name in index.ignored:
                self._ignore(name)
            if index.broken:
                broken.append(index.problems[-1])
            yield from _entries_of(index, self._measure, self.rescale)
        if len(broken) == len(containers):
            raise SourceError(
                broken[0] + (f"; nor can {counted(len(broken) - 1, 'other file')}" if len(broken) > 1 else "")
            )

    def _empty(self) -> str:
        return f"there are no images in the tar files of {', '.join(self.patterns)}; saw {self._seen()}" + "".join(
            f"; {problem}" for problem in self.problems[:3]
        )

    def _measure(self, location: str, member: _Member) -> Shape | None:
        """The size of an image in a local tar; elsewhere its labels are believed, as a look would cost a request."""
        if is_remote(location):
            return None
        try:
            return bytes_shape(self.storage.read(location, member.offset, member.size))
        except (LabelError, Unavailable):
            return None

    @property
    def classes(self) -> list[str] | None:
        """Those of ``classes.txt`` beside the tars, as the export `webdataset` writes it."""
        for pattern in self.patterns:
            folder = pattern if not is_http(pattern) and self.storage.is_folder(pattern) else parent(pattern)
            if not is_http(folder) and self.storage.is_file(join(folder, "classes.txt")):
                lines = self.storage.read(join(folder, "classes.txt")).decode("utf-8", "replace").splitlines()
                return [line for line in lines if line] or None
        return None

    def _index(self, container: Container) -> _Index:
        location = container.location
        try:
            info = self.storage.info(location)
            return self.storage.use(location, lambda file: _read_tar(file, info, container))
        except (Unavailable, tarfile.TarError) as error:
            problem = f"{location} cannot be read as a tar: {error}"
            return _Index(container, problems=[problem], broken=True)


def _entries_of(index: _Index, measure: Callable[[str, _Member], Shape | None], rescale: bool) -> Iterator[Entry]:
    several = Counter(_sample(member.name)[0] for member in index.images)
    for member in index.images:
        sample = _sample(member.name)[0]
        faults = [member.problem] if member.problem else []
        told = index.labels.get(sample)
        labels: list[dict[str, Any]] | None = None
        refused: list[Refused] = []
        if told is not None and several[sample] > 1:
            reason = f"is not used: {several[sample]} images have this sample's name"
            refused = [Refused(f"{sample!r} object {at}", reason) for at in range(1, len(told["objects"] or ()) + 1)]
        elif told is not None:
            shape = measure(index.container.location, member) if told["objects"] else None
            labels, refused, notes = read_objects(told["objects"], None, shape, said_size(told), rescale)
            faults += notes
        version = None if index.version is None else f"{index.version}#offset={member.offset}&length={member.size}"
        yield Entry(
            normal_key(f"{index.container.name}/{member.name}"),
            member_uri(index.container.location, offset=member.offset, length=member.size),
            version,
            labels,
            told.get("split") if told is not None and isinstance(told.get("split"), str) else None,
            dict(index.sidecars[sample]) if sample in index.sidecars else None,
            problem_text([*faults, *index.faults.get(sample, []), *map(str, refused)]),
            tuple(refused),
        )


def _read_tar(file: BinaryIO, info: FileInfo, container: Container) -> _Index:
    """Index a tar as far as it can be read.

    Raises:
        tarfile.TarError: Nothing of it can be.
    """
    index, where = _Index(container, info.version), container.location
    magic = file.read(2)
    if magic in COMPRESSED:
        kind = COMPRESSED[magic]
        raise tarfile.ReadError(f"it is compressed with {kind}; decompress it, because images are read from its middle")
    file.seek(0)
    damage = (tarfile.TarError,) if is_remote(where) else (tarfile.TarError, ValueError, OSError)
    with tarfile.open(fileobj=file, mode="r:", errors="surrogateescape") as archive:
        try:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep every member
                cut = info.size is not None and member.offset_data + member.size > info.size
                _take(archive, member, cut, index)
                if cut:
                    index.problems.append(f"{where} is cut short in {valid_text(member.name)!r}")
                    return index
            end = archive.offset
        except damage as error:
            index.problems.append(f"{where} is damaged after byte {archive.offset}; the rest was not read: {error}")
            return index
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)  # tarfile takes a damaged header for the end
    if len(block) < tarfile.BLOCKSIZE:
        index.problems.append(f"{where} has no end marker, so it seems to be cut short after byte {end}")
    elif block.strip(b"\0"):
        index.problems.append(f"{where} is damaged at byte {end}; the rest was not read")
    return index


def _take(archive: tarfile.TarFile, member: tarfile.TarInfo, cut: bool, index: _Index) -> None:
    name = member.name
    if member.isdir() or is_hidden("/".join(part for part in name.split("/") if part not in (".", ".."))):
        return
    if not member.isreg():
        what = "a link, and links are" if member.islnk() or member.issym() else "no file, and such members are"
        index.problems.append(f"{valid_text(name)!r} in {index.container.location} is {what} not read")
        return
    sample, extension = _sample(name)
    if is_image_name(name):
        problem = "this member is cut short" if cut else None
        if member.sparse is not None:  # type: ignore[attr-defined]
            problem = "this member is stored with holes, so it cannot be read from the tar"
        index.images.append(_Member(name, member.offset_data, member.size, problem))
    elif extension.rpartition(".")[2] in SIDECARS and not cut:
        _read_sidecar(archive, member, sample, extension, index)
    else:
        index.ignored.append(name)


def _read_sidecar(
    archive: tarfile.TarFile, member: tarfile.TarInfo, sample: str, extension: str, index: _Index
) -> None:
    shown = valid_text(member.name)
    kind = extension.rpartition(".")[2]
    if member.size > (MAX_LABELS if kind == "json" else MAX_SIDECAR):
        index.faults[sample].append(f"{shown!r} is left out: it has {member.size} bytes, {MAX_SIDECAR} are carried")
        if kind == "json":
            index.labels.pop(sample, None)
        return
    handle = archive.extractfile(member)
    assert handle is not None
    data = handle.read()
    try:
        text = data.decode("utf-8-sig")
        if kind == "json":
            value = json_value(json.loads(text))
            if isinstance(value, dict) and _are_objects(value):
                index.labels[sample] = {"objects": value.pop("objects", None), **value}
            if len(data) > MAX_SIDECAR and len(json.dumps(value)) > MAX_SIDECAR:
                raise ValueError(f"it has {member.size} bytes, {MAX_SIDECAR} are carried")
        elif kind == "cls" and text.strip().isdecimal():
            value = int(text)
        else:
            value = bounded_text(text)
    except (ValueError, RecursionError) as error:
        index.faults[sample].append(f"{shown!r} is left out: {error}")
        return
    index.sidecars[sample][valid_text(extension)] = value


def _are_objects(value: dict[str, Any]) -> bool:
    """Whether a sample's JSON has objects that `read_objects` reads; null says that nobody looked."""
    if "objects" not in value:
        return False
    found = value["objects"]
    return found is None or (
        isinstance(found, list) and all(isinstance(item, dict) and "bbox" in item for item in found)
    )


def _sample(name: str) -> tuple[str, str]:
    """The name that a sample's members share, and the rest after its first dot in lower case."""
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()
