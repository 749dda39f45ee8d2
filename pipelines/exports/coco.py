"""COCO instances and captions (Lin et al. 2014; Chen et al. 2015; https://cocodataset.org/#format-data)."""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import ExitStack
from typing import IO, Any, Literal

from labelmill.operators.wording import counted
from labelmill.pipelines.exports.base import Exporter, ExportParams
from labelmill.pipelines.exports.card import dataset_card, how_placed
from labelmill.pipelines.exports.dataset import ALL, Dataset, ExportImage, ExportSummary, Fetch
from labelmill.pipelines.exports.files import Output
from labelmill.pipelines.exports.labels import IDS_PER_IMAGE, Label, Tally, object_id
from labelmill.pipelines.exports.masks import outline
from labelmill.pipelines.sources.coco_file import OWN


class Coco(Exporter):
    """COCO instances: ``annotations/instances_{split}.json`` and ``images/{split}/``.

    Without splits these are ``annotations/instances.json`` and ``images/``. ``file_name`` is relative to the folder of
    images. Category ids count from 1 in class order, image ids are those of the run, and every image has an entry,
    whether it has objects or not. The key of the original is in the entry's ``key``.

    A box is ``[x, y, width, height]`` in pixels of the upright image, clipped to it, with two decimals. A mask is
    compressed RLE with ``iscrowd: 0``, whatever its shape, and ``area`` is its number of pixels; an object without one
    has the empty ``segmentation`` and the box's area. A region to ignore has ``iscrowd: 1``. What else a COCO source
    said of an object (another ``area``, keypoints, attributes) is given back as it was.

    Its ``attributes`` also hold the ``prompt`` that found it and the ``models`` that made it, where these are known; a
    COCO source reads them back. The licences of the models are in ``info.provenance.models``; ``licenses`` is the list
    of the images' licences, as in COCO itself.

    With `captions`, ``annotations/captions_{split}.json`` holds the images that have a caption, each with one
    annotation, whose id is the image's.

    EXIF orientation: labels are upright and image bytes are the original ones, so a loader must apply it. OpenCV's
    `imread` does (MMDetection, Ultralytics, supervision), and so do Detectron2 and Hugging Face `datasets`.
    torchvision's `CocoDetection` and plain `PIL.Image.open` do not: add `PIL.ImageOps.exif_transpose`.

    Written by hand rather than with supervision, which holds the whole dataset in memory, writes masks of several parts
    or with holes as ``iscrowd: 1``, so that evaluation ignores them, and refuses two images of one name.
    """

    name = "coco"
    version = 3
    images_alone = "where nobody looked at any"

    class Params(ExportParams):
        """Parameters of the COCO export.

        Attributes:
            masks: `rle` for every mask, exact; `polygon` for those of one part without holes, simplified to an IoU of
                at least 0.99 as pycocotools draws them, and RLE for the others.
            scores: Whether annotations carry the detector's ``score``.
            captions: Whether captions are written too.
        """

        masks: Literal["rle", "polygon"] = "rle"
        scores: bool = False
        captions: bool = False

    def needs(self) -> tuple[str, ...]:
        return ("caption",) if self.params.captions else ()

    def write(self, dataset: Dataset, out: Output) -> ExportSummary:
        """Write the dataset; see `Exporter.write`.

        Raises:
            ExportError: Also for an image with more than 99,999 objects.
        """
        tally = Tally(dataset.classes, dataset.splits, ("crowd", "extra"), left_out=dataset.left_out)
        with ExitStack() as stack:
            drafts = {
                (kind, split): _Draft(
                    stack.enter_context(tempfile.TemporaryFile()), stack.enter_context(tempfile.TemporaryFile())
                )
                for kind in ("instances", *(["captions"] if self.params.captions else []))
                for split in tally.splits
            }
            uncaptioned = 0
            with out:
                for image in dataset.checked():
                    labels = tally.read(image)
                    entry: dict[str, Any] = {
                        "id": image.image_id,
                        "file_name": self._place(image, dataset.fetch, out),
                        "width": image.width,
                        "height": image.height,
                        "key": image.key,
                    }
                    if image.label_state == "unread":
                        entry["label_state"] = image.label_state
                    draft = drafts["instances", image.split or ALL]
                    draft.add_image(entry)
                    for label in labels:
                        draft.add_annotation(self._annotation(image, label))
                    if self.params.captions and image.caption:
                        draft = drafts["captions", image.split or ALL]
                        draft.add_image(entry)
                        draft.add_annotation(
                            {"id": image.image_id, "image_id": image.image_id, "caption": image.caption}
                        )
                    uncaptioned += not image.caption
            paths = []
            for (kind, split), draft in drafts.items():
                path = f"annotations/{kind}_{split}.json" if dataset.splits else f"annotations/{kind}.json"
                with out.open(path, "wb") as file:
                    draft.finish(file, _head(dataset, kind == "instances"))
                paths.append(path)
        notes = tally.notes()
        if self.params.captions and uncaptioned:
            number = counted(uncaptioned, "image has no caption and is", "images have no caption and are")
            notes.append(f"{number} not in the files of captions.")
        with_mask = sum(map(sum, tally.annotations.values())) - tally.boxes_only
        if with_mask and tally.boxes_only:
            number = counted(tally.boxes_only, "object has", "objects have")
            notes.append(
                f"{number} no mask and an empty segmentation: evaluate boxes, or leave these "
                "objects out before evaluating masks, because COCOeval stops at an empty one."
            )
        out.write("README.md", dataset_card("Dataset in COCO format", tally, self._made(), notes, dataset.provenance))
        return tally.summary(notes, paths)

    def _place(self, image: ExportImage, fetch: Fetch, out: Output) -> str:
        return out.place_in(f"images/{image.split}" if image.split else "images", image, fetch, self.params.images)

    def _annotation(self, image: ExportImage, label: Label) -> dict[str, Any]:
        x1, y1, x2, y2 = (round(value, 2) for value in label.box)
        width, height = round(x2 - x1, 2), round(y2 - y1, 2)
        annotation: dict[str, Any] = {
            "id": object_id(image, label),
            "image_id": image.image_id,
            "category_id": label.class_id + 1,
            "bbox": [x1, y1, width, height],
            "area": round(width * height, 4) if label.mask is None else label.mask.area,
            "segmentation": self._segmentation(label),
            "iscrowd": int(label.crowd),
        }
        if self.params.scores and label.score is not None:
            annotation["score"] = round(label.score, 4)
        attributes: dict[str, Any] = {} if label.prompt is None else {"prompt": label.prompt}
        if label.models:
            attributes["models"] = list(label.models)
        if attributes or isinstance(label.extra.get("attributes"), dict):
            annotation["attributes"] = {**(label.extra.get("attributes") or {}), **attributes}
        return {**label.extra, **annotation, **({"area": label.extra["area"]} if "area" in label.extra else {})}

    def _segmentation(self, label: Label) -> Any:
        if label.mask is None:
            return []
        polygon = outline(label.mask) if self.params.masks == "polygon" else None
        if polygon is not None:
            return [polygon]
        return {"size": [label.mask.height, label.mask.width], "counts": label.mask.counts}

    def _made(self) -> list[str]:
        none = "There are no image files here; `file_name` is the path below the source's root."
        return [
            how_placed(self.params.images, none),
            "Coordinates are pixels of the upright image: a loader must apply the EXIF orientation.",
            f"The id of an annotation is {IDS_PER_IMAGE} times the image's id plus its place in the image.",
        ]


