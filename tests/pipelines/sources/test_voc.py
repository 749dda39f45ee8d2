from __future__ import annotations

from pathlib import Path

import pytest

from labelmill.pipelines.sources import SourceError
from tests.pipelines.sources.helpers import boxes, fetch_all, picture, scan, source_of, write


def thing(name: str = "car", box: tuple[object, ...] = (5, 6, 14, 17), more: str = "") -> str:
    tags = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=False)
    inside = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
    return f"<object><name>{name}</name><bndbox>{inside}</bndbox>{more}</object>"


def devkit(root: Path, **annotations: str | None) -> dict[str, str]:
    """Images of 48 by 32 and their annotations; None for an image without. Gives the source section."""
    (root / "Annotations").mkdir(parents=True)
    for number, (stem, content) in enumerate(annotations.items()):
        write(root / f"JPEGImages/{stem}.jpg", picture(number))
        if content is not None:
            size = "<size><width>48</width><height>32</height><depth>3</depth></size>"
            xml = f"<annotation><filename>{stem}.jpg</filename>{size}{content}</annotation>"
            write(root / f"Annotations/{stem}.xml", xml.encode())
    return {"voc": str(root)}


def test_boxes_splits_negatives_and_images_without_annotations(tmp_path: Path) -> None:
    spec = devkit(
        tmp_path,
        a=thing() + thing("stop sign", (1, 1, 48, 32), "<difficult>1</difficult>"),
        b="",
        c=None,
        d=thing(box=("1.5", "2.5", "3", "4")),
    )
    for name, lines in {
        "train": "a\n",
        "val": "b\n",
        "test": "",
        "trainval": "a\nb\n",
        "car_train": "a 1",
    }.items():
        write(tmp_path / f"ImageSets/Main/{name}.txt", lines.encode())
    write(tmp_path / "JPEGImages/notes.txt", b"")
    source = source_of(spec)
    entries = {entry.key: entry for entry in source.scan()}
    assert source.problems == []
    assert source.ignored == {".txt": 1}
    assert [entry.problem for entry in entries.values()] == [None] * 4
    assert {key: entry.split for key, entry in entries.items()} == {
        "JPEGImages/a.jpg": "train",
        "JPEGImages/b.jpg": "val",
        "JPEGImages/c.jpg": None,
        "JPEGImages/d.jpg": None,
    }
    assert boxes(entries["JPEGImages/a.jpg"]) == [("car", 4, 5, 14, 17), ("stop sign", 0, 0, 48, 32)]
    assert entries["JPEGImages/b.jpg"].labels == []
    assert entries["JPEGImages/c.jpg"].labels is None
    assert boxes(entries["JPEGImages/d.jpg"]) == [("car", 0.5, 1.5, 3, 4)]
    assert fetch_all(entries)["JPEGImages/a.jpg"] == (tmp_path / "JPEGImages/a.jpg").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (thing(""), "has no name"),
        (thing(box=(1, 2, 3)), "must have a bndbox of four finite numbers but has 1, 2, 3, None"),
        (thing(box=("a", 2, 3, 4)), "must have a bndbox of four finite numbers but has a, 2, 3, 4"),
        (thing(box=("nan", 2, 3, 4)), "four finite numbers"),
        (thing(box=(1, 2, "1e400", 4)), "four finite numbers"),
        (thing(box=(10, 10, 9, 20)), "has a box without area: 0 x 11"),
        (thing(box=(60, 10, 70, 20)), "has a box outside the image of 48 x 32"),
        ("<object/>", "has no name"),
    ],
)
def test_an_object_that_cannot_be_used_is_named_and_the_others_stay(tmp_path: Path, content: str, message: str) -> None:
    entry = scan(devkit(tmp_path, a=thing() + content + thing()))["JPEGImages/a.jpg"]
    assert boxes(entry) == [("car", 4, 5, 14, 17)] * 2
    assert (entry.problem or "").startswith("Annotations/a.xml object 2 ")
    assert message in (entry.problem or "")


