"""A written dataset: the same bytes for the same seed, and truth that other programs can read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, UnidentifiedImageError

from labelmill.operators.miniatures.defects import BROKEN, DEFECTS
from labelmill.operators.miniatures.duplicates import DUPLICATES
from labelmill.operators.miniatures.world import kinds, parse_caption
from labelmill.operators.miniatures.write import WorldSummary, write_world

IMAGES = 60
OPTIONS = {"size": 180, "duplicates": 0.3, "bad": 0.25}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WorldSummary]:
    out = tmp_path_factory.mktemp("world") / "out"
    return out, write_world(out, IMAGES, 4, **OPTIONS)


def rows(out: Path, name: str) -> list[dict]:
    return pq.read_table(out / "truth" / f"{name}.parquet").to_pylist()


def coco(out: Path) -> dict:
    return json.loads((out / "truth" / "instances.json").read_text())


def test_the_same_seed_writes_the_same_bytes(written: tuple[Path, WorldSummary], tmp_path: Path) -> None:
    out, _ = written

    def digests(folder: Path) -> dict[str, str]:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    write_world(tmp_path / "again", IMAGES, 4, **OPTIONS)
    first = digests(out)
    assert digests(tmp_path / "again") == first
    assert len(first) == IMAGES + 6
    write_world(tmp_path / "other", 12, 5, size=180)
    assert not set(digests(tmp_path / "other").values()) & set(first.values())


def test_every_file_is_an_image_unless_it_is_broken(written: tuple[Path, WorldSummary]) -> None:
    out, summary = written
    broken = {row["key"] for row in rows(out, "defects") if row["defect"] in BROKEN}
    sizes = {image["file_name"]: (image["width"], image["height"]) for image in coco(out)["images"]}
    files = sorted(path.name for path in (out / "images").iterdir())
    assert summary.images == len(files) == IMAGES
    assert set(files) == set(sizes) | broken
    assert not set(sizes) & broken
    formats = set()
    for name in files:
        if name in broken:
            with pytest.raises((OSError, UnidentifiedImageError)):
                Image.open(out / "images" / name).load()
        else:
            image = Image.open(out / "images" / name)
            image.load()
            assert image.size == sizes[name]
            assert image.format == {".jpg": "JPEG", ".png": "PNG"}[Path(name).suffix]
            formats.add(image.format)
    assert formats == {"JPEG", "PNG"}
    assert {(180, 180), (180, 135), (135, 180)} <= set(sizes.values())


def test_coco_truth_loads_and_boxes_fit_masks(
    written: tuple[Path, WorldSummary], capsys: pytest.CaptureFixture[str]
) -> None:
    from pycocotools import mask as rle
    from pycocotools.coco import COCO

    out, summary = written
    truth = COCO(str(out / "truth" / "instances.json"))
    assert [category["name"] for category in truth.loadCats(truth.getCatIds())] == [*kinds(), "face", "sign"]
    assert min(truth.getCatIds()) == min(truth.getImgIds()) == min(truth.getAnnIds()) == 1
    assert len(truth.anns) == summary.objects + summary.faces + summary.signs
    for annotation in truth.anns.values():
        image = truth.imgs[annotation["image_id"]]
        assert annotation["segmentation"]["size"] == [image["height"], image["width"]]
        assert rle.area(annotation["segmentation"]) == annotation["area"] > 0
        assert rle.toBbox(annotation["segmentation"]).tolist() == annotation["bbox"]
        assert truth.annToMask(annotation).shape == (image["height"], image["width"])
        assert annotation["iscrowd"] == 0
        coloured = annotation["category_id"] <= len(kinds())
        assert bool(annotation["attributes"]) == coloured


def test_captions_agree_with_the_annotations(written: tuple[Path, WorldSummary]) -> None:
    out, _ = written
    document = coco(out)
    names = {category["id"]: category["name"] for category in document["categories"]}
    keys = {image["id"]: image["file_name"] for image in document["images"]}
    captions = {row["key"]: row["caption"] for row in rows(out, "captions")}
    assert set(captions) == set(keys.values())
    for image_id, key in keys.items():
        found = [a for a in document["annotations"] if a["image_id"] == image_id]
        counts = parse_caption(captions[key])
        assert sum(counts.values()) == len(found)
        for annotation in found:
            assert counts[annotation["attributes"].get("colour"), names[annotation["category_id"]]] > 0


def test_groups_of_duplicates(written: tuple[Path, WorldSummary]) -> None:
    out, summary = written
    groups: dict[int, list[dict]] = {}
    for row in rows(out, "duplicates"):
        groups.setdefault(row["group"], []).append(row)
    bad = {row["key"] for row in rows(out, "defects")}
    copies = [row for row in rows(out, "duplicates") if row["of"] is not None]
    assert len(copies) == round(IMAGES * 0.3) == sum(summary.duplicates.values())
    assert {row["kind"] for row in copies} == set(DUPLICATES) == set(summary.duplicates)
    for members in groups.values():
        (original,) = [row for row in members if row["kind"] == "original"]
        assert original["of"] is None
        assert {row["of"] for row in members if row is not original} == {original["key"]}
        assert not bad & {row["key"] for row in members}
    exact = [row for row in copies if row["kind"] == "exact"]
    for row in exact:
        assert (out / "images" / row["key"]).read_bytes() == (out / "images" / row["of"]).read_bytes()
    for row in copies:
        if row["kind"] != "exact":
            assert (out / "images" / row["key"]).read_bytes() != (out / "images" / row["of"]).read_bytes()


def test_defects_come_in_every_kind(written: tuple[Path, WorldSummary]) -> None:
    out, summary = written
    found = [row["defect"] for row in rows(out, "defects")]
    assert len(found) == round(IMAGES * 0.25)
    assert set(found) == {*DEFECTS, *BROKEN} == set(summary.defects)
    grey = [row["key"] for row in rows(out, "defects") if row["defect"] == "grayscale"]
    assert all(Image.open(out / "images" / key).mode == "L" for key in grey)


def test_words_and_gaze_lie_inside_their_images(written: tuple[Path, WorldSummary]) -> None:
    out, summary = written
    sizes = {image["file_name"]: (image["width"], image["height"]) for image in coco(out)["images"]}
    words, gaze = rows(out, "words"), rows(out, "gaze")
    assert len(words) == summary.words > 0
    assert len(gaze) == summary.faces > 0
    for row in (*words, *gaze):
        width, height = sizes[row["key"]]
        assert 0 <= row["x1"] < row["x2"] <= width
        assert 0 <= row["y1"] < row["y2"] <= height
    assert all(np.shape(row["quad"]) == (8,) for row in words)
    flipped = {row["key"] for row in rows(out, "duplicates") if row["kind"] == "flipped"}
    assert {row["key"] for row in words if row["mirrored"]} <= flipped


def test_pairs_can_be_kept_out(tmp_path: Path) -> None:
    from labelmill.operators.miniatures.world import HELD_OUT

    write_world(tmp_path / "seen", 10, 1, size=172, pairs="seen", duplicates=0, bad=0)
    document = coco(tmp_path / "seen")
    pairs = {
        (kinds()[annotation["category_id"] - 1], annotation["attributes"]["colour"])
        for annotation in document["annotations"]
        if annotation["attributes"]
    }
    assert pairs
    assert not pairs & HELD_OUT
    assert rows(tmp_path / "seen", "duplicates") == rows(tmp_path / "seen", "defects") == []


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    write_world(tmp_path / "out", 3, 0, size=172, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="must be an empty folder or not exist"):
        write_world(tmp_path / "full", 5, 0)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    with pytest.raises(ValueError, match="images must be at least 1 but is 0"):
        write_world(tmp_path / "a", 0, 0)
    with pytest.raises(ValueError, match="size must be at least 172 pixels but is 100"):
        write_world(tmp_path / "a", 5, 0, size=100)
    with pytest.raises(ValueError, match=r"below 1 together but are 0.6 and 0.5"):
        write_world(tmp_path / "a", 5, 0, duplicates=0.6, bad=0.5)
    with pytest.raises(ValueError, match="pairs must be"):
        write_world(tmp_path / "a", 5, 0, pairs="none")
    assert not (tmp_path / "a").exists()
