from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from labelmill.operators.errors import RowError
from labelmill.pipelines.sources import Fetcher, SourceError
from tests.pipelines.sources.helpers import fetch_all, picture, scan, source_of, write


def tar(path: Path, members: list[tuple[str, bytes]], kind: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_what_webdataset_writes(tmp_path: Path) -> None:
    import webdataset

    expected: dict[str, bytes] = {}
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / f"shard-{shard:03d}.tar")) as writer:
            for number in range(4):
                name, data = f"deep/sample{number}", picture(10 * shard + number)
                text = {"json": {"a": [number, None], "ü": "ü"}, "txt": f"caption {number}", "cls": number}
                writer.write({"__key__": name, "jpg": data, **text, "npy": b"x"})
                expected[f"shard-{shard:03d}.tar/{name}.jpg"] = data
    source = source_of({"webdataset": str(tmp_path / "shard-{000..001}.tar")})
    entries = {entry.key: entry for entry in source.scan()}
    assert source.problems == []
    assert source.ignored == {".npy": 8}
    assert fetch_all(entries) == expected
    metadata = entries["shard-001.tar/deep/sample2.jpg"].metadata
    assert metadata == {"json": {"a": [2, None], "ü": "ü"}, "txt": "caption 2", "cls": 2}
    assert "#offset=" in entries["shard-001.tar/deep/sample2.jpg"].uri
    assert len({entry.version for entry in entries.values()}) == 8
    for other in (str(tmp_path), str(tmp_path / "*.tar"), sorted(map(str, tmp_path.glob("*.tar")))):
        assert scan({"webdataset": other}) == entries


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_nasty_member_names(tmp_path: Path, kind: int) -> None:
    names = {
        "../../up.jpg": "up.jpg",
        "/abs/x.jpg": "abs/x.jpg",
        "./dot/y.png": "dot/y.png",
        "a#row=1&b 100%.jpg": "a#row=1&b 100%.jpg",
        "ünï/日本.webp": "ünï/日本.webp",
        "new\nline.jpg": "new\nline.jpg",
        "long/" * 19 + "z.jpg": "long/" * 19 + "z.jpg",
    }
    path = tar(tmp_path / "odd #{1}%.tar", [(name, picture(seed)) for seed, name in enumerate(names)], kind)
    entries = scan({"webdataset": str(path)})
    assert fetch_all(entries) == {f"odd #{{1}}%.tar/{key}": picture(seed) for seed, key in enumerate(names.values())}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["odd #{1}%.tar", "work"]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [(b"caf\xe9.jpg".decode("utf-8", "surrogateescape"), b"x")], tarfile.GNU_FORMAT)
    (entry,) = scan({"webdataset": str(path)}).values()
    assert entry.key == "a.tar/caf\\xe9.jpg"


def test_samples_with_several_images_and_scattered_sidecars(tmp_path: Path) -> None:
    members = [
        ("a.txt", b"first"),
        ("a.left.jpg", b"1"),
        ("b.jpg", b"2"),
        ("a.seg.PNG", b"3"),
        ("b.meta.json", b'{"k": NaN}'),
        ("a.cls", b"7\n"),
        ("c/a.jpg", b"4"),
        ("b.cls", b"dog"),
        ("orphan.txt", b"x"),
    ]
    entries = scan({"webdataset": str(tar(tmp_path / "x.tar", members))})
    assert {key.removeprefix("x.tar/"): entry.metadata for key, entry in entries.items()} == {
        "a.left.jpg": {"txt": "first", "cls": 7},
        "a.seg.PNG": {"txt": "first", "cls": 7},
        "b.jpg": {"meta.json": {"k": None}, "cls": "dog"},
        "c/a.jpg": None,
    }


def test_bad_sidecars_are_named(tmp_path: Path) -> None:
    deep = b"[" * 30_000
    members = [
        ("a.jpg", b"1"),
        ("a.json", b"{"),
        ("a.txt", b"\xff\xfe"),
        ("b.jpg", b"2"),
        ("b.json", json.dumps("x" * 70_000).encode()),
        ("b.txt", b"y" * 9000),
        ("c.jpg", b"3"),
        ("c.json", deep),
        ("c.cls", b"\xc2\xb2"),
    ]
    entries = scan({"webdataset": str(tar(tmp_path / "x.tar", members))})
    problem = entries["x.tar/a.jpg"].problem or ""
    assert "'a.json' is left out" in problem
    assert "'a.txt' is left out" in problem
    assert "'b.json' is left out: it has 70002 bytes" in (entries["x.tar/b.jpg"].problem or "")
    assert entries["x.tar/b.jpg"].metadata == {"txt": "y" * 1999 + "…"}
    assert "'c.json' is left out" in (entries["x.tar/c.jpg"].problem or "")
    assert entries["x.tar/c.jpg"].metadata == {"cls": "²"}


