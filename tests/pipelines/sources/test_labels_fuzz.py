"""Whatever comes in as COCO, YOLO or VOC: labels in = read + refused, none lost, no traceback."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labelmill.pipelines.sources import SourceError, SourceSpec, open_source
from tests.pipelines.sources.helpers import picture, write

WIDTH, HEIGHT = 48, 32
PICTURE = picture(0, WIDTH, HEIGHT, "PNG")

many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

odd_numbers = st.one_of(
    st.integers(-5, 60),
    st.floats(-10, 80),
    st.sampled_from([float("nan"), float("inf"), -0.0, 1e300, 10**30, True, False]),
)
odd = st.one_of(odd_numbers, st.none(), st.text(max_size=4), st.lists(st.integers(), max_size=2), st.just({}))
lists = st.lists(odd_numbers | odd, max_size=9)
boxes = st.one_of(
    st.tuples(st.integers(0, 40), st.integers(0, 28), st.integers(1, 9), st.integers(1, 9)).map(list), lists, odd
)
rings = st.lists(st.integers(0, 48), min_size=6, max_size=8)
masks = st.one_of(
    st.none(),
    st.lists(st.one_of(rings, lists), max_size=3),
    lists,
    odd,
    st.fixed_dictionaries(
        {
            "size": st.sampled_from([[HEIGHT, WIDTH], [WIDTH, HEIGHT], [1, 2], None, "x"]),
            "counts": st.one_of(st.text(max_size=6), lists, st.just([10, 20, HEIGHT * WIDTH - 30])),
        }
    ),
)
annotations = st.fixed_dictionaries(
    {
        "id": st.integers(1, 6) | odd,
        "image_id": st.sampled_from([1, 1, 2, 2, 9]) | odd,
        "category_id": st.sampled_from([1, 1, 2, 7]) | odd,
        "bbox": boxes,
    },
    optional={
        "segmentation": masks,
        "iscrowd": st.sampled_from([0, 1, 1, None, "x"]),
        "score": odd,
        "area": odd,
        "attributes": odd | st.dictionaries(st.text(max_size=4), odd, max_size=2),
        "keypoints": lists,
    },
)


sizes = st.sampled_from([(WIDTH, HEIGHT), (HEIGHT, WIDTH), (96, 64), (None, "x"), (0, 0)])
names = st.sampled_from(["car", " car", "bus", "", None])


def counted(entries: list[Any], source: Any) -> tuple[int, int, int]:
    """Labels read, refused, and taken as one with another."""
    read = sum(len(entry.labels or []) for entry in entries)
    refused = sum(len(entry.refused) for entry in entries) + len(source.refused)
    same = sum(len(re.findall(r"is the same object as|repeats line \d+", entry.problem or "")) for entry in entries)
    for entry in entries:
        assert entry.label_state == ("refused" if entry.refused else "unread" if entry.labels is None else "read")
        for label in entry.labels or []:
            assert 0 <= label["x1"] < label["x2"] <= WIDTH
            assert 0 <= label["y1"] < label["y2"] <= HEIGHT
            assert label["class"]
    return read, refused, same


@many
@given(
    found=st.lists(annotations | odd, max_size=6),
    sizes=st.lists(
        st.sampled_from([(WIDTH, HEIGHT), (HEIGHT, WIDTH), (96, 64), (None, "x"), (0, 0)]), min_size=2, max_size=2
    ),
    categories=st.lists(
        st.fixed_dictionaries(
            {"id": st.integers(1, 2) | odd, "name": st.sampled_from(["car", " car", "bus", "", None])}
        ),
        max_size=3,
    ),
    rescale=st.booleans(),
)
def test_coco(found: list[Any], sizes: tuple[Any, ...], categories: list[Any], rescale: bool) -> None:
    images = [
        {"id": number, "file_name": f"{number}.png", "width": width, "height": height}
        for number, (width, height) in enumerate(sizes, 1)
    ]
    document = {"images": images, "annotations": found, "categories": categories}
    with tempfile.TemporaryDirectory() as folder:
        for number in (1, 2):
            write(Path(folder, f"{number}.png"), PICTURE)
        path = write(Path(folder, "labels.json"), json.dumps(document).encode())
        source = open_source(SourceSpec.model_validate({"coco": str(path), "rescale": rescale}))
        entries = list(source.scan())
        again = list(open_source(SourceSpec.model_validate({"coco": str(path), "rescale": rescale})).scan())
    assert [entry.key for entry in entries] == ["1.png", "2.png"]
    assert sum(counted(entries, source)) == len(found)
    assert again == entries


BREAKS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
"""What ends a line."""

lines = st.one_of(
    st.builds(
        lambda number, box: f"{number} {' '.join(map(str, box))}",
        st.integers(-1, 3),
        st.lists(st.floats(-0.1, 1.1) | odd_numbers, min_size=3, max_size=9),
    ),
    st.sampled_from(
        ["0 0.5 0.5 0.25 0.25", "1 0.2 0.2 0.1 0.1", "0,0.5,0.5,0.1,0.1", "0 0.1 0.1 0.9 0.1 0.5 0.9", "#"]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters=BREAKS), max_size=12),
)


@many
@given(
    files=st.lists(st.none() | st.lists(lines, max_size=5), min_size=1, max_size=3),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_yolo(files: list[list[str] | None], encoding: str) -> None:
    expected = 0
    with tempfile.TemporaryDirectory() as folder:
        for number, found in enumerate(files):
            write(Path(folder, f"images/{number}.png"), PICTURE)
            if found is not None:
                write(Path(folder, f"labels/{number}.txt"), "\n".join(found).encode(encoding))
                expected += sum(bool(line.strip("\0 \t\r\n")) and bool(line.strip()) for line in found)
        path = write(Path(folder, "data.yaml"), b"train: images\nnames: [car, bus]\n")
        source = open_source(SourceSpec(yolo=str(path)))
        entries = sorted(source.scan(), key=lambda entry: entry.key)
    assert sum(counted(entries, source)) == expected
    for entry, found in zip(entries, files, strict=True):
        if found is None:
            assert entry.label_state == "unread"
        elif not any(line.strip("\0 \t\r\n") and line.strip() for line in found):
            assert (entry.labels, entry.label_state) == ([], "read")


texts = st.one_of(odd_numbers.map(str), st.sampled_from(["1", "5", "20", "30", "", "x", "1e3", "nan", "-4"]))
things = st.fixed_dictionaries(
    {"name": st.sampled_from(["car", " car ", "", "bus"]), "xmin": texts, "ymin": texts, "xmax": texts, "ymax": texts}
)


@many
@given(
    found=st.lists(things, max_size=4),
    size=st.sampled_from([None, (WIDTH, HEIGHT), (96, 64), (HEIGHT, WIDTH), ("x", ""), (0, 0), ("1e9", 3)]),
    rescale=st.booleans(),
    cut=st.sampled_from([None, None, None, 20]),
)
def test_voc(found: list[dict[str, str]], size: Any, rescale: bool, cut: int | None) -> None:
    said = "" if size is None else f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    objects = "".join(
        f"<object><name>{escape(thing['name'])}</name><bndbox>"
        + "".join(f"<{side}>{escape(thing[side])}</{side}>" for side in ("xmin", "ymin", "xmax", "ymax"))
        + "</bndbox></object>"
        for thing in found
    )
    text = f"<annotation>{said}{objects}</annotation>"[:cut]
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "JPEGImages/a.png"), PICTURE)
        write(Path(folder, "Annotations/a.xml"), text.encode())
        source = open_source(SourceSpec.model_validate({"voc": folder, "rescale": rescale}))
        entries = list(source.scan())
    read, refused, same = counted(entries, source)
    if cut is None:
        assert read + refused + same == len(found)
    else:
        assert (read, refused) == (0, 1), "the file as a whole"


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=60) | st.text(max_size=40).map(str.encode))
def test_files_that_are_nothing(data: bytes) -> None:
    """A sentence, never a traceback."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "JPEGImages/a.png"), PICTURE)
        write(Path(folder, "images/a.png"), PICTURE)
        write(Path(folder, "labels/a.txt"), data)
        write(Path(folder, "Annotations/a.xml"), data)
        write(Path(folder, "x.json"), data)
        write(Path(folder, "x.yaml"), data)
        write(Path(folder, "data.yaml"), b"train: images\nnames: [car]\n")
        for section in ({"voc": folder}, {"yolo": f"{folder}/data.yaml"}, {"yolo": f"{folder}/x.yaml"},
                        {"coco": f"{folder}/x.json"}, {"cvat": f"{folder}/Annotations/a.xml"},
                        {"label_studio": f"{folder}/x.json"}):  # fmt: skip
            with contextlib.suppress(SourceError):
                list(open_source(SourceSpec.model_validate(section)).scan())
