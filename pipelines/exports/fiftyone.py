"""A FiftyOne dataset on disk, type FiftyOneDataset (https://docs.voxel51.com/user_guide/import_datasets.html)."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from labelmill.pipelines.exports.base import Exporter, ExportParams
from labelmill.pipelines.exports.card import dataset_card, how_placed
from labelmill.pipelines.exports.dataset import Dataset, ExportImage, ExportSummary, Fetch
from labelmill.pipelines.exports.files import Output, file_name
from labelmill.pipelines.exports.labels import Label, Tally, object_id
from labelmill.pipelines.exports.streams import JsonList, json_bytes
from labelmill.pipelines.exports.texts import Text, read_texts

VERSION = "1.0.0"
"""The release whose layout this is; later ones migrate it on import, earlier ones refuse it."""

DIGITS = 6
"""Decimals of a word's corner, as a share of the image's width or height."""

NUDGE = 1e-6
"""Pixels by which a mask's box is moved: FiftyOne rounds a product such as 0.41 · 100 down, which else can be 40."""

_FIELDS = "fiftyone.core.fields."
_LABELS = "fiftyone.core.labels."


class FiftyOne(Exporter):
    """``metadata.json``, ``samples.json`` and ``data/``, which `FiftyOneDataset` imports.

    A sample has ``image_id``, ``key`` and its split as a tag; ``detections`` with the labels; and where they are known
    ``words`` (polylines of four corners with ``text``), ``caption`` and ``classification``. A bounding box is x, y,
    width, height as shares of the upright image. The mask of an instance is the part inside its box, so the box of an
    object with a mask is the mask's, in whole pixels. ``confidence`` is the detector's score; prompt and models are
    attributes of a detection. Ids of samples and labels are made of those of the COCO export.

    With ``images: none`` a file's path is its key: give the source's root as ``rel_dir`` when importing.

    EXIF orientation: the App shows images upright, and shares are of the upright image.
    """

    name = "fiftyone"
    images_alone = "always"

    class Params(ExportParams):
        """Parameters of the FiftyOne export."""

    def write(self, dataset: Dataset, out: Output) -> ExportSummary:
        """Write the dataset; see `Exporter.write`."""
        tally = Tally(dataset.classes, dataset.splits, left_out=dataset.left_out)
        seen: set[str] = set()
        with out.open("samples.json") as file:
            samples = JsonList(file, b'{"samples": [', b"]}\n")
            with out:
                for image in dataset.checked():
                    sample = self._sample(image, self._place(image, dataset.fetch, out))
                    labels, words = tally.read(image), read_texts(image, tally.skipped)
                    detections = [_detection(image, label, dataset.classes) for label in labels]
                    sample["detections"] = {"_cls": "Detections", "detections": detections}
                    if image.words is not None:
                        lines = [_polyline(image, word) for word in words]
                        sample["words"] = {"_cls": "Polylines", "polylines": lines}
                    if image.caption is not None:
                        sample["caption"] = image.caption
                    if image.image_class is not None:
                        sample["classification"] = _classification(image.image_class, image)
                    seen.update(sample)
                    samples.add(sample)
            samples.close()
        out.write("metadata.json", json_bytes(_metadata(dataset.classes, seen, dataset.provenance)) + b"\n")
        made = [
            how_placed(
                self.params.images, "There are no image files here: import with the source's root as `rel_dir`."
            ),
            "`fiftyone.Dataset.from_dir(FOLDER, dataset_type=fiftyone.types.FiftyOneDataset)` opens it.",
            "Numbers are shares of the upright image. The box of an object with a mask is the mask's, in whole pixels.",
            "Splits are tags of samples.",
        ]
        notes = tally.notes()
        out.write("README.md", dataset_card("Dataset for FiftyOne", tally, made, notes, dataset.provenance))
        return tally.summary(notes, ["metadata.json", "samples.json"])

    def _place(self, image: ExportImage, fetch: Fetch, out: Output) -> str:
        if self.params.images == "none":
            return image.key
        path = f"data/{file_name(image)}"
        out.place(image, fetch, path, self.params.images)
        return path

    def _sample(self, image: ExportImage, path: str) -> dict[str, Any]:
        from PIL import Image

        # A share that `take` and `shuffle` go by; FiftyOne draws it, here the id decides.
        chance = int.from_bytes(blake2b(str(image.image_id).encode(), digest_size=6).digest(), "big") / 2**48
        metadata: dict[str, Any] = {"_cls": "ImageMetadata", "width": image.width, "height": image.height}
        kind = Image.MIME.get(image.format)
        return {
            "_id": _oid(0, image.image_id),
            "filepath": path,
            "tags": [] if image.split is None else [image.split],
            "metadata": metadata | ({"mime_type": kind} if kind else {}),
            "_media_type": "image",
            "_rand": chance,
            "image_id": image.image_id,
            "key": image.key,
        }


def _oid(kind: int, number: int, second: int = 0) -> dict[str, str]:
    """An object id of MongoDB: 24 hex digits made of the kind, an id and a place; never of the time."""
    return {"$oid": f"{kind:02x}{number:016x}{second:06x}"}


