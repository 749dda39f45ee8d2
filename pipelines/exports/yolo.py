"""YOLO, as Ultralytics, Roboflow and supervision read it (https://docs.ultralytics.com/datasets/)."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from labelmill.operators.wording import counted
from labelmill.pipelines.exports import yolo_lines
from labelmill.pipelines.exports.base import Exporter, ExportParams
from labelmill.pipelines.exports.card import dataset_card, how_placed
from labelmill.pipelines.exports.dataset import ALL, Dataset, ExportError, ExportImage, ExportSummary
from labelmill.pipelines.exports.files import Output, file_name
from labelmill.pipelines.exports.labels import Tally
from labelmill.pipelines.exports.texts import read_texts
from labelmill.pipelines.exports.yolo_classify import write_classes
from labelmill.pipelines.exports.yolo_readable import Readable

SPLITS = ("train", "val", "test")

WORD_CLASS = "text"
"""The class of words in the task `obb`."""


class Yolo(Exporter):
    """YOLO: ``images/{train,val,test}/``, ``labels/{train,val,test}/`` and ``data.yaml``.

    Every image has a label file, an empty one if it has no objects. A line is a class id and, for `detect`, the box's
    centre and size; for `segment`, a polygon; for `obb`, the four corners of a rectangle at any angle. Numbers are
    shares of the upright image's width and height, with six decimals; no box reaches outside.

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

    With `obb`, an object is the smallest rectangle around its mask (OpenCV's `minAreaRect`), or its box if it has none.
    Where words were read, each is one too, by the corners that `read` gave, of the class ``text``, which comes after
    the other classes unless it is one of them. Corners outside the image are moved to its edge.

    With `classify`, the layout is another: ``train/car/…``, a folder for each class of images; see
    `pipelines.exports.yolo_classify`.

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
            task: `detect` writes boxes, `segment` polygons, `obb` rotated rectangles, also of words, and `classify`
                the classes of whole images.
        """

        task: Literal["detect", "segment", "obb", "classify"] = "detect"

        @field_validator("images")
        @classmethod
        def _with_images(cls, value: str) -> str:
            if value == "none":
                raise ValueError("must be link or copy but is none: YOLO loaders find labels by the images' paths")
            return value

    def needs(self) -> tuple[str, ...]:
        return ("class",) if self.params.task == "classify" else ()

    def labelled(self, image: ExportImage) -> bool:
        return super().labelled(image) or (self.params.task == "obb" and image.words is not None)

    def write(self, dataset: Dataset, out: Output) -> ExportSummary:
        """Write the dataset; see `Exporter.write`.

        Raises:
            ExportError: Also for a split that is not train, val or test.
        """
        for split in dataset.splits:
            if split not in SPLITS:
                raise ExportError(f"a split must be train, val or test in YOLO but is {split!r}")
        if self.params.task == "classify":
            return write_classes(dataset, out, self.params.images, self._made())
        tally, readable = Tally(dataset.classes, dataset.splits, left_out=dataset.left_out), Readable()
        with out:
            for image in dataset.checked():
                folder = image.split or "train"
                name = file_name(image)
                lines = self._lines(image, tally)
                out.place(image, dataset.fetch, f"images/{folder}/{name}", self.params.images)
                label_file = f"labels/{folder}/{name.rpartition('.')[0]}.txt"
                out.write(label_file, "".join(f"{line}\n" for line in lines).encode("ascii"))
                readable.see(image)
        present = [split for split in SPLITS if tally.images.get(split)] if dataset.splits else ["train"]
        for split in present:
            out.folder(f"images/{split}")
            out.folder(f"labels/{split}")
        out.write("data.yaml", _data_yaml(tally.classes, present))
        notes = [*tally.notes(), *readable.notes()]
        if self.params.task == "segment" and tally.boxes_only:
            number = counted(tally.boxes_only, "object has", "objects have")
            notes.append(f"{number} no mask; the polygon is then the box.")
        if self.params.task == "obb" and tally.boxes_only:
            number = counted(tally.boxes_only, "object has", "objects have")
            notes.append(f"{number} no mask; the rectangle is then the box, which is upright.")
        if "train" in present and "val" not in present:
            notes.append("There is no val split: `val` in data.yaml is train, and measures nothing about new images.")
        elif "train" not in present:
            notes.append("There is no train split: `train` in data.yaml is null.")
        out.write("README.md", dataset_card("Dataset in YOLO format", tally, self._made(), notes, dataset.provenance))
        return tally.summary(notes, ["data.yaml"])

    def _lines(self, image: ExportImage, tally: Tally) -> list[str]:
        numbers = {"detect": yolo_lines.box, "segment": yolo_lines.polygon, "obb": yolo_lines.rectangle}
        numbers_of = numbers[self.params.task]
        lines = [yolo_lines.line(label.class_id, numbers_of(label, image)) for label in tally.read(image)]
        if self.params.task != "obb" or image.words is None:
            return lines
        class_id = tally.add_class(WORD_CLASS)
        for word in read_texts(image, tally.skipped):
            corners = yolo_lines.quad(word.corners, image)
            if corners:
                tally.annotations[image.split or ALL][class_id] += 1
                lines.append(yolo_lines.line(class_id, corners))
            else:
                tally.skipped[yolo_lines.THIN_WORD] += 1
        return lines

    def _made(self) -> list[str]:
        labels = {
            "detect": "Labels are boxes.",
            "segment": "Labels are polygons, one for each object: holes and further parts are joined by bridges.",
            "obb": "Labels are rectangles at any angle, each by its four corners.",
            "classify": "An image's class is the folder it is in.",
        }
        upright = " They fit the upright image: a loader must apply the EXIF orientation."
        return [
            how_placed(self.params.images),
            labels[self.params.task] + (upright if self.params.task != "classify" else ""),
            "The number at the start of a file's name is the image's id.",
        ]


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
