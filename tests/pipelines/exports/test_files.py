from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from labelmill.operators.errors import RowError
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.exports import EXPORT_NAMES, exporter
from labelmill.pipelines.exports.card import dataset_card, escaped
from labelmill.pipelines.exports.dataset import Dataset, ExportError, ExportImage
from labelmill.pipelines.exports.files import Output, file_name
from labelmill.pipelines.exports.labels import Tally
from labelmill.pipelines.sources.uri import file_uri
from tests.pipelines.exports.scenes import read, refuse


def image(key: str = "a.jpg", kind: str = "JPEG", number: int = 7, uri: str = "", **options: object) -> ExportImage:
    values = {"width": 4, "height": 3, "split": None, "detections": [], **options}
    return ExportImage(image_id=number, key=key, uri=uri, format=kind, **values)  # type: ignore[arg-type]


def local(folder: Path) -> Output:
    return Output(fsspec.filesystem("file"), str(folder))


def test_exporters_are_found_by_name() -> None:
    assert {"coco", "crops", "voc", "yolo"} <= set(EXPORT_NAMES)
    assert [exporter(name).name for name in EXPORT_NAMES] == list(EXPORT_NAMES)
    with pytest.raises(ExportError, match=r"one of coco, .* but is 'cocos'; did you mean 'coco'") as error:
        exporter("cocos")
    assert isinstance(error.value, UserError)


@pytest.mark.parametrize("name", EXPORT_NAMES)
def test_params_refuse_what_they_do_not_know(name: str) -> None:
    params = exporter(name).Params
    assert getattr(params(), "images", "link") == "link"
    for wrong in ({"image": "link"}, {"images": "move"}):
        with pytest.raises(ValidationError):
            params.model_validate(wrong)
    with pytest.raises(ValidationError):
        params().images = "copy"


@pytest.mark.parametrize(
    ("key", "kind", "name"),
    [
        ("street/0001.jpg", "JPEG", "00000007-0001.jpg"),
        ("a.JPEG", "JPEG", "00000007-a.jpeg"),
        ("a.jpg", "PNG", "00000007-a.png"),
        ("a.png", "JPEG", "00000007-a.jpg"),
        ("a.jfif", "JPEG", "00000007-a.jpg"),
        ("a.jpg", "MPO", "00000007-a.jpg"),
        ("a.tif", "TIFF", "00000007-a.tif"),
        ("a", "WEBP", "00000007-a.webp"),
        ("a.v2.final.png", "PNG", "00000007-a.v2.final.png"),
        (".png", "PNG", "00000007.png"),
        ("no dot/in.this/name", "GIF", "00000007-name.gif"),
        ("x/Café #1 'big' \"q\".jpg", "JPEG", "00000007-Cafe_1_big_q.jpg"),
        ("猫.png", "PNG", "00000007.png"),
        ("line\nbreak\t.bmp", "BMP", "00000007-line_break.bmp"),
        ("a.ppm", "PPM", "00000007-a.ppm"),
        ("../../etc/passwd", "PNG", "00000007-passwd.png"),
        ("a.heic", "HEIF", "00000007-a.heic"),
        ("a.xyz", "UNHEARD OF", "00000007-a.unheardof"),
        ("x" * 300 + ".png", "PNG", "00000007-" + "x" * 80 + ".png"),
    ],
)
def test_file_names(key: str, kind: str, name: str) -> None:
    assert file_name(image(key, kind)) == name


@given(st.text(min_size=1), st.text(min_size=1), st.sampled_from(["JPEG", "PNG", "TIFF"]))
def test_file_names_are_plain_and_never_collide(one: str, other: str, kind: str) -> None:
    first, second = file_name(image(one, kind, 1)), file_name(image(other, kind, 2))
    assert first.lower() != second.lower()
    for name in (first, second):
        assert name.isascii()
        assert name.isprintable()
        assert len(name) < 128
        assert not set(name) & set("/\\:*?\"<>|# '%")
        assert name == os.path.basename(name)
        assert not name.startswith(".")


def test_a_link_is_the_original(tmp_path: Path) -> None:
    original = tmp_path / "50% #1.jpg"
    original.write_bytes(b"bytes")
    with local(tmp_path / "out") as out:
        out.place(image(uri=file_uri(str(original))), refuse, "images/a.jpg", "link")
    assert (tmp_path / "out/images/a.jpg").samefile(original)


