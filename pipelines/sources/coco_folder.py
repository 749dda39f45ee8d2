"""Where COCO files and their images are, in the layouts that tools write."""

from __future__ import annotations

import re

from labelmill.pipelines.sources.storage import Storage, Unavailable
from labelmill.pipelines.sources.uri import base_name, is_remote, join, parent

SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""What splits are called → train, val or test."""

OTHERS = ("captions", "panoptic", "stuff", "image_info", "person_keypoints")
"""Beginnings of files that COCO puts beside its instances, the objects of which they name again, or none."""


def coco_files(storage: Storage, folder: str) -> list[str]:
    """The COCO files of a folder, sorted: those of ``annotations/``, Roboflow's ``_annotations.coco.json``, or its own.

    Where there are ``instances*.json``, these alone.
    """
    names = {place: storage.names(place) for place in (folder, join(folder, "annotations"))}
    inside = [join(join(folder, "annotations"), name) for name in names[join(folder, "annotations")]]
    inside = [each for each in inside if each.lower().endswith(".json")]
    if instances := [each for each in inside if base_name(each).lower().startswith("instances")]:
        return sorted(instances)
    roboflow = [join(folder, name) for name in names[folder] if name.endswith("_annotations.coco.json")]
    for name in names[folder]:
        if "." not in name:  # folders of splits
            below = join(join(folder, name), "_annotations.coco.json")
            roboflow += [below] if storage.is_file(below) else []
    if roboflow:
        return sorted(roboflow)
    own = [each for each in inside if not base_name(each).lower().startswith(OTHERS)] or inside
    own += [join(folder, name) for name in names[folder] if name.lower().endswith(".json")]
    return sorted(each for each in own if looks_like_coco(storage, each))


def looks_like_coco(storage: Storage, location: str) -> bool:
    """Whether a JSON file has a list of images and annotations or categories."""
    try:
        data = storage.read(location)
    except Unavailable:
        return False
    has_images = re.search(rb'"images"\s*:\s*\[', data) is not None
    return has_images and re.search(rb'"(annotations|categories)"\s*:\s*\[', data) is not None


def split_of(location: str) -> str | None:
    """The split that an annotation file's name says (``instances_val2017.json``), or else its folder (Roboflow)."""
    stem = base_name(location).rpartition(".")[0].lower()
    word = re.split(r"[_.-]", stem)[-1].rstrip("0123456789")
    return SPLITS.get(word) or SPLITS.get(base_name(parent(location)).lower())


def image_places(location: str) -> list[str]:
    """The folders where the images of an annotation file may be, the likeliest first."""
    beside = parent(location)
    above = parent(beside)
    stem = base_name(location).rpartition(".")[0].rpartition("_")[2]  # instances_val2017 → val2017
    places = [
        beside,
        join(beside, "images"),
        join(above, "images"),
        join(above, stem),
        above,
        join(join(above, "images"), stem),
        join(join(beside, "images"), stem),
        join(beside, stem),
        join(beside, "data"),
        join(join(above, "images"), "default"),
    ]
    if not is_remote(location) and (word := SPLITS.get(stem.lower().rstrip("0123456789"))):
        places += [join(above, word), join(join(above, "images"), word)]
    return list(dict.fromkeys(places))
