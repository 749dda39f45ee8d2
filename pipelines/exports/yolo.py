"""YOLO, as Ultralytics, Roboflow and supervision read it (https://docs.ultralytics.com/datasets/)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import field_validator

from pipelines.exports.base import Exporter, ExportError, ExportImage, ExportParams, ExportSummary, Fetch, checked
from pipelines.exports.card import dataset_card
from pipelines.exports.files import Output, file_name
from pipelines.exports.labels import Label, Tally
from pipelines.exports.masks import joined_polygon

SPLITS = ("train", "val", "test")

READABLE = frozenset({"JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "AVIF", "HEIF", "JPEG2000"})
"""Pillow's formats that Ultralytics has an extension for; it passes over other files."""

MIN_PIXELS = 10
"""Ultralytics leaves out images with a shorter side."""

UNITS = 1_000_000
"""Six decimals."""

PIXEL = 0.49
"""Added to a pixel's index in a polygon: its centre, short of the half. Ultralytics truncates what it reads and
supervision rounds; both get the pixel that was meant. Without it, six decimals of 1/3 come back as the pixel before."""


class Yolo(Exporter):
    """YOLO: ``images/{train,val,test}/``, ``labels/{train,val,test}/`` and ``data.yaml``.

    Every image has a label file, an empty one if it has no objects. A line is a class id and, for `detect`, the box's
    centre and size; for `segment`, a polygon. Numbers are shares of the upright image's width and height, with six
    decimals; no box reaches outside.

    ``data.yaml`` has no ``path``: Ultralytics then takes the folder of ``data.yaml`` for the root, wherever that is
    moved, whereas a relative ``path`` counts from the working directory and an absolute one breaks with the first move.
    It asks for ``train`` and ``val``. Where there is no val split, ``val`` is train, since training cannot start
    without one; figures measured on it say nothing about new images. Where there is no train split, ``train`` is null,
    and training stops with an error rather than learn from the images kept for evaluation. Without any splits
    everything is in train.

    A polygon is the mask's outline through the centres of its outermost pixels, as OpenCV's `fillPoly` draws it. There
    is one for each object. Holes and further parts are joined to it by bridges walked out and back, one pixel wide when
    drawn, unless they are smaller than their bridge; see `pipelines.exports.masks.joined_polygon`. It is simplified to
    an IoU of at least 0.99 with the mask; masks in pieces can come out below that. An object without a mask is the
    polygon of its box.

    EXIF orientation: labels are upright and image bytes are the original ones. Ultralytics and supervision read images
    upright, as OpenCV's `imread` does. A loader built on plain `PIL.Image.open` must add `PIL.ImageOps.exif_transpose`.

    Written by hand rather than with supervision, which holds the whole dataset in memory, writes one line for each part
    of an object, and five decimals.
    """

    name = "yolo"

    class Params(ExportParams):
        """Parameters of the YOLO export.

        Attributes:
            images: `link` or `copy`; see `ExportParams`. Never `none`, since loaders find labels by the images' paths.
            task: `detect` writes boxes, `segment` polygons.
        """

        task: Literal["detect", "segment"] = "detect"

        @field_validator("images")
        @classmethod
        def _with_images(cls, value: str) -> str:
            if value == "none":
                raise ValueError("must be link or copy but is none: YOLO loaders find labels by the images' paths")
            return value

    def write(
        self,
        images: Iterator[ExportImage],
        classes: list[str],
        splits: list[str],
        fetch: Fetch,
        out: Output,
        provenance: dict[str, Any],
    ) -> ExportSummary:
        """Write the dataset; see `Exporter.write`.

        Raises:
            ExportError: Also for a split that is not train, val or test.
        """
        for split in splits:
            if split not in SPLITS:
                raise ExportError(f"a split must be train, val or test in YOLO but is {split!r}")
        tally = Tally(classes, splits)
        unread: Counter[str] = Counter()
        with out:
            for image in checked(images, splits):
                folder = image.split or "train"
                name = file_name(image)
                lines = [self._line(image, label) for label in tally.read(image)]
                out.place(image, fetch, f"images/{folder}/{name}", self.params.images)
                label_file = f"labels/{folder}/{name.rpartition('.')[0]}.txt"
                out.write(label_file, "".join(f"{line}\n" for line in lines).encode("ascii"))
                if image.format not in READABLE:
                    unread[f"are {image.format}, which Ultralytics does not read"] += 1
                elif min(image.width, image.height) < MIN_PIXELS:
                    unread[f"have a side below {MIN_PIXELS} pixels, which Ultralytics leaves out"] += 1
        present = [split for split in SPLITS if tally.images.get(split)] if splits else ["train"]
        for split in present:
            out.folder(f"images/{split}")
            out.folder(f"labels/{split}")
        out.write("data.yaml", _data_yaml(classes, present))
        notes = [*tally.notes(), *(f"{count} images {what}." for what, count in sorted(unread.items()))]
        if "train" in present and "val" not in present:
            notes.append("There is no val split: `val` in data.yaml is train, and measures nothing about new images.")
        elif "train" not in present:
            notes.append("There is no train split: `train` in data.yaml is null.")
        out.write("README.md", dataset_card("Dataset in YOLO format", tally, self._made(), notes, provenance))
        return tally.summary(notes, ["data.yaml"])

    def _line(self, image: ExportImage, label: Label) -> str:
        if self.params.task == "detect":
            numbers = _box(label.box, image.width, image.height)
        elif label.mask is None:
            x1, y1, x2, y2 = label.box
            numbers = _shares([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], image.width, image.height)
        else:
            points = [(x + PIXEL, y + PIXEL) for x, y in joined_polygon(label.mask).tolist()]
            numbers = _shares(points, image.width, image.height)
        return " ".join([str(label.class_id), *(f"{number:.6f}" for number in numbers)])

    def _made(self) -> list[str]:
        files = {
            "link": "Image files are hard links to the originals where these are on the same disk, and else copies.",
            "copy": "Image files are copies of the originals.",
        }
        labels = {
            "detect": "Labels are boxes.",
            "segment": "Labels are polygons, one for each object: holes and further parts are joined by bridges.",
        }
        return [
            files[self.params.images] + " Their bytes are as they were.",
            labels[self.params.task] + " They fit the upright image: a loader must apply the EXIF orientation.",
            "The number at the start of a file's name is the image's id.",
        ]


