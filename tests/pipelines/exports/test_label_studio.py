"""The committed check is against the published structure; label-studio-sdk 2.1.2 accepted the same files by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from labelmill.pipelines.exports.dataset import ExportImage
from tests.pipelines.exports.scenes import detection, disc, picture, ring
from tests.pipelines.exports.streams import MODELS, WORD, export, full_scenes

NUMBER = {"type": "number", "minimum": 0, "maximum": 100}
POINTS = {"type": "array", "minItems": 3, "items": {"type": "array", "items": NUMBER, "minItems": 2, "maxItems": 2}}
VALUES = {
    "rectanglelabels": {**dict.fromkeys(("x", "y", "width", "height"), NUMBER), "rotation": {"const": 0}},
    "polygonlabels": {"points": POINTS, "closed": {"const": True}},
}
"""Of each type of region, the fields beside its label (https://labelstud.io/guide/predictions)."""


def tasks_of(folder: Path, name: str = "tasks.json") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / name).read_bytes())
    return found


def check_structure(tasks: list[dict[str, Any]], config: Path) -> None:
    """Every region has the control that the interface gives that name, and a value as that control takes it."""
    controls = {control.get("name"): control for control in ElementTree.parse(config).getroot()}
    assert controls["image"].get("value") == "$image"
    for task in tasks:
        assert isinstance(task["data"]["image"], str)
        for prediction in task["predictions"]:
            assert 0 <= prediction.get("score", 0) <= 1
            ids = [region["id"] for region in prediction["result"] if region["type"] != "textarea"]
            assert len(ids) == len(set(ids))
            for region in prediction["result"]:
                control = controls[region["from_name"]]
                assert control.tag.lower() == region["type"]
                assert control.get("toName") == region["to_name"] == "image"
                if region["type"] in VALUES:
                    known = [label.get("value") for label in control]
                    labels = {"type": "array", "items": {"enum": known}, "minItems": 1, "maxItems": 1}
                    schema = {**VALUES[region["type"]], region["type"]: labels}
                    jsonschema.validate(
                        region["value"],
                        {"properties": schema, "required": list(schema), "additionalProperties": False},
                    )
                elif region["type"] == "choices":
                    assert region["value"]["choices"][0] in [choice.get("value") for choice in control]
                else:
                    assert isinstance(region["value"]["text"], list)


def pixels(region: dict[str, Any]) -> list[float]:
    """x and y in turn, of a rectangle its two corners."""
    size, value = (region["original_width"], region["original_height"]), region["value"]
    if region["type"] == "polygonlabels":
        return [number / 100 * size[axis] for point in value["points"] for axis, number in enumerate(point)]
    corners = (value["x"], value["y"], value["x"] + value["width"], value["y"] + value["height"])
    return [number / 100 * size[at % 2] for at, number in enumerate(corners)]


def drawn(parts: list[dict[str, Any]], height: int, width: int) -> np.ndarray:
    polygons = coco_mask.frPyObjects([pixels(part) for part in parts], height, width)
    return np.asarray(coco_mask.decode(coco_mask.merge(polygons)))


