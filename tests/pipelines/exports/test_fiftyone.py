"""FiftyOne brings MongoDB, so the committed check decodes the published layout.

By hand, FiftyOne 1.22.1's own importer (on a stand-in for MongoDB) loaded such a folder, migrated it, and drew every
mask pixel for pixel.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pipelines.exports.scenes import CLASSES, detection, picture, rle, tree
from tests.pipelines.exports.streams import MODELS, PROVENANCE, export, full_scenes


def mask_of(detection: dict[str, Any], height: int, width: int) -> np.ndarray:
    """The instance's mask in the image, drawn from the box's corner rounded down, as FiftyOne does."""
    data = zlib.decompress(base64.b64decode(detection["mask"]["$binary"]["base64"]))
    mask = np.load(io.BytesIO(data), allow_pickle=False)
    x, y, w, h = detection["bounding_box"]
    left, top = int(x * width), int(y * height)
    assert mask.dtype == bool
    assert mask.shape == (int((y + h) * height) - top, int((x + w) * width) - left)
    whole = np.zeros((height, width), bool)
    whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return whole


def declared(fields: list[dict[str, Any]]) -> dict[str, Any]:
    return {field["db_field"]: declared(field["fields"]) for field in fields}


def used(value: Any) -> dict[str, Any]:
    """Keys of a document that are fields; of a list of documents those of all."""
    if isinstance(value, list):
        return {key: below for each in value for key, below in used(each).items()}
    if not isinstance(value, dict) or any(key.startswith("$") for key in value):
        return {}
    return {key: used(below) for key, below in value.items() if key not in ("_cls", "attributes")}


def missing(used_: dict[str, Any], declared_: dict[str, Any], path: str = "") -> list[str]:
    return [
        lost
        for key, below in used_.items()
        for lost in ([f"{path}{key}"] if key not in declared_ else missing(below, declared_[key], f"{path}{key}."))
    ]


def test_samples_hold_every_label_and_the_schema_every_field(tmp_path: Path) -> None:
    truth = full_scenes(tmp_path / "source", 7, ("train", "val"))
    summary = export("fiftyone", tmp_path / "out", truth, ("train", "val"))
    assert summary.paths == ("metadata.json", "samples.json")
    samples = json.loads((tmp_path / "out/samples.json").read_bytes())["samples"]
    metadata = json.loads((tmp_path / "out/metadata.json").read_bytes())
    assert (metadata["media_type"], metadata["default_classes"]) == ("image", CLASSES)
    assert metadata["info"] == {"provenance": PROVENANCE}
    assert missing(used(samples), declared(metadata["sample_fields"])) == []
    ids = [sample["_id"]["$oid"] for sample in samples]
    for sample, image in zip(samples, truth, strict=True):
        assert (tmp_path / "out" / sample["filepath"]).samefile(image.uri)
        assert (sample["image_id"], sample["key"], sample["tags"]) == (image.image_id, image.key, [image.split])
        size = sample["metadata"]
        assert (size["width"], size["height"], size["mime_type"]) == (image.width, image.height, "image/png")
        assert 0 <= sample["_rand"] < 1
        for found, label in zip(sample["detections"]["detections"], image.detections, strict=True):
            ids.append(found["_id"]["$oid"])
            x, y, w, h = found["bounding_box"]
            box = [x * image.width, y * image.height, (x + w) * image.width, (y + h) * image.height]
            assert box == pytest.approx([label[side] for side in ("x1", "y1", "x2", "y2")], abs=1e-5)
            assert (found["label"], found.get("prompt")) == (label["class"], label["prompt"])
            assert (found.get("confidence"), found.get("models")) == (label["score"], label["models"])
            if label["mask"]:
                assert rle(mask_of(found, image.height, image.width)) == label["mask"]
                assert found["models"] == MODELS
        assert [line["text"] for line in sample.get("words", {}).get("polylines", [])] == [
            word["text"] for word in image.words or []
        ]
        assert sample.get("caption") == image.caption
        assert sample.get("classification", {}).get("label") == image.image_class
    assert len(ids) == len(set(ids))
    assert all(len(each) == 24 and int(each, 16) for each in ids)
    assert samples[2]["words"]["polylines"][0]["points"][0][0][0] == pytest.approx(10 / truth[2].width, abs=1e-6)


def test_a_mask_lies_where_it_was_for_every_size_of_image(tmp_path: Path) -> None:
    images = []
    for number in range(1, 41):
        height, width = 40 + number, 90 - number
        mask = np.zeros((height, width), bool)
        mask[number % 17 + 3 : number % 17 + 20, number : number + 5] = True
        label = detection("disc", mask=mask)
        images.append(picture(tmp_path / "source", number, [label], width=width, height=height))
    export("fiftyone", tmp_path / "out", images, images="none")
    samples = json.loads((tmp_path / "out/samples.json").read_bytes())["samples"]
    for sample, image in zip(samples, images, strict=True):
        found = mask_of(sample["detections"]["detections"][0], image.height, image.width)
        assert rle(found) == image.detections[0]["mask"]
        assert sample["filepath"] == image.key


def test_the_same_images_give_the_same_bytes_and_more_change_no_entry(tmp_path: Path) -> None:
    truth = full_scenes(tmp_path / "source", 5)
    for name, images in (("one", truth), ("two", truth), ("fewer", truth[:3])):
        export("fiftyone", tmp_path / name, images)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    fewer, all_of_them = (
        json.loads((tmp_path / name / "samples.json").read_bytes())["samples"] for name in ("fewer", "one")
    )
    assert all_of_them[:3] == fewer
