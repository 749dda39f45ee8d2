from __future__ import annotations

import contextlib
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.pipelines.sources import SourceError
from labelmill.pipelines.sources.labels import LabelError, rle_mask
from tests.pipelines.sources.helpers import boxes, fetch_all, picture, scan, source_of, write

CATEGORIES = [{"id": 7, "name": "car"}, {"id": 3, "name": "stop sign"}, {"id": 90, "name": "person"}]


def image(number: int, name: str, width: int = 48, height: int = 32, **more: Any) -> dict[str, Any]:
    return {"id": number, "file_name": name, "width": width, "height": height, **more}


def annotation(
    number: int, image_id: int, category: int = 7, bbox: Any = (4, 5, 10, 12), **more: Any
) -> dict[str, Any]:
    return {"id": number, "image_id": image_id, "category_id": category, "bbox": list(bbox), "iscrowd": 0, **more}


def dataset(folder: Path, images: list[Any], annotations: list[Any] | None, categories: Any = None) -> str:
    """Writes the json and a picture for each image record; gives the json's path."""
    for record in images:
        name = record.get("file_name") if isinstance(record, dict) else None
        if isinstance(name, str) and name and "://" not in name:
            write(folder / name, picture(0, 48, 32))
    document: dict[str, Any] = {"images": images, "categories": CATEGORIES if categories is None else categories}
    if annotations is not None:
        document["annotations"] = annotations
    return str(write(folder / "labels.json", json.dumps(document).encode()))


def decode(counts: str, width: int = 48, height: int = 32) -> np.ndarray:
    return np.asarray(coco_mask.decode({"size": [height, width], "counts": counts.encode()}))


