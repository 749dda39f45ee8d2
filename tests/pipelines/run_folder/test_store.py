from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path

import pyarrow as pa
import pytest

from labelmill.pipelines.run_folder.store import TEMPORARY, Store, parquet_bytes

TABLE = pa.table({"a": [1, 2, 3], "b": [[1.0], [], None]})


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store(str(tmp_path / "run"))
    return Store(f"s3://{request.getfixturevalue('s3')}/run")


def test_round_trip(store: Store) -> None:
    assert not store.exists("x/y.parquet")
    assert store.names("x") == []
    store.write_table("x/y.parquet", TABLE)
    assert store.exists("x/y.parquet")
    assert store.read_table("x/y.parquet").equals(TABLE)
    assert store.read_table("x/y.parquet", ["b"]).column_names == ["b"]
    store.write("x/z", b"1")
    store.write("x/z", b"2")
    assert store.read("x/z") == b"2"
    assert store.names("x") == ["y.parquet", "z"]
    assert store.names() == ["x"]
    with pytest.raises(FileNotFoundError):
        store.read("x/none")


def test_a_listing_sees_what_another_process_has_written(store: Store) -> None:
    other = pickle.loads(pickle.dumps(store))
    assert store.names("d") == []
    other.write("d/new", b"1")
    assert store.names("d") == ["new"]
    assert store.exists("d/new")


def test_append(store: Store) -> None:
    for line in (b"1\n", b"2\n"):
        with store.append("log") as file:
            file.write(line)
    assert store.read("log") == b"1\n2\n"


def test_the_same_table_gives_the_same_bytes() -> None:
    assert parquet_bytes(TABLE) == parquet_bytes(pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(1)]).combine_chunks())


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    store, size, stop = Store(str(tmp_path)), 2_000_000, threading.Event()
    seen: set[int] = set()
    store.write("file", b"a" * size)

    def read() -> None:
        while not stop.is_set():
            seen.add(len(store.read("file")))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(30):
        store.write("file", b"b" * size)
    stop.set()
    reader.join()
    assert seen == {size}


def test_what_a_killed_writer_left_is_not_listed_and_is_cleaned(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write("steps/a/00000.parquet", b"x")
    (tmp_path / "steps" / "a" / f"{TEMPORARY}1234").write_bytes(b"half")
    (tmp_path / "exports" / f"{TEMPORARY}coco").mkdir(parents=True)
    assert store.names("steps/a") == ["00000.parquet"]
    store.clean()
    assert os.listdir(tmp_path / "steps" / "a") == ["00000.parquet"]
    assert os.listdir(tmp_path / "exports") == []
