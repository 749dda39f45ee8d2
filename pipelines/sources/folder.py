"""Images in a folder and the folders below it."""

from __future__ import annotations

from collections.abc import Iterator

from labelmill.pipelines.sources.base import Entry, Source, SourceError, valid_text
from labelmill.pipelines.sources.storage import Storage
from labelmill.pipelines.sources.uri import file_uri, is_http, is_remote, join
from labelmill.pipelines.sources.walk import image_suffixes, is_image_name, walk

OTHER_KINDS = {
    ".parquet": "parquet",
    ".tar": "webdataset",
    ".json": "coco",
    ".yaml": "yolo",
    ".yml": "yolo",
    ".arrow": "huggingface",
}
"""Suffix → the kind of source that reads such files."""


LABEL_SUFFIXES = (".txt", ".xml", ".json", ".yaml", ".yml", ".csv")
LOOKED_AT = 500
"""Files that may be labels, of which the names are compared with those of images."""


class FolderSource(Source):
    """Every file below a folder whose suffix says that it is an image. Hidden files and folders are left out.

    Args:
        root: The folder.
        storage: Reads it.
    """

    def __init__(self, root: str, storage: Storage) -> None:
        super().__init__()
        self.root = root
        self.storage = storage

    def __str__(self) -> str:
        return f"folder {self.root}"

    def _unique(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        return entries  # paths are; a set of a million keys would cost a hundred megabytes

    def _entries(self) -> Iterator[Entry]:
        if not is_http(self.root) and not self.storage.is_folder(self.root):
            if self.storage.is_file(self.root):
                raise SourceError(f"folder must be a folder but is a file: {self.root}{_hint([self.root])}")
            raise self.storage.missing(self.root, "the folder")
        respelt: dict[str, str] = {}
        aside: list[str] = []
        for found in walk(self.storage, self.root, self._report):
            if not is_image_name(found.name):
                self._ignore(found.name)
                if found.name.lower().endswith(LABEL_SUFFIXES) and len(aside) < LOOKED_AT:
                    aside.append(found.name)
                continue
            key = valid_text(found.name)
            problem = found.problem
            if key is not found.name:
                problem = problem or "the file's name is not valid UTF-8"
            if "\\" in key:  # only a name that was respelt can meet another
                other = respelt.setdefault(key, found.location)
                if other is not found.location:
                    names = valid_text(f"{other!r} and {found.location!r}")
                    raise SourceError(f"two files would have the same key {key!r}: {names}; rename one of them")
            yield Entry(key, file_uri(found.location), found.version, problem=problem)
        if aside and not is_remote(self.root) and (told := self._labels_aside(aside)) is not None:
            self.missing.append(told)

    def _labels_aside(self, aside: list[str]) -> str | None:
        """What to say of files that look like labels of these images, which this source does not read."""
        from labelmill.pipelines.sources.guess import guess_kind

        _, kind = guess_kind(self.root, self.storage)
        if kind != "folder":
            return (
                f"the labels in {self.root} are not read, as `folder` takes images alone: it looks like {kind}; use "
                f"source: {{{kind}: {self.root}}}"
            )
        stems: dict[str, set[str]] = {}
        beside = []
        for name in aside:
            folder, _, last = name.rpartition("/")
            for place in dict.fromkeys(
                (folder, folder.replace("labels", "images"), folder.replace("Labels", "Images"))
            ):
                if place not in stems:
                    there = self.storage.names(join(self.root, place) if place else self.root)
                    stems[place] = {each.rpartition(".")[0] for each in there if is_image_name(each)}
                if last.rpartition(".")[0] in stems[place]:
                    beside.append(name)
                    break
        if not beside:
            return None
        return (
            f"there are files with the names of images, such as {beside[0]}, that may be their labels; `folder` reads "
            "none. For YOLO add classes.txt (one name a line) and use source: {yolo: FOLDER}; for VOC, folders "
            "JPEGImages and Annotations and source: {voc: FOLDER}"
        )

    def _empty(self) -> str:
        suffixes = " ".join(sorted(image_suffixes()))
        where = "below" if is_remote(self.root) else "in or below"
        return (
            f"there are no images {where} {self.root}: looked for files ending in {suffixes}; "
            f"saw {self._seen()}{_hint(self.ignored)}"
        )


def _hint(names: object) -> str:
    for suffix, kind in OTHER_KINDS.items():
        if isinstance(names, (list, dict)) and any(name.endswith(suffix) for name in names):
            return f" (for {suffix} files use source: {{{kind}: …}})"
    return ""
