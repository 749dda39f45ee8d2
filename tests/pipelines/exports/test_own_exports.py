"""Every export is a source: read again by its folder alone, it gives the labels that went in."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from labelmill.operators.columns.schemas import SIDES
from labelmill.pipelines.sources import SourceSpec, open_source
from labelmill.pipelines.sources.guess import guess_kind
from labelmill.pipelines.sources.read_labels import read_labels
from tests.pipelines.exports.scenes import CLASSES, disc, picture, write_dataset
from tests.pipelines.exports.test_round_trips import HEIGHT, WIDTH, few, iou, labels, without_repeats

SPLITS = ("train", "val", "test")

FORMATS: dict[str, dict[str, Any]] = {
    "coco": {"kind": "coco", "params": {"scores": True}, "keeps": ("mask", "score", "prompt", "models", "crowd")},
    "yolo": {"kind": "yolo", "keeps": ()},
    "voc": {"kind": "voc", "keeps": (), "within": 0.5001},
    "huggingface": {"kind": "parquet", "keeps": ("mask", "score", "prompt", "models", "crowd")},
    "webdataset": {"kind": "webdataset", "keeps": ("mask", "score", "prompt", "models", "crowd")},
    "cvat": {"kind": "cvat", "keeps": ("mask", "score"), "box_of_mask": True},
    "label_studio": {"kind": "label_studio", "keeps": ("score",), "box_of_mask": True, "within": 0.02},
}
"""Export → the kind of source that reads it, and what of a label comes back as it was."""


@st.composite
def objects(draw: st.DrawFn) -> dict[str, Any]:
    label = draw(labels())
    if draw(st.integers(0, 4)) == 0:
        label["crowd"] = True
    if label["mask"] is not None and draw(st.booleans()):  # one that has an outline in every format
        x, y, r = draw(st.integers(8, 50)), draw(st.integers(8, 40)), draw(st.integers(3, 7))
        pixels = disc(HEIGHT, WIDTH, x, y, r)
        encoded = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
        label["mask"] = encoded["counts"].decode()
    return label


def one_of_each_mask(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without those that are the same object where a format has no box beside a mask, or no crowd beside an object."""
    kept: dict[Any, dict[str, Any]] = {}
    for number, each in enumerate(found):
        kept.setdefault((each["class"], each["mask"]) if each["mask"] is not None else number, each)
    return list(kept.values())


@pytest.mark.parametrize("name", FORMATS)
def test_read_by_its_folder_it_gives_the_same_labels(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    originals = tmp_path_factory.mktemp("originals")
    how = FORMATS[name]

    @few
    @given(found=st.lists(st.lists(objects(), max_size=4), min_size=1, max_size=3), divided=st.booleans())
    def check(found: list[list[dict[str, Any]]], divided: bool) -> None:
        found = [one_of_each_mask(without_repeats(each)) for each in found]
        images = [
            picture(originals, n, each, SPLITS[n - 1] if divided else None, format="JPEG", key=f"{n}.jpg",
                    width=WIDTH, height=HEIGHT)
            for n, each in enumerate(found, 1)
        ]  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            write_dataset(name, Path(folder), images, SPLITS[: len(found)] if divided else (), **how.get("params", {}))
            assert guess_kind(folder)[1] == how["kind"]
            read = read_labels(folder)
            if name == "huggingface":
                entries = list(open_source(SourceSpec(huggingface=folder)).scan())
                assert {entry.key: entry for entry in entries} == read.images
        assert read.refused == []
        entries = sorted(read.images.values(), key=lambda entry: entry.key.rpartition("/")[2])
        entries = sorted(entries, key=lambda entry: SPLITS.index(entry.split) if divided and entry.split else 0)
        assert [entry.label_state for entry in entries] == ["read"] * len(found)
        if divided:
            assert [entry.split for entry in entries] == list(SPLITS[: len(found)])
        for entry, truth in zip(entries, found, strict=True):
            if "crowd" not in how["keeps"]:
                truth = [each for each in truth if not each.get("crowd")]
            assert entry.labels is not None
            assert [label["class"] for label in entry.labels] == [each["class"] for each in truth]
            for label, each in zip(entry.labels, truth, strict=True):
                if not (how.get("box_of_mask") and each["mask"] is not None):
                    corners = [each[side] for side in SIDES]
                    assert [label[side] for side in SIDES] == pytest.approx(corners, abs=how.get("within", 0.011))
                for key in how["keeps"]:
                    if key == "score":
                        expected = None if each["score"] is None else pytest.approx(each["score"], abs=1e-4)
                        assert label["score"] == expected
                    elif key == "models":
                        assert label["models"] == (each["models"] or None)
                    elif key == "crowd":
                        assert bool(label["crowd"]) == bool(each.get("crowd"))
                    else:
                        assert label[key] == each[key]
        assert set(read.classes) <= set(CLASSES) | {label["class"] for each in found for label in each}

    check()


def test_discs_come_back_from_label_studio_as_masks(tmp_path: Path) -> None:
    mask = disc(HEIGHT, WIDTH, 30, 20, 9)
    counts = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    label = {"x1": 21.0, "y1": 11.0, "x2": 40.0, "y2": 30.0, "class": "disc", "score": None, "mask": counts}
    write_dataset("label_studio", tmp_path / "out", [picture(tmp_path, 1, [label], format="JPEG", key="1.jpg")])
    (entry,) = read_labels(str(tmp_path / "out")).images.values()
    (found,) = entry.labels or []
    assert iou(found["mask"], counts, (HEIGHT, WIDTH)) > 0.95
