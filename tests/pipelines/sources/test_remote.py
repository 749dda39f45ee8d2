from __future__ import annotations

import io
import json
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from labelmill.operators.errors import RowError
from labelmill.pipelines.sources import Fetcher, SourceError
from labelmill.pipelines.sources.storage import Storage, Unavailable
from tests.pipelines.sources.helpers import boxes, fetch_all, picture, scan, source_of, write

S3_NAMES = (
    "a#row=1.jpg",
    "with space.jpg",
    "ünï/日本.jpg",
    "q?mark.jpg",
    "100%.jpg",
    "%20.jpg",
    "+&=.jpg",
    "[1]*{a}.jpg",
    "d//e.jpg",
)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labelmill.pipelines.sources.storage.PAUSE", 0.0)


def tar_bytes(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def parquet_bytes(values: list[Any], kind: pa.DataType) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": pa.array(values, kind), "n": list(range(len(values)))}), buffer, row_group_size=3)
    return buffer.getvalue()


def test_s3_folder(bucket: Any) -> None:
    for seed, name in enumerate(S3_NAMES):
        bucket.put(f"data/street/{name}", picture(seed))
    bucket.put("data/street/notes.txt", b"x")
    bucket.put("data/street/.hidden/a.jpg", b"x")
    bucket.put("data/street/empty/", b"")
    bucket.put("data/streets/other.jpg", b"x")
    source = source_of({"folder": f"s3://{bucket.name}/data/street/"}, storage_options=bucket.options)
    entries = {entry.key: entry for entry in source.scan()}
    assert fetch_all(entries, bucket.options) == {name: picture(seed) for seed, name in enumerate(S3_NAMES)}
    assert source.ignored == {".txt": 1}
    assert source.problems == []
    before = entries["100%.jpg"].version
    assert before
    bucket.put("data/street/100%.jpg", b"changed")
    after = scan({"folder": f"s3://{bucket.name}/data/street"}, storage_options=bucket.options)
    assert after["100%.jpg"].version != before
    assert after["%20.jpg"].version == entries["%20.jpg"].version


def test_s3_threads_and_travel(bucket: Any) -> None:
    for number in range(20):
        bucket.put(f"{number}.jpg", picture(number))
    entries = scan({"folder": f"s3://{bucket.name}"}, storage_options=bucket.options)
    fetcher = pickle.loads(pickle.dumps(Fetcher(bucket.options)))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: fetcher(entries[f"{number}.jpg"].uri), range(20)))
    assert found == [picture(number) for number in range(20)]


def test_s3_says_what_is_wrong(bucket: Any) -> None:
    bucket.put("data/street/a.jpg", b"x")
    with pytest.raises(SourceError, match=r"did you mean .*/data/street"):
        scan({"folder": f"s3://{bucket.name}/data/stret"}, storage_options=bucket.options)
    with pytest.raises(SourceError, match="does not exist"):
        scan({"folder": f"s3://{bucket.name}-gone/data"}, storage_options=bucket.options)
    bucket.put("void/a.txt", b"x")
    with pytest.raises(SourceError, match="there are no images below"):
        scan({"folder": f"s3://{bucket.name}/void"}, storage_options=bucket.options)
    with pytest.raises(RowError, match="the file is gone: s3://"):
        Fetcher(bucket.options)(f"s3://{bucket.name}/gone.jpg")


def test_s3_parquet(bucket: Any) -> None:
    data = [picture(number) for number in range(8)]
    bucket.put("p/a.parquet", parquet_bytes(data[:5], pa.binary()))
    bucket.put("p/deep/b#.parquet", parquet_bytes(data[5:], pa.binary()))
    bucket.put("p/c.parquet", b"broken")
    source = source_of({"parquet": f"s3://{bucket.name}/p"}, storage_options=bucket.options)
    entries = {entry.key: entry for entry in source.scan()}
    assert list(entries) == [
        *(f"a.parquet/0000000{n}" for n in range(5)),
        *(f"deep/b#.parquet/0000000{n}" for n in range(3)),
    ]
    assert list(fetch_all(entries, bucket.options).values()) == data
    assert entries["a.parquet/00000004"].metadata == {"n": 4}
    assert "c.parquet cannot be read as Parquet" in source.problems[0]
    globbed = scan({"parquet": f"s3://{bucket.name}/p/**/b*.parquet"}, storage_options=bucket.options)
    assert list(globbed) == [f"deep/b#.parquet/0000000{n}" for n in range(3)]


def test_s3_parquet_of_paths(bucket: Any) -> None:
    bucket.put("p/photos/a b.jpg", picture(1))
    paths = ["photos/a b.jpg", f"s3://{bucket.name}/p/photos/a b.jpg", "/etc/hostname", "../../../x.jpg"]
    bucket.put("p/a.parquet", parquet_bytes(paths, pa.string()))
    spec = {"parquet": f"s3://{bucket.name}/p/a.parquet", "image": "image"}
    entries = list(scan(spec, storage_options=bucket.options).values())
    fetcher = Fetcher(bucket.options)
    assert [fetcher(entry.uri) for entry in entries[:2]] == [picture(1)] * 2
    assert "is not on this machine" in (entries[2].problem or "")
    for entry in entries[2:]:
        with pytest.raises(RowError):
            fetcher(entry.uri)


