"""Runs for tests of the report: a small one with odd names, and a large one whose files are written directly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from pycocotools import mask as coco_mask

from labelmill.operators.base import ImageOperator, TableOperator, TableResult
from labelmill.operators.cluster import Cluster
from labelmill.operators.columns.schemas import DETECTION, DETECTIONS, SHARD, embedding
from labelmill.operators.errors import RowError
from labelmill.operators.images.decoded import DecodedImage
from labelmill.operators.read import WORD
from labelmill.pipelines.config.pipeline import load_pipeline
from labelmill.pipelines.engine.terminal import TerminalReporter
from labelmill.pipelines.run import Options, run
from labelmill.pipelines.run_folder.layout import Layout
from labelmill.pipelines.run_folder.outcomes import summarise, write_json
from labelmill.pipelines.run_folder.reopen import state_of, write_pipeline
from labelmill.pipelines.run_folder.shards import shard_name
from labelmill.pipelines.run_folder.store import Store
from tests.drawing import encode, folder_of_images, noise

EVIL = "</script><script>document.title='owned'</script><!--"
"""A class, a word and a part of a file name."""

CLASSES = (EVIL, "car", "cup")


class Boxes(ImageOperator):
    """Two boxes for each image, whose scores are known from its number: one of each of two classes, one with a mask."""

    def writes(self) -> pa.Schema:
        return pa.schema([("detections", DETECTIONS), ("words", pa.list_(WORD)), ("vector", embedding(8))])

    def prepare(self, image: DecodedImage, row: Mapping[str, Any]) -> dict[str, Any]:
        number = row["image_id"]
        if number % 17 == 5:
            raise RowError(f"the model stumbled over {EVIL}")
        painted = np.zeros((image.height, image.width), np.uint8, order="F")
        painted[4:20, 4:20] = 1
        painted[8:12, 8:12] = 0
        counts = coco_mask.encode(painted)["counts"].decode()
        boxes = [
            _box(4, 4, 20, 20, CLASSES[number % 3], score_of(number, 0), counts),
            _box(22, 2, 40, 30, CLASSES[(number + 1) % 3], score_of(number, 1), None),
        ]
        word = {"text": EVIL, "confidence": 0.5, "quad": [2, 2, 12, 2, 12, 8, 2, 8], "x1": 2, "y1": 2, "x2": 12,
                "y2": 8, "line": 0}  # fmt: skip
        means = image.pixels.reshape(-1, 3).astype(np.float64).mean(axis=0)
        spread = image.pixels.reshape(-1, 3).astype(np.float64).std(axis=0)
        vector = np.array([*means, *spread, 1, number % 3 * 50])
        return {
            "detections": boxes if number % 5 else [],
            "words": [word],
            "vector": (vector / np.linalg.norm(vector)).astype(np.float16),
        }

    def infer(self, items: list[Any]) -> list[dict[str, Any] | RowError]:
        return items


class Grouped(TableOperator):
    """Two clusters, with the columns of `cluster`, in its place where its library is not wanted."""

    def reads(self) -> tuple[str, ...]:
        return ("vector",)

    def writes(self) -> pa.Schema:
        return pa.schema([("cluster", pa.int32()), ("distance", pa.float32()), ("outlier", pa.float32())])

    def compute(self, table: pa.Table) -> TableResult:
        ids = table.column("image_id").to_numpy()
        values = [
            pa.array(ids % 3 - 1, pa.int32()),
            pa.array(ids / 1000, pa.float32()),
            pa.array(ids * 0 + 1, pa.float32()),
        ]
        return TableResult(pa.table(values, schema=self.writes()))


def score_of(number: int, which: int) -> float:
    """The score of an image's box."""
    return ((number * 37 + which * 53) % 90 + 5) / 100


def _box(x1: float, y1: float, x2: float, y2: float, name: str, score: float, mask: str | None) -> dict[str, Any]:
    known = {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "class": name, "score": score, "prompt": name, "mask": mask}
    return {field.name: known.get(field.name) for field in DETECTION}