def test_labels_agree_with_pycocotools(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    images = [image(number, f"sub{number % 2}/{number}.jpg") for number in (5, 9, 1000)]
    annotations = []
    for number in range(1, 25):
        x, y = generator.uniform(0, 30), generator.uniform(0, 20)
        w, h = generator.uniform(2, 48 - x), generator.uniform(2, 32 - y)
        segmentation: Any = [[x, y, x + w, y, x + w, y + h, x, y + h], [1, 1, 9, 1, 9, 9]]
        if number % 3 == 1:
            drawn = np.zeros((32, 48), np.uint8, order="F")
            drawn[int(y) : int(y + h), int(x) : int(x + w)] = 1
            packed = coco_mask.encode(drawn)
            segmentation = {"size": [32, 48], "counts": packed["counts"].decode()}
            if number % 2:
                flat = drawn.ravel(order="F")
                edges = np.flatnonzero(np.diff(flat)) + 1
                runs = np.diff([0, *edges, flat.size]).tolist()
                segmentation["counts"] = runs if flat[0] == 0 else [0, *runs]
        category = (7, 3, 90)[number % 3]
        annotations.append(annotation(number, (5, 9)[number % 2], category, (x, y, w, h), segmentation=segmentation))
    path = dataset(tmp_path, images, annotations)

    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(path)
    source = source_of({"coco": path})
    assert source.classes == ["car", "stop sign", "person"]
    entries = {entry.key: entry for entry in source.scan()}
    assert source.problems == []
    assert set(entries) == {record["file_name"] for record in images}
    names = {category["id"]: category["name"] for category in CATEGORIES}
    for record in images:
        labels = entries[record["file_name"]].labels
        truth = reference.loadAnns(reference.getAnnIds(record["id"]))
        assert labels is not None
        assert len(labels) == len(truth)
        for label, expected in zip(labels, truth, strict=True):
            x, y, w, h = expected["bbox"]
            assert [label[side] for side in ("x1", "y1", "x2", "y2")] == pytest.approx([x, y, x + w, y + h])
            assert label["class"] == names[expected["category_id"]]
            assert label["score"] is None
            np.testing.assert_array_equal(decode(label["mask"]), reference.annToMask(expected))
    assert entries["sub0/1000.jpg"].labels == []
    assert entries["sub1/5.jpg"].metadata == {"id": 5, "width": 48, "height": 32}
    pa.array([entry.labels for entry in entries.values()], DETECTIONS)
    assert len(fetch_all(entries)) == 3


def test_scores_boxes_at_the_edge_and_boxes_from_masks(tmp_path: Path) -> None:
    whole = [[0, 0, 48, 0, 48, 32, 0, 32]]
    path = dataset(
        tmp_path,
        [image(1, "a.jpg")],
        [
            annotation(1, 1, bbox=(40, 20, 8.4, 12.4), score=0.25),
            annotation(2, 1, bbox=(-5, 3, 20, 10)),
            {"id": 3, "image_id": 1, "category_id": 7, "segmentation": whole},
            annotation(4, 1, score=3),
        ],
    )
    entry = scan({"coco": path})["a.jpg"]
    assert entry.labels is not None
    assert boxes(entry) == [
        ("car", 40, 20, 48, 32),
        ("car", 0, 3, 15, 13),
        ("car", 0, 0, 48, 32),
        ("car", 4, 5, 14, 17),
    ]
    assert [label["score"] for label in entry.labels] == [0.25, None, None, None]
    assert entry.problem == (
        "annotation 2 has a box that leaves the image by 5 pixels; it was clipped; "
        "annotation 4 has the score 3; it must be 0 to 1"
    )


def test_nothing_is_dropped_in_silence(tmp_path: Path) -> None:
    path = dataset(
        tmp_path,
        [image(1, "a.jpg"), {"id": 4}, "not an object"],
        [
            annotation(10, 1),
            annotation(11, 1, category=555),
            annotation(12, 1, bbox=(4, 5, 0, 3)),
            annotation(13, 1, bbox=(100, 5, 6, 3)),
            annotation(14, 1, bbox=(1, 2, 3)),
            annotation(15, 1, bbox=(1, 2, float("nan"), 4)),
            annotation(16, 1, bbox=("1", 2, 3, 4)),
            annotation(17, 1, bbox=()),
            annotation(18, 1, bbox=(4, 5, 10, 13), segmentation=[[1, 2, 3, 4]]),
            annotation(19, 1, bbox=(4, 5, 10, 14), segmentation={"size": [9, 9], "counts": "x"}),
            annotation(20, 1, bbox=(1, 2, 10**400, 4)),
            annotation(30, 99),
            annotation(31, 99),
            annotation(32, 4),
            {"id": 33, "category_id": 7},
            17,
        ],
        [*CATEGORIES, {"id": 7, "name": "truck"}, {"id": 8, "name": "car"}, {"id": 9}],
    )
    source = source_of({"coco": path})
    (entry,) = source.scan()
    assert [label["class"] for label in entry.labels or []] == ["car"] * 3
    assert entry.problem is not None
    assert all(f"annotation {number} " in entry.problem for number in range(11, 21))
    assert "category id 555" in entry.problem
    assert "without area: 0 x 3" in entry.problem
    assert "outside the image of 48 x 32" in entry.problem
    assert [int(each.place.split()[1]) for each in entry.refused] == [11, 12, 13, 14, 15, 16, 17, 20]
    assert entry.label_state == "refused"
    assert [each.place for each in source.refused] == [
        f"annotation 16 in the list of {path}", "annotation 30", "annotation 31", "annotation 32", "annotation 33"
    ]  # fmt: skip
    said = "\n".join(source.problems)
    assert f"annotation 31 in {path} has the image id 99, which is not listed with a file" in said
    assert "image id 4 has no file_name" in said
    assert "annotation 33 must have an image_id" in said
    assert "1 of the images must be objects" in said
    assert "must be an object but is 17" in said
    assert "category id 7 must mean one class but means 'car' and 'truck'; 'car' is used" in said
    assert "category 'car' is listed more than once" in said
    assert source.classes == ["car", "stop sign", "person"]


def test_annotation_ids_that_stand_twice_are_named_and_used(tmp_path: Path) -> None:
    annotations = [
        annotation(5, 1),
        annotation(5, 2),
        annotation(6, 1, category=3),
        annotation(5, 1, bbox=(1, 1, 4, 4)),
    ]
    for record in (annotation(7, 1, category=90), annotation(8, 2, category=3)):
        del record["id"]
        annotations.append(record)
    source = source_of({"coco": dataset(tmp_path, [image(1, "a.jpg"), image(2, "b.jpg")], annotations)})
    entries = {entry.key: entry for entry in source.scan()}
    assert [len(entries[key].labels or []) for key in ("a.jpg", "b.jpg")] == [4, 2]
    assert source.problems == ["annotation id 5 must mean one annotation but stands 3 times; all of them are used"]


def test_prompts_and_models_are_read_back(tmp_path: Path) -> None:
    good = {"prompt": "a car", "models": ["dino@9f2c61ab04d7"], "occluded": True}
    annotations = [
        annotation(1, 1, attributes=good),
        annotation(2, 1, bbox=(1, 1, 4, 4), attributes={"prompt": 3, "models": "sam"}),
        annotation(3, 1, bbox=(1, 1, 5, 4), attributes=["prompt"]),
        annotation(4, 1, bbox=(1, 1, 6, 4), attributes={"models": [1]}),
    ]
    (entry,) = scan({"coco": dataset(tmp_path, [image(1, "a.jpg")], annotations)}).values()
    read = [(label["prompt"], label["models"]) for label in entry.labels or []]
    assert read == [("a car", ["dino@9f2c61ab04d7"]), (None, None), (None, None), (None, None)]
    assert (entry.problem or "").split("; ") == [
        "annotation 2 has the prompt 3",
        "it must be text and is left out",
        "annotation 2 has the models sam",
        "they must be a list of names and are left out",
        "annotation 4 has the models [1]",
        "they must be a list of names and are left out",
    ]


def test_one_image_id_for_two_files_labels_neither(tmp_path: Path) -> None:
    path = dataset(
        tmp_path, [image(1, "a.jpg"), image(1, "b.jpg"), image(2, "c.jpg")], [annotation(5, 1), annotation(6, 2)]
    )
    entries = scan({"coco": path})
    for key in ("a.jpg", "b.jpg"):
        assert entries[key].labels is None
        (refused,) = entries[key].refused
        assert str(refused) == "annotation 5 belongs to image id 1, which must be one file but is a.jpg and b.jpg"
    assert len(entries["c.jpg"].labels or []) == 1


def test_one_file_under_two_image_ids_gets_all_labels(tmp_path: Path) -> None:
    path = dataset(
        tmp_path,
        [image(1, "a.jpg"), image(2, "./a.jpg"), image(1, "a.jpg")],
        [annotation(5, 1), annotation(6, 2, category=3)],
    )
    # "./a.jpg" is the same file under another spelling; id 1 and 2 then are one image
    entry = scan({"coco": path})["a.jpg"]
    assert sorted(name for name, *_ in boxes(entry)) == ["car", "stop sign"]
    assert "listed more than once, under image ids 1, 2" in (entry.problem or "")


def test_crowds_are_labels_of_their_own_state(tmp_path: Path) -> None:
    crowd = {"size": [32, 48], "counts": [100, 200, 48 * 32 - 300]}
    path = dataset(
        tmp_path, [image(1, "a.jpg")], [annotation(1, 1, iscrowd=1, segmentation=crowd), annotation(2, 1, category=3)]
    )
    entry = scan({"coco": path})["a.jpg"]
    assert [(label["class"], label["crowd"]) for label in entry.labels or []] == [("car", True), ("stop sign", None)]
    assert entry.problem is None
    assert entry.label_state == "read"


def test_a_file_of_crowds_alone_is_one_of_objects_and_says_so(tmp_path: Path) -> None:
    path = dataset(tmp_path, [image(1, "a.jpg")], [annotation(1, 1, iscrowd=1), annotation(2, 1, 3, iscrowd=1)])
    source = source_of({"coco": path})
    (entry,) = source.scan()
    assert [label["crowd"] for label in entry.labels or []] == [None, None]
    assert any("every one of the 2 annotations" in problem and "crowd" in problem for problem in source.problems)


def test_without_annotations_nobody_looked(tmp_path: Path) -> None:
    assert scan({"coco": dataset(tmp_path / "a", [image(1, "a.jpg")], None)})["a.jpg"].labels is None
    assert scan({"coco": dataset(tmp_path / "b", [image(1, "a.jpg")], [])})["a.jpg"].labels == []


def test_sizes_are_read_where_the_file_does_not_say_them(tmp_path: Path) -> None:
    triangle = [[0, 0, 40, 0, 0, 30]]
    records = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg", "width": -3, "height": None}]
    path = dataset(
        tmp_path, records, [annotation(1, 1, bbox=(40, 0, 100, 10), segmentation=triangle), annotation(2, 2)]
    )
    (tmp_path / "b.jpg").write_bytes(b"not an image")
    entries = scan({"coco": path})
    assert boxes(entries["a.jpg"]) == [("car", 40, 0, 48, 10)]
    assert decode((entries["a.jpg"].labels or [])[0]["mask"]).shape == (32, 48)
    assert boxes(entries["b.jpg"]) == [("car", 4, 5, 14, 17)]
    assert "width and height are not known" in (entries["b.jpg"].problem or "")


def test_the_order_of_the_file_does_not_matter(tmp_path: Path) -> None:
    images = [image(number, f"{number}.jpg") for number in range(1, 30)]
    annotations = [annotation(number, 1 + number % 29, bbox=(number % 7, 1, 9, 9)) for number in range(200)]
    expected = scan({"coco": dataset(tmp_path, images, annotations)})
    random.Random(3).shuffle(images)
    random.Random(4).shuffle(annotations)
    document = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    write(tmp_path / "labels.json", json.dumps(document).encode())
    assert scan({"coco": str(tmp_path / "labels.json")}) == expected


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("labels.json", "a.jpg"),
        ("labels.json", "images/a.jpg"),
        ("annotations/labels.json", "images/a.jpg"),
        ("annotations/instances_val2017.json", "val2017/a.jpg"),
        ("annotations/labels.json", "a.jpg"),
    ],
)
def test_the_images_are_found_beside_the_file(tmp_path: Path, annotations: str, images: str) -> None:
    write(tmp_path / images, picture())
    document = {"images": [image(1, "a.jpg"), image(2, "gone.jpg")], "annotations": [], "categories": CATEGORIES}
    write(tmp_path / annotations, json.dumps(document).encode())
    entries = scan({"coco": str(tmp_path / annotations)})
    assert entries["a.jpg"].uri == str(tmp_path / images)
    assert entries["a.jpg"].version is not None
    assert entries["a.jpg"].problem is None
    assert "the file is gone" in (entries["gone.jpg"].problem or "")