def _detection(image: ExportImage, label: Label, classes: Sequence[str]) -> dict[str, Any]:
    x1, y1, x2, y2 = label.box
    entry: dict[str, Any] = {
        "_id": _oid(1, object_id(image, label)),
        "_cls": "Detection",
        "attributes": {},
        "tags": [],
        "label": classes[label.class_id],
    }
    if label.mask is not None:
        crop, left, top = label.mask.crop()
        x1, y1 = left + NUDGE, top + NUDGE
        x2, y2 = x1 + crop.shape[1], y1 + crop.shape[0]
        entry["mask"] = {"$binary": {"base64": _packed(crop.astype(bool)), "subType": "00"}}
    shares = (x1 / image.width, y1 / image.height, (x2 - x1) / image.width, (y2 - y1) / image.height)
    entry["bounding_box"] = list(shares)
    if label.score is not None:
        entry["confidence"] = round(label.score, 4)
    if label.prompt is not None:
        entry["prompt"] = label.prompt
    if label.models:
        entry["models"] = list(label.models)
    return entry


def _packed(mask: np.ndarray) -> str:
    """A NumPy array as FiftyOne stores it: an .npy file, deflated, base64."""
    buffer = io.BytesIO()
    np.save(buffer, mask, allow_pickle=False)
    return base64.b64encode(zlib.compress(buffer.getvalue())).decode("ascii")


def _polyline(image: ExportImage, word: Text) -> dict[str, Any]:
    points = [[round(x / image.width, DIGITS), round(y / image.height, DIGITS)] for x, y in word.corners]
    entry: dict[str, Any] = {
        "_id": _oid(2, image.image_id, word.position),
        "_cls": "Polyline",
        "attributes": {},
        "tags": [],
        "label": "word",
        "text": word.text,
        "points": [points],
        "closed": True,
        "filled": False,
    }
    if word.score is not None:
        entry["confidence"] = round(word.score, 4)
    return entry


def _classification(name: str, image: ExportImage) -> dict[str, Any]:
    return {"_id": _oid(3, image.image_id), "_cls": "Classification", "tags": [], "label": name}


def _metadata(classes: list[str], seen: set[str], provenance: dict[str, Any]) -> dict[str, Any]:
    """The dataset's document: its version, classes and the schema of its samples."""
    strings = _field("models", "ListField", subfield="StringField")
    common = [_field("id", "ObjectIdField", db_field="_id"), _field("tags", "ListField", subfield="StringField")]
    shared = [*common, _field("label", "StringField"), _field("confidence", "FloatField")]
    box = _field("bounding_box", "ListField", subfield="FloatField")
    detection = [*shared, box, _field("mask", "ArrayField"), _field("prompt", "StringField"), strings]
    polyline = [*shared, _field("points", "PolylinePointsField"), _field("text", "StringField")]
    polyline += [_field("closed", "BooleanField"), _field("filled", "BooleanField")]
    metadata = [_field("width", "IntField"), _field("height", "IntField"), _field("mime_type", "StringField")]
    fields = [
        _field("id", "ObjectIdField", db_field="_id"),
        _field("filepath", "StringField"),
        _field("tags", "ListField", subfield="StringField"),
        _field("metadata", "EmbeddedDocumentField", "fiftyone.core.metadata.ImageMetadata", fields=metadata),
        _field("_media_type", "StringField"),
        _field("_rand", "FloatField"),
        _field("_dataset_id", "ObjectIdField"),
        _field("created_at", "DateTimeField"),
        _field("last_modified_at", "DateTimeField"),
        _field("image_id", "IntField"),
        _field("key", "StringField"),
        _labels_field("detections", "Detections", "detections", "Detection", detection),
    ]
    if "words" in seen:
        fields.append(_labels_field("words", "Polylines", "polylines", "Polyline", polyline))
    if "caption" in seen:
        fields.append(_field("caption", "StringField"))
    if "classification" in seen:
        document = _LABELS + "Classification"
        fields.append(_field("classification", "EmbeddedDocumentField", document, fields=shared))
    return {
        "name": str(provenance.get("pipeline") or "labelmill"),
        "version": VERSION,
        "media_type": "image",
        "info": {"provenance": provenance},
        "default_classes": classes,
        "sample_fields": fields,
    }


def _labels_field(name: str, kind: str, inner: str, item: str, fields: list[dict[str, Any]]) -> dict[str, Any]:
    listed = _field(inner, "ListField", _LABELS + item, "EmbeddedDocumentField", fields)
    return _field(name, "EmbeddedDocumentField", _LABELS + kind, fields=[listed])


def _field(
    name: str,
    kind: str,
    document: str | None = None,
    subfield: str | None = None,
    fields: Sequence[dict[str, Any]] = (),
    db_field: str | None = None,
) -> dict[str, Any]:
    return {
        "name": name,
        "ftype": _FIELDS + kind,
        "embedded_doc_type": document,
        "subfield": None if subfield is None else _FIELDS + subfield,
        "fields": list(fields),
        "db_field": db_field or name,
        "description": None,
        "info": None,
        "read_only": name in ("created_at", "last_modified_at"),
    }