def test_a_member_of_an_archive_is_copied_and_the_archive_is_not(tmp_path: Path) -> None:
    archive = tmp_path / "x.tar"
    archive.write_bytes(b"archive")
    with local(tmp_path / "out") as out:
        out.place(image(uri=f"{archive}#offset=2&length=3"), lambda uri: b"chi", "a.jpg", "link")
    assert (tmp_path / "out/a.jpg").read_bytes() == b"chi"


def test_a_link_goes_to_the_file_behind_a_symbolic_link(tmp_path: Path) -> None:
    original = tmp_path / "original.jpg"
    original.write_bytes(b"bytes")
    (tmp_path / "alias.jpg").symlink_to("original.jpg")
    local(tmp_path / "out").place(image(uri=str(tmp_path / "alias.jpg")), refuse, "a.jpg", "link")
    placed = tmp_path / "out/a.jpg"
    assert not placed.is_symlink()
    assert placed.samefile(original)


def test_a_copy_is_another_file(tmp_path: Path) -> None:
    original = tmp_path / "original.jpg"
    original.write_bytes(b"bytes")
    with local(tmp_path / "out") as out:
        out.place(image(uri=str(original)), read, "a.jpg", "copy")
    assert (tmp_path / "out/a.jpg").read_bytes() == b"bytes"
    assert not (tmp_path / "out/a.jpg").samefile(original)


def test_where_a_link_is_impossible_the_bytes_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*args: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    original = tmp_path / "original.jpg"
    original.write_bytes(b"bytes")
    with local(tmp_path / "out") as out:
        out.place(image(uri=str(original)), read, "a.jpg", "link")
    assert (tmp_path / "out/a.jpg").read_bytes() == b"bytes"


@pytest.mark.parametrize("mode", ["link", "copy"])
def test_a_file_that_is_there_is_never_written_into(tmp_path: Path, mode: str) -> None:
    """It may be a hard link to somebody's original."""
    original = tmp_path / "original.jpg"
    original.write_bytes(b"original")
    (tmp_path / "out").mkdir()
    os.link(original, tmp_path / "out/a.jpg")
    other = tmp_path / "other.jpg"
    other.write_bytes(b"other")
    with pytest.raises(FileExistsError), local(tmp_path / "out") as out:
        out.place(image(uri=str(other)), read, "a.jpg", mode)  # type: ignore[arg-type]
    assert original.read_bytes() == b"original"


def test_bytes_from_elsewhere_are_fetched_by_several_threads(tmp_path: Path) -> None:
    meet = threading.Barrier(4, timeout=120)

    def fetch(uri: str) -> bytes:
        meet.wait()
        return uri.encode()

    with local(tmp_path) as out:
        for number in range(40):
            out.place(image(uri=f"s3://bucket/{number}"), fetch, f"images/{number}.jpg", "link")
    assert {path.name: path.read_bytes() for path in (tmp_path / "images").iterdir()} == {
        f"{number}.jpg": f"s3://bucket/{number}".encode() for number in range(40)
    }


@pytest.mark.parametrize("failure", [RowError("it is gone"), OSError("it is gone")])
def test_an_image_that_cannot_be_read_stops_the_export_by_name(tmp_path: Path, failure: Exception) -> None:
    def fetch(uri: str) -> bytes:
        raise failure

    with pytest.raises(ExportError, match=r"image 'b/c\.jpg' cannot be read: it is gone"), local(tmp_path) as out:
        out.place(image("b/c.jpg", uri="s3://bucket/c.jpg"), fetch, "images/c.jpg", "link")


@pytest.mark.parametrize("path", ["../a", "a/../../b", "/etc/passwd"])
def test_paths_stay_inside(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match="below the output's root"):
        local(tmp_path / "out").write(path, b"")