def test_images_elsewhere(tmp_path: Path) -> None:
    path = dataset(tmp_path / "labels", [image(1, "sub/a.jpg")], [])
    (tmp_path / "labels/sub/a.jpg").rename(tmp_path / "labels/a.jpg")
    with pytest.raises(SourceError, match=r"must be beside it.*sub/a.jpg|sub/a.jpg.*images: FOLDER"):
        scan({"coco": path})
    write(tmp_path / "photos/sub/a.jpg", picture())
    spec = {"coco": {"annotations": path, "images": str(tmp_path / "photos")}}
    assert scan(spec)["sub/a.jpg"].uri == str(tmp_path / "photos/sub/a.jpg")
    with pytest.raises(SourceError, match=r"did you mean .*/photos"):
        scan({"coco": {"annotations": path, "images": str(tmp_path / "photo")}})
    (tmp_path / "void").mkdir()
    with pytest.raises(SourceError, match="none of the images"):
        scan({"coco": {"annotations": path, "images": str(tmp_path / "void")}})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "must be JSON but is not"),
        (b"[]", "but is a list"),
        (b'{"info": 1, "annotations": []}', "its keys are info, annotations"),
        (b'{"images": []}', "lists no image"),
        (b"\xff\xfe\x00", "must be JSON but is not"),
    ],
)
def test_what_is_not_coco(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        scan({"coco": str(write(tmp_path / "x.json", data))})


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "labels.json", b"{}")
    source = source_of({"coco": str(tmp_path / "lables.json")})
    with pytest.raises(SourceError, match=r"did you mean .*/labels\.json"):
        source.classes  # noqa: B018
    with pytest.raises(SourceError, match=r"labels.json"):
        list(source.scan())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=40), st.integers(1, 30))
