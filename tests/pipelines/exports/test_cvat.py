"""The committed check is by the published structure; datumaro 1.13's CVAT reader gave back the same labels by hand."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from labelmill.pipelines.exports.cvat import mask_fields
from labelmill.pipelines.exports.masks import read_mask
from tests.pipelines.exports.scenes import CLASSES, detection, picture, rle
from tests.pipelines.exports.streams import MODELS, WORD, export, full_scenes


def painted(shape: ElementTree.Element | dict[str, str], height: int, width: int) -> np.ndarray:
    """The mask of a ``mask`` element: run lengths row by row inside its box, zeros first."""
    left, top, w, h = (int(shape.get(name, "")) for name in ("left", "top", "width", "height"))
    runs = [int(run) for run in shape.get("rle", "").split(",")]
    assert sum(runs) == w * h
    whole = np.zeros((height, width), np.uint8)
    whole[top : top + h, left : left + w] = np.repeat(np.arange(len(runs)) % 2, runs).reshape(h, w)
    return whole


def test_each_split_is_a_task_with_every_label(tmp_path: Path) -> None:
    truth = full_scenes(tmp_path / "source", 6, ("train", "val"))
    summary = export("cvat", tmp_path / "out", truth, ("train", "val"))
    assert summary.paths == ("train/annotations.xml", "val/annotations.xml", "labels.json")
    assert summary.notes == ("3 images have a caption, for which CVAT has no place.",)
    known = {label["name"]: label for label in json.loads((tmp_path / "out/labels.json").read_bytes())}
    for split in ("train", "val"):
        document = ElementTree.parse(tmp_path / "out" / split / "annotations.xml").getroot()
        expected = [image for image in truth if image.split == split]
        assert document.findtext("version") == "1.1"
        assert document.findtext("meta/task/name") == f"street & <co> {split}"
        assert document.findtext("meta/task/size") == str(len(expected))
        assert [label.findtext("name") for label in document.iterfind("meta/task/labels/label")] == list(known)
        assert [image.get("id") for image in document.iterfind("image")] == ["0", "1", "2"]
        for found, image in zip(document.iterfind("image"), expected, strict=True):
            assert (found.get("width"), found.get("height")) == (str(image.width), str(image.height))
            assert (tmp_path / "out" / split / "images" / str(found.get("name"))).samefile(image.uri)
            shapes = [shape for shape in found if shape.tag in ("box", "mask")]
            for shape, label in zip(shapes, image.detections, strict=True):
                told = {each.get("name"): each.text for each in shape}
                assert shape.get("label") == label["class"]
                assert set(told) <= {each["name"] for each in known[label["class"]]["attributes"]}
                assert told.get("prompt") == label["prompt"]
                assert told.get("models") == (", ".join(MODELS) if label["mask"] else None)
                assert told.get("score") == (None if label["score"] is None else f"{label['score']:.4f}")
                if label["mask"] is None:
                    box = [float(shape.get(name, "")) for name in ("xtl", "ytl", "xbr", "ybr")]
                    assert box == pytest.approx([label[side] for side in ("x1", "y1", "x2", "y2")], abs=0.006)
                else:
                    assert rle(painted(shape, image.height, image.width)) == label["mask"]
            tags = [tag.get("label") for tag in found.iterfind("tag")]
            assert tags == ([] if image.image_class is None else [image.image_class])
            words = [(shape.get("label"), shape.findtext("attribute")) for shape in found.iterfind("polygon")]
            assert words == ([("word", WORD["text"])] if image.words else [])
    assert {name: label["type"] for name, label in known.items()} == {
        **dict.fromkeys(CLASSES, "any"),
        "day": "tag",
        "night": "tag",
        "word": "polygon",
    }


def test_names_are_unique_and_whole_whatever_they_hold(tmp_path: Path) -> None:
    classes = ['"<&>"', "word", "line\nbreak"]
    labels = [detection(name, (1, 1, 9, 9), prompt="\x00]]>") for name in classes]
    image = picture(tmp_path / "source", 1, labels, words=[{**WORD, "text": "\x0b<"}], image_class="word")
    export("cvat", tmp_path / "out", [image], classes=classes)
    document = ElementTree.parse(tmp_path / "out/annotations.xml").getroot()
    assert [shape.get("label") for shape in document.iterfind("image/box")] == classes
    assert {shape.get("label"): shape.findtext("attribute") for shape in document.iterfind("image/polygon")} == {
        "word_": "\ufffd<"
    }
    assert document.findall("image/box/attribute[@name='prompt']")[0].text == "\ufffd]]>"
    names = [label["name"] for label in json.loads((tmp_path / "out/labels.json").read_bytes())]
    assert names == [*classes, "word_"]


@given(hnp.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_run_lengths_are_the_mask(mask: np.ndarray) -> None:
    mask[-1, 0] = True
    runs, left, top, width, height = mask_fields(read_mask(rle(mask), *mask.shape))
    fields = {"rle": runs, "left": str(left), "top": str(top), "width": str(width), "height": str(height)}
    assert (painted(fields, *mask.shape) == mask).all()
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert (left, top, width, height) == (columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1)
