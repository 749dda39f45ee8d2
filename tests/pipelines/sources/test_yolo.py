from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from pycocotools import mask as coco_mask

from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.pipelines.sources import SourceError
from tests.pipelines.sources.helpers import boxes, fetch_all, picture, scan, source_of, write


def tree(root: Path, labels: dict[str, str | None], names: Any = ("car", "bus"), **more: Any) -> dict[str, str]:
    """A dataset in the usual layout; `labels` by ``train/a``. Gives the source section."""
    splits = sorted({name.split("/")[0] for name in labels})
    for number, (name, text) in enumerate(sorted(labels.items())):
        write(root / "images" / f"{name}.jpg", picture(number, 40, 20))
        (root / "labels" / name).parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            write(root / "labels" / f"{name}.txt", text.encode())
    document = {"path": ".", **{split: f"images/{split}" for split in splits}, **more}
    document["names"] = names if isinstance(names, dict) else list(names)
    return {"yolo": str(write(root / "data.yaml", yaml.safe_dump(document).encode()))}


def test_boxes_polygons_splits_and_negatives(tmp_path: Path) -> None:
    spec = tree(
        tmp_path,
        {
            "train/a": "0 0.5 0.5 0.5 0.5\n1 0.0 0.0 0.5 0.0 0.5 0.5 0.0 0.5\n",
            "train/deep/b": "",
            "val/c": None,
            "test/d": "1 0.05 0.5 0.102 0.2",
        },
    )
    source = source_of(spec)
    assert source.classes == ["car", "bus"]
    entries = {entry.key: entry for entry in source.scan()}
    assert source.problems == []
    assert {key: entry.split for key, entry in entries.items()} == {
        "images/train/a.jpg": "train",
        "images/train/deep/b.jpg": "train",
        "images/val/c.jpg": "val",
        "images/test/d.jpg": "test",
    }
    first = entries["images/train/a.jpg"]
    assert boxes(first) == [("car", 10, 5, 30, 15), ("bus", 0, 0, 20, 10)]
    assert first.labels is not None
    assert first.labels[0]["mask"] is None
    drawn = coco_mask.decode({"size": [20, 40], "counts": first.labels[1]["mask"].encode()})
    expected = np.zeros((20, 40), np.uint8)
    expected[:11, :21] = 1  # with the border, as `fillPoly` paints it
    np.testing.assert_array_equal(drawn, expected)
    assert entries["images/train/deep/b.jpg"].labels == []
    assert entries["images/val/c.jpg"].labels is None, "nobody looked"
    assert boxes(entries["images/test/d.jpg"]) == [pytest.approx(("bus", 0, 8, 4.04, 12))]
    assert all(entry.problem is None for entry in entries.values())
    pa.array([entry.labels for entry in entries.values()], DETECTIONS)
    assert len(set(fetch_all(entries).values())) == 4


def test_it_reads_what_ultralytics_reads(tmp_path: Path) -> None:
    """The same objects, in the same places, as the format's own reader."""
    generator = np.random.default_rng(0)
    labels: dict[str, str | None] = {}
    for number in range(6):
        lines = []
        for _ in range(number):
            w, h = generator.uniform(0.1, 0.5, 2)
            cx, cy = generator.uniform(0.25, 0.75, 2)
            lines.append(f"{generator.integers(2)} {cx:.6f} {cy:.6f} {w:.6f} {h:.6f}")
        labels[f"train/{number}"] = "\n".join(lines)
    spec = tree(tmp_path, labels, val="images/train")
    from ultralytics.data.dataset import YOLODataset

    data = {"names": {0: "car", 1: "bus"}, "nc": 2, "channels": 3}
    reference = YOLODataset(img_path=str(tmp_path / "images/train"), data=data, augment=False, task="detect")
    entries = scan(spec)
    assert len(reference.labels) == 6
    for item in reference.labels:
        entry = entries[f"images/train/{Path(item['im_file']).name}"]
        width, height = item["shape"][1], item["shape"][0]
        centre = item["bboxes"] * [width, height, width, height]
        corners = np.hstack([centre[:, :2] - centre[:, 2:] / 2, centre[:, :2] + centre[:, 2:] / 2])
        mine = boxes(entry)
        assert [name for name, *_ in mine] == [("car", "bus")[int(number)] for number in item["cls"].ravel()]
        np.testing.assert_allclose(np.array([box[1:] for box in mine]).reshape(-1, 4), corners, atol=1e-3)


