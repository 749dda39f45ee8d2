"""Pascal VOC (Everingham et al. 2010; http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/)."""

from __future__ import annotations

import math
import posixpath
from contextlib import ExitStack
from xml.etree import ElementTree

from labelmill.operators.wording import counted
from labelmill.pipelines.exports.base import Exporter, ExportParams
from labelmill.pipelines.exports.card import dataset_card, how_placed
from labelmill.pipelines.exports.dataset import Dataset, ExportImage, ExportSummary
from labelmill.pipelines.exports.files import Output, file_name
from labelmill.pipelines.exports.labels import Label, Tally

JPEG = frozenset({"JPEG", "MPO"})
"""Pillow's formats that a loader of JPEG files opens."""

UNDIVIDED = "trainval"
"""The image set of a dataset without splits, and that of train and val together."""


class Voc(Exporter):
    """Pascal VOC: ``Annotations/*.xml``, ``ImageSets/Main/{split}.txt`` and ``JPEGImages/``, as in VOC2012.

    Coordinates are the devkit's: whole pixels, the first one is 1, and the last one is inside the box. So ``xmin`` is
    the left edge plus 1 and ``xmax`` the right edge, both rounded, and a box of the whole image is 1, 1, width, height.
    Readers that take off 1 from all four (the devkit's Python offspring) lose a pixel's width; a VOC source of this
    project reads them as they are meant.

    An image set lists file names without extension, one a line. With train and val there is also ``trainval``; without
    splits, this one alone. Every image has an annotation file, with no ``object`` if it has none. ``source/image`` is
    the key of the original. JPEG files end in ``.jpg``, by which loaders such as torchvision's `VOCDetection` find
    them; files of other formats keep theirs, as their bytes stay what they are. Masks and scores have no place in the
    format's annotations and are left out.

    EXIF orientation: labels are upright and image bytes are the original ones, so a loader must apply it. OpenCV's
    `imread` does; torchvision's `VOCDetection` does not: add `PIL.ImageOps.exif_transpose`.
    """

    name = "voc"

    class Params(ExportParams):
        """Parameters of the Pascal VOC export: `images`, see `ExportParams`."""

    def write(self, dataset: Dataset, out: Output) -> ExportSummary:
        """Write the dataset; see `Exporter.write`."""
        tally = Tally(dataset.classes, dataset.splits, left_out=dataset.left_out)
        masks = others = 0
        names = _sets(dataset.splits)
        database = str(dataset.provenance.get("pipeline") or "labelmill")
        with out, ExitStack() as stack:
            lists = {name: stack.enter_context(out.open(f"ImageSets/Main/{name}.txt")) for name in names}
            for image in dataset.checked():
                labels = tally.read(image)
                stem, extension = posixpath.splitext(file_name(image))
                file = stem + (".jpg" if image.format in JPEG else extension)
                others += image.format not in JPEG
                masks += sum(label.mask is not None for label in labels)
                if self.params.images != "none":
                    out.place(image, dataset.fetch, f"JPEGImages/{file}", self.params.images)
                out.write(f"Annotations/{stem}.xml", _annotation(image, file, labels, dataset.classes, database))
                for name in names:
                    if name == (image.split or UNDIVIDED) or (name == UNDIVIDED and image.split in ("train", "val")):
                        lists[name].write(f"{stem}\n".encode("ascii"))
        # Datumaro and CVAT take the classes from here.
        lines = ["# label:color_rgb:parts:actions", "background:0,0,0::"]
        text = "".join(f"{line}\n" for line in [*lines, *(f"{name}:::" for name in dataset.classes)])
        out.write("labelmap.txt", text.encode("utf-8", "backslashreplace"))
        for folder in ("Annotations", *(["JPEGImages"] if self.params.images != "none" else [])):
            out.folder(folder)
        notes = tally.notes()
        if masks:
            number = counted(masks, "object has", "objects have")
            notes.append(f"{number} a mask, which Pascal VOC annotations have no place for.")
        if others:
            number = counted(others, "image is", "images are")
            notes.append(
                f"{number} not JPEG; loaders that look for JPEGImages/*.jpg, as torchvision does, miss such images."
            )
        out.write(
            "README.md", dataset_card("Dataset in Pascal VOC format", tally, self._made(), notes, dataset.provenance)
        )
        return tally.summary(notes, [f"ImageSets/Main/{name}.txt" for name in names])

    def _made(self) -> list[str]:
        none = "There are no image files here; `source/image` is the path below the source's root."
        return [
            how_placed(self.params.images, none),
            "Coordinates are whole pixels of the upright image, from 1, the last one inside: a loader must apply the "
            "EXIF orientation.",
            "The number at the start of a file's name is the image's id.",
        ]


def _sets(splits: list[str]) -> list[str]:
    """The image sets to write, in order."""
    if not splits:
        return [UNDIVIDED]
    whole = [UNDIVIDED] if {"train", "val"} <= set(splits) and UNDIVIDED not in splits else []
    return [*splits, *whole]


def _annotation(image: ExportImage, file: str, labels: list[Label], classes: list[str], database: str) -> bytes:
    root = ElementTree.Element("annotation")
    _add(root, "folder", "JPEGImages")
    _add(root, "filename", file)
    source = _add(root, "source")
    _add(source, "database", database)
    _add(source, "image", image.key)
    size = _add(root, "size")
    for tag, value in (("width", image.width), ("height", image.height), ("depth", 3)):
        _add(size, tag, value)
    _add(root, "segmented", 0)
    for label in labels:
        thing = _add(root, "object")
        for tag, text in (("name", classes[label.class_id]), ("pose", "Unspecified"), ("truncated", 0)):
            _add(thing, tag, text)
        _add(thing, "difficult", 0)
        box = _add(thing, "bndbox")
        (xmin, xmax), (ymin, ymax) = _span(label.box[0::2], image.width), _span(label.box[1::2], image.height)
        for tag, value in (("xmin", xmin), ("ymin", ymin), ("xmax", xmax), ("ymax", ymax)):
            _add(box, tag, value)
    ElementTree.indent(root)
    # ASCII with references: readers open the file in the encoding of their locale.
    return ElementTree.tostring(root, encoding="us-ascii", xml_declaration=False) + b"\n"


def _add(parent: ElementTree.Element, tag: str, text: object = None) -> ElementTree.Element:
    child = ElementTree.SubElement(parent, tag)
    if text is not None:
        # XML has no way to write most control characters, and turns a carriage return into another.
        child.text = "".join(c if _is_xml(c) else c.encode("unicode_escape").decode() for c in str(text))
    return child


def _is_xml(character: str) -> bool:
    code = ord(character)
    return (code >= 32 and not 0x7F <= code < 0xA0 and not 0xD800 <= code < 0xE000) and code not in (0xFFFE, 0xFFFF)


def _span(edges: tuple[float, ...], size: int) -> tuple[int, int]:
    """First and last pixel, from 1, of the span between two edges; never empty, never outside."""
    low, high = (math.floor(edge + 0.5) for edge in edges)
    first = min(low, size - 1)
    return first + 1, max(high, first + 1)
