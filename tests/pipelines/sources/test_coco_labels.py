"""Labels that come in as COCO: what people's files look like, and what is right to read of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from labelmill.pipelines.sources.frames import Frame, same_aspect
from labelmill.pipelines.sources.read_labels import extra_of
from tests.pipelines.sources.helpers import boxes, picture, scan, source_of, write
from tests.pipelines.sources.test_coco import annotation, dataset, image

UPRIGHT = (8, 40, 20, 20)  # of the red square, x, y, width, height, in a portrait of 48 x 64
STORED = (40, 20, 20, 20)  # the same in the stored pixels, 64 x 48, orientation 6


def photo(path: Path, orientation: int = 6, kind: str = "JPEG") -> None:
    """A photo stored as 64 x 48, with a red square at `STORED`."""
    pixels = np.full((48, 64, 3), 90, np.uint8)
    pixels[20:40, 40:60] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))


def coco(folder: Path, images: list[Any], annotations: list[Any], **more: Any) -> str:
    document = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "car"}], **more}
    return str(write(folder / "ann.json", json.dumps(document).encode()))


def square(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def rle(box: tuple[int, int, int, int], width: int, height: int, compressed: bool = True) -> dict[str, Any]:
    x, y, w, h = box
    pixels = np.zeros((height, width), np.uint8, order="F")
    pixels[y : y + h, x : x + w] = 1
    encoded = coco_mask.encode(pixels)
    if compressed:
        return {"size": [height, width], "counts": encoded["counts"].decode()}
    flat = pixels.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    return {"size": [height, width], "counts": np.diff([0, *edges, flat.size]).tolist()}


def mask_of(label: dict[str, Any], width: int, height: int) -> np.ndarray:
    return np.asarray(coco_mask.decode({"size": [height, width], "counts": label["mask"].encode()}))


def inside(box: tuple[int, int, int, int], width: int, height: int) -> np.ndarray:
    x, y, w, h = box
    pixels = np.zeros((height, width), np.uint8)
    pixels[y : y + h, x : x + w] = 1
    return pixels


@pytest.mark.parametrize("segmentation", [square(*STORED), rle(STORED, 64, 48), rle(STORED, 64, 48, False)])
def test_labels_drawn_on_the_stored_pixels_of_a_turned_photo_are_turned_with_it(
    tmp_path: Path, segmentation: Any
) -> None:
    """Case 3, raw: VoTT, old CVAT, plain PIL tools; box, polygon and RLE."""
    photo(tmp_path / "a.jpg")
    path = coco(
        tmp_path, [image(1, "a.jpg", 64, 48)], [annotation(1, 1, bbox=STORED, segmentation=segmentation, area=400)]
    )
    entry = scan({"coco": path})["a.jpg"]
    assert boxes(entry) == [("car", 8, 40, 28, 60)]
    assert (mask_of((entry.labels or [])[0], 48, 64) == inside(UPRIGHT, 48, 64)).all()
    assert "before its EXIF orientation turns it: turned with it" in (entry.problem or "")


def test_labels_that_fit_only_upright_are_taken_as_upright(tmp_path: Path) -> None:
    """Case 3, upright: Label Studio's COCO says the stored size, and its labels are upright."""
    photo(tmp_path / "a.jpg")
    photo(tmp_path / "b.jpg")
    found = [
        annotation(1, 1, bbox=UPRIGHT, segmentation=square(*UPRIGHT)),
        annotation(2, 2, bbox=(1, 2, 10, 10)),  # fits both ways: as the others of the file
    ]
    entries = scan({"coco": coco(tmp_path, [image(1, "a.jpg", 64, 48), image(2, "b.jpg", 64, 48)], found)})
    assert boxes(entries["a.jpg"]) == [("car", 8, 40, 28, 60)]
    assert (mask_of((entries["a.jpg"].labels or [])[0], 48, 64) == inside(UPRIGHT, 48, 64)).all()
    assert boxes(entries["b.jpg"]) == [("car", 1, 2, 11, 12)]
    assert "taken as upright" in (entries["a.jpg"].problem or "")
    assert "others of the file are upright" in (entries["b.jpg"].problem or "")