def test_an_upright_size_is_used(tmp_path: Path) -> None:
    from PIL import Image

    spec = tree(tmp_path, {"train/a": "0 0.5 0.5 1 1"})
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    for path, kind in ((tmp_path / "images/train/a.jpg", "JPEG"), (tmp_path / "images/train/a2.png", "PNG")):
        path.write_bytes(picture(1, 40, 20, kind, exif=exif))
    write(tmp_path / "labels/train/a2.txt", b"0 0.5 0.5 1 1")
    entries = scan(spec)
    assert boxes(entries["images/train/a.jpg"]) == [("car", 0, 0, 20, 40)]
    assert boxes(entries["images/train/a2.png"]) == [("car", 0, 0, 20, 40)]


def test_a_header_longer_than_what_is_read_first(tmp_path: Path) -> None:
    spec = tree(tmp_path, {"train/a": "0 0.5 0.5 1 1", "train/b": "0 0.5 0.5 1 1"})
    (tmp_path / "images/train/a.jpg").write_bytes(picture(1, 600, 400, icc_profile=bytes(300_000)))
    (tmp_path / "images/train/b.jpg").write_bytes(picture(1, 1600, 1200, quality=98))
    assert (tmp_path / "images/train/b.jpg").stat().st_size > 131072
    entries = scan(spec)
    assert boxes(entries["images/train/a.jpg"]) == [("car", 0, 0, 600, 400)]
    assert boxes(entries["images/train/b.jpg"]) == [("car", 0, 0, 1600, 1200)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.1", "has 4 values"),
        ("0 0.5 0.5 0.1 0.1 0.9", "has 6 values"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "has 8 values"),
        ("2 0.5 0.5 0.1 0.1", "must name a class from 0 to 1 but names 2"),
        ("-1 0.5 0.5 0.1 0.1", "must name a class"),
        ("0.5 0.5 0.5 0.1 0.1", "must name a class"),
        ("car 0.5 0.5 0.1 0.1", "must have numbers only"),
        ("0 nan 0.5 0.1 0.1", "finite"),
        ("0 20 10 4 4", "relative to the image"),
        ("0 0.5 0.5 0 0.1", "without area"),
        ("0 0.5 0.5 0.25 0.25", "repeats line 1"),
        ("0 0.1 0.1 0.1 0.1 0.1 0.1", "is a single point"),
    ],
)
def test_a_malformed_line_is_named_and_the_others_stay(tmp_path: Path, line: str, message: str) -> None:
    spec = tree(tmp_path, {"train/a": f"0 0.5 0.5 0.25 0.25\n\n{line}\n1.0 0.5 0.5 0.5 0.5\n"})
    entry = scan(spec)["images/train/a.jpg"]
    assert boxes(entry) == [("car", 15, 7.5, 25, 12.5), ("bus", 10, 5, 30, 15)]
    assert (entry.problem or "").startswith("labels/train/a.txt:3 ")
    assert message in (entry.problem or "")


def test_broken_images_and_binary_labels(tmp_path: Path) -> None:
    spec = tree(tmp_path, {"train/a": "0 0.5 0.5 1 1", "train/b": "x"})
    (tmp_path / "images/train/a.jpg").write_bytes(b"no image")
    (tmp_path / "labels/train/b.txt").write_bytes(bytes(range(256)))
    entries = scan(spec)
    assert entries["images/train/a.jpg"].labels is None
    (refused,) = entries["images/train/a.jpg"].refused
    assert refused.place == "labels/train/a.txt:1"
    assert "the image's size is not known" in refused.reason
    assert entries["images/train/b.jpg"].labels is None
    assert entries["images/train/b.jpg"].label_state == "refused"
    assert "b.txt:" in (entries["images/train/b.jpg"].problem or "")


