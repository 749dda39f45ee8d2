from __future__ import annotations

import io
import os
import pickle
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labelmill.operators.errors import RowError
from labelmill.pipelines.sources import Fetcher
from labelmill.pipelines.sources.fetch import RowGroups
from labelmill.pipelines.sources.storage import Storage
from tests.pipelines.sources.helpers import picture, scan, write


@pytest.fixture
def everything(tmp_path: Path) -> dict[str, bytes]:
    """Bytes by uri, in every kind of container."""
    import datasets

    data = [picture(number) for number in range(40)]
    for number in range(10):
        write(tmp_path / f"folder/{number}.jpg", data[number])
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for number in range(10, 20):
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = len(data[number])
            archive.addfile(member, io.BytesIO(data[number]))
    pq.write_table(pa.table({"image": pa.array(data[20:30], pa.binary())}), tmp_path / "x.parquet", row_group_size=3)
    cells = [{"bytes": item, "path": None} for item in data[30:]]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": cells}, features=features).save_to_disk(tmp_path / "ds")
    found: list[str] = []
    for kind, name in (("folder", "folder"), ("webdataset", "x.tar"), ("parquet", "x.parquet"), ("huggingface", "ds")):
        entries = scan({kind: str(tmp_path / name)})
        found += [entries[key].uri for key in sorted(entries)]
    return dict(zip(found, data, strict=True))


def test_threads_share_a_fetcher(everything: dict[str, bytes]) -> None:
    fetcher = Fetcher()
    uris = list(everything) * 10
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(fetcher, uris)) == [everything[uri] for uri in uris]


def test_a_fetcher_travels(everything: dict[str, bytes]) -> None:
    fetcher = Fetcher({"key": "k"})
    for uri, data in everything.items():
        assert fetcher(uri) == data
    copy = pickle.loads(pickle.dumps(fetcher))
    assert copy.storage_options == {"key": "k"}
    assert {uri: copy(uri) for uri in everything} == everything


def test_each_row_group_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(
        pa.table({"image": pa.array([picture(n) for n in range(12)])}), tmp_path / "x.parquet", row_group_size=4
    )
    entries = list(scan({"parquet": str(tmp_path / "x.parquet")}).values())
    reads: list[int] = []
    real = RowGroups._read

    def counted(self: RowGroups, location: str, group: int, column: str) -> Any:
        reads.append(group)
        return real(self, location, group, column)

    monkeypatch.setattr(RowGroups, "_read", counted)
    fetcher = Fetcher()
    start = threading.Barrier(6)

    def all_at_once(uri: str) -> bytes:
        start.wait()
        return fetcher(uri)

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(all_at_once, [entry.uri for entry in entries])) == [picture(n) for n in range(12)]
    assert sorted(reads) == [0, 1, 2]


def test_the_cache_is_bounded_and_keeps_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"image": pa.array([bytes(1000)] * 10)}), tmp_path / "x.parquet", row_group_size=1)
    for limit, kept in ((2500, 2), (10, 1)):
        monkeypatch.setattr("labelmill.pipelines.sources.fetch.CACHE_BYTES", limit)
        groups = RowGroups(Storage())
        for row in range(10):
            assert groups.cell(str(tmp_path / "x.parquet"), row, "image") == bytes(1000)
        assert [key[1] for key in groups._groups] == list(range(10))[-kept:]


def test_a_failed_read_is_tried_again_next_time(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    fetcher = Fetcher()
    with pytest.raises(RowError, match="the file is gone"):
        fetcher(f"{path}#row=0&column=image")
    write(path, b"broken")
    with pytest.raises(RowError, match="cannot be read"):
        fetcher(f"{path}#row=0&column=image")
    pq.write_table(pa.table({"image": pa.array([b"x"])}), path)
    assert fetcher(f"{path}#row=0&column=image") == b"x"


def test_plain_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetcher = Fetcher()
    write(tmp_path / "a.jpg", b"12345")
    write(tmp_path / "empty.jpg", b"")
    os.mkfifo(tmp_path / "pipe.jpg")
    pq.write_table(pa.table({"image": pa.array([b"x"])}), tmp_path / "x.parquet")
    for uri, message in {
        f"{tmp_path}/gone.jpg": f"the file is gone: {tmp_path}/gone.jpg",
        f"{tmp_path}/a.jpg/b.jpg": "the file is gone",
        f"{tmp_path}": "must be a file but is a folder",
        f"{tmp_path}/pipe.jpg": "must be a file but is a folder or a device",
        f"{tmp_path}/empty.jpg": "the file is empty",
        f"{tmp_path}/a%00b.jpg": "cannot be read",
        f"{tmp_path}/a.jpg#offset=3&length=9": "is cut short: 2 of 9 bytes",
        f"{tmp_path}/a.jpg#offset=3": "must name 'length'",
        f"{tmp_path}/a.jpg#offset=x&length=1": "invalid literal",
        f"{tmp_path}/a.jpg#other=1": "has no part",
        f"{tmp_path}/x.parquet#row=1&column=image": "row 1 is gone",
        f"{tmp_path}/x.parquet#row=0&column=pic": "the column 'pic' is gone",
        "ftp://host/a.jpg": "must be a local path or start with s3://",
    }.items():
        with pytest.raises(RowError) as caught:
            fetcher(uri)
        assert message in str(caught.value)

    def forbidden(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("labelmill.pipelines.sources.storage.open", forbidden, raising=False)
    with pytest.raises(RowError, match=f"no permission to read {tmp_path}/a.jpg"):
        fetcher(f"{tmp_path}/a.jpg")
    monkeypatch.setattr("labelmill.pipelines.sources.storage.MAX_BYTES", 4)
    with pytest.raises(RowError, match="must be smaller than 2 GiB"):
        fetcher(f"{tmp_path}/a.jpg")