def test_what_cannot_be_told_is_refused_by_name(tmp_path: Path) -> None:
    for name in "abcd":
        photo(tmp_path / f"{name}.jpg")
    found = [
        annotation(1, 1, bbox=UPRIGHT),
        annotation(2, 1, bbox=STORED),  # one fits only so, the other only upright
        annotation(3, 2, bbox=UPRIGHT),
        annotation(4, 3, bbox=STORED),
        annotation(5, 4, bbox=(1, 2, 10, 10)),  # and the file has both
    ]
    records = [image(number, f"{name}.jpg", 64, 48) for number, name in enumerate("abcd", 1)]
    entries = scan({"coco": coco(tmp_path, records, found)})
    assert [entries[f"{name}.jpg"].label_state for name in "abcd"] == ["refused", "read", "read", "refused"]
    assert [each.place for each in entries["a.jpg"].refused] == ["annotation 1", "annotation 2"]
    assert "fit it neither so nor upright" in str(entries["a.jpg"].refused[0])
    assert "either kind" in str(entries["d.jpg"].refused[0])
    assert entries["a.jpg"].labels is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_turns_as_a_viewer_does(tmp_path: Path, orientation: int) -> None:
    from labelmill.operators.images.decoded import decode

    photo(tmp_path / "a.png", orientation, "PNG")
    pixels = decode((tmp_path / "a.png").read_bytes()).pixels
    height, width = pixels.shape[:2]
    frame = Frame((64, 48), (width, height), orientation)
    x1, y1, x2, y2 = map(round, frame.box((40, 20, 60, 40)))
    assert (inside((x1, y1, x2 - x1, y2 - y1), width, height) == (pixels[..., 0] == 255)).all()
    turned = mask_of({"mask": frame.mask(rle(STORED, 64, 48)["counts"])}, width, height)
    assert (turned == (pixels[..., 0] == 255)).all()


def test_a_size_of_another_image_is_refused_or_scaled(tmp_path: Path) -> None:
    """Case 4: 128 x 96 in the file, the image has 64 x 48."""
    write(tmp_path / "a.png", picture(0, 64, 48, "PNG"))
    found = [
        annotation(1, 1, bbox=(20, 20, 40, 40), segmentation=square(20, 20, 40, 40), area=1600),
        annotation(2, 1, bbox=(80, 60, 40, 30), segmentation=rle((80, 60, 40, 30), 128, 96)),
    ]
    path = coco(tmp_path, [image(1, "a.png", 128, 96)], found)
    entry = scan({"coco": path})["a.png"]
    assert (entry.labels, entry.label_state, len(entry.refused)) == (None, "refused", 2)
    assert "128 x 96 pixels, but the image has 64 x 48" in str(entry.refused[0])
    assert "rescale: true" in str(entry.refused[0])
    entry = scan({"coco": path, "rescale": True})["a.png"]
    assert boxes(entry) == [("car", 10, 10, 30, 30), ("car", 40, 30, 60, 45)]
    first, second = entry.labels or []
    assert (mask_of(first, 64, 48) == inside((10, 10, 20, 20), 64, 48)).all()
    assert (mask_of(second, 64, 48) == inside((40, 30, 20, 15), 64, 48)).all()
    assert extra_of(first) == {}, "an area of other pixels"
    assert "scaled to it" in (entry.problem or "")
    path = coco(tmp_path, [image(1, "a.png", 128, 128)], found)
    for rescale in (False, True):
        entry = scan({"coco": path, "rescale": rescale})["a.png"]
        assert entry.labels is None
        assert "another shape" in str(entry.refused[0])


