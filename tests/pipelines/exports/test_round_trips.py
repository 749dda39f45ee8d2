"""What an export wrote comes back through the source of its format: the same labels, and nothing to complain about."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from labelmill.operators.columns.schemas import SIDES
from labelmill.operators.miniatures.world import World
from labelmill.pipelines.exports.dataset import ExportImage
from labelmill.pipelines.sources import Entry, SourceSpec, open_source
from tests.pipelines.exports.scenes import CLASSES, detection, disc, picture, write_dataset

WIDTH, HEIGHT = 64, 48
PIXEL = 1.0


def scanned(section: dict[str, Any]) -> list[Entry]:
    """The entries of a source by name; it must have nothing to report but that YOLO's val is train."""
    source = open_source(SourceSpec.model_validate(section))
    entries = sorted(source.scan(), key=lambda entry: entry.key)
    assert [problem for problem in source.problems if not problem.endswith("which is train already")] == []
    assert [entry.problem for entry in entries] == [None] * len(entries)
    return entries


def corners(label: dict[str, Any]) -> list[float]:
    return [label[side] for side in SIDES]


@st.composite
def boxes(draw: st.DrawFn) -> tuple[float, float, float, float]:
    """A box of a pixel or more, with coordinates as float32 has them."""
    width, height = draw(st.floats(1, WIDTH, width=32)), draw(st.floats(1, HEIGHT, width=32))
    x, y = draw(st.floats(0, 1)) * (WIDTH - width), draw(st.floats(0, 1)) * (HEIGHT - height)
    return x, y, x + width, y + height


@st.composite
def labels(draw: st.DrawFn) -> dict[str, Any]:
    """A label with everything that one can have."""
    mask = None
    if draw(st.booleans()):
        pixels = np.random.default_rng(draw(st.integers(0, 99))).random((HEIGHT, WIDTH))
        mask = pixels < draw(st.sampled_from([0.002, 0.5, 1.0]))
        mask[draw(st.integers(0, HEIGHT - 1)), draw(st.integers(0, WIDTH - 1))] = True
    return detection(
        draw(st.sampled_from(CLASSES)),
        draw(boxes()),
        mask,
        score=draw(st.none() | st.floats(0, 1, width=32)),
        prompt=draw(st.none() | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9)),
        models=draw(st.none() | st.lists(st.sampled_from(["dino@9f2c61ab04d7", "sam@0123456789ab"]), min_size=1)),
    )


scenes = st.lists(st.lists(labels(), max_size=4), min_size=1, max_size=3)
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    for number in range(1, 4):
        picture(folder, number, [], format="JPEG")
    return folder


def pictures(folder: Path, found: list[list[dict[str, Any]]]) -> list[ExportImage]:
    return [
        picture(folder, number, each, format="JPEG", key=f"{number}.jpg", width=WIDTH, height=HEIGHT)
        for number, each in enumerate(found, 1)
    ]


@few
@given(found=scenes)
def test_coco(originals: Path, found: list[list[dict[str, Any]]]) -> None:
    found = [without_repeats(each) for each in found]  # the source takes the same object for one
    with tempfile.TemporaryDirectory() as folder:
        write_dataset("coco", Path(folder), pictures(originals, found), scores=True)
        entries = scanned({"coco": f"{folder}/annotations/instances.json"})
    for entry, expected in zip(entries, found, strict=True):
        assert entry.labels is not None
        assert len(entry.labels) == len(expected)
        for label, truth in zip(entry.labels, expected, strict=True):
            assert corners(label) == pytest.approx(corners(truth), abs=0.011)
            for field in ("class", "mask", "prompt", "models"):
                assert label[field] == truth[field]
            assert label["score"] == (None if truth["score"] is None else pytest.approx(truth["score"], abs=1e-4))


