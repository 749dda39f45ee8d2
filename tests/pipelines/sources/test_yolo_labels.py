"""Labels that come in as YOLO: what people's folders look like, and what is right to read of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from labelmill.pipelines.sources import SourceError
from tests.pipelines.sources.helpers import boxes, picture, scan, source_of, write

BOX = b"0 0.5 0.5 0.5 0.5\n"


def test_labels_beside_images_below_a_folder_that_is_called_images(tmp_path: Path) -> None:
    """Case 6: north/a.txt and south/images/b.txt."""
    for name in ("north/a", "south/images/b"):
        write(tmp_path / f"{name}.png", picture(0, 40, 20, "PNG"))
        write(tmp_path / f"{name}.txt", BOX)
    path = write(tmp_path / "data.yaml", b"train: [north, south]\nnames: [car]\n")
    entries = scan({"yolo": str(path)})
    assert {key: boxes(entry) for key, entry in entries.items()} == {
        key: [("car", 10, 5, 30, 15)] for key in ("north/a.png", "south/images/b.png")
    }


@pytest.mark.parametrize("named", ["Images/train", "images/train"])
def test_folders_in_other_case(tmp_path: Path, named: str) -> None:
    """Case 6, upper: Images/ and Labels/."""
    write(tmp_path / "Images/train/a.png", picture(0, 40, 20, "PNG"))
    write(tmp_path / "Labels/train/a.txt", BOX)
    write(tmp_path / "Labels/train/orphan.txt", BOX)
    path = write(tmp_path / "data.yaml", f"train: {named}\nnames: [car]\n".encode())
    source = source_of({"yolo": str(path)})
    (entry,) = source.scan()
    assert boxes(entry) == [("car", 10, 5, 30, 15)]
    assert [str(each) for each in source.refused] == ["Labels/train/orphan.txt is left out: it has no image"]


def test_lines_that_cannot_be_used_are_refused_one_by_one(tmp_path: Path) -> None:
    """Case 7: predictions with a confidence, commas, a class beyond names."""
    files = {
        "a": b"0 0.5 0.5 0.25 0.25 0.9\n",
        "b": b"0,0.5,0.5,0.25,0.25\n",
        "c": b"7 0.5 0.5 0.25 0.25\n",
        "d": BOX + b"7 0.5 0.5 0.25 0.25\n" + BOX,
        "e": b"",
        "f": None,
        "g": BOX.decode().encode("utf-16"),
    }
    for name, data in files.items():
        write(tmp_path / f"images/train/{name}.png", picture(0, 40, 20, "PNG"))
        if data is not None:
            write(tmp_path / f"labels/train/{name}.txt", data)
    path = write(tmp_path / "data.yaml", b"train: images/train\nnames: [car, bus]\n")
    entries = {key[-5]: entry for key, entry in scan({"yolo": str(path)}).items()}
    assert {name: entry.label_state for name, entry in entries.items()} == {
        "a": "refused", "b": "refused", "c": "refused", "d": "refused", "e": "read", "f": "unread", "g": "read",
    }  # fmt: skip
    assert [entries[name].labels for name in "abcef"] == [None, None, None, [], None]
    assert "a.txt:1 has 6 values" in str(entries["a"].refused[0])
    assert "b.txt:1 must have numbers only" in str(entries["b"].refused[0])
    assert "c.txt:1 must name a class from 0 to 1 but names 7" in str(entries["c"].refused[0])
    assert len(entries["d"].labels or []) == 1
    assert [each.place for each in entries["d"].refused] == ["labels/train/d.txt:2"]
    assert "d.txt:3 repeats line 1" in (entries["d"].problem or "")


def test_words_of_yaml_stay_names(tmp_path: Path) -> None:
    """Case 14, in a data.yaml."""
    names = ["yes", "no", "on", "null", "1.50", "007", "~", "2024-01-01"]
    write(tmp_path / "images/a.png", picture(0, 40, 20, "PNG"))
    write(tmp_path / "labels/a.txt", b"".join(f"{n} 0.5 0.5 0.5 0.{n + 1}\n".encode() for n in range(8)))
    for text in (f"names: [{', '.join(names)}]", "names:\n" + "".join(f"  {n}: {x}\n" for n, x in enumerate(names))):
        path = write(tmp_path / "data.yaml", f"train: images\n{text}\n".encode())
        source = source_of({"yolo": str(path)})
        (entry,) = source.scan()
        assert source.classes == names
        assert [label["class"] for label in entry.labels or []] == names


def test_two_images_that_share_one_label_file_are_refused(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "b.png"):
        write(tmp_path / "images" / name, picture(0, 40, 20, "PNG"))
    for name in "ab":
        write(tmp_path / f"labels/{name}.txt", BOX)
    path = write(tmp_path / "data.yaml", b"train: images\nnames: [car]\n")
    entries = scan({"yolo": str(path)})
    assert {key: entry.label_state for key, entry in entries.items()} == {
        "images/a.jpg": "refused", "images/a.png": "refused", "images/b.png": "read",
    }  # fmt: skip
    assert "labels/a.txt is not used: it would be that of images/a.jpg and of images/a.png" in (
        entries["images/a.jpg"].problem or ""
    )


@pytest.mark.parametrize(
    ("layout", "splits"),
    [
        ({"images/train": "labels/train", "images/val": "labels/val"}, {"train", "val"}),
        ({"train/images": "train/labels", "valid/images": "valid/labels"}, {"train", "val"}),
        ({"images": "labels"}, {None}),
        ({".": "."}, {None}),
    ],
)
def test_a_folder_with_a_list_of_classes_is_a_dataset(
    tmp_path: Path, layout: dict[str, str], splits: set[str | None]
) -> None:
    for images, labels in layout.items():
        write(tmp_path / images / "a.png", picture(0, 40, 20, "PNG"))
        write(tmp_path / labels / "a.txt", BOX)
    write(tmp_path / "classes.txt", b"car\nbus\n")
    source = source_of({"yolo": str(tmp_path)})
    entries = list(source.scan())
    assert source.classes == ["car", "bus"]
    assert {entry.split for entry in entries} == splits
    assert [boxes(entry) for entry in entries] == [[("car", 10, 5, 30, 15)]] * len(layout)
    assert source.problems == []


def test_darknet_gets_a_sentence_that_helps(tmp_path: Path) -> None:
    path = write(tmp_path / "obj.data", b"classes = 1\ntrain = data/train.txt\nnames = data/obj.names\n")
    with pytest.raises(SourceError, match=r"YOLO 1\.1 \(Darknet\).*obj\.names"):
        list(source_of({"yolo": str(path)}).scan())
    with pytest.raises(SourceError, match=r"data\.yaml, or the names of the classes in one of classes\.txt"):
        list(source_of({"yolo": str(tmp_path)}).scan())
