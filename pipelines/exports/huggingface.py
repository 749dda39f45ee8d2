"""A dataset for Hugging Face `datasets`: Parquet with the images inside (https://huggingface.co/docs/datasets)."""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import Any

from pydantic import Field

from labelmill.pipelines.exports.base import Exporter, LabelParams
from labelmill.pipelines.exports.card import dataset_card
from labelmill.pipelines.exports.dataset import ALL, Dataset, ExportError, ExportSummary
from labelmill.pipelines.exports.entries import object_entry, word_entry
from labelmill.pipelines.exports.files import Output, file_name
from labelmill.pipelines.exports.labels import Tally
from labelmill.pipelines.exports.streams import json_bytes, with_bytes
from labelmill.pipelines.exports.texts import read_texts

MEGABYTE = 10**6
ROWS = 100
"""Images of a row group, at most: what a reader must load to see one of them."""
ROW_GROUP_BYTES = 32 * MEGABYTE

VALIDATION = {"val": "validation"}
"""What `datasets` calls a split of ours."""

_SPLIT = re.compile(r"\w+(\.\w+)*")


class HuggingFace(Exporter):
    """Parquet files ``data/{split}-{number}.parquet``, which ``datasets.load_dataset(folder)`` opens.

    Columns: ``image`` (original bytes, decoded by the feature Image), ``image_id``, ``key``, ``width``, ``height``,
    ``objects``, ``words``, ``caption`` and ``class`` (null where nothing is known). ``objects`` holds lists, one value
    per object in each: ``id``, ``bbox`` (x, y, width, height in pixels), ``category`` (a ClassLabel,
    counted from 0), ``area`` in pixels, ``mask`` (counts of COCO's compressed RLE over height and width), ``score``,
    ``prompt`` and ``models``, the last four null where not known. ``words`` holds ``text``, ``quad`` and ``score``.

    The split val is called validation, as is the custom there; without splits all is train. A file is closed when the
    next image would take it over `megabytes`. Images that come later fill the last one and new ones.

    EXIF orientation: coordinates are of the upright image and bytes the original ones; the feature Image turns them.
    """

    name = "huggingface"
    images_alone = "where nobody looked at any"

    class Params(LabelParams):
        """Parameters of the Hugging Face export. Images are always inside the Parquet files.

        Attributes:
            unread, refused: See `LabelParams`.
            megabytes: Millions of bytes of images in a file, at most.
        """

        megabytes: int = Field(500, ge=1)

    def write(self, dataset: Dataset, out: Output) -> ExportSummary:
        """Write the dataset; see `Exporter.write`.

        Raises:
            ExportError: Also for a split whose name `datasets` does not take.
        """
        names = _split_names(dataset.splits)
        tally = Tally(dataset.classes, dataset.splits, ("crowd", "extra"), left_out=dataset.left_out)
        schema = features(dataset.classes).arrow_schema
        with ExitStack() as stack:
            files = {
                split: stack.enter_context(_Files(names[split], schema, out, self.params.megabytes * MEGABYTE))
                for split in tally.splits
            }
            for image, data in with_bytes(dataset.checked(), dataset.fetch):
                labels = tally.read(image)
                words = None if image.words is None else read_texts(image, tally.skipped)
                row = {
                    "image": {"bytes": data, "path": file_name(image)},
                    "image_id": image.image_id,
                    "key": image.key,
                    "width": image.width,
                    "height": image.height,
                    "objects": None
                    if image.label_state == "unread"
                    else _objects([object_entry(image, label, dataset.classes) for label in labels]),
                    "words": None if words is None else _words([word_entry(word) for word in words]),
                    "caption": image.caption,
                    "class": image.image_class,
                }
                files[image.split or ALL].add(row, len(data))
            paths = [path for split in tally.splits for path in files[split].paths]
        notes = tally.notes()
        if "val" in dataset.splits:
            notes.append("The split val is called validation, as is the custom with `datasets`.")
        made = [
            "`datasets.load_dataset(FOLDER)` opens it; image bytes in the Parquet files are as they were.",
            "`objects.bbox` is x, y, width, height in pixels of the upright image, as the feature Image gives it.",
            "`objects.mask` holds counts of COCO's compressed RLE: "
            '`pycocotools.mask.decode({"size": [height, width], "counts": mask})`.',
        ]
        present = [split for split in tally.splits if tally.images[split]]
        empty = [names[split] for split in tally.splits if not tally.images[split]]
        if empty:
            notes.append(f"Left out, since `load_dataset` refuses a split without images: {', '.join(empty)}.")
        card = dataset_card("Dataset for Hugging Face datasets", tally, made, notes, dataset.provenance)
        out.write("README.md", _front_matter([names[split] for split in present]) + card)
        return tally.summary(notes, paths)


