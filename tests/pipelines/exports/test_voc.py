"""Pascal VOC, as torchvision and plain XML readers see it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import fsspec
import pytest

from labelmill.pipelines.exports.dataset import ExportError, ExportImage
from labelmill.pipelines.exports.files import Output
from tests.pipelines.exports.scenes import detection, disc, picture, tree, write_dataset

export = partial(write_dataset, "voc", provenance={"pipeline": "street"})


def annotation(folder: Path, number: int) -> ElementTree.Element:
    (path,) = (folder / "Annotations").glob(f"{number:08d}*.xml")
    return ElementTree.parse(path).getroot()


def sides(thing: ElementTree.Element) -> list[int]:
    return [int(thing.findtext(f"bndbox/{side}") or "") for side in ("xmin", "ymin", "xmax", "ymax")]


@pytest.mark.parametrize("image_set", ["train", "val", "trainval"])
def test_torchvision_reads_it(tmp_path: Path, image_set: str) -> None:
    from torchvision.datasets import VOCDetection

    found = [
        [detection("disc", (0, 0, 64, 48)), detection("stop sign", (3, 4, 10, 20))],
        [],
        [detection("ring", (1, 1, 2, 2))],
    ]
    splits = ["train", "val", "train"]
    images = [
        picture(tmp_path / "source", number, each, split, format="JPEG", key=f"street/{number}.jpeg")
        for number, (each, split) in enumerate(zip(found, splits, strict=True), 1)
    ]
    summary = export(tmp_path / "root/VOCdevkit/VOC2012", images, ("train", "val", "test"))
    assert summary.paths == tuple(f"ImageSets/Main/{name}.txt" for name in ("train", "val", "test", "trainval"))
    assert summary.annotations == {"disc": 1, "stop sign": 1, "ring": 1}
    dataset = VOCDetection(str(tmp_path / "root"), year="2012", image_set=image_set)
    expected = [image for image in images if image_set == "trainval" or image.split == image_set]
    assert len(dataset) == len(expected)
    for (pixels, target), image in zip(dataset, expected, strict=True):
        assert pixels.size == (64, 48)
        content = target["annotation"]
        assert content["size"] == {"width": "64", "height": "48", "depth": "3"}
        assert content["source"] == {"database": "street", "image": image.key}
        assert content["filename"] == f"{image.image_id:08d}-{image.image_id}.jpg"
        assert [thing["name"] for thing in content["object"]] == [label["class"] for label in image.detections]
        for thing, label in zip(content["object"], image.detections, strict=True):
            corners = [int(thing["bndbox"][side]) for side in ("xmin", "ymin", "xmax", "ymax")]
            assert corners == [label["x1"] + 1, label["y1"] + 1, label["x2"], label["y2"]]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 64, 48), [1, 1, 64, 48]),
        ((-9, -9, 99, 99), [1, 1, 64, 48]),
        ((0.4, 0.6, 10.4, 10.6), [1, 2, 10, 11]),
        ((1.2, 1.2, 1.8, 1.8), [2, 2, 2, 2]),
        ((1.5, 1.5, 2.4, 2.4), [3, 3, 3, 3]),
        ((63.5, 47.5, 64, 48), [64, 48, 64, 48]),
    ],
)
def test_boxes_are_whole_pixels_from_one_and_never_outside(
    tmp_path: Path, box: tuple[float, ...], expected: list[int]
) -> None:
    export(tmp_path / "voc", [picture(tmp_path / "source", 1, [detection("disc", box)])])
    (thing,) = annotation(tmp_path / "voc", 1).findall("object")
    assert sides(thing) == expected


def test_without_splits_there_is_one_set(tmp_path: Path) -> None:
    summary = export(tmp_path / "voc", [picture(tmp_path / "source", number, []) for number in (1, 2)])
    assert summary.paths == ("ImageSets/Main/trainval.txt",)
    assert (tmp_path / "voc/ImageSets/Main/trainval.txt").read_text() == "00000001-1\n00000002-2\n"
    assert annotation(tmp_path / "voc", 1).findall("object") == []


def test_names_of_every_kind(tmp_path: Path) -> None:
    classes = ["<a> & \"b\" 'c'", "猫 🚗", "]]>", "a\x00b\x0bc\rd\ne"]
    keys = ["ünï/日本 語.jpg", "a&b<c>.jpg", "]]>.jpg", "tab\tnull\x01\x85.jpg"]
    images = [
        picture(tmp_path / "source", number, [detection(name, (1, 1, 9, 9))], key=key, format="JPEG")
        for number, (key, name) in enumerate(zip(keys, classes, strict=True), 1)
    ]
    export(tmp_path / "voc", images, classes=classes)
    for path in (tmp_path / "voc/Annotations").iterdir():
        assert path.read_bytes().isascii()
    found = [annotation(tmp_path / "voc", number) for number in range(1, 5)]
    names = [each.findtext("object/name") for each in found]
    assert names == [*classes[:3], "a\\x00b\\x0bc\\rd\\ne"]
    assert [each.findtext("source/image") for each in found] == [*keys[:3], "tab\\tnull\\x01\\x85.jpg"]


def test_what_the_format_has_no_place_for_is_said(tmp_path: Path) -> None:
    images = [
        picture(tmp_path / "source", 1, [detection("disc", mask=disc(48, 64, 20, 20, 9))], format="JPEG", key="1.jpg"),
        picture(tmp_path / "source", 2, [detection("disc", (9, 9, 1, 1))], format="PNG", key="2.png"),
    ]
    summary = export(tmp_path / "voc", images)
    assert sorted(path.name for path in (tmp_path / "voc/JPEGImages").iterdir()) == ["00000001-1.jpg", "00000002-2.png"]
    assert any(note.startswith("1 object has a mask") for note in summary.notes)
    assert any(note.startswith("1 image is not JPEG") for note in summary.notes)
    assert summary.skipped == {"box is inverted": 1}


def test_labels_alone_and_classes_unknown(tmp_path: Path) -> None:
    export(tmp_path / "voc", [picture(tmp_path / "source", 1, [detection("disc", (1, 1, 9, 9))])], images="none")
    assert not (tmp_path / "voc/JPEGImages").exists()
    assert annotation(tmp_path / "voc", 1).findtext("source/image") == "1.png"
    with pytest.raises(ExportError, match=r"image '1\.png': class must be one of 'disc', .* but is 'dics'"):
        export(tmp_path / "other", [picture(tmp_path / "source", 1, [detection("dics", (1, 1, 9, 9))])])


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        images = [picture(tmp_path / "source", number, [detection("disc", (1, 1, 9, 9))], "train") for number in (1, 2)]
        export(tmp_path / name, images, ("train",))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert len(tree(tmp_path / "one")) == 7


def test_an_object_store(s3: str, tmp_path: Path) -> None:
    def images() -> list[ExportImage]:
        return [picture(tmp_path / "source", number, [detection("disc", (1, 1, 9, 9))]) for number in (1, 2)]

    filesystem = fsspec.filesystem("s3")
    export(Output(filesystem, f"{s3}/voc"), images())
    export(tmp_path / "voc", images())
    stored = {name.removeprefix(f"{s3}/voc/"): filesystem.cat_file(name) for name in filesystem.find(f"{s3}/voc")}
    assert stored == tree(tmp_path / "voc")