def test_even_scaling_allows_for_whole_pixels() -> None:
    assert same_aspect((640, 427), (1024, 683))
    assert same_aspect((1024, 683), (640, 427))
    assert same_aspect((333, 500), (100, 150))
    assert not same_aspect((640, 480), (640, 427))
    assert not same_aspect((64, 48), (48, 64))


def test_a_mask_is_checked_against_its_own_height_and_width(tmp_path: Path) -> None:
    """Not their product: 24 x 64 and 32 x 48 have the same number of pixels."""
    write(tmp_path / "a.png", picture(0, 48, 32, "PNG"))
    wrong = rle((4, 5, 10, 12), 64, 24)
    entry = scan({"coco": coco(tmp_path, [image(1, "a.png")], [annotation(1, 1, segmentation=wrong)])})["a.png"]
    assert (entry.labels or [])[0]["mask"] is None
    assert "has a mask of size [24, 64]" in (entry.problem or "")


def test_one_bad_ring_costs_that_ring_and_a_flat_list_is_a_ring(tmp_path: Path) -> None:
    """Case 9."""
    write(tmp_path / "a.png", picture(0, 64, 48, "PNG"))
    found = [
        annotation(1, 1, bbox=(10, 10, 20, 20), segmentation=[*square(10, 10, 20, 20), [1, 2, 3, 4]]),
        annotation(2, 1, bbox=(35, 10, 20, 20), segmentation=square(35, 10, 20, 20)[0]),
        annotation(3, 1, bbox=(0, 0, 0, 0), segmentation=square(2, 30, 6, 8)),
        annotation(4, 1, bbox=(5, 5, 4, 4), segmentation=[[1, 2, 3, 4]]),
    ]
    entry = scan({"coco": coco(tmp_path, [image(1, "a.png", 64, 48)], found)})["a.png"]
    first, second, third, fourth = entry.labels or []
    assert (mask_of(first, 64, 48) == inside((10, 10, 20, 20), 64, 48)).all()
    assert (mask_of(second, 64, 48) == inside((35, 10, 20, 20), 64, 48)).all()
    assert [third[side] for side in ("x1", "y1", "x2", "y2")] == [2, 30, 8, 38]
    assert fourth["mask"] is None
    assert "annotation 1 has a polygon of 4 numbers" in (entry.problem or "")
    assert "that ring is left out" in (entry.problem or "")
    assert "annotation 3 has a box without area: 0 x 0; that of its mask is taken" in (entry.problem or "")
    assert "annotation 4 has a polygon of 4 numbers; it must be x, y of three points or more; its mask" in (
        entry.problem or ""
    )
    assert entry.label_state == "read"


def test_the_same_object_under_two_ids_is_one_and_said(tmp_path: Path) -> None:
    """Case 23."""
    write(tmp_path / "a.png", picture(0, 64, 48, "PNG"))
    found = [annotation(1, 1), annotation(2, 1), annotation(3, 1, iscrowd=1)]
    entry = scan({"coco": coco(tmp_path, [image(1, "a.png", 64, 48)], found)})["a.png"]
    assert [label["crowd"] for label in entry.labels or []] == [None, True]
    assert entry.problem == "annotation 2 is the same object as annotation 1; it is taken once"
    assert entry.label_state == "read"


def test_what_else_a_file_says_comes_through(tmp_path: Path) -> None:
    """Case 13: keypoints, attributes, supercategories, tracks."""
    write(tmp_path / "a.png", picture(0, 64, 48, "PNG"))
    more = {
        "keypoints": [12, 14, 2, 20, 15, 1], "num_keypoints": 2, "track_id": 4,
        "attributes": {"occluded": True, "colour": "red", "prompt": "a car"},
    }  # fmt: skip
    entry = scan({"coco": coco(tmp_path, [image(1, "a.png", 64, 48)], [annotation(1, 1, **more)])})["a.png"]
    (label,) = entry.labels or []
    assert label["prompt"] == "a car"
    assert extra_of(label) == {**more, "attributes": {"occluded": True, "colour": "red"}}


