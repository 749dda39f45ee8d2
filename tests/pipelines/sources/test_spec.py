from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from labelmill.pipelines.sources import Entry, Source, SourceError, SourceSpec
from labelmill.pipelines.sources.base import in_order, normal_key, problem_text, valid_text


def test_a_bare_string_is_a_folder() -> None:
    assert SourceSpec.model_validate("data/street") == SourceSpec(folder="data/street")
    assert SourceSpec.model_validate(Path("data/street")).folder == "data/street"
    assert SourceSpec.model_validate({"coco": "a.json"}).coco == SourceSpec(coco={"annotations": "a.json"}).coco  # type: ignore[arg-type]
    assert SourceSpec(parquet="x").kind == "parquet"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {},
            "of folder, coco, yolo, voc, cvat, label_studio, parquet, webdataset, huggingface but has none",
        ),
        ({"folder": "a", "yolo": "b"}, "but has folder and yolo"),
        ({"folder": "a", "image": "x"}, "image is an option of parquet and huggingface, not of folder"),
        ({"huggingface": "a", "key": "x"}, "key is an option of parquet, not of huggingface"),
        ({"folder": "ftp://a"}, "must be a local path or start with s3://, gs:// or https://"),
        ({"folder": ""}, "must not be empty"),
        ({"webdataset": []}, "at least 1 item"),
        ({"foldr": "a"}, "foldr"),
        ({"coco": {"annotation": "a"}}, "annotations"),
    ],
)
def test_a_wrong_source_section(value: object, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SourceSpec.model_validate(value)
    assert message in str(caught.value)


def test_secrets_do_not_show() -> None:
    assert "hush" not in repr(SourceSpec(folder="a", storage_options={"secret": "hush"}))


def test_the_specification_loads_nothing_heavy() -> None:
    code = (
        "import sys, labelmill.pipelines.sources.spec; "
        "print([m for m in ('pyarrow', 'fsspec', 'PIL', 'numpy', 'datasets', 'pycocotools') if m in sys.modules])"
    )
    root = Path(__file__).parents[3]
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert found.stdout.strip() == "[]"


class _Listed(Source):
    def __init__(self, *entries: Entry) -> None:
        super().__init__()
        self.given = entries

    def _entries(self) -> Iterator[Entry]:
        yield from self.given
        for number in range(1500):
            self._report(f"problem {number:04d}")

    def _empty(self) -> str:
        return "nothing here"


def test_two_images_cannot_share_a_key() -> None:
    source = _Listed(Entry("a", "/x"), Entry("b", "/y"), Entry("a", "/z"))
    with pytest.raises(SourceError, match=r"'a'.*/x and /z"):
        list(source.scan())


def test_a_source_without_entries_says_so() -> None:
    with pytest.raises(SourceError, match="nothing here"):
        list(_Listed().scan())


def test_many_problems_are_counted_and_do_not_pile_up_over_scans() -> None:
    source = _Listed(Entry("a", "/x"))
    for _ in range(2):
        assert len(list(source.scan())) == 1
        assert len(source.problems) == 1001
        assert source.problems[-1] == "and 500 more problems"


@given(st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("./\0\udc80"))))
def test_a_normal_key_has_no_way_out(name: str) -> None:
    key = normal_key(name)
    parts = key.split("/")
    assert all(part not in ("", ".", "..") for part in parts)
    assert "\0" not in key
    key.encode("utf-8")
    assert normal_key(key) == key


def test_valid_text() -> None:
    assert valid_text("ü") == "ü"
    assert valid_text(b"\xff.jpg".decode("utf-8", "surrogateescape")) == "\\xff.jpg"
    valid_text("\ud83d alone").encode("utf-8")
    valid_text("\ud83d and \udcff").encode("utf-8")


def test_problem_text_is_bounded() -> None:
    assert problem_text([]) is None
    assert problem_text(["a", "a", "b"]) == "a; b"
    text = problem_text(str(number) for number in range(100))
    assert text is not None
    assert text.endswith("; and 50 more")


def test_in_order_keeps_the_order_and_does_not_run_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    def slow(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number

    found = in_order(slow, items(), 4)
    assert [next(found) for _ in range(10)] == list(range(10))
    assert len(taken) <= 10 + 8
    assert list(found) == list(range(10, 100))
    assert list(in_order(slow, [3, 1], 1)) == [3, 1]
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda number: 1 // number, [1, 0, 1], 4))
