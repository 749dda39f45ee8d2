from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest

from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.operators.errors import RowError
from labelmill.pipelines.sources import Fetcher, SourceError
from tests.pipelines.sources.helpers import boxes, fetch_all, picture, scan, source_of, write

NAMES = ["car", "stop sign"]


def saved(path: Path, columns: dict[str, Any], features: dict[str, Any], split: str | None = None) -> Any:
    dataset = datasets.Dataset.from_dict(columns, features=datasets.Features(features), split=split)
    if path.name:
        dataset.save_to_disk(path)
    return dataset


def cells(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"bytes": picture(start + number), "path": f"{number}.jpg"} for number in range(count)]


def test_a_dataset_round_trips(tmp_path: Path) -> None:
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["cat", "dog"]),
        "caption": datasets.Value("string"),
        "vector": datasets.List(datasets.Value("float32")),
    }
    columns = {
        "image": cells(3),
        "label": [0, 1, None],
        "caption": ["x", None, "ü" * 3000],
        "vector": [[1.0], [], None],
    }
    saved(tmp_path / "ds #1", columns, features)
    source = source_of({"huggingface": str(tmp_path / "ds #1")})
    assert source.classes is None
    entries = {entry.key: entry for entry in source.scan()}
    assert list(entries) == ["00000000", "00000001", "00000002"]
    assert list(fetch_all(entries).values()) == [picture(number) for number in range(3)]
    assert entries["00000001"].uri == f"{tmp_path}/ds %231#split=&row=1&column=image"
    assert [entry.metadata for entry in entries.values()] == [
        {"label": "cat", "caption": "x"},
        {"label": "dog", "caption": None},
        {"label": None, "caption": "ü" * 1999 + "…"},
    ]
    assert all(entry.labels is None and entry.split is None for entry in entries.values())
    assert len({entry.version for entry in entries.values()}) == 3


def test_splits_and_several_arrow_files(tmp_path: Path) -> None:
    features = {"img": datasets.Image()}
    parts = {
        "train": saved(Path(), {"img": cells(7)}, features),
        "validation": saved(Path(), {"img": cells(2, 20)}, features),
        "extra & more": saved(Path(), {"img": cells(1, 30)}, features),
    }
    datasets.DatasetDict({"train": parts["train"], "validation": parts["validation"]}).save_to_disk(
        tmp_path / "ds", num_shards={"train": 3, "validation": 1}
    )
    entries = scan({"huggingface": str(tmp_path / "ds")})
    assert sorted(entries) == [*(f"train/{n:08d}" for n in range(7)), "validation/00000000", "validation/00000001"]
    assert {entry.split for entry in entries.values()} == {"train", "val"}
    data = fetch_all(entries)
    assert [data[key] for key in sorted(data)] == [picture(n) for n in (0, 1, 2, 3, 4, 5, 6, 20, 21)]
    parts["train"].select([5, 2]).save_to_disk(tmp_path / "chosen")
    assert list(fetch_all(scan({"huggingface": str(tmp_path / "chosen")})).values()) == [picture(5), picture(2)]


CATEGORY = datasets.ClassLabel(names=NAMES)
BOX = datasets.List(datasets.Value("float32"), length=4)
OBJECTS = [
    (
        {"bbox": [[4, 5, 10, 12], [40, 0, 30, 10]], "category": [1, 0]},
        {"bbox": datasets.List(BOX), "category": datasets.List(CATEGORY)},
    ),
    (
        [{"bbox": [4, 5, 10, 12], "categories": 1}, {"bbox": [40, 0, 30, 10], "categories": 0}],
        datasets.List({"bbox": BOX, "categories": CATEGORY}),
    ),
    (
        {"bbox": [[4, 5, 10, 12], [40, 0, 30, 10]], "category": [1, 0]},
        datasets.Sequence({"bbox": BOX, "category": CATEGORY}),
    ),
    (
        [{"bbox": [4, 5, 10, 12], "category": "stop sign"}, {"bbox": [40, 0, 30, 10], "category": "car"}],
        datasets.List({"bbox": BOX, "category": datasets.Value("string"), "area": datasets.Value("int64")}),
    ),
]


@pytest.mark.parametrize(("objects", "feature"), OBJECTS)
def test_objects_become_labels(tmp_path: Path, objects: Any, feature: Any) -> None:
    empty: Any = [] if isinstance(objects, list) else {name: [] for name in objects}
    if isinstance(objects, list) and "area" in str(feature):
        objects = [{**item, "area": 1} for item in objects]
    saved(
        tmp_path / "ds",
        {"image": cells(2), "objects": [objects, empty], "width": [1, 1]},
        {"image": datasets.Image(), "objects": feature, "width": datasets.Value("int64")},
    )
    source = source_of({"huggingface": str(tmp_path / "ds")})
    assert source.classes == (None if "area" in str(feature) else NAMES)
    first, second = source.scan()
    assert boxes(first) == [("stop sign", 4, 5, 14, 17), ("car", 40, 0, 48, 10)]
    assert "leaves the image by 22 pixels" in (first.problem or "")
    assert second.labels == []
    assert second.metadata == {"width": 1}
    pa.array([first.labels, second.labels], DETECTIONS)


