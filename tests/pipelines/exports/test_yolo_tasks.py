"""YOLO: rotated rectangles and classes of images, as Ultralytics reads them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from labelmill.pipelines.exports.dataset import ExportError, ExportImage
from labelmill.pipelines.exports.masks import read_mask, smallest_rectangle
from tests.pipelines.exports.scenes import CLASSES, detection, disc, picture, rle, write_dataset

WIDTH, HEIGHT = 160, 120


@pytest.fixture(scope="module")
def ultralytics(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Its loaders, with its settings in a folder of their own and no way to the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YOLO_CONFIG_DIR", str(tmp_path_factory.mktemp("ultralytics")))
        patch.setenv("YOLO_OFFLINE", "true")
        patch.setenv("YOLO_AUTOINSTALL", "false")
        from ultralytics.cfg import get_cfg
        from ultralytics.data import utils
        from ultralytics.data.dataset import ClassificationDataset, YOLODataset

        patch.setattr(utils, "check_font", lambda name: None)  # It would ask the network for Arial.

        def rectangles(data_yaml: Path, split: str) -> Any:
            data = utils.check_det_dataset(str(data_yaml), autodownload=False)
            options = get_cfg(overrides={"task": "obb"})
            return YOLODataset(
                data[split], data=data, task="obb", imgsz=WIDTH, augment=False, hyp=options, cache=False, batch_size=1
            )

        def classes(folder: Path) -> Any:
            return ClassificationDataset(str(folder), get_cfg(overrides={"task": "classify", "imgsz": 32}))

        yield SimpleNamespace(rectangles=rectangles, classes=classes, check_classes=utils.check_cls_dataset)


export = partial(write_dataset, "yolo")


def scene(folder: Path, number: int, found: list[dict[str, Any]], **options: Any) -> ExportImage:
    return picture(folder, number, found, width=WIDTH, height=HEIGHT, **options)


def turned(x: float, y: float, width: float, height: float, angle: float) -> np.ndarray:
    """Corners of a rectangle, clockwise from the top left of what is written in it: float (4, 2)."""
    sides = np.array([[-width, -height], [width, -height], [width, height], [-width, height]]) / 2
    c, s = np.cos(angle), np.sin(angle)
    return np.asarray(sides @ [[c, s], [-s, c]] + [x, y])


def word(corners: np.ndarray, text: str = "stop") -> dict[str, Any]:
    (x1, y1), (x2, y2) = corners.min(0).tolist(), corners.max(0).tolist()
    quad = corners.ravel().tolist()
    return {"text": text, "confidence": 0.9, "quad": quad, "x1": x1, "y1": y1, "x2": x2, "y2": y2, "line": 0}


def lines(folder: Path, number: int) -> list[tuple[int, np.ndarray]]:
    """Class id and corners in pixels of each line of an image's label file."""
    (path,) = folder.rglob(f"{number:08d}*.txt")
    found = [line.split() for line in path.read_text().splitlines()]
    return [(int(each[0]), np.array(each[1:], float).reshape(4, 2) * [WIDTH, HEIGHT]) for each in found]


def painted(corners: np.ndarray) -> np.ndarray:
    canvas = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.fillPoly(canvas, [np.rint(corners - 0.5).astype(np.int32)], 1)
    return canvas > 0


def same_rectangle(one: np.ndarray, other: np.ndarray, within: float) -> bool:
    """Whether the corners are the same, whichever comes first and whichever way round."""
    orders = [np.roll(turn, shift, axis=0) for turn in (other, other[::-1]) for shift in range(4)]
    return min(float(np.abs(one - order).max()) for order in orders) <= within