def test_s3_tar(bucket: Any) -> None:
    members = {f"{number}.jpg": picture(number, 200, 200) for number in range(4)}
    for shard in range(3):
        bucket.put(f"t/s-{shard:03d}.tar", tar_bytes({**members, "0.json": b'{"shard": %d}' % shard}))
    expected = {f"s-{shard:03d}.tar/{name}": data for shard in range(3) for name, data in members.items()}
    for value in ("s-{000..002}.tar", "*.tar", ""):
        entries = scan({"webdataset": f"s3://{bucket.name}/t/{value}"}, storage_options=bucket.options)
        assert fetch_all(entries, bucket.options) == expected
        assert entries["s-002.tar/0.jpg"].metadata == {"json": {"shard": 2}}
        assert len({entry.version for entry in entries.values()}) == 12
    cut = tar_bytes(members)[:-9000]
    bucket.put("t/cut.tar", cut)
    source = source_of({"webdataset": f"s3://{bucket.name}/t/cut.tar"}, storage_options=bucket.options)
    assert 0 < len(list(source.scan())) <= 4
    assert "cut short" in source.problems[0]


def test_s3_coco_and_yolo(bucket: Any) -> None:
    bucket.put("ds/images/train/a.jpg", picture(1, 40, 20))
    bucket.put("ds/images/train/.b/c.jpg", picture(2, 40, 20))
    bucket.put("ds/labels/train/a.txt", b"0 0.5 0.5 0.5 0.5")
    bucket.put("ds/data.yaml", yaml.safe_dump({"train": "images/train", "names": ["car"]}).encode())
    records = [{"id": n, "file_name": name} for n, name in enumerate(("train/a.jpg", "train/.b/c.jpg", "gone.jpg"), 1)]
    annotations = [{"id": 1, "image_id": 1, "category_id": 5, "bbox": [10, 5, 20, 10]}]
    document = {"images": records, "annotations": annotations, "categories": [{"id": 5, "name": "car"}]}
    bucket.put("ds/labels.json", json.dumps(document).encode())
    yolo = scan({"yolo": f"s3://{bucket.name}/ds/data.yaml"}, storage_options=bucket.options)
    assert list(yolo) == ["images/train/a.jpg"]
    assert boxes(yolo["images/train/a.jpg"]) == [("car", 10, 5, 30, 15)]
    coco = scan({"coco": f"s3://{bucket.name}/ds/labels.json"}, storage_options=bucket.options)
    assert boxes(coco["train/a.jpg"]) == [("car", 10, 5, 30, 15)]
    assert coco["train/a.jpg"].version == yolo["images/train/a.jpg"].version
    assert coco["train/.b/c.jpg"].problem is None
    assert "the file is gone" in (coco["gone.jpg"].problem or "")
    assert Fetcher(bucket.options)(coco["train/.b/c.jpg"].uri) == picture(2, 40, 20)


def test_a_remote_list_cannot_name_local_files(bucket: Any, tmp_path: Path) -> None:
    write(tmp_path / "photos/a.jpg", picture())
    write(tmp_path / "secret.jpg", picture())
    names = ["a.jpg", "../secret.jpg", f"{tmp_path}/secret.jpg", "file:///etc/hostname"]
    document = {"images": [{"id": n, "file_name": name, "width": 1, "height": 1} for n, name in enumerate(names)]}
    bucket.put("labels.json", json.dumps(document).encode())
    spec = {"coco": {"annotations": f"s3://{bucket.name}/labels.json", "images": str(tmp_path / "photos")}}
    source = source_of(spec, storage_options=bucket.options)
    assert [entry.key for entry in source.scan()] == ["a.jpg"]
    assert len(source.problems) == 3
    assert all("is left out" in problem for problem in source.problems)


def test_https_images_in_coco(http_server: Any) -> None:
    write(http_server.root / "photos/a b#1.jpg", picture(1))
    write(http_server.root / "photos/b.jpg", picture(2))
    records = [
        {
            "id": 1,
            "file_name": "a b#1.jpg",
            "width": 48,
            "height": 32,
            "coco_url": f"{http_server.url}/photos/a%20b%231.jpg",
        },
        {"id": 2, "file_name": f"{http_server.url}/photos/b.jpg", "coco_url": f"{http_server.url}/photos/b.jpg"},
    ]
    annotations = [{"id": 1, "image_id": 2, "category_id": 1, "bbox": [40, 1, 20, 5]}]
    document = {"images": records, "annotations": annotations, "categories": [{"id": 1, "name": "car"}]}
    write(http_server.root / "labels.json", json.dumps(document).encode())
    keys = ["a b#1.jpg", f"{http_server.url.removeprefix('http://')}/photos/b.jpg"]
    for spec in (f"{http_server.url}/labels.json", str(http_server.root / "labels.json")):
        entries = scan({"coco": spec})
        assert list(entries) == keys
        assert list(fetch_all(entries).values()) == [picture(1), picture(2)]
        assert boxes(entries[keys[1]]) == [("car", 40, 1, 48, 6)]
    del records[0]["coco_url"], records[1]["coco_url"]
    write(http_server.root / "labels.json", json.dumps(document).encode())
    images = {"annotations": f"{http_server.url}/labels.json", "images": f"{http_server.url}/photos/"}
    assert list(fetch_all(scan({"coco": images})).values()) == [picture(1), picture(2)]
    with pytest.raises(SourceError, match="cannot be reached"):
        scan({"coco": f"{http_server.url}/gone.json"})


