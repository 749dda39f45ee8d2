"""The content of a COCO instances file, brought in order (https://cocodataset.org/#format-data)."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from labelmill.pipelines.sources.base import SourceError, valid_text
from labelmill.pipelines.sources.metadata import json_value

Record = dict[str, Any]
Id = int | float | str

OWN = "Exported by labelmill"
"""What ``info.description`` of a file of this project says."""

LONGEST_SIDE = 2**20
"""Larger images do not exist; a mask of them would not fit in memory."""


@dataclass
class CocoFile:
    """What a COCO file says.

    Attributes:
        classes: Category names in the file's order, each once.
        names: Category id → name.
        categories: Category name → what else its record says: supercategory, keypoints, skeleton.
        images: Image records that have a file name, in the file's order.
        annotations: Image id → its annotations in order of their ids; None when the file has none at all, so that
            nobody knows what is on the images.
        ambiguous: Image ids that stand for several files.
        all_crowds: Every annotation has ``iscrowd``, and several are of one class in one image, so that they are the
            instances that a crowd would hide: CVAT writes masks so.
    """

    classes: list[str] = field(default_factory=list)
    names: dict[Id, str] = field(default_factory=dict)
    categories: dict[str, Record] = field(default_factory=dict)
    images: list[Record] = field(default_factory=list)
    annotations: dict[Id, list[Record]] | None = None
    ambiguous: dict[Id, list[str]] = field(default_factory=dict)
    all_crowds: bool = False


Refuse = Callable[[str, str], None]


def read_coco(data: bytes, where: str, report: Callable[[str], None], refuse: Refuse) -> CocoFile:
    """Read a COCO file.

    Args:
        data: Its bytes.
        where: Its location, for messages.
        report: Told of everything that is wrong and concerns no image of the file.
        refuse: Told the place of each label that belongs to no image, and why.

    Raises:
        SourceError: It is not JSON, or not COCO.
    """
    document = _parse(data, where)
    if not isinstance(document, dict) or not isinstance(document.get("images"), list):
        found = "a list" if isinstance(document, list) else "no list of images"
        if isinstance(document, dict) and document:
            found += f"; its keys are {', '.join(list(document)[:10])}"
        raise SourceError(
            f"{where} must be a COCO instances file, an object with images, annotations and categories, but is {found}"
        )
    content = CocoFile()
    _read_categories(document, content, report)
    known = _read_images(document["images"], content, report)
    if "annotations" in document:
        content.annotations = _read_annotations(document["annotations"], known, where, report, refuse)
        records = [record for group in content.annotations.values() for record in group]
        if kind := _no_objects(records):
            report(f"{where} holds {len(records)} {kind} and no objects; they are not read, and its images stay unread")
            content.annotations = None
            return content
        content.all_crowds = bool(records) and all(record.get("iscrowd") for record in records) and not _own(document)
        if content.all_crowds:
            report(
                f"every one of the {len(records)} annotations of {where} is a crowd, as CVAT writes masks; they are "
                "taken for objects"
            )
    return content


def _no_objects(records: list[Record]) -> str | None:
    """What annotations are that are no objects, all of them."""
    kinds = {"segments_info": "panoptic segments", "caption": "captions"}
    for key, kind in kinds.items():
        if records and all(key in each and "bbox" not in each and "segmentation" not in each for each in records):
            return kind
    return None


def _own(document: Record) -> bool:
    """Whether an export of this project wrote it: what it calls a crowd is one."""
    info = document.get("info")
    return isinstance(info, dict) and info.get("description") == OWN


def image_size_of(record: Record) -> tuple[int, int] | None:
    """Width and height of an image record, where it says them."""
    size = record.get("width"), record.get("height")
    if all(isinstance(side, (int, float)) and 1 <= side <= LONGEST_SIDE and side == int(side) for side in size):
        return int(size[0]), int(size[1])  # type: ignore[arg-type]
    return None


def named(annotation: Record) -> str:
    """How messages call an annotation."""
    return f"annotation {annotation['id']!r}" if "id" in annotation else "an annotation without id"


def _parse(data: bytes, where: str) -> Any:
    import orjson

    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:  # stricter than what people write: NaN, a byte order mark, huge integers
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{where} must be JSON but is not: {error}") from error


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, float, str)) and not isinstance(value, bool)


def _objects(values: Any, what: str, report: Callable[[str], None]) -> list[Record]:
    if not isinstance(values, list):
        report(f"{what} must be a list but is {type(values).__name__}")
        return []
    found = [value for value in values if isinstance(value, dict)]
    if len(found) < len(values):
        report(f"{len(values) - len(found)} of the {what} must be objects but are not")
    return found


def _read_categories(document: Record, content: CocoFile, report: Callable[[str], None]) -> None:
    for category in _objects(document.get("categories", []), "categories", report):
        number, name = category.get("id"), valid_text(str(category.get("name") or "").strip())
        if not _is_id(number) or not name:
            report(f"a category must have an id and a name but is {str(category)[:100]}")
            continue
        other = content.names.setdefault(number, name)  # type: ignore[arg-type]
        if other != name:
            report(f"category id {number!r} must mean one class but means {other!r} and {name!r}; {other!r} is used")
            continue
        if name in content.classes:
            report(f"category {name!r} is listed more than once; its ids are taken for the same class")
        else:
            content.classes.append(name)
            more = {key: value for key, value in category.items() if key not in ("id", "name")}
            if more := {key: value for key, value in more.items() if value not in (None, "", [], {})}:
                content.categories[name] = json_value(more)


def _read_images(values: list[Any], content: CocoFile, report: Callable[[str], None]) -> set[Id]:
    """Fill in the images; returns the image ids that are listed with a file."""
    files: dict[Id, list[str]] = {}
    for record in _objects(values, "images", report):
        number, name = record.get("id"), record.get("file_name")
        if not name and isinstance(record.get("coco_url"), str):  # LVIS has no file_name
            name = record["coco_url"].rstrip("/").rpartition("/")[2]
            record = {**record, "file_name": name}
        if not isinstance(name, str) or not name:
            report(f"image id {number!r} has no file_name, so it is left out with its annotations")
            if _is_id(number):
                files.setdefault(number, [])  # type: ignore[arg-type]
            continue
        content.images.append(record)
        if _is_id(number):
            seen = files.setdefault(number, [])  # type: ignore[arg-type]
            if name not in seen:
                seen.append(name)
    content.ambiguous = {number: sorted(names) for number, names in files.items() if len(names) > 1}
    return {number for number, names in files.items() if names}


def _read_annotations(
    values: Any, known: set[Id], where: str, report: Callable[[str], None], refuse: Refuse
) -> dict[Id, list[Record]]:
    grouped: dict[Id, list[Record]] = defaultdict(list)
    if not isinstance(values, list):
        report(f"annotations must be a list but is {type(values).__name__}")
        values = []
    for place, value in enumerate(values, 1):
        if not isinstance(value, dict):
            refuse(f"annotation {place} in the list of {where}", f"must be an object but is {str(value)[:60]}")
    records = [value for value in values if isinstance(value, dict)]
    _report_repeated(records, report)
    for annotation in records:
        number = annotation.get("image_id")
        if not _is_id(number):
            refuse(named(annotation), f"must have an image_id but has {str(number)[:60]}")
        elif number not in known:
            refuse(named(annotation), f"in {where} has the image id {number!r}, which is not listed with a file")
        else:
            grouped[number].append(annotation)  # type: ignore[index]
    for group in grouped.values():
        group.sort(key=_order)
    return dict(grouped)


def _report_repeated(records: list[Record], report: Callable[[str], None]) -> None:
    """Name the annotation ids that stand more than once. All of them are read: an id is nothing but a name here."""
    counts = Counter(record["id"] for record in records if _is_id(record.get("id")))
    repeated = [(number, count) for number, count in counts.items() if count > 1]
    for number, count in repeated:
        report(f"annotation id {number!r} must mean one annotation but stands {count} times; all of them are used")


def _order(annotation: Record) -> tuple[int, float, str]:
    number = annotation.get("id")
    if isinstance(number, (int, float)):
        return 0, number, ""
    return (1, 0, number) if isinstance(number, str) else (2, 0, "")