def test_words_are_their_quads_and_objects_the_rectangles_of_their_masks(
    tmp_path: Path, ultralytics: SimpleNamespace
) -> None:
    quad, sign = turned(80, 60, 50, 12, 0.4), turned(50, 70, 60, 20, -0.7)
    found = [detection("ring", mask=painted(sign)), detection("disc", (10.5, 5.25, 30.5, 25.75))]
    images = [scene(tmp_path / "source", 1, found, words=[word(quad)]), scene(tmp_path / "source", 2, [], words=[])]
    summary = export(tmp_path / "yolo", images, task="obb")
    assert summary.annotations == {"disc": 1, "stop sign": 0, "ring": 1, "text": 1}
    assert "1 object has no mask; the rectangle is then the box, which is upright." in summary.notes
    assert yaml.safe_load((tmp_path / "yolo/data.yaml").read_text())["names"] == dict(enumerate([*CLASSES, "text"]))
    (ring, ring_corners), (box, box_corners), (text, text_corners) = lines(tmp_path / "yolo/labels", 1)
    assert [CLASSES[ring], CLASSES[box], text] == ["ring", "disc", 3]
    assert same_rectangle(ring_corners, sign, within=2.0)
    assert box_corners.tolist() == pytest.approx(
        np.array([[10.5, 5.25], [30.5, 5.25], [30.5, 25.75], [10.5, 25.75]]), abs=1e-3
    )
    assert text_corners.tolist() == pytest.approx(quad, abs=1e-3)
    assert lines(tmp_path / "yolo/labels", 2) == []

    dataset = ultralytics.rectangles(tmp_path / "yolo/data.yaml", "train")
    assert len(dataset) == 2
    read_back = dataset[0]
    assert read_back["cls"].ravel().tolist() == [2, 0, 3]
    x, y, w, h, angle = read_back["bboxes"][2].tolist()
    centre = [x * WIDTH, y * WIDTH - (WIDTH - HEIGHT) / 2]  # letterboxed to a square
    assert centre == pytest.approx([80, 60], abs=0.6)
    assert sorted([w * WIDTH, h * WIDTH]) == pytest.approx([12, 50], abs=1)
    assert min(abs(angle - 0.4), abs(angle - 0.4 - np.pi / 2), abs(angle - 0.4 + np.pi / 2)) < 0.05


def test_a_class_called_text_takes_the_words(tmp_path: Path) -> None:
    image = scene(tmp_path / "source", 1, [], words=[word(turned(80, 60, 50, 12, 0))])
    summary = export(tmp_path / "yolo", [image], classes=["text", "car"], task="obb")
    assert summary.annotations == {"text": 1, "car": 0}
    assert lines(tmp_path / "yolo/labels", 1)[0][0] == 0


def test_without_words_there_is_no_class_for_them(tmp_path: Path) -> None:
    summary = export(tmp_path / "yolo", [scene(tmp_path / "source", 1, [detection("disc", (1, 1, 9, 9))])], task="obb")
    assert list(summary.annotations) == CLASSES


def test_corners_outside_come_to_the_edge_and_what_is_left_of_words_is_counted(
    tmp_path: Path, ultralytics: SimpleNamespace
) -> None:
    nowhere, broken = word(turned(300, 60, 50, 12, 0.4)), word(turned(80, 60, 50, 12, 0.4))
    broken["quad"][3] = float("nan")
    over = turned(150, 10, 50, 12, 0.4)
    corner = np.zeros((HEIGHT, WIDTH), bool)
    corner[:30, :3] = corner[:3, :30] = True
    corner |= np.flipud(np.tri(HEIGHT, WIDTH, -HEIGHT + 30, dtype=bool))
    image = scene(tmp_path / "source", 1, [detection("disc", mask=corner)], words=[nowhere, broken, word(over)])
    summary = export(tmp_path / "yolo", [image], task="obb")
    assert summary.annotations["text"] == 1
    assert sum(summary.skipped.values()) == 2
    assert summary.skipped["word is less than 0.5 px wide or high inside the image"] == 1
    for _, corners in lines(tmp_path / "yolo/labels", 1):
        assert (corners >= 0).all()
        assert (corners <= [WIDTH, HEIGHT]).all()
    assert lines(tmp_path / "yolo/labels", 1)[1][1] == pytest.approx(np.clip(over, 0, [WIDTH, HEIGHT]), abs=1e-3)
    assert len(ultralytics.rectangles(tmp_path / "yolo/data.yaml", "train").labels[0]["cls"]) == 2


