from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from labelmill.pipelines.exports.dataset import ExportError, ExportImage, ExportSummary
from labelmill.pipelines.exports.files import Output
from tests.pipelines.exports.scenes import (
    CLASSES,
    detection,
    disc,
    picture,
    refuse,
    ring,
    rle,
    scenes,
    tree,
    write_dataset,
)

export = partial(write_dataset, "coco")


def load(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_bytes())
    return document


def labels_in(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = load(folder / "annotations/instances.json")["annotations"]
    return found


def one(tmp_path: Path, *found: dict[str, Any], size: tuple[int, int] = (64, 48), **params: Any) -> ExportSummary:
    """Export one image with some detections to ``tmp_path/coco``."""
    image = picture(tmp_path / "source", 1, list(found), width=size[0], height=size[1])
    return export(tmp_path / "coco", [image], **params)


def test_pycocotools_reads_boxes_masks_and_negatives(tmp_path: Path) -> None:
    truth = list(scenes(tmp_path / "source", 8, ("train", "val")))
    summary = export(tmp_path / "coco", truth, ("train", "val"))
    assert summary.paths == ("annotations/instances_train.json", "annotations/instances_val.json")
    assert summary.images == {"train": 4, "val": 4}
    assert summary.annotations == {"disc": 12, "stop sign": 6, "ring": 6}
    assert summary.skipped == {}
    for split, path in zip(("train", "val"), summary.paths, strict=True):
        coco = COCO(str(tmp_path / "coco" / path))
        expected = [image for image in truth if image.split == split]
        assert coco.getImgIds() == [image.image_id for image in expected]
        assert coco.getCatIds() == [1, 2, 3]
        assert [category["name"] for category in coco.loadCats([1, 2, 3])] == CLASSES
        for image in expected:
            entry = coco.loadImgs(image.image_id)[0]
            assert (entry["width"], entry["height"], entry["key"]) == (image.width, image.height, image.key)
            placed = tmp_path / "coco/images" / split / entry["file_name"]
            assert placed.samefile(image.uri)
            found = coco.loadAnns(coco.getAnnIds(image.image_id))
            assert len(found) == len(image.detections)
            for annotation, label in zip(found, image.detections, strict=True):
                x, y, w, h = annotation["bbox"]
                assert [x, y, x + w, y + h] == pytest.approx([label[n] for n in ("x1", "y1", "x2", "y2")], abs=0.01)
                assert CLASSES[annotation["category_id"] - 1] == label["class"]
                assert annotation["iscrowd"] == 0
                if label["mask"] is None:
                    assert annotation["segmentation"] == []
                    assert annotation["area"] == pytest.approx(w * h)
                else:
                    mask = coco.annToMask(annotation)
                    assert rle(mask) == label["mask"]
                    assert annotation["area"] == mask.sum()
    assert not any(COCO(str(tmp_path / "coco" / path)).getAnnIds(4) for path in summary.paths)


@pytest.mark.parametrize("masks", ["rle", "polygon"])
def test_supervision_reads_it(tmp_path: Path, masks: str) -> None:
    import supervision

    truth = list(scenes(tmp_path / "source", 4))
    export(tmp_path / "coco", truth, masks=masks)
    dataset: Any = supervision.DetectionDataset.from_coco(
        str(tmp_path / "coco/images"), str(tmp_path / "coco/annotations/instances.json")
    )
    assert dataset.classes == CLASSES
    assert len(dataset) == 4
    for (path, pixels, found), image in zip(dataset, truth, strict=True):
        assert Path(path).name.startswith(f"{image.image_id:08d}-")
        assert pixels.shape == (image.height, image.width, 3)
        assert len(found) == len(image.detections)
        for index, label in enumerate(image.detections):
            corners = [label[name] for name in ("x1", "y1", "x2", "y2")]
            assert found.xyxy[index] == pytest.approx(corners, abs=0.02)
            assert CLASSES[found.class_id[index]] == label["class"]
            if label["mask"] and masks == "rle":
                assert rle(found.mask[index]) == label["mask"]
        if len(found):
            assert not found.data["iscrowd"].any()


@pytest.mark.parametrize("masks", ["rle", "polygon"])
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_a_perfect_prediction_scores_one(tmp_path: Path, kind: str, masks: str) -> None:
    """Objects with holes and several parts count; an object ignored as a crowd would not."""
    truth = [
        picture(
            image_folder := tmp_path / "source",
            1,
            [detection("ring", mask=ring(120, 160, 60, 60, 40, 20))],
            width=160,
            height=120,
        ),
        picture(
            image_folder,
            2,
            [detection("ring", mask=disc(120, 160, 30, 60, 20) | disc(120, 160, 120, 60, 20))],
            width=160,
            height=120,
        ),
        picture(image_folder, 3, [detection("disc", mask=disc(120, 160, 60, 60, 40))], width=160, height=120),
    ]
    export(tmp_path / "coco", truth, masks=masks)
    coco = COCO(str(tmp_path / "coco/annotations/instances.json"))
    kept = [annotation["segmentation"] for annotation in coco.dataset["annotations"]]
    assert [isinstance(value, dict) for value in kept] == [True, True, masks == "rle"]
    results = [
        {
            "image_id": image.image_id,
            "category_id": CLASSES.index(label["class"]) + 1,
            "score": 0.9,
            "bbox": [label["x1"], label["y1"], label["x2"] - label["x1"], label["y2"] - label["y1"]],
            "segmentation": {"size": [image.height, image.width], "counts": label["mask"]},
        }
        for image in truth
        for label in image.detections
    ]
    for result in results if kind == "bbox" else []:
        del result["segmentation"]
    evaluation = COCOeval(coco, coco.loadRes(results), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == 1.0
    matched = [number for image in evaluation.evalImgs if image for number in image["gtIds"]]
    assert len(set(matched)) == 3


def test_ids_are_positive_and_stay_when_images_are_added(tmp_path: Path) -> None:
    export(tmp_path / "first", scenes(tmp_path / "source", 5))
    export(tmp_path / "second", scenes(tmp_path / "source", 9))
    first, second = (
        {annotation["id"]: annotation for annotation in labels_in(tmp_path / name)} for name in ("first", "second")
    )
    assert len(first) == 16
    assert min(first) == 100_001
    assert first == {number: second[number] for number in first}


def test_an_id_keeps_its_place_when_a_label_before_it_is_skipped(tmp_path: Path) -> None:
    summary = one(tmp_path, detection("disc", (5, 5, 1, 1)), detection("disc", (1, 1, 5, 5)))
    assert summary.skipped == {"box is inverted": 1}
    assert [annotation["id"] for annotation in labels_in(tmp_path / "coco")] == [100_002]


def test_ids_that_do_not_fit_a_double_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = 2**53 // 100_000 - 1
    found = [detection("disc", (1, 1, 5, 5))]
    export(tmp_path / "coco", [picture(tmp_path, last, found)])
    assert labels_in(tmp_path / "coco")[0]["id"] < 2**53
    with pytest.raises(ExportError, match=r"room for 99999 objects an image and image_id up to"):
        export(tmp_path / "other", [picture(tmp_path, last + 2, found)])
    monkeypatch.setattr("labelmill.pipelines.exports.labels.IDS_PER_IMAGE", 10)
    export(tmp_path / "third", [picture(tmp_path, 1, found * 9)])
    with pytest.raises(ExportError, match=r"room for 9 objects an image .* this is object 10 of image_id 1"):
        export(tmp_path / "fourth", [picture(tmp_path, 1, found * 10)])


@pytest.mark.parametrize(
    ("box", "bbox"),
    [
        ((-5.0, -3.0, 10.0, 8.0), [0, 0, 10, 8]),
        ((60.0, 40.0, 70.0, 60.0), [60, 40, 4, 8]),
        ((-1e9, -1e9, 1e9, 1e9), [0, 0, 64, 48]),
        ((1.234, 2.345, 10.996, 20.001), [1.23, 2.35, 9.77, 17.65]),
        ((63.5, 0.0, 64.0, 48.0), [63.5, 0, 0.5, 48]),
        ((10.126, 0.0, 63.999, 47.999), [10.13, 0, 53.87, 48]),
    ],
)
def test_boxes_are_clipped_and_rounded(tmp_path: Path, box: tuple[float, ...], bbox: list[float]) -> None:
    one(tmp_path, detection("disc", box))
    found = labels_in(tmp_path / "coco")[0]
    assert found["bbox"] == pytest.approx(bbox, abs=0.0101)
    x, y, w, h = found["bbox"]
    assert x + w <= 64 + 1e-9
    assert y + h <= 48 + 1e-9
    assert [round(value, 2) for value in found["bbox"]] == found["bbox"]
    assert found["area"] == pytest.approx(w * h)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((10.0, 10.0, 5.0, 20.0), "box is inverted"),
        ((10.0, 20.0, 15.0, 10.0), "box is inverted"),
        ((65.0, 10.0, 80.0, 20.0), "box lies outside the image"),
        ((-20.0, 10.0, -1.0, 20.0), "box lies outside the image"),
        ((10.0, 10.0, 10.0, 20.0), "box is less than 0.5 px wide or high inside the image"),
        ((10.0, 10.0, 20.0, 10.4), "box is less than 0.5 px wide or high inside the image"),
        ((-20.0, 10.0, 0.25, 20.0), "box is less than 0.5 px wide or high inside the image"),
        ((float("nan"), 10.0, 15.0, 20.0), "box has a coordinate that is missing or not finite"),
        ((0.0, 10.0, float("inf"), 20.0), "box has a coordinate that is missing or not finite"),
        ((None, 10.0, 15.0, 20.0), "box has a coordinate that is missing or not finite"),
    ],
)
def test_boxes_that_label_nothing_are_left_out_and_counted(
    tmp_path: Path, box: tuple[float | None, ...], reason: str
) -> None:
    summary = one(tmp_path, detection("disc", box), detection("disc", (1, 1, 9, 9)))
    assert summary.skipped == {reason: 1}
    assert summary.annotations["disc"] == 1
    assert len(labels_in(tmp_path / "coco")) == 1
    assert f"| {reason} | 1 |" in (tmp_path / "coco/README.md").read_text()


