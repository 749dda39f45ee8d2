"""Label Studio tasks with predictions (https://labelstud.io/guide/predictions, https://labelstud.io/guide/task_format)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any
from urllib.parse import quote

from labelmill.operators.wording import counted
from labelmill.pipelines.exports.base import Exporter, ExportParams
from labelmill.pipelines.exports.card import dataset_card
from labelmill.pipelines.exports.dataset import ALL, Dataset, ExportImage, ExportSummary, Fetch
from labelmill.pipelines.exports.files import Output, file_name
from labelmill.pipelines.exports.labels import Label, Tally
from labelmill.pipelines.exports.outlines import outlines
from labelmill.pipelines.exports.streams import JsonList
from labelmill.pipelines.exports.texts import Text, read_texts
from labelmill.pipelines.exports.xml_text import attribute
from labelmill.pipelines.sources.uri import is_remote, parse

DIGITS = 4
"""Decimals of a percentage: a hundredth of a pixel in an image 10,000 pixels wide."""

LOCAL_FILES = "/data/local-files/?d="
"""Where Label Studio serves files below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT."""

OBJECT_TYPES = ("rectanglelabels", "polygonlabels")


class LabelStudio(Exporter):
    """``tasks_{split}.json`` to import, ``config.xml`` for the project's labelling interface, and ``images/{split}/``.

    Without splits the file is ``tasks.json``. A task's ``data`` has ``image``, ``image_id``, ``key`` and, with splits,
    ``split``; its one prediction has the labels, so they show as pre-annotations. Numbers are percent of the upright
    image's width and height, as Label Studio shows it.

    A box is a region ``rectanglelabels``. An object with a mask is polygons (``polygonlabels``), because Label Studio's
    brush is a bitmap that cannot be moved by its points: one polygon for each part, those after the first with the
    first as ``parentID``; a hole is cut in by a seam. They are drawn with an IoU of at least 0.99 with the mask. A
    region's id is ``object-{position}``, of further parts ``object-{position}-{part}``. Its ``score`` is the
    detector's, its ``meta`` shows prompt and models. A prediction's ``score`` is that of its least certain label. Words
    are polygons with a transcription, a caption is a text area, the class of the image a choice.

    ``image`` is a path for Label Studio's local file serving with this folder as document root. With ``images: none``
    it is the original's URL where that is one, and else the key, for a server whose document root is the source's.
    """

    name = "label_studio"
    images_alone = "always"

    class Params(ExportParams):
        """Parameters of the Label Studio export."""

    def write(self, dataset: Dataset, out: Output) -> ExportSummary:
        """Write the dataset; see `Exporter.write`."""
        tally = Tally(dataset.classes, dataset.splits, left_out=dataset.left_out)
        model_version = _model_version(dataset.provenance)
        choices: set[str] = set()
        inside = words = captions = 0
        paths = {split: f"tasks_{split}.json" if dataset.splits else "tasks.json" for split in tally.splits}
        with ExitStack() as stack:
            files = {split: JsonList(stack.enter_context(out.open(path))) for split, path in paths.items()}
            with out:
                for image in dataset.checked():
                    labels, texts = tally.read(image), read_texts(image, tally.skipped)
                    inside += self.params.images == "none" and bool(parse(image.uri)[1])
                    words += len(texts)
                    captions += bool(image.caption)
                    if image.image_class is not None:
                        choices.add(image.image_class)
                    results = [region for label in labels for region in regions(image, label, dataset.classes)]
                    results += [region for text in texts for region in _word(image, text)]
                    results += _of_image(image)
                    if image.label_state == "unread" and not results:  # a task, and no opinion about it
                        files[image.split or ALL].add({"data": self.data(image, dataset.fetch, out), "predictions": []})
                        continue
                    prediction: dict[str, Any] = {"model_version": model_version, "result": results}
                    scores = [label.score for label in labels if label.score is not None]
                    if scores:
                        prediction["score"] = round(min(scores), 4)
                    files[image.split or ALL].add(
                        {"data": self.data(image, dataset.fetch, out), "predictions": [prediction]}
                    )
            for file in files.values():
                file.close()
        out.write(
            "config.xml", labelling_config(dataset.classes, sorted(choices), bool(words), bool(captions)).encode()
        )
        notes = tally.notes()
        if inside:
            number = counted(inside, "image lies", "images lie")
            notes.append(f"{number} inside archives, which Label Studio cannot open: use images: copy.")
        made = [
            self._files(),
            "Numbers are percent of the upright image, as Label Studio shows it. Image bytes are as they were.",
            "Objects with a mask are polygons, one for each part, holes cut in by a seam; the IoU with the mask is at "
            "least 0.99. Export to COCO for the exact masks.",
            "Set up: make a project with `config.xml` as its labelling interface and import the tasks.",
        ]
        out.write("README.md", dataset_card("Tasks for Label Studio", tally, made, notes, dataset.provenance))
        return tally.summary(notes, [*paths.values(), "config.xml"])

    def data(self, image: ExportImage, fetch: Fetch, out: Output) -> dict[str, Any]:
        """The ``data`` of a task; puts the image in its place."""
        data: dict[str, Any] = {"image": self._place(image, fetch, out), "image_id": image.image_id, "key": image.key}
        if image.split is not None:
            data["split"] = image.split
        return data

    def _place(self, image: ExportImage, fetch: Fetch, out: Output) -> str:
        if self.params.images == "none":
            location, fields = parse(image.uri)
            return location if is_remote(location) and not fields else LOCAL_FILES + quote(image.key)
        path = f"images/{image.split}/{file_name(image)}" if image.split else f"images/{file_name(image)}"
        out.place(image, fetch, path, self.params.images)
        return LOCAL_FILES + quote(path)

    def _files(self) -> str:
        if self.params.images == "none":
            return (
                "There are no image files here: tasks name the original's URL, or its path below the source's root for "
                "a Label Studio with LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT set to that root."
            )
        return (
            "Start Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
            "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT set to this folder, and add the folder `images` as a source "
            "storage of local files, without syncing it."
        )


def regions(image: ExportImage, label: Label, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The regions of one object: a rectangle, or one polygon for each part of its mask."""
    name, first = classes[label.class_id], f"object-{label.position}"
    more: dict[str, Any] = {}
    if label.score is not None:
        more["score"] = round(label.score, 4)
    told = ([f"prompt: {label.prompt}"] if label.prompt is not None else []) + [
        f"model: {each}" for each in label.models
    ]
    if told:
        more["meta"] = {"text": told}
    if label.mask is None:
        x1, y1, x2, y2 = label.box
        (left, top), (right, bottom) = _percent(image, x1, y1), _percent(image, x2, y2)
        box = {"x": left, "y": top, "width": round(right - left, DIGITS), "height": round(bottom - top, DIGITS)}
        value = {**box, "rotation": 0, "rectanglelabels": [name]}
        return [{**_region(image, first, "box", "rectanglelabels", value), **more}]
    found = []
    for part, polygon in enumerate(outlines(label.mask), 1):
        value = {"points": [list(_percent(image, x, y)) for x, y in polygon], "closed": True, "polygonlabels": [name]}
        of_part = {} if part == 1 else {"parentID": first}
        region_id = first if part == 1 else f"{first}-{part}"
        found.append({**_region(image, region_id, "polygon", "polygonlabels", value), **more, **of_part})
    return found