def test_lists_folders_and_names_as_a_mapping(tmp_path: Path) -> None:
    spec = tree(
        tmp_path,
        {"one/a": "3 0.5 0.5 1 1", "two/b": None, "three/c": "7 0.5 0.5 1 1"},
        names={7: "bus", 3: "car", 0: "x"},
    )
    document = yaml.safe_load(Path(spec["yolo"]).read_text())
    write(tmp_path / "lists/val.txt", f"../images/three/c.jpg\n\n{tmp_path}/images/three/gone.jpg\nnotes.md\n".encode())
    document = {
        "path": str(tmp_path),
        "train": ["images/one", "images/two"],
        "val": "lists/val.txt",
        "test": "gone.txt",
        "names": document["names"],
    }
    write(tmp_path / "data.yaml", yaml.safe_dump(document).encode())
    source = source_of(spec)
    entries = {entry.key: entry for entry in source.scan()}
    assert source.classes == ["x", "car", "bus"]
    assert {key: entry.split for key, entry in entries.items()} == {
        "images/one/a.jpg": "train",
        "images/two/b.jpg": "train",
        "images/three/c.jpg": "val",
        "images/three/gone.jpg": "val",
    }
    assert boxes(entries["images/one/a.jpg"])[0][0] == "car"
    assert boxes(entries["images/three/c.jpg"])[0][0] == "bus"
    assert "the file is gone" in (entries["images/three/gone.jpg"].problem or "")
    assert source.ignored == {".md": 1}
    assert "gone.txt" in source.problems[0]
    write(tmp_path / "labels/one/a.txt", b"1 0.5 0.5 1 1")
    entry = scan(spec)["images/one/a.jpg"]
    assert (entry.labels, entry.label_state) == (None, "refused")
    assert "names class 1, which has no name" in (entry.problem or "")


def test_labels_beside_images_and_no_labels_at_all(tmp_path: Path) -> None:
    for name in ("with/a", "with/b", "without/c"):
        write(tmp_path / f"{name}.jpg", picture(0, 40, 20))
    write(tmp_path / "with/a.txt", b"0 0.5 0.5 1 1")
    document = {"train": "with", "val": "without", "names": ["car"]}
    spec = {"yolo": str(write(tmp_path / "data.yaml", yaml.safe_dump(document).encode()))}
    entries = scan(spec)
    assert boxes(entries["with/a.jpg"]) == [("car", 0, 0, 40, 20)]
    assert entries["with/b.jpg"].labels is None
    assert entries["without/c.jpg"].labels is None


def test_an_image_in_two_splits_is_listed_once(tmp_path: Path) -> None:
    spec = tree(tmp_path, {"train/a": "0 0.5 0.5 1 1", "train/b": None}, val="val.txt")
    write(tmp_path / "val.txt", b"images/train/a.jpg\nimages/train/b.jpg\n")
    entries = scan(spec)
    assert [entry.split for entry in entries.values()] == ["train", "train"]
    assert all(entry.problem == "this image is in train and also in val" for entry in entries.values())


def test_a_split_that_is_another_one_is_said_once(tmp_path: Path) -> None:
    spec = tree(tmp_path, {"train/a": "", "train/b": ""}, val="./images/train")
    source = source_of(spec)
    entries = list(source.scan())
    assert [(entry.split, entry.problem) for entry in entries] == [("train", None)] * 2
    assert len(source.problems) == 1
    assert source.problems[0].endswith("is ./images/train, which is train already")


def test_label_files_without_image_are_named(tmp_path: Path) -> None:
    spec = tree(tmp_path, {"train/a": "0 0.5 0.5 0.1 0.1", "val/deep/b": ""})
    write(tmp_path / "labels/train/lost.txt", b"0 0.5 0.5 0.1 0.1")
    write(tmp_path / "labels/val/deep/gone.txt", b"")
    write(tmp_path / "labels/train/classes.txt", b"car")
    source = source_of(spec)
    assert {entry.key: entry.problem for entry in source.scan()} == {
        "images/train/a.jpg": None,
        "images/val/deep/b.jpg": None,
    }
    assert source.problems == [
        "labels/train/lost.txt is left out: it has no image",
        "labels/val/deep/gone.txt is left out: it has no image",
    ]