def test_an_object_store_gets_whole_files(s3: str, tmp_path: Path) -> None:
    filesystem = fsspec.filesystem("s3")
    original = tmp_path / "a.jpg"
    original.write_bytes(b"bytes")
    with Output(filesystem, f"{s3}/exports/coco") as out:
        out.folder("images")
        out.write("labels/a.txt", b"0 1\n")
        out.place(image(uri=str(original)), read, "images/a.jpg", "link")
        with out.open("annotations/a.json", "wb") as file:
            file.write(b"{}")
    names = sorted(filesystem.find(f"{s3}/exports"))
    assert names == [f"{s3}/exports/coco/{name}" for name in ("annotations/a.json", "images/a.jpg", "labels/a.txt")]
    assert filesystem.cat_file(names[1]) == b"bytes"


def test_a_file_half_written_does_not_appear_in_an_object_store(s3: str) -> None:
    filesystem = fsspec.filesystem("s3")
    out = Output(filesystem, f"{s3}/exports")

    def fail() -> None:
        with out.open("a.json", "wb") as file:
            file.write(b"{")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert not filesystem.exists(f"{s3}/exports/a.json")


def test_the_promises_of_the_stream_are_checked() -> None:
    def problem(images: list[ExportImage], splits: list[str]) -> str:
        with pytest.raises(ExportError) as error:
            list(Dataset(iter(images), [], splits, refuse, {}).checked())
        return str(error.value)

    assert "ascending image_id" in problem([image(number=2), image(number=1)], [])
    assert "ascending image_id" in problem([image(number=2), image(number=2)], [])
    assert "from 1" in problem([image(number=0)], [])
    assert "must have pixels but is 0 by 3" in problem([image(width=0)], [])
    assert "must be in one of the splits train, val but is in none" in problem([image()], ["train", "val"])
    assert "must be in one of the splits train, val but is in 'dev'" in problem([image(split="dev")], ["train", "val"])
    assert "must have no split" in problem([image(split="train")], [])
    assert "a split's name must be letters" in problem([], ["../train"])


def test_a_class_that_stands_twice_is_refused() -> None:
    with pytest.raises(ExportError, match="'car' stands twice"):
        Tally(["car", "bus", "car"], [])


@pytest.mark.parametrize("text", ["a|b", "*a*", "`a`", "<script>", "a\nb", "[x](y)", "\u202eabc", "A & B", "$x$", "\\"])
def test_names_in_the_card_cannot_break_its_tables(text: str) -> None:
    shown = escaped(text)
    assert shown.isprintable()
    assert not re.search(r"(?<!\\)(?:\\\\)*[|*`\[\]$]", shown)
    assert not set(shown) & set("<>")


def test_the_card_holds_counts_and_provenance() -> None:
    tally = Tally(["a|b", "none of it"], ["train", "val"])
    box = {"x1": 0.0, "y1": 0.0, "x2": 2.0, "y2": 2.0, "score": None, "prompt": None, "mask": None, "class": "a|b"}
    tally.read(image(split="train", detections=[box, box]))
    tally.read(image(split="val", detections=[{**box, "x1": 3.0}]))
    card = dataset_card("T", tally, ["Made."], ["Note."], {"run": "r```s", "count": 2}).decode()
    assert "## Licences" not in card
    assert "|  | train | val |" in card
    assert "| images | 1 | 1 |" in card
    assert "| objects | 2 | 0 |" in card
    assert "| a\\|b | 2 | 0 |" in card
    assert "| none of it | 0 | 0 |" in card
    assert "| box is inverted | 1 |" in card
    assert '````json\n{\n  "count": 2,\n  "run": "r```s"\n}\n````' in card
    assert card == dataset_card("T", tally, ["Made."], ["Note."], {"count": 2, "run": "r```s"}).decode()


def test_the_card_names_the_licences_of_images_and_models() -> None:
    models = [{"step": "detect", "parameter": "model", "reference": "dino@9f2c61ab04d7", "licence": "Apache-2.0"}]
    tally = Tally(["car"], ["train"])
    card = dataset_card("T", tally, [], [], {"models": models}, counted="crops").decode()
    assert "Images: not known." in card
    assert "| detect | dino@9f2c61ab04d7 | Apache-2.0 |" in card
    assert "| crops | 0 |" in card
    assert "Images: CC BY 4.0, a\\|b." in dataset_card("T", tally, [], [], {"licences": ["CC BY 4.0", "a|b"]}).decode()
