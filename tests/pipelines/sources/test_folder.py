from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest

from labelmill.pipelines.sources import Fetcher, SourceError
from labelmill.pipelines.sources.uri import local_path
from labelmill.pipelines.sources.walk import image_suffixes
from tests.pipelines.sources.helpers import NASTY_NAMES, fetch_all, picture, scan, source_of, write


def test_nasty_names_round_trip(tmp_path: Path) -> None:
    data = {name: picture(seed) for seed, name in enumerate(NASTY_NAMES)}
    for name, image in data.items():
        write(tmp_path / "in" / name, image)
    entries = scan(str(tmp_path / "in"))
    assert fetch_all(entries) == data
    assert {local_path(entry.uri) for entry in entries.values()} == {str(tmp_path / "in" / name) for name in data}
    assert all(entry.problem is None and entry.labels is None and entry.split is None for entry in entries.values())


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/in"
    os.mkdir(folder)
    with open(folder + b"/caf\xe9.jpg", "wb") as file:
        file.write(b"latin")
    entries = scan(str(tmp_path / "in"))
    (entry,) = entries.values()
    assert entry.key == "caf\\xe9.jpg"
    assert entry.problem == "the file's name is not valid UTF-8"
    entry.uri.encode("utf-8")
    assert Fetcher()(entry.uri) == b"latin"
    write(tmp_path / "in" / "caf\\xe9.jpg", b"other")
    with pytest.raises(SourceError, match="same key"):
        scan(str(tmp_path / "in"))


def test_what_is_and_is_not_an_image(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.PNG", "c.HeIc", "sub/d.webp", "e.avif", "f.tiff"):
        write(tmp_path / name, b"x")
    for name in (
        "notes.txt",
        "noext",
        ".hidden.jpg",
        ".git/e.jpg",
        "__MACOSX/f.jpg",
        "._g.jpg",
        ".DS_Store",
        "g.jpg.bak",
    ):
        write(tmp_path / name, b"x")
    write(tmp_path / "folder.jpg" / "inside.jpg", b"x")
    os.mkfifo(tmp_path / "pipe.jpg")
    source = source_of({"folder": str(tmp_path)})
    keys = {entry.key for entry in source.scan()}
    assert keys == {"a.jpg", "b.PNG", "c.HeIc", "sub/d.webp", "e.avif", "f.tiff", "folder.jpg/inside.jpg"}
    assert source.ignored == {".txt": 1, "": 1, ".bak": 1}


def test_suffixes_are_those_that_pillow_decodes() -> None:
    suffixes = image_suffixes()
    assert {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".webp", ".avif", ".heic", ".jp2"} <= suffixes
    assert not suffixes & {".pdf", ".h5", ".hdf", ".mpg", ".grib", ".bufr", ".eps", ".wmf", ".txt", ""}


def test_the_version_follows_the_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg", b"one")
    first = scan(str(tmp_path))["a.jpg"].version
    status = path.stat()
    assert first == f"{status.st_size}-{status.st_mtime_ns}"
    path.write_bytes(b"four")
    assert scan(str(tmp_path))["a.jpg"].version != first


def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    write(tmp_path / "in/real/a.jpg", b"a")
    write(tmp_path / "outside/b.jpg", b"b")
    write(tmp_path / "outside/deep/c.jpg", b"c")
    (tmp_path / "in/real/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/again").symlink_to(tmp_path / "in/real")
    (tmp_path / "in/z").symlink_to(tmp_path / "outside")
    (tmp_path / "in/y").symlink_to(tmp_path / "outside")
    (tmp_path / "outside/deep/up").symlink_to(tmp_path / "outside")
    (tmp_path / "in/link.jpg").symlink_to(tmp_path / "outside/b.jpg")
    (tmp_path / "in/nowhere.jpg").symlink_to(tmp_path / "gone.jpg")
    source = source_of(str(tmp_path / "in"))
    entries = {entry.key: entry for entry in source.scan()}
    assert set(entries) == {"real/a.jpg", "y/b.jpg", "y/deep/c.jpg", "link.jpg", "nowhere.jpg"}
    assert entries["nowhere.jpg"].problem == "this is a link that leads nowhere"
    assert len(source.problems) == 4
    assert all("was not followed" in problem for problem in source.problems)


def test_the_listing_order_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        write(tmp_path / "in" / "abc"[number % 3] / f"{number}.jpg", bytes([number]))
    for name in "qprs":
        (tmp_path / "in" / name).symlink_to(tmp_path / "in" / "a" if name < "q" else tmp_path / "linked")
    write(tmp_path / "linked/x.jpg", b"x")
    expected = scan(str(tmp_path / "in"))
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
    for _ in range(5):
        assert scan(str(tmp_path / "in")) == expected


def test_a_folder_without_permission_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "in/a.jpg", b"a")
    write(tmp_path / "in/locked/b.jpg", b"b")
    real = os.scandir

    def scandir(path: str) -> object:  # root, who runs tests in a container, may read everything
        if path.endswith(locked):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    locked = "in/locked"
    source = source_of(str(tmp_path / "in"))
    assert [entry.key for entry in source.scan()] == ["a.jpg"]
    assert source.problems == [f"the folder {tmp_path}/in/locked cannot be listed: Permission denied"]
    locked = "in"
    with pytest.raises(SourceError, match="cannot be listed: Permission denied"):
        list(source.scan())


def test_an_empty_folder_says_what_it_saw(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.parquet", "d"):
        write(tmp_path / name, b"x")
    with pytest.raises(SourceError) as caught:
        scan(str(tmp_path))
    message = str(caught.value)
    assert ".jpg" in message
    assert "2 .txt, 1 without extension, 1 .parquet" in message
    assert "source: {parquet: …}" in message
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="saw nothing there"):
        scan(str(tmp_path / "empty"))


def test_a_missing_folder_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "street/day/a.jpg", b"x")
    with pytest.raises(SourceError, match=rf"did you mean {tmp_path}/street\?"):
        scan(str(tmp_path / "stret/day"))
    with pytest.raises(SourceError, match="there is no 'zzz'"):
        scan(str(tmp_path / "zzz" / "day"))
    with pytest.raises(SourceError, match=r"must be a folder but is a file.*coco"):
        scan(str(write(tmp_path / "labels.json", b"{}")))
    with pytest.raises(SourceError, match="http has no folders"):
        scan("https://127.0.0.1:1/data")


def test_a_problem_of_one_scan_is_not_in_the_next(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg", b"x")
    write(tmp_path / "a.txt", b"x")
    source = source_of(str(tmp_path))
    for _ in range(2):
        list(source.scan())
        assert source.ignored == {".txt": 1}


def test_a_folder_that_cannot_be_looked_at_for_the_moment_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its images would be taken for images that are gone."""
    for name in ("a/1.jpg", "b/2.jpg"):
        write(tmp_path / name, picture(1))
    real = os.scandir

    def scandir(path: str) -> Any:
        if str(path).endswith("/b"):
            raise OSError(errno.EMFILE, "Too many open files")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(SourceError, match=r"/b cannot be looked at: Too many open files; when it can, run the same"):
        scan({"folder": str(tmp_path)})