def test_a_box_that_leaves_the_image_is_clipped_and_named(tmp_path: Path) -> None:
    entry = scan(tree(tmp_path, {"train/a": "0 0.9375 0.5 0.25 0.5\n1 0.5 0.5 1.01 1.01"}))["images/train/a.jpg"]
    assert boxes(entry) == [("car", 32.5, 5, 40, 15), ("bus", 0, 0, 40, 20)]
    assert entry.problem == "labels/train/a.txt:1 leaves the image by 2.5 pixels; it was clipped"


def test_roboflow_paths_and_a_path_of_another_machine(tmp_path: Path) -> None:
    write(tmp_path / "train/images/a.jpg", picture(0, 40, 20))
    write(tmp_path / "train/labels/a.txt", b"0 0.5 0.5 1 1")
    document = {"path": "/somewhere/else", "train": "../train/images", "val": "../train/images", "names": ["car"]}
    source = source_of({"yolo": str(write(tmp_path / "data.yaml", yaml.safe_dump(document).encode()))})
    (entry,) = source.scan()
    assert entry.key == "train/images/a.jpg"
    assert boxes(entry) == [("car", 0, 0, 40, 20)]
    assert "/somewhere/else, which does not exist" in source.problems[0]


def test_images_outside_the_root_have_keys(tmp_path: Path) -> None:
    write(tmp_path / "photos/images/a.jpg", picture(0, 40, 20))
    document = {"path": "sub", "train": "../photos/images", "names": ["car"]}
    (tmp_path / "sub").mkdir()
    (entry,) = scan({"yolo": str(write(tmp_path / "data.yaml", yaml.safe_dump(document).encode()))}).values()
    assert entry.key == str(tmp_path / "photos/images/a.jpg").lstrip("/")


def test_keypoints_are_not_taken_for_polygons(tmp_path: Path) -> None:
    spec = tree(tmp_path, {"train/a": "0 0.5 0.5 0.5 0.5 0.1 0.1 2 0.9 0.9 2"}, kpt_shape=[2, 3])
    source = source_of(spec)
    (entry,) = source.scan()
    assert boxes(entry) == [("car", 10, 5, 30, 15)]
    assert (entry.labels or [])[0]["mask"] is None
    assert "keypoints are not" in source.problems[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [", "must be YAML but is not"),
        ("- a", "must be a mapping"),
        ("train: images\n", "must have at least one class"),
        ("names: [a, '']\ntrain: images", "no empty name"),
        ("names: {a: b}\ntrain: images", "map numbers"),
        ("names: [a]\n", "must have train, val or test"),
        ("names: [a]\ntrain: imges", "did you mean .*/images"),
        ("names: [a]\ntrain: images\nval: nothing/here", "does not exist"),
        ("names: [a]\ntrain: empty", "saw 1 .txt"),
    ],
)
def test_a_wrong_data_yaml(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path / "images/a.jpg", picture())
    write(tmp_path / "empty/a.txt", b"")
    with pytest.raises(SourceError, match=message):
        scan({"yolo": str(write(tmp_path / "data.yaml", text.encode()))})


def test_a_missing_data_yaml(tmp_path: Path) -> None:
    write(tmp_path / "data.yaml", b"")
    with pytest.raises(SourceError, match=r"did you mean .*data.yaml"):
        scan({"yolo": str(tmp_path / "dat.yaml")})
    with pytest.raises(SourceError, match="http"):
        scan({"yolo": "https://127.0.0.1:1/data.yaml"})


def test_the_order_of_a_list_does_not_matter(tmp_path: Path) -> None:
    spec = tree(tmp_path, {f"train/{number}": "0 0.5 0.5 1 1" for number in range(20)}, train="train.txt")
    lines = [f"images/train/{number}.jpg" for number in range(20)]
    found = []
    for seed in range(2):
        random.Random(seed).shuffle(lines)
        write(tmp_path / "train.txt", "\n".join(lines).encode())
        found.append(scan(spec))
    assert found[0] == found[1]