def test_links_holes_and_hidden_members(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in (("a.jpg", tarfile.REGTYPE), ("hard.jpg", tarfile.LNKTYPE), ("soft.jpg", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a.jpg" if kind != tarfile.REGTYPE else ""
            archive.addfile(member)
        for name in ("._a.jpg", "__MACOSX/b.jpg", ".git/c.jpg"):
            archive.addfile(tarfile.TarInfo(name))
        folder = tarfile.TarInfo("folder.jpg")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    source = source_of({"webdataset": str(path)})
    assert [entry.key for entry in source.scan()] == ["x.tar/a.jpg"]
    assert len(source.problems) == 2
    assert "'hard.jpg'" in source.problems[0]


def test_two_members_of_one_name(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", [("a.jpg", b"1"), ("../a.jpg", b"2")])
    with pytest.raises(SourceError, match=r"'x.tar/a.jpg'.*offset=.*offset="):
        scan({"webdataset": str(path)})


def test_a_tar_cut_short_keeps_what_is_there(tmp_path: Path) -> None:
    members = [(f"{number}.jpg", picture(number)) for number in range(6)]
    whole = tar(tmp_path / "whole.tar", members).read_bytes()
    last = scan({"webdataset": str(tmp_path / "whole.tar")})["whole.tar/5.jpg"]
    offset = int(last.uri.partition("offset=")[2].partition("&")[0])
    for name, size, expected, said in (
        ("inside", offset + 10, 6, "is cut short in '5.jpg'"),
        ("header", offset - 200, 5, "seems to be cut short"),
        ("before", offset - 512, 5, "seems to be cut short"),
        ("after", offset + len(members[5][1]), 6, "seems to be cut short|is damaged after"),
    ):
        path = write(tmp_path / "cut" / f"{name}.tar", whole[:size])
        source = source_of({"webdataset": str(path)})
        entries = {entry.key: entry for entry in source.scan()}
        assert len(entries) == expected, name
        assert any(word in source.problems[0] for word in said.split("|")), (name, source.problems)
        fetcher = Fetcher()
        good = members[:5] if name != "after" else members
        assert [fetcher(entries[f"{name}.tar/{number}"].uri) for number, _ in good] == [data for _, data in good]
        if name == "inside":
            assert entries["inside.tar/5.jpg"].problem == "this member is cut short"
            with pytest.raises(RowError, match="10 of"):
                fetcher(entries["inside.tar/5.jpg"].uri)


def test_a_damaged_header_keeps_what_came_before(tmp_path: Path) -> None:
    members = [(f"{number}.jpg", picture(number)) for number in range(6)]
    path = tar(tmp_path / "x.tar", members, tarfile.USTAR_FORMAT)
    third = scan({"webdataset": str(path)})["x.tar/3.jpg"]
    offset = int(third.uri.partition("offset=")[2].partition("&")[0]) - 512
    data = bytearray(path.read_bytes())
    data[offset : offset + 512] = b"\x55" * 512
    path.write_bytes(data)
    source = source_of({"webdataset": str(path)})
    assert len(list(source.scan())) == 3
    assert source.problems == [f"{path} is damaged at byte {offset}; the rest was not read"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty file"),
        (b"no tar at all" * 100, "cannot be read as a tar"),
        (gzip.compress(b"x" * 1000, mtime=0), "compressed with gzip; decompress it"),
        (bytes(1024), "there are no images"),
    ],
    ids=["empty", "text", "gzip", "no members"],
)
def test_what_is_not_a_tar(tmp_path: Path, data: bytes, message: str) -> None:
    bad = write(tmp_path / "bad.tar", data)
    with pytest.raises(SourceError, match=message):
        scan({"webdataset": str(bad)})
    tar(tmp_path / "good.tar", [("a.jpg", b"1")])
    source = source_of({"webdataset": str(tmp_path)})
    assert [entry.key for entry in source.scan()] == ["good.tar/a.jpg"]
    assert source.problems == [] if not any(data) and data else "bad.tar cannot be read" in source.problems[0]


def test_missing_files_of_a_brace_pattern(tmp_path: Path) -> None:
    tar(tmp_path / "s-000.tar", [("a.jpg", b"1")])
    tar(tmp_path / "s-002.tar", [("a.jpg", b"1")])
    source = source_of({"webdataset": str(tmp_path / "s-{000..002}.tar")})
    assert [entry.key for entry in source.scan()] == ["s-000.tar/a.jpg", "s-002.tar/a.jpg"]
    assert "s-001.tar does not exist" in source.problems[0]
    for pattern, message in (
        ("t-{0..3}.tar", "no file matches"),
        ("s-{000.tar", "brace"),
        ("s-00.tar", "did you mean"),
    ):
        with pytest.raises(SourceError, match=message):
            scan({"webdataset": str(tmp_path / pattern)})
    with pytest.raises(SourceError, match="did you mean"):
        scan({"webdataset": [str(tmp_path / "s-000.tar"), str(tmp_path / "s-0O2.tar")]})


def test_folders_of_one_name_keep_apart(tmp_path: Path) -> None:
    for folder in ("x/in", "y/in"):
        tar(tmp_path / folder / "s.tar", [("a.jpg", folder.encode())])
    value: Any = [str(tmp_path / "x/in/s.tar"), str(tmp_path / "y/in/*.tar")]
    entries = scan({"webdataset": value})
    assert fetch_all(entries) == {"x/in/s.tar/a.jpg": b"x/in", "y/in/s.tar/a.jpg": b"y/in"}
    assert scan({"webdataset": value[::-1]}) == entries


def test_no_images(tmp_path: Path) -> None:
    tar(tmp_path / "x.tar", [("a.npy", b"1"), ("b.npy", b"1"), ("a.txt", b"1")])
    with pytest.raises(SourceError, match=r"there are no images .* saw 2 \.npy"):
        scan({"webdataset": str(tmp_path / "x.tar")})
