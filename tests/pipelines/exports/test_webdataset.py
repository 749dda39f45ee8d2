from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image
from pycocotools import mask as coco_mask

from tests.pipelines.exports.scenes import CLASSES, picture, rle, tree
from tests.pipelines.exports.streams import WORD, export, full_scenes


def samples(*tars: Path) -> list[dict[str, Any]]:
    return list(webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False, empty_check=False))


def test_webdataset_reads_images_labels_and_captions(tmp_path: Path) -> None:
    truth = full_scenes(tmp_path / "source", 6, ("train", "val"))
    summary = export("webdataset", tmp_path / "out", truth, ("train", "val"))
    assert summary.paths == ("train-000000.tar", "val-000000.tar")
    assert (tmp_path / "out/classes.txt").read_text().splitlines() == CLASSES
    for split, path in zip(("train", "val"), summary.paths, strict=True):
        found = samples(tmp_path / "out" / path)
        expected = [image for image in truth if image.split == split]
        assert [sample["__key__"] for sample in found] == [f"{image.image_id:08d}" for image in expected]
        for sample, image in zip(found, expected, strict=True):
            assert sample["png"] == Path(image.uri).read_bytes()
            assert sample.get("txt", b"").decode() == (image.caption or "")
            entry = json.loads(sample["json"])
            assert (entry["key"], entry["width"], entry["height"]) == (image.key, image.width, image.height)
            assert (entry["split"], entry.get("class")) == (split, image.image_class)
            assert [word["text"] for word in entry.get("words", [])] == ([WORD["text"]] if image.words else [])
            for each, label in zip(entry["objects"], image.detections, strict=True):
                x, y, w, h = each["bbox"]
                assert [x, y, x + w, y + h] == pytest.approx(
                    [label[side] for side in ("x1", "y1", "x2", "y2")], abs=0.01
                )
                assert (each["category"], CLASSES[each["category_id"] - 1]) == (label["class"], label["class"])
                assert (each.get("score"), each.get("prompt")) == (label["score"], label["prompt"])
                assert each.get("models") == label["models"]
                if label["mask"]:
                    assert rle(coco_mask.decode(each["segmentation"])) == label["mask"]
                    assert each["area"] == coco_mask.decode(each["segmentation"]).sum()
    decoded = next(
        iter(webdataset.WebDataset(str(tmp_path / "out/train-000000.tar"), shardshuffle=False).decode("rgb8"))
    )
    with Image.open(truth[1].uri) as original:
        assert (decoded["png"] == np.asarray(original)).all()


def test_a_dot_in_a_name_does_not_cut_a_sample_in_two(tmp_path: Path) -> None:
    images = [picture(tmp_path / "source", 1, [], key="a/v1.2/x.y.png"), picture(tmp_path / "source", 2, [], key="b")]
    export("webdataset", tmp_path / "out", images)
    found = samples(tmp_path / "out/all-000000.tar")
    assert [(sample["__key__"], sorted(set(sample) & {"png", "json"})) for sample in found] == [
        ("00000001", ["json", "png"]),
        ("00000002", ["json", "png"]),
    ]


@pytest.mark.parametrize("params", [{"samples": 3}, {"megabytes": 1}])
def test_tars_fill_up_and_earlier_ones_stay_as_they_were(tmp_path: Path, params: dict[str, int]) -> None:
    count = 8 if "samples" in params else 45
    truth = full_scenes(tmp_path / "source", count)
    for name, images in (("all", truth), ("again", truth), ("fewer", truth[:-1])):
        export("webdataset", tmp_path / name, images, **params)
    files, fewer = tree(tmp_path / "all"), tree(tmp_path / "fewer")
    assert files == tree(tmp_path / "again")
    tars = sorted(name for name in files if name.endswith(".tar"))
    assert len(tars) >= 3
    assert all(files[name] == fewer[name] for name in tars[:-1])
    keys = [sample["__key__"] for sample in samples(*(tmp_path / "all" / name for name in tars))]
    assert keys == [f"{number:08d}" for number in range(1, count + 1)]
    with tarfile.open(tmp_path / "all" / tars[0]) as archive:
        assert {(member.mtime, member.uid, member.uname) for member in archive} == {(0, 0, "")}
        assert len(archive.getnames()) <= 3 * 3 or "megabytes" in params


def test_our_own_source_finds_every_image(tmp_path: Path) -> None:
    from labelmill.pipelines.sources import Fetcher, SourceSpec, open_source

    truth = full_scenes(tmp_path / "source", 4)
    export("webdataset", tmp_path / "out", truth)
    entries = list(open_source(SourceSpec.model_validate({"webdataset": str(tmp_path / "out/*.tar")})).scan())
    assert [entry.problem for entry in entries] == [None] * 4
    assert [Fetcher()(entry.uri) for entry in entries] == [Path(image.uri).read_bytes() for image in truth]
