from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelmill.pipelines.sources.uri import (
    as_location,
    base_name,
    below,
    file_uri,
    join,
    local_path,
    member_uri,
    parent,
    parse,
    resolve,
)

PATHS = st.text(
    st.one_of(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), st.sampled_from("%#?/&=\udc80\udcff")),
    min_size=1,
).map(lambda text: "/" + text)


@given(PATHS)
def test_file_uri_round_trips_any_path(path: str) -> None:
    uri = file_uri(path)
    assert parse(uri) == (path, {})
    assert local_path(uri) == path
    uri.encode("utf-8")


@given(PATHS, st.text(st.characters(exclude_categories=["Cs"])), st.integers(0))
def test_member_uri_round_trips(path: str, column: str, row: int) -> None:
    uri = member_uri(path, row=row, column=column)
    assert parse(uri) == (path, {"row": str(row), "column": column})
    assert local_path(uri) is None


def test_uris_stay_readable() -> None:
    assert file_uri("/data/a b/ü?.jpg") == "/data/a b/ü?.jpg"
    assert file_uri("/data/a#b%.jpg") == "/data/a%23b%25.jpg"
    assert member_uri("/x.tar", offset=512, length=1234) == "/x.tar#offset=512&length=1234"
    assert file_uri("s3://bucket/a#1.jpg") == "s3://bucket/a%231.jpg"


def test_an_http_url_is_not_encoded_again() -> None:
    url = "https://host/a%20b.jpg?sig=x%2Fy%3D"
    assert file_uri(url) == url
    assert parse(url) == (url, {})
    assert parse(member_uri(url, row=3, column="image")) == (url, {"row": "3", "column": "image"})
    assert local_path(url) is None


def test_as_location(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.chdir(str(tmp_path))
    monkeypatch.setenv("HOME", "/home/someone")
    assert as_location("data/../street") == f"{tmp_path}/street"
    assert as_location("~/street") == "/home/someone/street"
    assert as_location("file:///data/a%20b") == "/data/a b"
    assert as_location("https://host/a.jpg#part") == "https://host/a.jpg"
    with pytest.raises(ValueError, match="ftp://"):
        as_location("ftp://host/a.jpg")
    with pytest.raises(ValueError, match="must not be empty"):
        as_location("")


@pytest.mark.parametrize(
    ("reference", "folder", "expected"),
    [
        ("a.jpg", "/data", "/data/a.jpg"),
        ("../a.jpg", "/data/x", "/data/a.jpg"),
        ("/else/a.jpg", "/data", "/else/a.jpg"),
        ("~a.jpg", "/data", "/data/~a.jpg"),
        ("https://host/a.jpg", "/data", "https://host/a.jpg"),
        ("sub/a#1 b.jpg", "s3://bucket/x", "s3://bucket/x/sub/a#1 b.jpg"),
        ("../a.jpg", "s3://bucket/x", "s3://bucket/a.jpg"),
        ("a b#1.jpg", "https://host/x?sig=1", "https://host/x/a%20b%231.jpg?sig=1"),
        ("../a.jpg", "https://host/x/y", "https://host/x/a.jpg"),
    ],
)
def test_resolve(reference: str, folder: str, expected: str) -> None:
    assert resolve(reference, folder) == expected


@pytest.mark.parametrize(
    ("reference", "folder"),
    [
        ("/etc/passwd", "s3://bucket/x"),
        ("file:///etc/passwd", "https://host/x"),
        ("../../a.jpg", "s3://bucket/x"),
        ("../../../../a.jpg", "https://host/x"),
        ("ftp://host/a.jpg", "/data"),
        ("gopher://host/a.jpg", "s3://bucket"),
    ],
)
def test_resolve_refuses(reference: str, folder: str) -> None:
    with pytest.raises(ValueError, match=r"must|leads out"):
        resolve(reference, folder)


def test_parts_of_locations() -> None:
    assert parent("/data/a.jpg") == "/data"
    assert parent("/a.jpg") == "/"
    assert parent("https://host/x/a.tar?sig=/1") == "https://host/x?sig=/1"
    assert base_name("https://host/x/a%20b.tar?sig=/1") == "a b.tar"
    assert join("s3://bucket", "a", "b") == "s3://bucket/a/b"
    assert below("/data/x/a.jpg", "/data") == "x/a.jpg"
    assert below("/database/a.jpg", "/data") is None
