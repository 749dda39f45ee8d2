"""Ultralytics' folders for classification (https://docs.ultralytics.com/datasets/classify/)."""

from __future__ import annotations

from typing import Literal

from labelmill.operators.wording import counted
from labelmill.pipelines.exports.card import dataset_card
from labelmill.pipelines.exports.class_folders import class_folders
from labelmill.pipelines.exports.dataset import Dataset, ExportSummary
from labelmill.pipelines.exports.files import Output, file_name
from labelmill.pipelines.exports.labels import Tally
from labelmill.pipelines.exports.yolo_readable import Readable

NO_CLASS = "image has no class"


def write_classes(dataset: Dataset, out: Output, mode: Literal["link", "copy"], made: list[str]) -> ExportSummary:
    """Write each image into the folder of its class: ``train/car/00000042-crossing.jpg``.

    Loaders number the classes of each split by the names of its folders. So every split has a folder for every class,
    empty if need be, and ``train`` is always there: without it, Ultralytics would make one of other splits' images.

    Args:
        dataset: Its classes are those of images; their order is lost, since loaders sort. Its splits are any of train,
            val and test; without, everything is in train.
        out: An empty place.
        mode: See `pipelines.exports.files.Output.place`.
        made: Sentences for the card.
    """
    tally, readable = Tally(dataset.classes, dataset.splits, left_out=dataset.left_out), Readable()
    folders = class_folders(dataset.classes)
    with out:
        for image in dataset.checked():
            if not image.image_class:
                tally.skipped[NO_CLASS] += 1
                continue
            class_id = tally.class_id(image, image.image_class)
            tally.annotations[tally.count_image(image.split)][class_id] += 1
            path = f"{image.split or 'train'}/{folders[image.image_class]}/{file_name(image)}"
            out.place(image, dataset.fetch, path, mode)
            readable.see(image)
    present = [split for split in dataset.splits if tally.images[split]]
    for split in dict.fromkeys(["train", *present]):
        for folder in folders.values():
            out.folder(f"{split}/{folder}")
    notes = readable.notes()
    if not {"val", "test"} & set(present):
        notes.append("There is no val split, and Ultralytics does not train without one: add `split:` under `export:`.")
    if dataset.splits and "train" not in present:
        notes.append("There is no train split: the folders of train are empty, and training stops with an error.")
    renamed = [name for name, folder in folders.items() if name != folder]
    if renamed:
        number = counted(len(renamed), "class has", "classes have")
        notes.append(f"{number} characters that no folder can have; they are percent-encoded.")
    title = "Dataset in YOLO format for classification"
    out.write("README.md", dataset_card(title, tally, made, notes, dataset.provenance, counted="images with a class"))
    return tally.summary(notes, ["."])