def without_repeats(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    for each in found:
        same = [other for other in kept if other["class"] == each["class"]]
        if all(np.abs(np.subtract(corners(each), corners(other))).max() > 0.01 for other in same):
            kept.append(each)
    return kept


@few
@given(found=scenes)
def test_yolo_boxes(originals: Path, found: list[list[dict[str, Any]]]) -> None:
    # The source takes a line that stands twice for a mistake, as Ultralytics does.
    found = [without_repeats(each) for each in found]
    with tempfile.TemporaryDirectory() as folder:
        write_dataset("yolo", Path(folder), pictures(originals, found))
        entries = scanned({"yolo": f"{folder}/data.yaml"})
    for entry, expected in zip(entries, found, strict=True):
        assert [label["class"] for label in entry.labels or []] == [truth["class"] for truth in expected]
        for label, truth in zip(entry.labels or [], expected, strict=True):
            assert corners(label) == pytest.approx(corners(truth), abs=WIDTH * 1.6e-6)


@few
@given(found=scenes)
def test_voc(originals: Path, found: list[list[dict[str, Any]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_dataset("voc", Path(folder), pictures(originals, found))
        entries = scanned({"voc": folder})
    for entry, expected in zip(entries, found, strict=True):
        assert [label["class"] for label in entry.labels or []] == [truth["class"] for truth in expected]
        for label, truth in zip(entry.labels or [], expected, strict=True):
            assert all(value == int(value) for value in corners(label))
            assert corners(label) == pytest.approx(corners(truth), abs=0.5001)


def test_voc_keeps_whole_pixels_and_splits(originals: Path, tmp_path: Path) -> None:
    found = [[detection("disc", (0, 0, WIDTH, HEIGHT)), detection("ring", (3, 4, 4, 5))], [], []]
    images = pictures(originals, found)
    splits = ["train", "val", "test"]
    images = [
        picture(originals, image.image_id, image.detections, split, format="JPEG", key=image.key)
        for image, split in zip(images, splits, strict=True)
    ]
    write_dataset("voc", tmp_path / "voc", images, ("train", "val", "test"))
    entries = scanned({"voc": str(tmp_path / "voc")})
    assert [entry.split for entry in entries] == splits
    assert [corners(label) for label in entries[0].labels or []] == [[0, 0, WIDTH, HEIGHT], [3, 4, 4, 5]]
    assert entries[1].labels == []


def is_simple(mask: np.ndarray) -> bool:
    """Whether it has one part and no hole."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return len(contours) == 1


def iou(one: str, other: str, size: tuple[int, int]) -> float:
    first, second = ({"size": list(size), "counts": counts} for counts in (one, other))
    return float(coco_mask.iou([first], [second], [0])[0, 0])


@pytest.mark.parametrize(
    ("name", "params", "section"),
    [
        ("yolo", {"task": "segment"}, {"yolo": "data.yaml"}),
        ("coco", {"masks": "polygon"}, {"coco": "annotations/instances.json"}),
    ],
)
def test_masks_of_drawn_objects_survive_polygons(
    tmp_path: Path, name: str, params: dict[str, Any], section: dict[str, str]
) -> None:
    """Objects of the drawn world: exact truth, whatever hides them in part."""
    world = World(11, size=256)
    images, simple = [], 0
    for number in range(1, 13):
        found = [
            detection("disc", thing.box, thing.mask) for thing in world.scene(number).objects if thing.mask.sum() > 30
        ]
        simple += sum(is_simple(thing.mask) for thing in world.scene(number).objects if thing.mask.sum() > 30)
        images.append(picture(tmp_path / "source", number, found, width=256, height=256))
    assert simple >= 12
    write_dataset(name, tmp_path / "out", images, **params)
    entries = scanned({kind: str(tmp_path / "out" / file) for kind, file in section.items()})
    for entry, image in zip(entries, images, strict=True):
        assert len(entry.labels or []) == len(image.detections)
        for label, truth in zip(entry.labels or [], image.detections, strict=True):
            assert corners(label) == pytest.approx(corners(truth), abs=PIXEL)
            mask = np.asarray(coco_mask.decode({"size": [256, 256], "counts": truth["mask"]}))
            assert iou(label["mask"], truth["mask"], (256, 256)) >= (0.98 if is_simple(mask) else 0.95)


def test_a_mask_of_one_pixel_is_reported_by_yolo_and_not_lost_silently(tmp_path: Path) -> None:
    image = picture(tmp_path / "source", 1, [detection("disc", (5, 5, 6, 6), disc(48, 64, 5, 5, 0))])
    write_dataset("yolo", tmp_path / "yolo", [image], task="segment")
    source = open_source(SourceSpec(yolo=str(tmp_path / "yolo/data.yaml")))
    (entry,) = source.scan()
    assert "00000001-1.txt:1 has a polygon that is a single point" in (entry.problem or "")


ALL_TASKS = [
    ("coco", {"captions": True}),
    ("voc", {}),
    ("crops", {}),
    *(("yolo", {"task": task}) for task in ("detect", "segment", "obb", "classify")),
]


@pytest.mark.parametrize(("name", "params"), ALL_TASKS)
def test_writers_look_ahead_by_a_bounded_number_of_images(tmp_path: Path, name: str, params: dict[str, Any]) -> None:
    """When an image is asked for, all but the last few before it are on disk."""
    original = picture(tmp_path / "source", 1, [])
    found = [detection("disc", (1, 1, 9, 9))]
    behind: list[int] = []

    def stream() -> Iterator[ExportImage]:
        for number in range(1, 121):
            written = sum(path.suffix in (".png", ".jpg") for path in (tmp_path / "out").rglob("*"))
            behind.append(number - 1 - written)
            yield ExportImage(
                number, f"{number}.png", original.uri, 64, 48, None, found, "PNG", image_class="disc", caption="A disc."
            )

    write_dataset(name, tmp_path / "out", stream(), **params)
    assert len(behind) == 120
    assert max(behind) <= 16
    assert len(set(behind[20:])) <= 16


@pytest.mark.parametrize(("name", "params"), ALL_TASKS)
def test_files_stay_when_images_are_added(tmp_path: Path, name: str, params: dict[str, Any]) -> None:
    images = [
        picture(tmp_path / "source", number, [detection("disc", (1, 1, 9, 9))], caption="A disc.", image_class="disc")
        for number in range(1, 7)
    ]
    for count in (4, 6):
        write_dataset(name, tmp_path / str(count), images[:count], **params)
    first, second = (
        {str(path.relative_to(tmp_path / count)): path.read_bytes() for path in (tmp_path / count).rglob("*.*")}
        for count in ("4", "6")
    )
    lists = ("README.md", ".json", "trainval.txt")
    single = {path for path in first if not path.endswith(lists)}
    assert len(single) >= 4
    assert {path: first[path] for path in single} == {path: second[path] for path in single}
    for path in set(first) - single:
        if path.endswith(".txt"):
            assert second[path].startswith(first[path])
