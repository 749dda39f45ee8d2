"""CVAT for images 1.1 (https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/)."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO, Any

import numpy as np

from labelmill.operators.wording import counted
from labelmill.pipelines.exports.base import Exporter, ExportParams
from labelmill.pipelines.exports.card import dataset_card, how_placed
from labelmill.pipelines.exports.dataset import ALL, Dataset, ExportImage, ExportSummary, Fetch
from labelmill.pipelines.exports.files import Output
from labelmill.pipelines.exports.labels import Label, Tally
from labelmill.pipelines.exports.masks import Mask
from labelmill.pipelines.exports.texts import Text, read_texts
from labelmill.pipelines.exports.xml_text import attribute, content

ATTRIBUTES = ("score", "prompt", "models")
WORD = "word"


class Cvat(Exporter):
    """``annotations.xml``, ``labels.json`` and ``images/``; with splits a folder of these for each, a CVAT task each.

    An image's ``id`` is its place in the task and its ``name`` that of its file below ``images``; CVAT goes by the
    name. The name begins with the image's id, so the order of names is that of places.

    A box is ``xtl, ytl, xbr, ybr`` in pixels of the upright image, with two decimals. An object with a mask is a
    ``mask``, exact: run lengths row by row inside its bounding box, zeros first. Its box is the mask's. Score, prompt
    and models are attributes, as text. Words are polygons of the label ``word`` with their ``text``, classes of images
    are tags; CVAT has no place for captions, which are counted in a note.

    ``labels.json`` is what CVAT's label constructor takes under *Raw*: CVAT refuses annotations with a label or an
    attribute that the task does not have.
    """

    name = "cvat"
    images_alone = "always"

    class Params(ExportParams):
        """Parameters of the CVAT export."""

    def write(self, dataset: Dataset, out: Output) -> ExportSummary:
        """Write the dataset; see `Exporter.write`."""
        tally = Tally(dataset.classes, dataset.splits, left_out=dataset.left_out)
        word_label = free_name(WORD, dataset.classes)
        tags: set[str] = set()
        words = captions = 0
        with ExitStack() as stack:
            drafts: dict[str, IO[bytes]] = {
                split: stack.enter_context(tempfile.TemporaryFile()) for split in tally.splits
            }
            with out:
                for image in dataset.checked():
                    split = image.split or ALL
                    place = tally.images[split]
                    labels, texts = tally.read(image), read_texts(image, tally.skipped)
                    lines = [_lines(*object_shape(label, dataset.classes)) for label in labels]
                    lines += [_lines(*_word_shape(text, word_label)) for text in texts]
                    if image.image_class is not None:
                        tags.add(image.image_class)
                        lines.append(f'    <tag label={attribute(image.image_class)} source="auto" />')
                    words += len(texts)
                    captions += bool(image.caption)
                    name = self._place(image, dataset.fetch, out)
                    size = f'width="{image.width}" height="{image.height}"'
                    head = f'  <image id="{place}" name={attribute(name)} {size}>'
                    drafts[split].write("\n".join([head, *lines, "  </image>", ""]).encode())
            labels_json = _labels(dataset.classes, sorted(tags), word_label if words else None)
            paths = []
            for split, draft in drafts.items():
                folder = f"{split}/" if dataset.splits else ""
                task = f"{dataset.provenance.get('pipeline') or 'labelmill'}{f' {split}' if dataset.splits else ''}"
                with out.open(f"{folder}annotations.xml") as file:
                    file.write(_head(task, split if dataset.splits else None, tally.images[split], labels_json))
                    draft.seek(0)
                    shutil.copyfileobj(draft, file)
                    file.write(b"</annotations>\n")
                paths.append(f"{folder}annotations.xml")
        out.write("labels.json", (json.dumps(labels_json, indent=2) + "\n").encode("ascii"))
        notes = tally.notes()
        if captions:
            notes.append(f"{counted(captions, 'image has', 'images have')} a caption, for which CVAT has no place.")
        made = [
            how_placed(self.params.images, "There are no image files here; names are paths below the source's root."),
            "Coordinates are pixels of the upright image, as CVAT shows it.",
            "Set up: make a task with the content of `labels.json` under Raw and with the images, then upload "
            "`annotations.xml` as CVAT 1.1." + (" Each split is a task of its own." if dataset.splits else ""),
        ]
        out.write("README.md", dataset_card("Tasks for CVAT", tally, made, notes, dataset.provenance))
        return tally.summary(notes, [*paths, "labels.json"])

    def _place(self, image: ExportImage, fetch: Fetch, out: Output) -> str:
        return out.place_in(f"{image.split}/images" if image.split else "images", image, fetch, self.params.images)


Shape = tuple[str, list[tuple[str, str]]]
"""An element's name with its attributes as XML, and the CVAT attributes inside it."""