def test_masks_that_do_not_fit_are_left_out_and_counted(tmp_path: Path) -> None:
    fits = detection("disc", mask=disc(48, 64, 20, 20, 10))
    other_size = {**fits, "mask": rle(disc(48, 63, 20, 20, 10))}
    nonsense = {**fits, "mask": "not a mask"}
    empty = {**fits, "mask": rle(np.zeros((48, 64), bool))}
    summary = one(tmp_path, fits, other_size, nonsense, empty)
    assert summary.skipped == {"mask has another size than the image": 1, "mask is not compressed RLE": 1}
    found = labels_in(tmp_path / "coco")
    assert [annotation["id"] % 100_000 for annotation in found] == [1, 4]
    assert found[1]["segmentation"] == []
    assert any("1 object has an empty mask" in note for note in summary.notes)
    assert any("1 object has no mask" in note for note in summary.notes)


def test_polygons_have_the_area_of_their_mask(tmp_path: Path) -> None:
    mask = disc(48, 64, 30, 20, 12)
    one(tmp_path, detection("disc", mask=mask), masks="polygon")
    coco = COCO(str(tmp_path / "coco/annotations/instances.json"))
    annotation = coco.dataset["annotations"][0]
    drawn = coco.annToMask(annotation) > 0
    assert (drawn & mask).sum() / (drawn | mask).sum() >= 0.99
    assert annotation["area"] == mask.sum()