@pytest.mark.parametrize("angle", [0.0, 0.3, 0.8, 1.2])
def test_the_smallest_rectangle_holds_every_pixel_and_little_else(angle: float) -> None:
    mask = painted(turned(70, 60, 60, 16, angle)) | disc(HEIGHT, WIDTH, 70, 60, 4)
    corners = np.array(smallest_rectangle(read_mask(rle(mask), HEIGHT, WIDTH)), np.float32)
    rows, columns = np.nonzero(mask)
    for dx in (0, 1):
        for dy in (0, 1):
            assert all(
                cv2.pointPolygonTest(corners, (float(x + dx), float(y + dy)), True) > -1e-3
                for x, y in zip(columns, rows, strict=True)
            )
    assert cv2.contourArea(corners) <= 1.25 * mask.sum()


def test_the_smallest_rectangle_of_a_pixel_is_the_pixel() -> None:
    corners = smallest_rectangle(read_mask(rle(disc(5, 7, 3, 2, 0)), 5, 7))
    assert sorted(corners) == [(3, 2), (3, 3), (4, 2), (4, 3)]


def test_ultralytics_reads_the_classes_of_images(tmp_path: Path, ultralytics: SimpleNamespace) -> None:
    kinds = ["disc", "stop sign", "ring", "disc", None, "", "ring"]
    splits = ("train", "val", "test")
    images = [
        scene(tmp_path / "source", number, [], split=splits[number % 2], image_class=kind)
        for number, kind in enumerate(kinds, 1)
    ]
    summary = export(tmp_path / "yolo", images, splits, task="classify")
    assert summary.images == {"train": 2, "val": 3, "test": 0}
    assert summary.annotations == {"disc": 2, "stop sign": 1, "ring": 2}
    assert summary.skipped == {"image has no class": 2}
    folders = {str(path.relative_to(tmp_path / "yolo")) for path in (tmp_path / "yolo").rglob("*") if path.is_dir()}
    assert folders == {"train", "val", *(f"{split}/{name}" for split in ("train", "val") for name in CLASSES)}
    assert (tmp_path / "yolo/train/stop sign/00000002-2.png").samefile(images[1].uri)

    found = ultralytics.check_classes(tmp_path / "yolo")
    assert found["names"] == dict(enumerate(sorted(CLASSES)))
    for split, expected in (("train", {2: "stop sign", 4: "disc"}), ("val", {1: "disc", 3: "ring", 7: "ring"})):
        dataset = ultralytics.classes(found[split])
        read_back = {int(Path(sample[0]).name[:8]): found["names"][sample[1]] for sample in dataset.samples}
        assert read_back == expected


def test_classes_without_train_stop_training_rather_than_teach_it_the_test_images(
    tmp_path: Path, ultralytics: SimpleNamespace
) -> None:
    image = scene(tmp_path / "source", 1, [], split="test", image_class="disc")
    summary = export(tmp_path / "yolo", [image], ("test",), task="classify")
    assert "There is no train split: the folders of train are empty, and training stops with an error." in summary.notes
    with pytest.raises(FileNotFoundError, match="no training images found"):
        ultralytics.check_classes(tmp_path / "yolo")
    assert len(list(tmp_path.rglob("00000001-*"))) == 1


def test_classes_become_folders_that_every_disk_takes(tmp_path: Path) -> None:
    names = ["a/b", "..", ".net", "50%", "CON?", "日本", "x."]
    images = [scene(tmp_path / "source", number, [], image_class=name) for number, name in enumerate(names, 1)]
    summary = export(tmp_path / "yolo", images, classes=names, task="classify")
    folders = {int(path.name[:8]): path.parent.name for path in (tmp_path / "yolo/train").rglob("*.png")}
    assert folders == {1: "a%2Fb", 2: "%2E%2E", 3: "%2Enet", 4: "50%25", 5: "CON%3F", 6: "日本", 7: "x%2E"}
    assert any("6 classes have characters that no folder can have" in note for note in summary.notes)
    for wrong, message in ((["Car", "car"], "more than upper and lower case"), (["x" * 201], "1 to 200 bytes")):
        with pytest.raises(ExportError, match=message):
            export(tmp_path / "yolo", [], classes=wrong, task="classify")


def test_a_class_of_an_image_that_is_not_among_the_classes_stops_the_export(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"image '1\.png': class must be one of 'disc', .* but is 'dics'"):
        export(tmp_path / "yolo", [scene(tmp_path / "source", 1, [], image_class="dics")], task="classify")
