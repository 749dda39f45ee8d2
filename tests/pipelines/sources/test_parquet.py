from __future__ import annotations

import datetime
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labelmill.operators.errors import RowError
from labelmill.pipelines.sources import Fetcher, SourceError
from tests.pipelines.sources.helpers import NASTY_NAMES, fetch_all, picture, scan, source_of, write

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def images(count: int, start: int = 0) -> list[bytes]:
    return [picture(start + number) for number in range(count)]


def table(path: Path, data: list[bytes], kind: pa.DataType = IMAGE, rows: int = 3, **more: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    cells: list[Any] = [{"bytes": item, "path": "x.jpg"} for item in data] if pa.types.is_struct(kind) else data
    pq.write_table(pa.table({"image": pa.array(cells, kind), **more}), path, row_group_size=rows)
    return str(path)


@pytest.mark.parametrize("kind", [IMAGE, pa.binary(), pa.large_binary(), pa.struct([("bytes", pa.large_binary())])])
def test_images_round_trip(tmp_path: Path, kind: pa.DataType) -> None:
    data = images(10)
    path = table(tmp_path / "a.parquet", data, pa.struct(list(kind)) if pa.types.is_struct(kind) else kind)
    entries = scan({"parquet": path})
    assert list(entries) == [f"a.parquet/{row:08d}" for row in range(10)]
    assert list(fetch_all(entries).values()) == data
    assert entries["a.parquet/00000003"].uri == f"{path}#row=3&column=image"
    assert len({entry.version for entry in entries.values()}) == 10


def test_what_the_datasets_package_writes(tmp_path: Path) -> None:
    import datasets

    files = [str(write(tmp_path / f"{number}.jpg", picture(number))) for number in range(5)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    saved = datasets.Dataset.from_dict({"image": files, "label": [0, 1, 0, 1, 0]}, features=features)
    saved.to_parquet(str(tmp_path / "x.parquet"))
    entries = scan({"parquet": str(tmp_path / "x.parquet")})
    assert list(fetch_all(entries).values()) == [Path(file).read_bytes() for file in files]
    assert entries["x.parquet/00000001"].metadata == {"label": "b"}


def test_folders_globs_and_names(tmp_path: Path) -> None:
    first, second, third = images(2), images(3, 10), images(1, 20)
    table(tmp_path / "in/x/train.parquet", first)
    table(tmp_path / "in/y/train.parquet", second)
    table(tmp_path / "in/odd#name%[1] {a}.parquet", third)
    write(tmp_path / "in/readme.md", b"")
    whole = scan({"parquet": str(tmp_path / "in")})
    assert sorted(whole) == [
        "odd#name%[1] {a}.parquet/00000000",
        "x/train.parquet/00000000",
        "x/train.parquet/00000001",
        "y/train.parquet/00000000",
        "y/train.parquet/00000001",
        "y/train.parquet/00000002",
    ]
    found = fetch_all(whole)
    assert [found[key] for key in sorted(found)] == [*third, *first, *second]
    assert list(scan({"parquet": str(tmp_path / "in/*/train.parquet")})) == sorted(whole)[1:]
    assert list(scan({"parquet": str(tmp_path / "in/y/*.parquet")})) == [f"train.parquet/0000000{n}" for n in range(3)]
    assert list(scan({"parquet": str(tmp_path / "in/odd#name%[1] {a}.parquet")})) == [
        "odd#name%[1] {a}.parquet/00000000"
    ]


def test_keys_from_a_column(tmp_path: Path) -> None:
    names = pa.array(["b/1.jpg", "../a.jpg", None, "ü#1.jpg"])
    path = table(tmp_path / "a.parquet", images(4), id=names)
    entries = scan({"parquet": path}, key="id")
    assert list(entries) == ["b/1.jpg", "a.jpg", "a.parquet/00000002", "ü#1.jpg"]
    assert [bool(entry.problem) for entry in entries.values()] == [False, False, True, False]
    assert list(scan({"parquet": table(tmp_path / "b.parquet", images(2), id=[7, 8])}, key="id")) == ["7", "8"]
    with pytest.raises(SourceError, match=r"'x'.*row=0.*row=1"):
        scan({"parquet": table(tmp_path / "c.parquet", images(2), id=["x", "/x"])}, key="id")
    with pytest.raises(SourceError, match=r"key must be a column of .*its columns are image, id"):
        scan({"parquet": path}, key="name")


def test_scalar_columns_are_metadata(tmp_path: Path) -> None:
    when = datetime.datetime(2024, 5, 1, 12, tzinfo=datetime.UTC)
    path = table(
        tmp_path / "a.parquet",
        images(2),
        caption=["x" * 5000, None],
        count=[1, 2],
        ratio=[0.5, float("nan")],
        flag=[True, False],
        when=[when, when],
        tag=pa.array(["a", "b"]).dictionary_encode(),
        vector=[[1.0], [2.0]],
        raw=pa.array([b"1", b"2"]),
        nested=[{"a": 1}, {"a": 2}],
    )
    entries = scan({"parquet": path}, image="image")
    first, second = (entry.metadata for entry in entries.values())
    assert first == {
        "caption": "x" * 1999 + "…",
        "count": 1,
        "ratio": 0.5,
        "flag": True,
        "when": when.isoformat(),
        "tag": "a",
    }
    assert second == {"caption": None, "count": 2, "ratio": None, "flag": False, "when": when.isoformat(), "tag": "b"}


def test_paths_and_urls(tmp_path: Path) -> None:
    for seed, name in enumerate(NASTY_NAMES):
        write(tmp_path / "in/photos" / name, picture(seed))
    absolute = str(write(tmp_path / "elsewhere.jpg", picture(99)))
    names = [*(f"photos/{name}" for name in NASTY_NAMES), absolute, "gone.jpg", None, "", "https://host/a%20b.jpg?x=1"]
    names += ["ftp://host/a.jpg"]
    path = table(tmp_path / "in/a.parquet", names, pa.string())  # type: ignore[arg-type]
    entries = list(scan({"parquet": path}, image="image").values())
    count = len(NASTY_NAMES)
    fetcher = Fetcher()
    assert [fetcher(entry.uri) for entry in entries[: count + 1]] == [*(picture(n) for n in range(count)), picture(99)]
    assert all(entry.version and not entry.problem for entry in entries[: count + 1])
    gone, none, empty, url, odd = entries[count + 1 :]
    assert "the file is gone" in (gone.problem or "")
    assert "no path in row" in (none.problem or "")
    assert "no path in row" in (empty.problem or "")
    assert (url.uri, url.problem, url.version) == ("https://host/a%20b.jpg?x=1", None, None)
    assert "ftp://" in (odd.problem or "")
    for entry in (gone, none, empty, odd):
        with pytest.raises(RowError):
            fetcher(entry.uri)


def test_cells_that_point_at_files_or_hold_nothing(tmp_path: Path) -> None:
    write(tmp_path / "in/side.jpg", picture(1))
    cells = [{"bytes": None, "path": "side.jpg"}, {"bytes": None, "path": None}, None, {"bytes": b"", "path": ""}]
    pq.write_table(pa.table({"image": pa.array(cells, IMAGE)}), tmp_path / "in/a.parquet")
    entries = list(scan({"parquet": str(tmp_path / "in/a.parquet")}).values())
    fetcher = Fetcher()
    assert fetcher(entries[0].uri) == picture(1)
    for entry in entries[1:]:
        with pytest.raises(RowError, match="the file is empty"):
            fetcher(entry.uri)


def test_which_column_holds_the_images(tmp_path: Path) -> None:
    one = pa.array([b"1"])
    pq.write_table(pa.table({"thumb": one, "photo": one, "n": [1]}), tmp_path / "two.parquet")
    with pytest.raises(SourceError, match=r"more than one column .*thumb \(binary\), photo \(binary\), n \(int64\)"):
        scan({"parquet": str(tmp_path / "two.parquet")})
    assert Fetcher()(next(iter(scan({"parquet": str(tmp_path / "two.parquet")}, image="photo").values())).uri) == b"1"
    pq.write_table(pa.table({"only": one}), tmp_path / "one.parquet")
    assert len(scan({"parquet": str(tmp_path / "one.parquet")})) == 1
    pq.write_table(pa.table({"image": one, "mask": one}), tmp_path / "named.parquet")
    assert "column=image" in next(iter(scan({"parquet": str(tmp_path / "named.parquet")}).values())).uri
    pq.write_table(pa.table({"n": [1], "text": ["x"]}), tmp_path / "none.parquet")
    with pytest.raises(SourceError, match=r"no column .* looks like images"):
        scan({"parquet": str(tmp_path / "none.parquet")})
    with pytest.raises(SourceError, match=r"image must be a column .*'pic' is not"):
        scan({"parquet": str(tmp_path / "one.parquet")}, image="pic")
    with pytest.raises(SourceError, match=r"'n' in .* is int64"):
        scan({"parquet": str(tmp_path / "none.parquet")}, image="n")
    pq.write_table(pa.table({"a.b c&d=": one}), tmp_path / "odd.parquet")
    assert list(fetch_all(scan({"parquet": str(tmp_path / "odd.parquet")})).values()) == [b"1"]


def test_a_broken_file_among_good_ones_is_reported(tmp_path: Path) -> None:
    table(tmp_path / "a.parquet", images(2))
    write(tmp_path / "b.parquet", b"PAR1 no PAR1")
    write(tmp_path / "c.parquet", b"")
    source = source_of({"parquet": str(tmp_path)})
    assert [entry.key for entry in source.scan()] == ["a.parquet/00000000", "a.parquet/00000001"]
    assert len(source.problems) == 2
    assert "b.parquet cannot be read as Parquet" in source.problems[0]
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(SourceError, match=r"b\.parquet cannot be read as Parquet.*; nor can 1 other file"):
        scan({"parquet": str(tmp_path)})


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(SourceError, match=r"no \.parquet file below"):
        scan({"parquet": str(tmp_path / "in")})
    with pytest.raises(SourceError, match="no file matches"):
        scan({"parquet": str(tmp_path / "in/*.parquet")})
    table(tmp_path / "in/street.parquet", [])
    with pytest.raises(SourceError, match="have no rows"):
        scan({"parquet": str(tmp_path / "in")})
    with pytest.raises(SourceError, match=r"did you mean .*/street.parquet"):
        scan({"parquet": str(tmp_path / "in/stret.parquet")})


def test_large_row_groups_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labelmill.pipelines.sources.parquet.ROW_GROUP_BYTES", 5000)
    path = table(tmp_path / "a.parquet", images(20), rows=20)
    source = source_of({"parquet": path})
    assert len(list(source.scan())) == 20
    assert "smaller row groups" in source.problems[0]


def test_the_listing_order_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in "cabd":
        table(tmp_path / f"{name}.parquet", images(2))
    expected = list(scan({"parquet": str(tmp_path)}).items())
    real = os.scandir

    class Shuffled:
        def __init__(self, path: str) -> None:
            with real(path) as listing:
                self.entries = list(listing)
            random.shuffle(self.entries)

        def __enter__(self) -> object:
            return iter(self.entries)

        def __exit__(self, *args: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Shuffled)
    assert list(scan({"parquet": str(tmp_path)}).items()) == expected