def object_shape(label: Label, classes: Sequence[str]) -> Shape:
    """A label as a ``box`` or a ``mask``."""
    source = "manual" if label.score is None and not label.models else "auto"
    common = f'label={attribute(classes[label.class_id])} source="{source}" occluded="0"'
    if label.mask is None:
        x1, y1, x2, y2 = (f"{value:.2f}" for value in label.box)
        shape = f'box {common} xtl="{x1}" ytl="{y1}" xbr="{x2}" ybr="{y2}" z_order="0"'
    else:
        rle, left, top, width, height = mask_fields(label.mask)
        shape = f'mask {common} rle="{rle}" left="{left}" top="{top}" width="{width}" height="{height}" z_order="0"'
    values = (
        None if label.score is None else f"{label.score:.4f}",
        label.prompt,
        ", ".join(label.models) or None,
    )
    return shape, [(name, value) for name, value in zip(ATTRIBUTES, values, strict=True) if value is not None]


def mask_fields(mask: Mask) -> tuple[str, int, int, int, int]:
    """CVAT's run lengths and the box they fill: counts joined by ", ", left, top, width, height in pixels."""
    crop, left, top = mask.crop()
    height, width = crop.shape
    flat = crop.reshape(-1)
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], ends, [flat.size]]))
    if flat[0]:
        runs = np.concatenate([[0], runs])
    return ", ".join(map(str, runs.tolist())), left, top, width, height


def free_name(wanted: str, classes: Sequence[str]) -> str:
    """A label's name that no class has: `wanted`, with underscores behind it if need be."""
    while wanted in classes:
        wanted += "_"
    return wanted


def _word_shape(word: Text, label: str) -> Shape:
    points = ";".join(f"{x:.2f},{y:.2f}" for x, y in word.corners)
    shape = f'polygon label={attribute(label)} source="auto" occluded="0" points="{points}" z_order="0"'
    score = [] if word.score is None else [("score", f"{word.score:.4f}")]
    return shape, [("text", word.text), *score]


def _lines(shape: str, inner: list[tuple[str, str]]) -> str:
    if not inner:
        return f"    <{shape} />"
    lines = [f'      <attribute name="{name}">{content(value)}</attribute>' for name, value in inner]
    return "\n".join([f"    <{shape}>", *lines, f"    </{shape.partition(' ')[0]}>"])


def _labels(classes: list[str], tags: list[str], word_label: str | None) -> list[dict[str, Any]]:
    """Labels with their attributes, as CVAT's constructor takes them."""

    def label(name: str, kind: str, attributes: Sequence[str]) -> dict[str, Any]:
        described = [
            {"name": each, "input_type": "text", "mutable": False, "values": [""], "default_value": ""}
            for each in attributes
        ]
        return {"name": name, "type": kind, "attributes": described}

    found = [label(name, "any", ATTRIBUTES) for name in classes]
    found += [label(name, "tag", ()) for name in tags if name not in classes and name != word_label]
    if word_label is not None:
        found.append(label(word_label, "any" if word_label in tags else "polygon", ("text", "score")))
    return found


def _head(task: str, subset: str | None, size: int, labels: list[dict[str, Any]]) -> bytes:
    lines = [
        '<?xml version="1.0" encoding="utf-8"?>',
        "<annotations>",
        "  <version>1.1</version>",
        "  <meta>",
        "    <task>",
    ]
    lines += [f"      <name>{content(task)}</name>", f"      <size>{size}</size>", "      <mode>annotation</mode>"]
    if subset is not None:
        lines.append(f"      <subset>{content(subset)}</subset>")
    lines.append("      <labels>")
    for label in labels:
        lines += ["        <label>", f"          <name>{content(label['name'])}</name>"]
        lines += [f"          <type>{label['type']}</type>", "          <attributes>"]
        for each in label["attributes"]:
            lines += ["            <attribute>", f"              <name>{each['name']}</name>"]
            lines += ["              <mutable>False</mutable>", "              <input_type>text</input_type>"]
            lines += ["              <default_value></default_value>", "              <values></values>"]
            lines.append("            </attribute>")
        lines += ["          </attributes>", "        </label>"]
    lines += ["      </labels>", "    </task>", "  </meta>", ""]
    return "\n".join(lines).encode()