def test_images_in_the_folder_of_the_split_are_found(tmp_path: Path) -> None:
    """Case 18, and all splits at once by their folder."""
    for split in ("train", "val"):
        write(tmp_path / "images" / split / "a.png", picture(0, 48, 32, "PNG"))
        dataset(tmp_path / "tmp", [], [annotation(1, 1)])
        document = {"images": [image(1, "a.png")], "annotations": [annotation(1, 1)],
                    "categories": [{"id": 7, "name": "car"}]}  # fmt: skip
        write(tmp_path / "annotations" / f"instances_{split}.json", json.dumps(document).encode())
    one = scan({"coco": str(tmp_path / "annotations" / "instances_train.json")})
    assert [(key, entry.split, len(entry.labels or [])) for key, entry in one.items()] == [("a.png", None, 1)]
    both = scan({"coco": str(tmp_path)})
    assert {key: entry.split for key, entry in both.items()} == {"train/a.png": "train", "val/a.png": "val"}
    listed = [str(tmp_path / "annotations" / f"instances_{split}.json") for split in ("val", "train")]
    assert scan({"coco": listed}) == both


def test_roboflow_is_found_by_its_folder(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        write(tmp_path / split / "a.png", picture(0, 48, 32, "PNG"))
        document = {"images": [image(1, "a.png")], "annotations": [annotation(1, 1)],
                    "categories": [{"id": 0, "name": "cars"}, {"id": 7, "name": "car"}]}  # fmt: skip
        write(tmp_path / split / "_annotations.coco.json", json.dumps(document).encode())
    entries = scan({"coco": str(tmp_path)})
    assert {key: entry.split for key, entry in entries.items()} == {"train/a.png": "train", "valid/a.png": "val"}


def test_an_empty_link_is_no_link_and_names_of_other_systems_are_found(tmp_path: Path) -> None:
    """Datumaro and CVAT write ``coco_url: ""`` and images in ``images/<subset>/``."""
    for name in ("images/default/a.png", "images/default/Sub/b.png"):
        write(tmp_path / name, picture(0, 48, 32, "PNG"))
    records = [image(1, "a.png", coco_url=""), image(2, "sub\\B.png", coco_url="")]
    document = {"images": records, "annotations": [annotation(1, 1), annotation(2, 2, bbox=(1, 1, 9, 9))],
                "categories": [{"id": 7, "name": "car"}]}  # fmt: skip
    write(tmp_path / "annotations" / "instances_default.json", json.dumps(document).encode())
    entries = scan({"coco": str(tmp_path)})
    assert {key: boxes(entry) for key, entry in entries.items()} == {
        "a.png": [("car", 4, 5, 14, 17)],
        "Sub/b.png": [("car", 1, 1, 10, 10)],
    }


def test_lvis_without_file_names_uses_the_last_part_of_the_link(tmp_path: Path) -> None:
    write(tmp_path / "000000000139.png", picture(0, 48, 32, "PNG"))
    record = {"id": 1, "coco_url": "http://images.cocodataset.org/val2017/000000000139.png", "width": 48, "height": 32}
    entries = scan({"coco": coco(tmp_path, [record], [annotation(1, 1)])})
    assert {key: len(entry.labels or []) for key, entry in entries.items()} == {"000000000139.png": 1}


@pytest.mark.parametrize(
    ("what", "record"),
    [
        ("captions", {"id": 1, "image_id": 1, "caption": "A car."}),
        ("panoptic segments", {"image_id": 1, "file_name": "a.png", "segments_info": []}),
    ],
)
def test_files_without_objects_leave_images_unread(tmp_path: Path, what: str, record: dict[str, Any]) -> None:
    write(tmp_path / "a.png", picture(0, 48, 32, "PNG"))
    source = source_of({"coco": coco(tmp_path, [image(1, "a.png")], [record])})
    (entry,) = source.scan()
    assert (entry.labels, entry.label_state) == (None, "unread")
    assert any(f"1 {what} and no objects" in problem for problem in source.problems)