def _head(dataset: Dataset, categories: bool) -> dict[str, Any]:
    """What stands before the long lists."""
    licences = dataset.provenance.get("licences", [])
    head: dict[str, Any] = {
        "info": {"description": OWN, "provenance": dataset.provenance},
        "licenses": [{"id": index, "name": str(name), "url": ""} for index, name in enumerate(licences, 1)],
    }
    if categories:
        head["categories"] = [
            {"supercategory": "object", **dataset.categories.get(name, {}), "id": index, "name": name}
            for index, name in enumerate(dataset.classes, 1)
        ]
    return head


class _Draft:
    """The two long lists of one annotation file, on disk until it is written."""

    def __init__(self, images: IO[bytes], annotations: IO[bytes]) -> None:
        self._images = images
        self._annotations = annotations

    def add_image(self, entry: dict[str, Any]) -> None:
        _append(self._images, entry)

    def add_annotation(self, entry: dict[str, Any]) -> None:
        _append(self._annotations, entry)

    def finish(self, file: IO[bytes], head: dict[str, Any]) -> None:
        """Write the whole document: one entry a line, keys of `head` first."""
        file.write(_json(head)[:-1])
        for name, entries in (("images", self._images), ("annotations", self._annotations)):
            file.write(f',\n"{name}": ['.encode())
            entries.seek(0)
            shutil.copyfileobj(entries, file)
            file.write(b"]")
        file.write(b"}\n")


def _append(file: IO[bytes], entry: dict[str, Any]) -> None:
    file.write((b",\n" if file.tell() else b"\n") + _json(entry))


def _json(value: Any) -> bytes:
    # ASCII only: pycocotools opens the file in the encoding of the reader's locale.
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":")).encode("ascii")