@pytest.mark.parametrize("ranges", [True, False])
def test_https_parquet_and_tar(http_server: Any, ranges: bool) -> None:
    """A server that sends no parts is asked for the whole file."""
    http_server.ranges = ranges
    data = [picture(number) for number in range(5)]
    write(http_server.root / "a b.parquet", parquet_bytes(data, pa.binary()))
    write(http_server.root / "x.tar", tar_bytes({f"{number}.jpg": item for number, item in enumerate(data)}))
    entries = scan({"parquet": f"{http_server.url}/a%20b.parquet?sig=a%2Fb"})
    assert list(entries) == [f"a b.parquet/0000000{number}" for number in range(5)]
    assert list(fetch_all(entries).values()) == data
    assert all("sig=a%2Fb" in path for path, _ in http_server.requests)
    http_server.partial = 0
    entries = scan({"webdataset": [f"{http_server.url}/x.tar"]})
    assert list(fetch_all(entries).values()) == data
    assert http_server.partial == (5 if ranges else 0)


def test_a_large_tar_needs_a_server_that_sends_parts(http_server: Any) -> None:
    http_server.ranges = False
    write(http_server.root / "x.tar", tar_bytes({f"{n}.jpg": bytes([n]) * 4_000_000 for n in range(1, 4)}))
    with pytest.raises(SourceError, match="does not send parts of a file; download"):
        scan({"webdataset": f"{http_server.url}/x.tar"})
    http_server.ranges = True
    entries = scan({"webdataset": f"{http_server.url}/x.tar"})
    assert fetch_all(entries)["x.tar/2.jpg"] == b"\2" * 4_000_000


def test_https_lists_nothing(http_server: Any) -> None:
    with pytest.raises(SourceError, match="http has no folders"):
        scan(http_server.url)
    with pytest.raises(SourceError, match="http cannot list files"):
        scan({"webdataset": f"{http_server.url}/*.tar"})


def test_https_failures(http_server: Any) -> None:
    write(http_server.root / "a.jpg", b"image")
    write(http_server.root / "forbidden.jpg", b"image")
    fetcher = Fetcher()
    http_server.failures = 3
    assert fetcher(f"{http_server.url}/a.jpg") == b"image"
    assert len(http_server.requests) == 4
    http_server.failures = 100
    with pytest.raises(RowError, match=r"could not be read in 4 attempts: .*503"):
        fetcher(f"{http_server.url}/a.jpg")
    http_server.failures = 0
    http_server.requests.clear()
    with pytest.raises(RowError, match="the file is gone"):
        fetcher(f"{http_server.url}/gone.jpg")
    with pytest.raises(RowError, match="no permission to read"):
        fetcher(f"{http_server.url}/forbidden.jpg")
    assert len(http_server.requests) == 2
    with pytest.raises(RowError, match="could not be read in 4 attempts"):
        fetcher("http://127.0.0.1:9/a.jpg")


def test_options_of_an_object_store_do_not_reach_http(http_server: Any, bucket: Any) -> None:
    write(http_server.root / "a.jpg", b"image")
    assert Fetcher(bucket.options)(f"{http_server.url}/a.jpg") == b"image"
    storage = Storage({"headers": {"X-Test": "1"}})
    assert storage.read(f"{http_server.url}/a.jpg") == b"image"
    assert storage.system(http_server.url).kwargs["headers"] == {"X-Test": "1"}


def test_http_versions(http_server: Any) -> None:
    path = write(http_server.root / "x.tar", tar_bytes({"a.jpg": b"1"}))
    first = scan({"webdataset": f"{http_server.url}/x.tar"})["x.tar/a.jpg"].version
    assert first
    assert first.startswith(f"{path.stat().st_size}-")


def test_whether_a_file_is_there_is_not_guessed_while_a_store_is_away(bucket: Any) -> None:
    bucket.put("a.jpg", b"image")
    storage = Storage(bucket.options)
    assert storage.is_file(f"s3://{bucket.name}/a.jpg") and not storage.is_file(f"s3://{bucket.name}/b.jpg")
    at_once = {"config_kwargs": {"retries": {"max_attempts": 0}}}
    away = Storage({**bucket.options, **at_once, "client_kwargs": {"endpoint_url": "http://127.0.0.1:9"}})
    away.system(f"s3://{bucket.name}").retries = 1
    for asked in (away.is_file, away.names):
        with pytest.raises(Unavailable, match=r"could not be read in 2 attempts: .*127\.0\.0\.1:9"):
            asked(f"s3://{bucket.name}/a.jpg")
