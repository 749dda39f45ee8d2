"""What describes a YOLO dataset: a ``data.yaml``, or a folder with ``classes.txt``."""

from __future__ import annotations

from typing import Any

from labelmill.pipelines.sources.base import SourceError, valid_text
from labelmill.pipelines.sources.storage import Missing, Storage, Unavailable
from labelmill.pipelines.sources.uri import base_name, join
from labelmill.pipelines.sources.walk import is_image_name

FOLDER = "folder of images and labels"
"""Key of a document that no file holds: `ALL` where its images are in no split, else True."""

ALL = "all"

LISTS_OF_CLASSES = ("classes.txt", "obj.names", "labels/classes.txt", "predefined_classes.txt", "_darknet.labels")
"""Files with one class name a line, as LabelImg, Label Studio, Darknet and Roboflow write them."""

SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


def read_document(storage: Storage, location: str) -> dict[str, Any]:
    """A ``data.yaml``. Its class names are text, whatever YAML makes of words such as ``yes``, ``null`` or ``007``.

    Raises:
        SourceError: It is not there, or something else.
    """
    import yaml

    if base_name(location).lower().endswith((".data", ".names", ".cfg")):
        raise SourceError(
            f"{location} is of YOLO 1.1 (Darknet), whose lists of images hold paths of the machine that trained; give "
            "the folder with the images, their .txt beside them and obj.names instead, or write a data.yaml: "
            "{train: FOLDER OF IMAGES, names: [FIRST CLASS, …]}"
        )
    try:
        text = storage.read(location)
        document, as_text = yaml.safe_load(text), yaml.load(text, Loader=yaml.BaseLoader)
    except Missing as error:
        raise storage.missing(location, "the file") from error
    except Unavailable as error:
        raise SourceError(str(error)) from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise SourceError(f"{location} must be YAML but is not: {error}") from error
    if not isinstance(document, dict):
        raise SourceError(f"{location} must be a mapping with train, val and names but is {document!r:.60}")
    if isinstance(as_text, dict) and document.get("names") is not None:
        document["names"] = as_text["names"]
    return document


def find_document(storage: Storage, folder: str) -> tuple[str, dict[str, Any] | None]:
    """The ``data.yaml`` of a folder; or the folder itself and what such a file would say of it.

    Raises:
        SourceError: There is neither a data.yaml nor a list of classes.
    """
    names = storage.names(folder)
    yamls = [name for name in names if name.lower().endswith((".yaml", ".yml"))]
    for name in sorted(yamls, key=lambda each: (each not in ("data.yaml", "dataset.yaml", "data.yml"), each)):
        location = join(folder, name)
        try:
            document = read_document(storage, location)
        except SourceError:
            continue
        if "names" in document or "nc" in document:
            return location, None
    classes = _listed_classes(storage, folder)
    if classes is None:
        raise SourceError(
            f"{folder} must have a data.yaml, or the names of the classes in one of {', '.join(LISTS_OF_CLASSES)}"
        )
    for place in ("images", "Images", ""):
        home = join(folder, place) if place else folder
        inside = set(storage.names(home)) if not place or storage.is_folder(home) else set()
        found = {
            split: f"{place}/{name}" if place else name
            for split, spelt in SPLIT_FOLDERS.items()
            for name in spelt
            if name in inside and storage.is_folder(join(home, name))
        }
        if found:
            return folder, {FOLDER: True, "names": classes, **found}
        if place and inside:
            return folder, {FOLDER: ALL, "names": classes, "train": place}
    return folder, {FOLDER: ALL, "names": classes, "train": "."}


def is_yolo_folder(storage: Storage, folder: str) -> bool:
    """Whether `find_document` finds what describes a dataset, and there are label files."""
    try:
        return find_document(storage, folder)[1] is None or _has_label_files(storage, folder)
    except SourceError:
        return False


def _has_label_files(storage: Storage, folder: str) -> bool:
    from labelmill.pipelines.sources.walk import walk

    stems: dict[bool, set[str]] = {True: set(), False: set()}
    for number, found in enumerate(walk(storage, folder, lambda _: None)):
        is_image = is_image_name(found.name)
        if is_image or found.name.lower().endswith(".txt"):
            stem = found.name.rpartition("/")[2].rpartition(".")[0]
            stems[is_image].add(stem)
            if stem in stems[not is_image]:
                return True
        if number > 200_000:
            break
    return False


def _listed_classes(storage: Storage, folder: str) -> list[str] | None:
    for name in LISTS_OF_CLASSES:
        location = join(folder, name)
        if storage.is_file(location):
            lines = storage.read(location).decode("utf-8-sig", "replace").splitlines()
            return [line.strip() for line in lines if line.strip()]
    return None


def class_names(document: dict[str, Any], where: str) -> dict[int, str]:
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


def keypoint_values(document: dict[str, Any]) -> int:
    shape = document.get("kpt_shape")
    if isinstance(shape, list) and len(shape) == 2 and all(isinstance(value, int) for value in shape):
        return int(shape[0] * shape[1])
    return 0