def test_scores_and_prompts(tmp_path: Path) -> None:
    found = [
        detection("disc", (1, 1, 9, 9), score=0.30000001192092896, prompt='a "disc"\n'),
        detection("disc", (1, 1, 9, 9), score=None),
    ]
    one(tmp_path, *found)
    assert all("score" not in annotation for annotation in labels_in(tmp_path / "coco"))
    first, second = labels_in(tmp_path / "coco")
    assert first["attributes"] == {"prompt": 'a "disc"\n'}
    assert "attributes" not in second
    export(tmp_path / "scored", [picture(tmp_path / "source", 1, found)], scores=True)
    first, second = labels_in(tmp_path / "scored")
    assert first["score"] == 0.3
    assert "score" not in second


def test_labels_alone(tmp_path: Path) -> None:
    images = list(scenes(tmp_path / "source", 3))
    export(tmp_path / "coco", images, images="none", fetch=refuse)
    assert sorted(tree(tmp_path / "coco")) == ["README.md", "annotations/instances.json"]
    entries = load(tmp_path / "coco/annotations/instances.json")["images"]
    assert [entry["file_name"] for entry in entries] == [image.key for image in images]


def test_names_of_every_kind(tmp_path: Path) -> None:
    classes = ['say "stop"', "naïve #1", "it's\nbroken", "猫🐈", "a|b", "null"]
    keys = ["a/1.jpg", "b/1.jpg", "A/1.JPG", 'odd "name" #2\n.png', "猫 🐈.png", "100%.png"]
    images = [
        picture(tmp_path / "source", number, [detection(name, (1, 1, 9, 9))], key=key, format="JPEG")
        for number, (key, name) in enumerate(zip(keys, classes, strict=True), 1)
    ]
    export(tmp_path / "coco", images, classes=classes)
    raw = (tmp_path / "coco/annotations/instances.json").read_bytes()
    assert raw.isascii()
    document = json.loads(raw)
    assert [category["name"] for category in document["categories"]] == classes
    assert [entry["key"] for entry in document["images"]] == keys
    names = [entry["file_name"] for entry in document["images"]]
    assert len({name.lower() for name in names}) == len(keys)
    for name, image in zip(names, images, strict=True):
        assert name.endswith((".jpg", ".jpeg"))
        assert (tmp_path / "coco/images" / name).read_bytes() == Path(image.uri).read_bytes()