def features(classes: list[str]) -> Any:
    """The `datasets.Features` of the export."""
    from datasets import ClassLabel, Features, Image, List, Value

    number, text, score = Value("int64"), Value("string"), Value("float32")
    category = ClassLabel(names=classes) if classes else number
    return Features(
        {
            "image": Image(),
            "image_id": number,
            "key": text,
            "width": Value("int32"),
            "height": Value("int32"),
            "objects": {
                "id": List(number),
                "bbox": List(List(Value("float32"), length=4)),
                "category": List(category),
                "area": List(score),
                "mask": List(text),
                "score": List(score),
                "prompt": List(text),
                "models": List(List(text)),
                "iscrowd": List(Value("bool")),
                "extra": List(text),
            },
            "words": {"text": List(text), "quad": List(List(Value("float32"), length=8)), "score": List(score)},
            "caption": text,
            "class": text,
        }
    )


def _objects(entries: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {
        "id": [entry["id"] for entry in entries],
        "bbox": [entry["bbox"] for entry in entries],
        "category": [entry["category_id"] - 1 for entry in entries],
        "area": [entry["area"] for entry in entries],
        "mask": [entry["segmentation"]["counts"] if "segmentation" in entry else None for entry in entries],
        **{name: [entry.get(name) for entry in entries] for name in ("score", "prompt", "models")},
        "iscrowd": [bool(entry.get("iscrowd")) for entry in entries],
        "extra": [json_bytes(entry["extra"]).decode() if "extra" in entry else None for entry in entries],
    }


def _words(entries: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [entry.get(name) for entry in entries] for name in ("text", "quad", "score")}


def _split_names(splits: list[str]) -> dict[str, str]:
    names = {split: VALIDATION.get(split, split) for split in splits} or {ALL: "train"}
    for split, name in names.items():
        if not _SPLIT.fullmatch(name):
            raise ExportError(f"a split's name must be letters, digits, '_' and single '.' but is {split!r}")
    if len(set(names.values())) < len(names):
        raise ExportError("splits must not be called both val and validation: `datasets` calls both validation")
    return names


def _front_matter(names: list[str]) -> bytes:
    """What `load_dataset` goes by: which files are which split."""
    import yaml

    files = [{"split": name, "path": f"data/{name}-*.parquet"} for name in names]
    content = {
        "configs": [{"config_name": "default", "data_files": files}],
        "task_categories": ["object-detection"],
    }
    return f"---\n{yaml.safe_dump(content, sort_keys=False)}---\n\n".encode()


class _Files:
    """The Parquet files of one split, one open at a time; rows are held until their row group is full."""

    def __init__(self, name: str, schema: Any, out: Output, most_bytes: int) -> None:
        self._name, self._schema, self._out, self._most_bytes = name, schema, out, most_bytes
        self._stack = ExitStack()
        self._writer: Any = None
        self._rows: list[dict[str, Any]] = []
        self._held = self._bytes = 0
        self.paths: list[str] = []

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> Any:
        if kind is not None:
            self._writer = None
            return self._stack.__exit__(kind, error, trace)
        self._close()
        return None

    def add(self, row: dict[str, Any], size: int) -> None:
        """Append a row with so many bytes of image, in a new file if this one is full."""
        if self._writer is not None and self._bytes and self._bytes + size > self._most_bytes:
            self._close()
        if self._writer is None:
            self._open()
        self._rows.append(row)
        self._held += size
        self._bytes += size
        if len(self._rows) >= ROWS or self._held >= ROW_GROUP_BYTES:
            self._flush()

    def _open(self) -> None:
        import pyarrow.parquet as pq

        path = f"data/{self._name}-{len(self.paths):05d}.parquet"
        self._writer = pq.ParquetWriter(self._stack.enter_context(self._out.open(path)), self._schema)
        self.paths.append(path)
        self._bytes = 0

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows, self._held = [], 0

    def _close(self) -> None:
        if self._writer is not None:
            self._flush()
            self._writer.close()
            self._writer = None
            self._stack.close()
