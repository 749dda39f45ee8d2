from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco_mask
from pydantic import ValidationError

from labelmill.pipelines.exports import exporter
from labelmill.pipelines.exports.dataset import ExportError, ExportImage, ExportSummary
from labelmill.pipelines.exports.files import Output
from tests.pipelines.exports.scenes import CLASSES, detection, disc, picture, ring, rle, scenes, tree, write_dataset


@pytest.fixture(scope="module")
def ultralytics(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Ultralytics' own loader, with its settings in a folder of the test and its downloads off."""
    folder = tmp_path_factory.mktemp("ultralytics")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YOLO_CONFIG_DIR", str(folder))
        patch.setenv("YOLO_OFFLINE", "true")
        patch.setenv("YOLO_AUTOINSTALL", "false")
        from ultralytics.cfg import get_cfg
        from ultralytics.data import utils
        from ultralytics.data.dataset import YOLODataset

        patch.setattr(utils, "check_font", lambda name: None)  # It would ask the network for Arial.

        def load(data_yaml: Path, split: str, task: str = "detect", size: int = 64) -> Any:
            data = utils.check_det_dataset(str(data_yaml), autodownload=False)
            options = get_cfg(overrides={"mask_ratio": 1, "overlap_mask": False, "task": task})
            return YOLODataset(
                data[split], data=data, task=task, imgsz=size, augment=False, hyp=options, cache=False, batch_size=1
            )

        yield SimpleNamespace(check=utils.check_det_dataset, load=load)


export = partial(write_dataset, "yolo")


def lines(folder: Path, number: int = 1) -> list[list[str]]:
    """The label file of an image, split into words."""
    (path,) = (folder / "labels").rglob(f"{number:08d}*.txt")
    return [line.split() for line in path.read_text().splitlines()]


def one(tmp_path: Path, *found: dict[str, Any], size: tuple[int, int] = (64, 48), **params: Any) -> ExportSummary:
    """Export one image with some detections to ``tmp_path/yolo``."""
    image = picture(tmp_path / "source", 1, list(found), width=size[0], height=size[1])
    return export(tmp_path / "yolo", [image], **params)


def corners(label: dict[str, Any]) -> list[float]:
    return [label[name] for name in ("x1", "y1", "x2", "y2")]


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def mask_of(label: dict[str, Any], image: ExportImage) -> np.ndarray:
    return np.asarray(coco_mask.decode({"size": [image.height, image.width], "counts": label["mask"]})) > 0


def test_the_tree_is_ready(tmp_path: Path) -> None:
    summary = export(
        tmp_path / "yolo", scenes(tmp_path / "source", 9, ("train", "val", "test")), ("train", "val", "test")
    )
    assert summary.paths == ("data.yaml",)
    assert summary.images == {"train": 3, "val": 3, "test": 3}
    assert summary.annotations == {"disc": 14, "stop sign": 7, "ring": 7}
    for split in ("train", "val", "test"):
        images = sorted(path.stem for path in (tmp_path / "yolo/images" / split).iterdir())
        labels = sorted(path.stem for path in (tmp_path / "yolo/labels" / split).iterdir())
        assert len(images) == 3
        assert images == labels
    document = yaml.safe_load((tmp_path / "yolo/data.yaml").read_text())
    assert document == {
        "train": "images/train",
        "val": "images/val",
        "test": "images/test",
        "names": dict(enumerate(CLASSES)),
    }
    assert lines(tmp_path / "yolo", 4) == []


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_ultralytics_reads_the_same_boxes(tmp_path: Path, ultralytics: SimpleNamespace, task: str) -> None:
    truth = {image.image_id: image for image in scenes(tmp_path / "source", 8, ("train", "val"))}
    export(tmp_path / "yolo", iter(truth.values()), ("train", "val"), task=task)
    seen = []
    for split in ("train", "val"):
        dataset = ultralytics.load(tmp_path / "yolo/data.yaml", split, task)
        assert list(dataset.data["names"].values()) == CLASSES
        for label in dataset.labels:
            image = truth[int(Path(label["im_file"]).name.split("-")[0])]
            seen.append(image.image_id)
            assert image.split == split
            assert tuple(label["shape"]) == (image.height, image.width)
            x, y, w, h = (label["bboxes"] * [image.width, image.height, image.width, image.height]).T
            found = np.stack([label["cls"][:, 0], x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)
            expected = np.array([[CLASSES.index(d["class"]), *corners(d)] for d in image.detections]).reshape(-1, 5)
            order = np.lexsort(found.T), np.lexsort(expected.T)
            tolerance = 0.01 if task == "detect" else 1.0
            assert found[order[0]] == pytest.approx(expected[order[1]], abs=tolerance)
    assert sorted(seen) == sorted(truth)


def test_ultralytics_trains_on_the_same_masks(tmp_path: Path, ultralytics: SimpleNamespace) -> None:
    """Through its whole pipeline for training images, at their own size: only the margin is added."""
    size = 160
    shapes = [
        disc(size, size, 60, 70, 40),
        disc(size, size, 100, 50, 8),
        np.pad(np.tri(70, 70, dtype=bool), ((40, 50), (60, 30))),
        np.pad(np.ones((1, 50), bool), ((100, 59), (70, 40))),
        ring(size, size, 80, 80, 50, 20),
        disc(size, size, 40, 80, 25) | disc(size, size, 110, 80, 20),
    ]
    truth = [
        picture(tmp_path / "source", number, [detection("disc", mask=shape)], width=size, height=size)
        for number, shape in enumerate(shapes, 1)
    ]
    export(tmp_path / "yolo", truth, task="segment")
    dataset = ultralytics.load(tmp_path / "yolo/data.yaml", "train", "segment", size)
    assert len(dataset) == len(shapes)
    for index, shape in enumerate(shapes):
        masks = dataset[index]["masks"].numpy() > 0
        assert masks.shape == (1, size, size)
        assert iou(masks[0], shape) >= 0.97


@pytest.mark.parametrize("split", ["train", "val"])
def test_supervision_reads_the_same_masks(tmp_path: Path, split: str) -> None:
    import supervision

    truth = {image.image_id: image for image in scenes(tmp_path / "source", 8, ("train", "val"))}
    export(tmp_path / "yolo", iter(truth.values()), ("train", "val"), task="segment")
    root = tmp_path / "yolo"
    dataset: Any = supervision.DetectionDataset.from_yolo(
        str(root / "images" / split), str(root / "labels" / split), str(root / "data.yaml")
    )
    assert dataset.classes == CLASSES
    assert len(dataset) == 4
    for path, pixels, found in dataset:
        image = truth[int(Path(path).name.split("-")[0])]
        assert pixels.shape[:2] == (image.height, image.width)
        assert len(found) == len(image.detections)
        for index, label in enumerate(image.detections):
            assert CLASSES[found.class_id[index]] == label["class"]
            assert found.xyxy[index] == pytest.approx(corners(label), abs=1)
            if label["mask"]:
                # Two parts cost a bridge one pixel wide.
                assert iou(found.mask[index], mask_of(label, image)) >= (0.96 if index == 2 else 0.98)


def test_supervision_reads_the_same_boxes(tmp_path: Path) -> None:
    import supervision

    truth = list(scenes(tmp_path / "source", 4))
    export(tmp_path / "yolo", truth)
    root = tmp_path / "yolo"
    dataset: Any = supervision.DetectionDataset.from_yolo(
        str(root / "images/train"), str(root / "labels/train"), str(root / "data.yaml")
    )
    by_name = sorted(dataset, key=lambda item: item[0])
    for (_, _, found), image in zip(by_name, truth, strict=True):
        assert len(found) == len(image.detections)
        for box, label in zip(found.xyxy, image.detections, strict=True):
            assert box == pytest.approx(corners(label), abs=0.01)


def test_the_tree_can_be_moved_and_read_from_anywhere(
    tmp_path: Path, ultralytics: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(tmp_path / "first", scenes(tmp_path / "source", 4, ("train", "val")), ("train", "val"))
    shutil.move(tmp_path / "first", tmp_path / "a place with images in it")
    moved = tmp_path / "a place with images in it"
    data = ultralytics.check(str(moved / "data.yaml"), autodownload=False)
    assert data["train"] == str(moved / "images/train")
    assert len(ultralytics.load(moved / "data.yaml", "val")) == 2
    monkeypatch.chdir(moved)
    assert ultralytics.check("data.yaml", autodownload=False)["val"] == str(moved / "images/val")


@pytest.mark.parametrize(
    ("splits", "train", "val", "test"),
    [
        ((), "images/train", "images/train", None),
        (("train",), "images/train", "images/train", None),
        (("train", "test"), "images/train", "images/train", "images/test"),
        (("train", "val"), "images/train", "images/val", None),
        (("val", "test"), None, "images/val", "images/test"),
        (("test",), None, None, "images/test"),
    ],
)
def test_ultralytics_accepts_every_set_of_splits(
    tmp_path: Path,
    ultralytics: SimpleNamespace,
    splits: tuple[str, ...],
    train: str | None,
    val: str | None,
    test: str | None,
) -> None:
    summary = export(tmp_path / "yolo", scenes(tmp_path / "source", 4, splits), splits)
    data = ultralytics.check(str(tmp_path / "yolo/data.yaml"), autodownload=False)
    root = tmp_path / "yolo"
    for name, path in (("train", train), ("val", val), ("test", test)):
        assert data.get(name) == (None if path is None else str(root / path))
    assert bool(summary.notes) == (not {"train", "val"} <= set(splits))


def test_a_split_without_images_is_no_split(tmp_path: Path, ultralytics: SimpleNamespace) -> None:
    export(tmp_path / "yolo", scenes(tmp_path / "source", 3, ("train",)), ("train", "val", "test"))
    data = ultralytics.check(str(tmp_path / "yolo/data.yaml"), autodownload=False)
    assert data["val"] == data["train"]
    assert "test" not in data


def test_other_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="must be train, val or test in YOLO but is 'holdout'"):
        export(tmp_path / "yolo", [], ("train", "holdout"))


def test_labels_without_images_are_refused() -> None:
    with pytest.raises(ValidationError, match="must be link or copy but is none"):
        exporter("yolo").Params.model_validate({"images": "none"})


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0.0, 0.0, 64.0, 48.0), (0, 0, 64, 48)),
        ((-5.0, -3.0, 10.0, 8.0), (0, 0, 10, 8)),
        ((60.0, 40.0, 1e9, 1e9), (60, 40, 64, 48)),
        ((1 / 3, 1 / 7, 63.999, 47.77), (1 / 3, 1 / 7, 63.999, 47.77)),
    ],
)
def test_boxes_are_clipped_and_never_reach_outside(
    tmp_path: Path, box: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    one(tmp_path, detection("stop sign", box))
    ((class_id, *numbers),) = lines(tmp_path / "yolo")
    assert class_id == "1"
    assert all(len(number.split(".")[1]) == 6 for number in numbers)
    x, y, w, h = (round(float(number) * 1_000_000) for number in numbers)
    assert w % 2 == h % 2 == 0
    left, top, right, bottom = x - w // 2, y - h // 2, x + w // 2, y + h // 2
    assert left >= 0
    assert top >= 0
    assert right <= 1_000_000
    assert bottom <= 1_000_000
    found = np.array([left, top, right, bottom]) / 1_000_000 * [64, 48, 64, 48]
    assert found == pytest.approx(expected, abs=1e-3)


def test_boxes_that_label_nothing_are_left_out_and_counted(tmp_path: Path) -> None:
    summary = one(
        tmp_path,
        detection("disc", (10, 10, 5, 20)),
        detection("disc", (70, 10, 80, 20)),
        detection("disc", (1, 1, 9, 9)),
        {**detection("disc", (1, 1, 9, 9)), "mask": rle(disc(40, 40, 5, 5, 4))},
    )
    assert summary.skipped == {
        "box is inverted": 1,
        "box lies outside the image": 1,
        "mask has another size than the image": 1,
    }
    assert summary.annotations["disc"] == len(lines(tmp_path / "yolo")) == 1


def test_an_object_without_a_mask_is_the_polygon_of_its_box(tmp_path: Path, ultralytics: SimpleNamespace) -> None:
    """Ultralytics refuses an image with boxes and polygons."""
    one(tmp_path, detection("ring", (8, 12, 40, 36)), detection("disc", mask=disc(48, 64, 40, 20, 9)), task="segment")
    box, polygon = lines(tmp_path / "yolo")
    assert [float(number) for number in box] == [2, 0.125, 0.25, 0.625, 0.25, 0.625, 0.75, 0.125, 0.75]
    assert len(polygon) > 9
    dataset = ultralytics.load(tmp_path / "yolo/data.yaml", "train", "segment")
    assert len(dataset.labels[0]["segments"]) == 2


def test_names_of_every_kind(tmp_path: Path, ultralytics: SimpleNamespace) -> None:
    import supervision

    classes = ['say "stop"', "naïve #1", "it's\nbroken: {x}", "猫🐈", "- a|b", "null", "1.0", "yes", " x" * 60]
    keys = ["a/1.jpg", "b/1.jpg", "A/1.JPG", 'odd "name" #2\n.png', "猫 🐈.png", "100%.png", "a/1.jpeg", "é.gif", "'.x"]
    images = [
        picture(tmp_path / "source", number, [detection(name, (1, 1, 9, 9))], key=key, format="JPEG")
        for number, (key, name) in enumerate(zip(keys, classes, strict=True), 1)
    ]
    root = tmp_path / "yolo"
    export(root, images, classes=classes)
    dataset = ultralytics.load(root / "data.yaml", "train")
    assert dataset.data["names"] == dict(enumerate(classes))
    assert [label["cls"].tolist() for label in dataset.labels] == [[[index]] for index in range(len(keys))]
    other: Any = supervision.DetectionDataset.from_yolo(
        str(root / "images/train"), str(root / "labels/train"), str(root / "data.yaml")
    )
    assert other.classes == classes
    assert sorted(int(found.class_id[0]) for _, _, found in other) == list(range(len(keys)))


def test_a_file_has_the_extension_of_its_format(tmp_path: Path, ultralytics: SimpleNamespace) -> None:
    truth = [
        picture(tmp_path / "source", 1, [], key="a.jpg", format="PNG"),
        picture(tmp_path / "source", 2, [], key="b.dat", format="JPEG"),
        picture(tmp_path / "source", 3, [], key="c", format="WEBP"),
    ]
    export(tmp_path / "yolo", truth)
    dataset = ultralytics.load(tmp_path / "yolo/data.yaml", "train")
    assert [Path(path).name for path in dataset.im_files] == ["00000001-a.png", "00000002-b.jpg", "00000003-c.webp"]


def test_what_ultralytics_passes_over_is_said(tmp_path: Path, ultralytics: SimpleNamespace) -> None:
    truth = [
        picture(tmp_path / "source", 1, [detection("disc", (1, 1, 9, 9))]),
        picture(tmp_path / "source", 2, [], key="b.gif", format="GIF"),
        picture(tmp_path / "source", 3, [detection("disc", (0, 0, 1, 1))], width=1, height=1),
    ]
    summary = export(tmp_path / "yolo", truth)
    assert "1 image of the format GIF, which Ultralytics does not read." in summary.notes
    assert "1 image with a side below 10 pixels, which Ultralytics leaves out." in summary.notes
    dataset = ultralytics.load(tmp_path / "yolo/data.yaml", "train")
    assert len(dataset.labels) == 1


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_an_image_of_one_pixel(tmp_path: Path, task: str) -> None:
    one(tmp_path, detection("disc", (0, 0, 1, 1), mask=np.ones((1, 1), bool)), size=(1, 1), task=task)
    ((_, *numbers),) = lines(tmp_path / "yolo")
    assert len(numbers) == (4 if task == "detect" else 6)
    assert all(0 <= float(number) <= 1 for number in numbers)


@pytest.mark.parametrize("splits", [(), ("train", "val")])
def test_no_images_at_all(tmp_path: Path, splits: tuple[str, ...]) -> None:
    summary = export(tmp_path / "yolo", [], splits)
    assert sum(summary.images.values()) == 0
    assert yaml.safe_load((tmp_path / "yolo/data.yaml").read_text())["names"] == dict(enumerate(CLASSES))


def test_a_class_outside_the_ontology_stops_the_export(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"image '1\.png': class must be one of .* but is 'dics'"):
        one(tmp_path, detection("dics", (1, 1, 9, 9)))


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        export(tmp_path / name, scenes(tmp_path / "source", 9, ("train", "val")), ("train", "val"), task="segment")
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert len(tree(tmp_path / "one")) == 9 + 9 + 2


def test_the_card_says_how_many(tmp_path: Path) -> None:
    export(tmp_path / "yolo", scenes(tmp_path / "source", 4, ("train", "val")), ("train", "val"))
    card = (tmp_path / "yolo/README.md").read_text()
    assert "| class | train | val |" in card
    assert "| stop sign | 1 | 2 |" in card
    assert '"run": "test"' in card


def test_labels_are_upright_and_bytes_are_not_touched(tmp_path: Path, ultralytics: SimpleNamespace) -> None:
    """A photograph taken sideways: 40 by 20 as stored, 20 by 40 upright."""
    path = tmp_path / "sideways.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    image = ExportImage(1, "sideways.jpg", str(path), 20, 40, None, [detection("disc", (2, 30, 18, 38))], "JPEG")
    export(tmp_path / "yolo", [image], images="copy")
    placed = tmp_path / "yolo/images/train/00000001-sideways.jpg"
    assert placed.read_bytes() == path.read_bytes()
    dataset = ultralytics.load(tmp_path / "yolo/data.yaml", "train")
    assert tuple(dataset.labels[0]["shape"]) == (40, 20)
    assert dataset.load_image(0)[1] == (40, 20)
    assert dataset.labels[0]["bboxes"][0] * [20, 40, 20, 40] == pytest.approx([10, 34, 16, 8], abs=1e-3)
    assert placed.read_bytes() == path.read_bytes()


def test_an_object_store(s3: str, tmp_path: Path) -> None:
    filesystem = fsspec.filesystem("s3")
    for out in (Output(filesystem, f"{s3}/yolo"), tmp_path / "yolo"):
        export(out, scenes(tmp_path / "source", 6, ("train", "val")), ("train", "val"), task="segment")
    stored = {name.removeprefix(f"{s3}/yolo/"): filesystem.cat_file(name) for name in filesystem.find(f"{s3}/yolo")}
    assert stored == tree(tmp_path / "yolo")


def peak(folder: Path, count: int) -> int:
    """Bytes at the highest point of exporting links to one image, many times."""
    original = picture(folder, 1, [])
    found = [detection("disc", (1, 1, 9, 9))]

    def stream() -> Iterator[ExportImage]:
        for number in range(1, count + 1):
            yield ExportImage(number, f"folder/{number}.png", original.uri, 64, 48, None, found, "PNG")

    tracemalloc.start()
    try:
        export(folder / "yolo", stream())
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_dataset(tmp_path: Path) -> None:
    export(tmp_path / "warm", scenes(tmp_path / "source", 2))
    small, large = peak(tmp_path / "small", 2_000), peak(tmp_path / "large", 20_000)
    assert sum(1 for _ in (tmp_path / "large/yolo/labels/train").iterdir()) == 20_000
    assert large <= 1.2 * small
