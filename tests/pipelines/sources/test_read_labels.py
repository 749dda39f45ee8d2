"""Labels are read by one code, whoever asks: a source, or whoever needs a truth."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa

from labelmill.operators.columns.schemas import DETECTION, DETECTIONS, as_detections
from labelmill.pipelines.run_folder.shards import read_shard, shard_name
from labelmill.pipelines.run_folder.store import Store
from labelmill.pipelines.sources.read_labels import extra_of, read_labels
from tests.pipelines.sources.test_coco import annotation, dataset, image


def test_a_coco_file_without_its_images_is_read_with_sizes_of_others(tmp_path: Path) -> None:
    records = [{"id": 1, "file_name": "a.jpg"}, image(2, "b.jpg")]
    triangle = [[0, 0, 20, 0, 0, 20]]
    found = [annotation(1, 1, segmentation=triangle, area=7.5, track_id=3), annotation(2, 2, iscrowd=1)]
    document = {"images": records, "annotations": found, "categories": [{"id": 7, "name": " car "}]}
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(document))
    read = read_labels(str(path), sizes={"a.jpg": (48, 32)}.get)
    assert (read.kind, read.classes, read.refused, read.problems) == ("coco", ["car"], [], [])
    first, second = read.images["a.jpg"], read.images["b.jpg"]
    assert [first.label_state, second.label_state] == ["read", "read"]
    assert first.labels is not None
    assert second.labels is not None
    assert first.labels[0]["mask"]
    assert extra_of(first.labels[0]) == {"area": 7.5, "track_id": 3}
    assert [second.labels[0]["crowd"], extra_of(second.labels[0])] == [True, {}]


def test_a_dataset_is_read_as_its_source_reads_it(tmp_path: Path) -> None:
    path = dataset(tmp_path, [image(1, "a.jpg")], [annotation(1, 1), annotation(2, 9)])
    read = read_labels(path)
    assert [each.place for each in read.refused] == ["annotation 2"]
    assert read.images["a.jpg"].label_state == "read"


def test_what_an_earlier_version_wrote_is_read_as_if_now(tmp_path: Path) -> None:
    """Old runs: detections of nine fields, shards without the state of labels."""
    old = pa.list_(pa.struct(list(DETECTION)[:9]))
    box = {"x1": 1, "y1": 2, "x2": 3, "y2": 4, "class": "car"}
    table = pa.table({"image_id": [1, 2, 3], "key": ["a", "b", "c"], "labels": pa.array([[box], [], None], old)})
    store = Store(str(tmp_path))
    store.write_table(f"shards/{shard_name(0)}", table)
    read = read_shard(store, 0, ["labels", "label_state", "refused"])
    assert read.column("label_state").to_pylist() == ["read", "read", "unread"]
    assert read.column("refused").null_count == 3
    assert read.column("labels").type == DETECTIONS
    assert read.column("labels").to_pylist()[0][0] | box == read.column("labels").to_pylist()[0][0]
    other = pa.chunked_array([[[{"x1": 1}]]], pa.list_(pa.struct([("x1", pa.float32())])))
    assert as_detections(other) is other, "only detections are changed"
