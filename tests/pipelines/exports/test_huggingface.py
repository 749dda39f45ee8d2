from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel
from PIL import Image

from labelmill.pipelines.exports.dataset import ExportError, ExportImage
from tests.pipelines.exports.scenes import CLASSES, detection, picture, tree
from tests.pipelines.exports.streams import MODELS, WORD, export, full_scenes, peak


def load(folder: Path, cache: Path) -> Any:
    return datasets.load_dataset(str(folder), cache_dir=str(cache))


def test_load_dataset_gives_images_labels_and_splits(tmp_path: Path) -> None:
    truth = full_scenes(tmp_path / "source", 8, ("train", "val"))
    summary = export("huggingface", tmp_path / "out", truth, ("train", "val"))
    assert summary.paths == ("data/train-00000.parquet", "data/validation-00000.parquet")
    found = load(tmp_path / "out", tmp_path / "cache")
    assert set(found) == {"train", "validation"}
    features = found["train"].features
    assert isinstance(features["image"], datasets.Image)
    category = features["objects"]["category"].feature
    assert isinstance(category, ClassLabel)
    assert category.names == CLASSES
    for split, name in (("train", "train"), ("val", "validation")):
        expected = [image for image in truth if image.split == split]
        for row, image in zip(found[name], expected, strict=True):
            with Image.open(image.uri) as original:
                assert (np.asarray(row["image"]) == np.asarray(original)).all()
            assert (row["image_id"], row["key"]) == (image.image_id, image.key)
            assert (row["width"], row["height"]) == (image.width, image.height)
            assert (row["caption"], row["class"]) == (image.caption, image.image_class)
            objects = row["objects"]
            assert len(objects["id"]) == len(image.detections)
            for at, label in enumerate(image.detections):
                x, y, w, h = objects["bbox"][at]
                box = [label[side] for side in ("x1", "y1", "x2", "y2")]
                assert [x, y, x + w, y + h] == pytest.approx(box, abs=0.02)
                assert category.int2str(objects["category"][at]) == label["class"]
                assert (objects["mask"][at], objects["prompt"][at]) == (label["mask"], label["prompt"])
                assert objects["score"][at] == (None if label["score"] is None else pytest.approx(label["score"]))
                assert objects["models"][at] == (MODELS if label["mask"] else None)
            words = row["words"]
            assert (words and words["text"]) == ([WORD["text"]] if image.words else None)


def test_bytes_are_the_originals_and_the_source_reads_them(tmp_path: Path) -> None:
    from labelmill.pipelines.sources import Fetcher, SourceSpec, open_source

    truth = full_scenes(tmp_path / "source", 3)
    export("huggingface", tmp_path / "out", truth)
    rows = pq.read_table(tmp_path / "out/data/train-00000.parquet").column("image").to_pylist()
    assert [row["bytes"] for row in rows] == [Path(image.uri).read_bytes() for image in truth]
    load(tmp_path / "out", tmp_path / "cache").save_to_disk(tmp_path / "saved")
    source = open_source(SourceSpec.model_validate({"huggingface": str(tmp_path / "saved")}))
    entries = list(source.scan())
    assert [entry.problem for entry in entries] == [None] * 3
    assert source.classes == CLASSES
    for entry, image in zip(entries, truth, strict=True):
        assert [label["class"] for label in entry.labels or []] == [label["class"] for label in image.detections]
        assert Fetcher()(entry.uri) == Path(image.uri).read_bytes()


def test_files_fill_up_and_earlier_ones_stay_as_they_were(tmp_path: Path) -> None:
    truth = full_scenes(tmp_path / "source", 45)
    for name, images in (("all", truth), ("again", truth), ("fewer", truth[:42])):
        export("huggingface", tmp_path / name, images, megabytes=1)
    files, fewer = tree(tmp_path / "all"), tree(tmp_path / "fewer")
    assert files == tree(tmp_path / "again")
    names = sorted(name for name in files if name.startswith("data/"))
    assert len(names) >= 3
    assert all(files[name] == fewer[name] for name in names[:-1])
    found = load(tmp_path / "all", tmp_path / "cache")["train"]
    assert found["image_id"][:] == [image.image_id for image in truth]


def test_a_split_without_images_is_left_out(tmp_path: Path) -> None:
    nothing = [picture(tmp_path / "source", 1, [], split="train")]
    summary = export("huggingface", tmp_path / "out", nothing, ("train", "test"), classes=[])
    assert summary.images == {"train": 1, "test": 0}
    assert "refuses a split without images: test." in summary.notes[-1]
    found = load(tmp_path / "out", tmp_path / "cache")
    assert {name: len(rows) for name, rows in found.items()} == {"train": 1}


@pytest.mark.parametrize(("splits", "told"), [(("a-b",), "a-b"), (("val", "validation"), "must not be called both")])
def test_splits_that_datasets_cannot_name_are_refused(tmp_path: Path, splits: tuple[str, ...], told: str) -> None:
    nothing: list[ExportImage] = []
    with pytest.raises(ExportError, match=told):
        export("huggingface", tmp_path / "out", nothing, splits)


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    images = [picture(tmp_path / "source", number, [detection("disc", (1, 1, 9, 9))]) for number in (1, 2, 3)]
    Path(images[1].uri).unlink()
    with pytest.raises(ExportError, match=r"image '2\.png' cannot be read"):
        export("huggingface", tmp_path / "out", images)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools; pytest would remember each of them
@pytest.mark.parametrize("name", ["huggingface", "webdataset", "fiftyone", "label_studio", "cvat"])
def test_memory_does_not_grow_with_the_dataset(tmp_path: Path, name: str) -> None:
    original = Path(picture(tmp_path, 1, []).uri)
    params = {} if name in ("huggingface", "webdataset") else {"images": "none"}
    peak(name, tmp_path / "warm", original, 20, **params)
    small, large = (peak(name, tmp_path / str(count), original, count, **params) for count in (150, 1_500))
    assert large <= 1.3 * small