def test_bad_objects_are_named(tmp_path: Path) -> None:
    feature = datasets.List({"bbox": datasets.List(datasets.Value("float32")), "category": CATEGORY})
    objects = [
        {"bbox": [1, 2, 0, 4], "category": 0},
        {"bbox": [1, 2, 3], "category": 0},
        {"bbox": None, "category": 0},
        {"bbox": [1, 2, 3, 4], "category": None},
        {"bbox": [100, 2, 3, 4], "category": 0},
        {"bbox": [1, 2, 3, 4], "category": 1},
    ]
    broken = [{"bytes": picture(0), "path": None}, {"bytes": b"no image", "path": None}, None]
    saved(
        tmp_path / "ds",
        {"image": broken, "objects": [objects, objects[-1:], objects[-1:]]},
        {"image": datasets.Image(decode=False), "objects": feature},
    )
    first, second, third = source_of({"huggingface": str(tmp_path / "ds")}).scan()
    assert boxes(first) == [("stop sign", 1, 2, 4, 6)]
    assert [f"object {number} " in (first.problem or "") for number in range(1, 7)] == [True] * 5 + [False]
    for entry in (second, third):
        assert boxes(entry) == [("stop sign", 1, 2, 4, 6)]
        assert "width and height are not known" in (entry.problem or "")
    with pytest.raises(RowError, match="the file is empty"):
        Fetcher()(third.uri)


def test_cells_that_point_at_files(tmp_path: Path) -> None:
    write(tmp_path / "ds/side.jpg", picture(4))
    absolute = str(write(tmp_path / "far.jpg", picture(5)))
    rows = [{"bytes": None, "path": "side.jpg"}, {"bytes": None, "path": absolute}, {"bytes": None, "path": "gone.jpg"}]
    kind = {"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}
    saved(tmp_path / "ds", {"image": rows}, kind)
    entries = list(source_of({"huggingface": str(tmp_path / "ds")}).scan())
    fetcher = Fetcher()
    assert [fetcher(entry.uri) for entry in entries[:2]] == [picture(4), picture(5)]
    with pytest.raises(RowError, match=r"the file is gone: .*/ds/gone\.jpg"):
        fetcher(entries[2].uri)


def test_which_column(tmp_path: Path) -> None:
    features = {"left": datasets.Image(), "right": datasets.Image()}
    saved(tmp_path / "ds", {"left": cells(1), "right": cells(1, 5)}, features)
    with pytest.raises(SourceError, match=r"more than one column .* name it with image: COLUMN"):
        scan({"huggingface": str(tmp_path / "ds")})
    assert list(fetch_all(scan({"huggingface": str(tmp_path / "ds")}, image="right")).values()) == [picture(5)]


def test_what_is_not_a_saved_dataset(tmp_path: Path) -> None:
    write(tmp_path / "folder/a.txt", b"x")
    with pytest.raises(SourceError, match=r"must be a folder that dataset.save_to_disk wrote but holds a.txt"):
        scan({"huggingface": str(tmp_path / "folder")})
    with pytest.raises(SourceError, match=r"did you mean .*/folder"):
        scan({"huggingface": str(tmp_path / "foldr")})
    with pytest.raises(SourceError, match="nothing is downloaded"):
        scan({"huggingface": "cppe-5"})
    with pytest.raises(SourceError, match="must be a local folder"):
        scan({"huggingface": "s3://bucket/ds"})
    saved(tmp_path / "ds", {"image": []}, {"image": datasets.Image()})
    with pytest.raises(SourceError, match="has no rows"):
        scan({"huggingface": str(tmp_path / "ds")})
    (tmp_path / "ds/state.json").write_text("{")
    with pytest.raises(SourceError, match="cannot be opened"):
        scan({"huggingface": str(tmp_path / "ds")})


def test_a_row_that_is_gone(tmp_path: Path) -> None:
    saved(tmp_path / "ds", {"image": cells(1)}, {"image": datasets.Image()})
    (entry,) = source_of({"huggingface": str(tmp_path / "ds")}).scan()
    for part in (
        entry.uri.replace("row=0", "row=9"),
        entry.uri.replace("image", "img"),
        entry.uri.replace("split=", "split=x"),
    ):
        with pytest.raises(RowError, match="is gone from"):
            Fetcher()(part)
    with pytest.raises(RowError, match="does not exist"):
        Fetcher()(entry.uri.replace("/ds#", "/gone#"))