def test_no_images_at_all(tmp_path: Path) -> None:
    summary = export(tmp_path / "coco", [], ("train", "val"))
    assert summary.images == {"train": 0, "val": 0}
    assert summary.annotations == dict.fromkeys(CLASSES, 0)
    for path in summary.paths:
        document = load(tmp_path / "coco" / path)
        assert document["images"] == document["annotations"] == []
        assert COCO(str(tmp_path / "coco" / path)).getCatIds() == [1, 2, 3]


def test_an_image_of_one_pixel(tmp_path: Path) -> None:
    summary = one(tmp_path, detection("disc", (0, 0, 1, 1), mask=np.ones((1, 1), bool)), size=(1, 1), masks="polygon")
    assert summary.annotations["disc"] == 1
    coco = COCO(str(tmp_path / "coco/annotations/instances.json"))
    assert coco.dataset["annotations"][0]["bbox"] == [0, 0, 1, 1]
    assert coco.annToMask(coco.dataset["annotations"][0]).tolist() == [[1]]


def test_a_class_outside_the_ontology_stops_the_export(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"image '1\.png': class must be one of 'disc', .* but is 'dics'"):
        one(tmp_path, detection("dics", (1, 1, 9, 9)))


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, provenance in (("one", {"a": 1, "b": [2]}), ("two", {"b": [2], "a": 1})):
        export(
            tmp_path / name, scenes(tmp_path / "source", 9, ("train", "val")), ("train", "val"), provenance=provenance
        )
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert len(tree(tmp_path / "one")) == 9 + 3


def test_info_holds_where_it_came_from(tmp_path: Path) -> None:
    export(tmp_path / "coco", [], provenance={"run": "r", "licences": ["CC BY 4.0", "MIT"]})
    document = load(tmp_path / "coco/annotations/instances.json")
    assert document["info"]["provenance"]["run"] == "r"
    assert [(licence["id"], licence["name"]) for licence in document["licenses"]] == [(1, "CC BY 4.0"), (2, "MIT")]


def test_labels_are_upright_and_bytes_are_not_touched(tmp_path: Path) -> None:
    """A photograph taken sideways: 40 by 20 as stored, 20 by 40 upright."""
    import supervision

    path = tmp_path / "sideways.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    image = ExportImage(1, "sideways.jpg", str(path), 20, 40, None, [detection("disc", (2, 30, 18, 38))], "JPEG")
    export(tmp_path / "coco", [image], images="copy")
    placed = tmp_path / "coco/images/00000001-sideways.jpg"
    assert placed.read_bytes() == path.read_bytes()
    dataset: Any = supervision.DetectionDataset.from_coco(
        str(tmp_path / "coco/images"), str(tmp_path / "coco/annotations/instances.json")
    )
    (_, pixels, found), *_ = dataset
    assert pixels.shape == (40, 20, 3)
    assert found.xyxy.tolist() == [[2, 30, 18, 38]]


def test_an_object_store(s3: str, tmp_path: Path) -> None:
    filesystem = fsspec.filesystem("s3")
    export(Output(filesystem, f"{s3}/coco"), scenes(tmp_path / "source", 4))
    export(tmp_path / "coco", scenes(tmp_path / "source", 4))
    stored = {name.removeprefix(f"{s3}/coco/"): filesystem.cat_file(name) for name in filesystem.find(f"{s3}/coco")}
    assert stored == tree(tmp_path / "coco")


def peak(folder: Path, count: int) -> int:
    """Bytes at the highest point of exporting many images with one label each."""
    masked = [detection("disc", mask=disc(48, 64, 20, 20, 10), prompt="a disc")]
    boxed = [detection("disc", (1, 1, 9, 9), prompt="a disc")]

    def stream() -> Iterator[ExportImage]:
        for number in range(1, count + 1):
            labels = boxed if number % 10 else masked
            yield ExportImage(number, f"folder/{number}.jpg", "nowhere", 64, 48, None, labels, "JPEG")

    tracemalloc.start()
    try:
        export(folder, stream(), images="none")
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_dataset(tmp_path: Path) -> None:
    export(tmp_path / "warm", scenes(tmp_path / "source", 2))
    small, large = peak(tmp_path / "small", 2_000), peak(tmp_path / "large", 20_000)
    assert len(labels_in(tmp_path / "large")) == 20_000
    assert large <= 1.2 * small
