"""What a path is, from its name and what lies in it: the kind of source that reads it with its labels."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import TYPE_CHECKING

from labelmill.pipelines.sources.storage import Storage, Unavailable
from labelmill.pipelines.sources.uri import is_http, is_remote, join

if TYPE_CHECKING:
    from labelmill.pipelines.sources.kinds import Kind

SNIFF = 4096


def guess_kind(where: str, storage: Storage | None = None) -> tuple[str, Kind]:
    """The path as a source wants it, and that source's kind; ``folder`` where there are no labels that a source reads.

    A remote path is told by its suffix alone.
    """
    storage = storage or Storage()
    suffix = PurePath(where).suffix.lower()
    is_folder = not is_remote(where) and not is_http(where) and storage.is_folder(where)
    if not is_folder:
        return where, _of_file(where, suffix, storage)
    if storage.is_file(join(where, "data.yaml")):
        return join(where, "data.yaml"), "yolo"
    if not is_remote(where):
        for test, kind in _TESTS:
            if test(where, storage):
                return where, kind
    return where, "folder"


def _of_file(where: str, suffix: str, storage: Storage) -> Kind:
    by_suffix: dict[str, Kind] = {
        ".yaml": "yolo", ".yml": "yolo", ".data": "yolo", ".parquet": "parquet", ".tar": "webdataset", ".xml": "cvat",
    }  # fmt: skip
    if suffix == ".json":
        return "label_studio" if not is_remote(where) and _begins_with_list(where, storage) else "coco"
    return by_suffix.get(suffix, "folder")


def _begins_with_list(where: str, storage: Storage) -> bool:
    try:
        return storage.read(where, 0, SNIFF).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    except Unavailable:
        return False


def _is_yolo(where: str, storage: Storage) -> bool:
    from labelmill.pipelines.sources.yolo_data import is_yolo_folder

    return is_yolo_folder(storage, where)


def _is_voc(where: str, storage: Storage) -> bool:
    return all(storage.is_folder(join(where, name)) for name in ("Annotations", "JPEGImages"))


def _is_saved(where: str, storage: Storage) -> bool:
    return any(storage.is_file(join(where, name)) for name in ("dataset_info.json", "dataset_dict.json"))


def _is_cvat(where: str, storage: Storage) -> bool:
    folders = [where, *(join(where, name) for name in storage.names(where) if "." not in name)]
    found = next((file for each in folders if storage.is_file(file := join(each, "annotations.xml"))), None)
    return found is not None and b"<annotations" in storage.read(found, 0, SNIFF)


def _is_label_studio(where: str, storage: Storage) -> bool:
    from labelmill.pipelines.sources.label_studio import TASKS

    found = [join(where, name) for name in storage.names(where) if TASKS.fullmatch(name)]
    return bool(found) and _begins_with_list(found[0], storage)


def _is_coco(where: str, storage: Storage) -> bool:
    from labelmill.pipelines.sources.coco_folder import coco_files, looks_like_coco

    return any(looks_like_coco(storage, file) for file in coco_files(storage, where))


def _has(suffix: str, where: str, storage: Storage) -> bool:
    places = [where, join(where, "data")]
    return any(re.search(rf"\.{suffix}$", name.lower()) for place in places for name in storage.names(place))


_TESTS: tuple[tuple, ...] = (  # type: ignore[type-arg]
    (_is_saved, "huggingface"),
    (_is_voc, "voc"),
    (_is_cvat, "cvat"),
    (_is_label_studio, "label_studio"),
    (_is_coco, "coco"),
    (lambda where, storage: _has("tar", where, storage), "webdataset"),
    (lambda where, storage: _has("parquet", where, storage), "parquet"),
    (_is_yolo, "yolo"),
)
"""Tests of a folder and what it then is, the surest first."""