def test_compressed_counts_are_checked_and_kept(runs: list[int], width: int) -> None:
    height = -(-sum(runs) // width) or 1
    runs = (
        [*runs, width * height - sum(runs)]
        if len(runs) % 2 == 0
        else [*runs[:-1], runs[-1] + width * height - sum(runs)]
    )
    packed = coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)["counts"].decode()
    if sum(runs[1::2]) == 0:
        with pytest.raises(LabelError, match="covers no pixel"):
            rle_mask({"size": [height, width], "counts": packed}, (width, height))
        return
    assert rle_mask({"size": [height, width], "counts": packed}, (width, height)) == packed
    assert rle_mask({"size": [height, width], "counts": runs}, (width, height)) == packed
    with pytest.raises(LabelError, match="do not fill"):
        rle_mask({"counts": packed}, (width, height + 1))


@given(st.one_of(st.text(max_size=30), st.lists(st.one_of(st.integers(), st.floats(), st.text()), max_size=8)))
def test_counts_that_are_not_counts_are_refused(counts: Any) -> None:
    try:
        found = rle_mask({"counts": counts}, (6, 5))
    except LabelError:
        return
    assert decode(found, 6, 5).sum() > 0


@pytest.mark.parametrize(
    "segmentation",
    [
        [[0, 0, 1e300, 0, 0, 30]],
        [[0, 0, 1e8, 0, 0, 30]],
        [[0, 0, 5, 0, 5]],
        [["a"] * 6],
        [3],
        "text",
        {"counts": None},
        {},
    ],
)
def test_a_bad_mask_leaves_the_box(tmp_path: Path, segmentation: Any) -> None:
    path = dataset(tmp_path, [image(1, "a.jpg")], [annotation(1, 1, segmentation=segmentation)])
    entry = scan({"coco": path})["a.jpg"]
    assert boxes(entry) == [("car", 4, 5, 14, 17)]
    assert (entry.labels or [])[0]["mask"] is None
    assert segmentation == {} or (entry.problem or "").startswith("annotation 1 ")