def _box(box: tuple[float, float, float, float], width: int, height: int) -> list[float]:
    """Centre and size as shares, such that the box they give back does not reach outside the image."""
    spans = []
    for low, high, size in ((box[0], box[2], width), (box[1], box[3], height)):
        start, end = round(low / size * UNITS), round(high / size * UNITS)
        end -= (end - start) % 2  # An odd span would have a centre of seven decimals.
        spans.append(((start + end) // 2 / UNITS, (end - start) / UNITS))
    (x, w), (y, h) = spans
    return [x, y, w, h]


def _shares(points: list[tuple[float, float]], width: int, height: int) -> list[float]:
    return [value for x, y in points for value in (x / width, y / height)]


def _data_yaml(classes: list[str], present: list[str]) -> bytes:
    import yaml

    lines = ["# No `path`: paths count from the folder of this file, so it can be moved."]
    if "train" in present:
        lines.append("train: images/train")
    else:
        lines.append("train:  # there is no train split")
    if "val" in present:
        lines.append("val: images/val")
    elif "train" in present:
        lines.append("val: images/train  # there is no val split, and Ultralytics needs one: this measures nothing new")
    else:
        lines.append("val:  # there is no val split")
    if "test" in present:
        lines.append("test: images/test")
    names = yaml.safe_dump({"names": dict(enumerate(classes))}, sort_keys=False, width=10**9)
    return ("\n".join(lines) + "\n" + names).encode("ascii")