def small_run(folder: Path) -> Path:
    """A finished run of 40 images: a copy, a broken file, a dull one, failures of a step, odd names everywhere."""
    images = folder / "images"
    folder_of_images(images, 36, width=64, height=48)
    shutil.copy(images / "a/0000.jpg", images / "a/zz-copy.jpg")
    (images / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    odd = images / EVIL / "x.png"
    odd.parent.mkdir(parents=True)
    odd.write_bytes(encode(noise(99, 64, 48), "PNG"))
    (images / "dull.png").write_bytes(encode(noise(7, 64, 48).point(lambda _: 128), "PNG"))
    document = {
        "name": "odd",
        "source": {"folder": str(images)},
        "output": str(folder / "run"),
        "shard_size": 16,
        "steps": ["inspect", {"keep": "sharpness >= 0.01"}, {"deduplicate": {"distance": 4}}, f"{__name__}:Boxes",
                  {"select": {"score": 0.3}}, f"{__name__}:Grouped"],
    }  # fmt: skip
    file = folder / "pipeline.yaml"
    file.write_text(yaml.safe_dump(document))
    run(load_pipeline(str(file), []), Options(inline=True), TerminalReporter())
    return folder / "run"


def truth_of(run_folder: Path, path: Path) -> Path:
    """A COCO file that agrees with all boxes of the step, but for one box that is missing and one that is too many."""
    images = run_folder.parent / "images"
    keys = sorted(file.relative_to(images).as_posix() for file in images.rglob("*") if file.is_file())
    document: dict[str, Any] = {
        "images": [{"id": n, "file_name": key, "width": 64, "height": 48} for n, key in enumerate(keys, 1)],
        "categories": [{"id": n, "name": name} for n, name in enumerate(CLASSES, 1)],
        "annotations": [],
    }
    for n in range(1, len(keys) + 1):
        for place, (name, box) in enumerate(
            ((CLASSES[n % 3], [4, 4, 16, 16]), (CLASSES[(n + 1) % 3], [22, 2, 18, 28]))
        ):
            if score_of(n, place) >= 0.3 and n % 5 and n != 6:
                document["annotations"].append(_annotation(document, n, name, box))
    document["annotations"].append(_annotation(document, 7, "cup", [50, 30, 10, 10]))
    path.write_text(json.dumps(document))
    return path


def _annotation(document: dict[str, Any], image: int, name: str, box: list[int]) -> dict[str, Any]:
    return {"id": len(document["annotations"]) + 1, "image_id": image, "category_id": CLASSES.index(name) + 1,
            "bbox": box, "area": box[2] * box[3], "iscrowd": 0}  # fmt: skip


def large_run(folder: Path, images: int) -> Path:
    """A run of so many images, its Parquet files written directly. All of them have the bytes of one file."""
    source = folder / "images"
    source.mkdir(parents=True)
    (source / "one.jpg").write_bytes(encode(noise(1, 320, 240), quality=90))
    document = {
        "name": "large",
        "source": {"folder": str(source)},
        "output": str(folder / "run"),
        "steps": ["inspect", {"keep": "sharpness >= 0.1"}, "deduplicate", f"{__name__}:Boxes",
                  {"cluster": {"embedding": "vector"}}, "select"],
    }  # fmt: skip
    file = folder / "pipeline.yaml"
    file.write_text(yaml.safe_dump(document))
    pipeline = load_pipeline(str(file), [])
    store = Store(pipeline.settings.output)
    write_pipeline(pipeline, store)
    layout = Layout.of(store, pipeline.steps)
    size = pipeline.settings.shard_size
    shards = {}
    for shard, first in enumerate(range(0, images, size)):
        ids = np.arange(first + 1, min(first + size, images) + 1)
        shards[shard] = len(ids)
        _write_shard(store, layout, shard, ids, (source / "one.jpg").as_posix())
    summary = {"state": state_of(layout, shards), **summarise(layout, shards)}
    write_json(layout, "summary.json", {**summary, "source_problems": [], "source_problem_count": 0, "exports": []})
    return folder / "run"


def _write_shard(store: Store, layout: Layout, shard: int, ids: np.ndarray, uri: str) -> None:
    count = len(ids)
    chance = np.random.default_rng(shard)
    rows: dict[str, Any] = {field.name: [None] * count for field in SHARD}
    rows |= {"image_id": ids, "key": [f"{number // 1000:04d}/{number:08d}.jpg" for number in ids], "uri": [uri] * count}
    store.write_table(f"shards/{shard_name(shard)}", pa.table(rows, schema=SHARD))
    active = np.ones(count, dtype=bool)
    lost = {"keep": (chance.random(count) < 0.1, "dropped"), "deduplicate": (chance.random(count) < 0.2, "duplicate")}
    for step in layout.steps:
        columns = [
            pa.array(_values(field, step, ids, chance), field.type, mask=~active) if not pa.types.is_list(field.type)
            else _lists(field, active, chance)
            for field in step.operator.writes()
        ]  # fmt: skip
        against, kind = lost.get(step.operator_name, (np.zeros(count, dtype=bool), ""))
        against = against & active
        decisions = np.where(against, kind, "kept").astype(object)
        decisions[~active] = None
        scores = np.where(against, 0.05, np.nan)
        reasons = np.where(against, "sharpness >= 0.1 is false (sharpness = 0.05)", None)
        figures = [pa.array(figure, pa.float64(), mask=~against) for figure in (scores, 2 * scores)]
        told = [pa.array(decisions, pa.string()), pa.array(reasons, pa.string()), *figures]
        names = [*step.operator.writes().names, "decision", "decision.reason", "decision.score", "decision.threshold"]
        store.write_table(layout.file(step.position, shard), pa.table([*columns, *told], names=names))
        if step.operator.decides:
            active &= ~against


def _values(field: pa.Field, step: Any, ids: np.ndarray, chance: np.random.Generator) -> Any:
    if field.name == "group":
        return np.maximum(1, ids - ids % 3)
    if field.name == "kind":
        return np.array(["perceptual", "file", "semantic"])[ids % 3].astype(object)
    if field.name == "cluster":
        return chance.integers(-1, 60, len(ids)) if isinstance(step.operator, Cluster) else ids
    if pa.types.is_fixed_size_list(field.type):
        width = field.type.list_size
        if pa.types.is_floating(field.type.value_type):
            return list(chance.normal(size=(len(ids), width)).astype(np.float16))
        return list(chance.integers(0, 2**63, (len(ids), width)).astype(np.uint64))
    if pa.types.is_floating(field.type):
        return chance.random(len(ids)).astype(np.float32)
    if pa.types.is_integer(field.type):
        return chance.integers(1, 100, len(ids))
    return np.full(len(ids), "x", dtype=object)


def _lists(field: pa.Field, active: np.ndarray, chance: np.random.Generator) -> pa.Array:
    lengths = np.where(active, 8, 0)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    total = int(lengths.sum())
    if not pa.types.is_struct(field.type.value_type):
        values = pa.nulls(total, field.type.value_type)
    else:
        corners = chance.random((4, total)) * [[100], [100], [200], [140]] + [[0], [0], [110], [100]]
        known: dict[str, Any] = dict(zip(("x1", "y1", "x2", "y2"), corners, strict=True))
        names = np.array([f"class {number}" for number in range(80)], dtype=object)
        known |= {"score": chance.random(total), "confidence": chance.random(total)}
        known["class"] = names[chance.integers(0, 80, total)]
        parts = [
            pa.array(known[one.name], one.type) if one.name in known else pa.nulls(total, one.type)
            for one in field.type.value_type
        ]
        values = pa.StructArray.from_arrays(parts, fields=list(field.type.value_type))
    return pa.ListArray.from_arrays(offsets, values, mask=pa.array(~active))