def test_tasks_hold_every_label(tmp_path: Path) -> None:
    truth = full_scenes(tmp_path / "source", 6, ("train", "val"))
    summary = export("label_studio", tmp_path / "out", truth, ("train", "val"))
    assert summary.paths == ("tasks_train.json", "tasks_val.json", "config.xml")
    found = {}
    for split in ("train", "val"):
        tasks = tasks_of(tmp_path / "out", f"tasks_{split}.json")
        check_structure(tasks, tmp_path / "out/config.xml")
        found |= {task["data"]["image_id"]: task for task in tasks}
        assert {task["data"]["split"] for task in tasks} == {split}
    assert len(found) == 6
    for image in truth:
        task = found[image.image_id]
        place = task["data"]["image"].removeprefix("/data/local-files/?d=")
        assert (tmp_path / "out" / place).samefile(image.uri)
        (prediction,) = task["predictions"]
        assert prediction["model_version"] == MODELS[0]
        for position, label in enumerate(image.detections, 1):
            parts = [r for r in prediction["result"] if r["id"].split("-")[:2] == ["object", str(position)]]
            assert {part["value"][part["type"]][0] for part in parts} == {label["class"]}
            assert parts[0].get("score") == label["score"]
            if label["mask"] is None:
                expected = [label[side] for side in ("x1", "y1", "x2", "y2")]
                assert pixels(parts[0]) == pytest.approx(expected, abs=1e-3)
                continue
            size = [image.height, image.width]
            shown = coco_mask.encode(np.asfortranarray(drawn(parts, *size)))
            assert coco_mask.iou([shown], [{"size": size, "counts": label["mask"]}], [0])[0, 0] >= 0.99
            assert [part.get("parentID") for part in parts] == [None] + [f"object-{position}"] * (len(parts) - 1)
            assert parts[0]["meta"]["text"][-2:] == [f"model: {each}" for each in MODELS]
    scores = [label["score"] for label in truth[0].detections if label["score"] is not None]
    assert found[1]["predictions"][0]["score"] == min(scores)
    told = {
        region["id"]: region["value"] for region in found[3]["predictions"][0]["result"] if region["type"] == "textarea"
    }
    assert told["word-1"]["text"] == [WORD["text"]]
    told = {region["id"]: region["value"] for region in found[2]["predictions"][0]["result"]}
    assert told["caption"]["text"] == ["Image 2: \u201cdisc\u201d."]
    assert told["class"]["choices"] == ["day"]


def test_a_hole_and_a_second_part_stay(tmp_path: Path) -> None:
    mask = ring(100, 120, 40, 50, 30, 12) | disc(100, 120, 100, 80, 9)
    image = picture(tmp_path / "source", 1, [detection("ring", mask=mask)], width=120, height=100)
    export("label_studio", tmp_path / "out", [image])
    parts = tasks_of(tmp_path / "out")[0]["predictions"][0]["result"]
    assert len(parts) == 2
    shown = drawn(parts, 100, 120).astype(bool)
    assert (shown & mask).sum() / (shown | mask).sum() >= 0.99
    assert not shown[50, 40]
    assert shown[80, 100]


def test_names_are_escaped(tmp_path: Path) -> None:
    classes = ['a "b" <c> & d', "é\n\x07"]
    image = picture(tmp_path / "source", 1, [detection(name, (1, 1, 9, 9)) for name in classes])
    export("label_studio", tmp_path / "out", [image], classes=classes)
    labels = ElementTree.parse(tmp_path / "out/config.xml").findall("./RectangleLabels/Label")
    assert [label.get("value") for label in labels] == [classes[0], "é\n\ufffd"]


def test_without_image_files_a_task_names_the_original(tmp_path: Path) -> None:
    local = picture(tmp_path / "source", 1, [], key="a b/1.png")
    remote = replace(local, image_id=2, uri="https://example.org/a%20b.png")
    inside = replace(local, image_id=3, uri=f"{tmp_path}/x.tar#offset=512&length=9")
    summary = export("label_studio", tmp_path / "out", [local, remote, inside], images="none")
    found = [task["data"]["image"] for task in tasks_of(tmp_path / "out")]
    assert found == ["/data/local-files/?d=a%20b/1.png", remote.uri, "/data/local-files/?d=a%20b/1.png"]
    assert summary.notes == ("1 image lies inside archives, which Label Studio cannot open: use images: copy.",)
    assert not (tmp_path / "out/images").exists()


def test_no_images_and_no_classes_are_a_list_without_tasks(tmp_path: Path) -> None:
    nothing: list[ExportImage] = []
    export("label_studio", tmp_path / "out", nothing, classes=[])
    assert tasks_of(tmp_path / "out") == []
    assert [child.tag for child in ElementTree.parse(tmp_path / "out/config.xml").getroot()] == ["Image"]
