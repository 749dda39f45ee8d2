"""Ultralytics' folders for classification (https://docs.ultralytics.com/datasets/classify/)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pipelines.exports.base import ExportImage, ExportSummary, Fetch, checked
from pipelines.exports.card import dataset_card
from pipelines.exports.class_folders import class_folders
from pipelines.exports.files import Output, file_name
from pipelines.exports.labels import Tally
from pipelines.exports.yolo_readable import Readable

NO_CLASS = "image has no class"


def write_classes(
    images: Iterator[ExportImage],
    classes: list[str],
    splits: list[str],
    fetch: Fetch,
    out: Output,
    provenance: dict[str, Any],
    mode: Literal["link", "copy"],
    made: list[str],
) -> ExportSummary:
    """Write each image into the folder of its class: ``train/car/00000042-crossing.jpg``.

    Loaders number the classes of each split by the names of its folders. So every split has a folder for every class,
    empty if need be, and ``train`` is always there: without it, Ultralytics would make one of other splits' images.

    Args:
        images: See `pipelines.exports.base.Exporter.write`; so are the others.
        classes: Of images; their order is lost, since loaders sort.
        splits: Any of train, val and test; without, everything is in train.
        fetch: Gives the bytes behind a uri.
        out: An empty place.
        provenance: JSON values.
        mode: See `pipelines.exports.files.Output.place`.
        made: Sentences for the card.
    """
    tally, readable = Tally(classes, splits), Readable()
    folders = class_folders(classes)
    with out:
        for image in checked(images, splits):
            if not image.image_class:
                tally.skipped[NO_CLASS] += 1
                continue
            class_id = tally.class_id(image, image.image_class)
            tally.annotations[tally.count_image(image.split)][class_id] += 1
            path = f"{image.split or 'train'}/{folders[image.image_class]}/{file_name(image)}"
            out.place(image, fetch, path, mode)
            readable.see(image)
    present = [split for split in splits if tally.images[split]]
    for split in dict.fromkeys(["train", *present]):
        for folder in folders.values():
            out.folder(f"{split}/{folder}")
    notes = readable.notes()
    if not {"val", "test"} & set(present):
        notes.append("There is no val split, and Ultralytics does not train without one: add `split:` under `export:`.")
    if splits and "train" not in present:
        notes.append("There is no train split: the folders of train are empty, and training stops with an error.")
    renamed = [name for name, folder in folders.items() if name != folder]
    if renamed:
        notes.append(f"{len(renamed)} classes have characters that no folder can have; these are percent-encoded.")
    title = "Dataset in YOLO format for classification"
    out.write("README.md", dataset_card(title, tally, made, notes, provenance, counted="images with a class"))
    return tally.summary(notes, ["."])