def test_a_box_over_the_edge_is_clipped_and_named(tmp_path: Path) -> None:
    # A left side of 0 is common in files that count from 0: half a pixel of doubt, no note.
    entry = scan(devkit(tmp_path, a=thing(box=(0, 0, 5, 5)) + thing(box=(40, 2, 60, 9))))["JPEGImages/a.jpg"]
    assert boxes(entry) == [("car", 0, 0, 5, 5), ("car", 39, 1, 48, 9)]
    assert entry.problem == "Annotations/a.xml object 2 leaves the image by 12 pixels; it was clipped"


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (b"<annotation>", "must be XML but is not"),
        (b"\x00\xff", "must be XML but is not"),
        (b"<html/>", "must be an annotation but is 'html'"),
        (b'<!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>', "must be plain XML but has a document type"),
    ],
)
def test_an_annotation_file_that_is_none(tmp_path: Path, xml: bytes, message: str) -> None:
    spec = devkit(tmp_path, a=thing(), b=thing())
    write(tmp_path / "Annotations/a.xml", xml)
    entries = scan(spec)
    assert entries["JPEGImages/a.jpg"].labels is None
    assert message in (entries["JPEGImages/a.jpg"].problem or "")
    assert len(entries["JPEGImages/b.jpg"].labels or []) == 1


def test_what_has_no_image_is_named(tmp_path: Path) -> None:
    spec = devkit(tmp_path, a=thing())
    write(tmp_path / "Annotations/gone.xml", b"<annotation/>")
    write(tmp_path / "ImageSets/Main/train.txt", b"a\nlost\n")
    source = source_of(spec)
    assert len(list(source.scan())) == 1
    assert source.problems == [
        "Annotations/gone.xml is left out: JPEGImages has no image of that name",
        "ImageSets/Main names lost, but JPEGImages has no image of that name",
    ]


def test_an_image_in_two_splits_and_two_images_of_one_name(tmp_path: Path) -> None:
    spec = devkit(tmp_path, a=thing())
    write(tmp_path / "JPEGImages/a.png", picture(5, kind="PNG"))
    for split in ("train", "val"):
        write(tmp_path / f"ImageSets/Main/{split}.txt", b"a\n")
    entries = scan(spec)
    assert len(entries["JPEGImages/a.jpg"].labels or []) == 1
    assert entries["JPEGImages/a.png"].labels is None
    assert "2 images have its name, and it does not name a.png" in (entries["JPEGImages/a.png"].problem or "")
    for entry in entries.values():
        assert entry.split == "train"
        assert "this image is in train and also in val" in (entry.problem or "")


def test_another_size_and_a_broken_image(tmp_path: Path) -> None:
    spec = devkit(tmp_path, a=thing(), b=thing())
    write(tmp_path / "JPEGImages/a.jpg", picture(0, 20, 10))
    write(tmp_path / "JPEGImages/b.jpg", b"no image")
    entries = scan(spec)
    for key, reason in (("a", "drawn on 48 x 32 pixels, but the image has 20 x 10"), ("b", "size is not known")):
        entry = entries[f"JPEGImages/{key}.jpg"]
        assert (entry.labels, entry.label_state) == (None, "refused")
        assert [each.place for each in entry.refused] == [f"Annotations/{key}.xml object 1"]
        assert reason in entry.refused[0].reason


def test_what_is_no_voc(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"the folder JPEGImages"):
        scan({"voc": str(tmp_path)})
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "Annotations").mkdir()
    write(tmp_path / "JPEGImages/a.xml", b"")
    with pytest.raises(SourceError, match=r"holds no images; saw 1 \.xml"):
        scan({"voc": str(tmp_path)})
    with pytest.raises(SourceError, match="download the dataset"):
        scan({"voc": "https://example.org/VOC2012"})