def _word(image: ExportImage, word: Text) -> list[dict[str, Any]]:
    name = f"word-{word.position}"
    points = [list(_percent(image, x, y)) for x, y in word.corners]
    value = {"points": points, "closed": True, "polygonlabels": ["text"]}
    more = {} if word.score is None else {"score": round(word.score, 4)}
    written = _region(image, name, "transcription", "textarea", {"points": points, "text": [word.text]})
    return [{**_region(image, name, "word", "polygonlabels", value), **more}, {**written, **more}]


def _of_image(image: ExportImage) -> list[dict[str, Any]]:
    found = []
    if image.caption:
        found.append(
            {"id": "caption", "from_name": "caption", "to_name": "image", "type": "textarea"}
            | {"value": {"text": [image.caption]}}
        )
    if image.image_class is not None:
        found.append(
            {"id": "class", "from_name": "class", "to_name": "image", "type": "choices"}
            | {"value": {"choices": [image.image_class]}}
        )
    return found


def _region(image: ExportImage, region_id: str, control: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": region_id,
        "from_name": control,
        "to_name": "image",
        "type": kind,
        "original_width": image.width,
        "original_height": image.height,
        "image_rotation": 0,
        "value": value,
    }


def _percent(image: ExportImage, x: float, y: float) -> tuple[float, float]:
    return round(x / image.width * 100, DIGITS), round(y / image.height * 100, DIGITS)


def _model_version(provenance: dict[str, Any]) -> str:
    models = dict.fromkeys(str(model["reference"]) for model in provenance.get("models") or [])
    return ", ".join(models) or "labelmill"


def labelling_config(classes: Sequence[str], choices: Sequence[str], words: bool, captions: bool) -> str:
    """The project's labelling interface (https://labelstud.io/tags): the controls that regions name."""
    lines = ["<View>", '  <Image name="image" value="$image" zoom="true" zoomControl="true"/>']
    for control, tag in (("box", "RectangleLabels"), ("polygon", "PolygonLabels")) if classes else ():
        lines.append(f'  <{tag} name="{control}" toName="image">')
        lines += [f"    <Label value={attribute(name)}/>" for name in classes]
        lines.append(f"  </{tag}>")
    if words:
        lines += ['  <PolygonLabels name="word" toName="image">', '    <Label value="text"/>', "  </PolygonLabels>"]
        lines.append('  <TextArea name="transcription" toName="image" editable="true" perRegion="true"/>')
    if captions:
        lines.append('  <TextArea name="caption" toName="image" editable="true"/>')
    if choices:
        lines.append('  <Choices name="class" toName="image" choice="single">')
        lines += [f"    <Choice value={attribute(name)}/>" for name in choices]
        lines.append("  </Choices>")
    return "\n".join([*lines, "</View>"]) + "\n"
