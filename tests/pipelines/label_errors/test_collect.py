from __future__ import annotations

import csv
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
import yaml
from typer.testing import CliRunner

from labelmill.operators.base import TableOperator, TableResult
from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.pipelines.commands.errors import errors
from labelmill.pipelines.config.pipeline import load_pipeline
from labelmill.pipelines.engine.terminal import TerminalReporter
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.label_errors.collect import TABLE, list_label_errors
from labelmill.pipelines.label_errors.sheet import render, window, write_sheet
from labelmill.pipelines.run import Options, run
from tests.drawing import encode, noise
from tests.operators.test_label_errors import box

CAR, FAR = (10, 10, 50, 50), (60, 10, 90, 60)
ODD = "<script>alert('x')</script>"


class Oracle(TableOperator):
    """Sees a car and a bus in every image."""

    def writes(self) -> pa.Schema:
        return pa.schema([pa.field("detections", DETECTIONS)])

    def compute(self, table: pa.Table) -> TableResult:
        seen = [box(CAR, "car", 0.9), box(FAR, "bus", 0.8)]
        return TableResult(pa.table({"detections": pa.array([seen] * table.num_rows, DETECTIONS)}))


def coco_document(images: int) -> dict[str, Any]:
    """A COCO file: each third image lacks its bus, calls its car a bus, or is right; one label has no area."""
    found: list[dict[str, Any]] = []

    def add(image: int, name: int, xyxy: tuple[int, ...]) -> None:
        bbox = [xyxy[0], xyxy[1], xyxy[2] - xyxy[0], xyxy[3] - xyxy[1]]
        found.append({"id": len(found) + 1, "image_id": image, "category_id": name, "bbox": bbox, "area": 1})

    for image in range(1, images + 1):
        add(image, 2 if image % 3 == 1 else 1, CAR)
        if image % 3:
            add(image, 2, FAR)
    add(2, 1, (5, 5, 5, 20))
    names = {number: f"{number:02d}{ODD if number == 1 else ''}.png" for number in range(1, images + 1)}
    listed = [{"id": number, "file_name": name, "width": 100, "height": 80} for number, name in names.items()]
    return {"images": listed, "annotations": found, "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "bus"}]}


def mill(folder: Path, steps: list[Any], images: int = 9) -> str:
    document = coco_document(images)
    for number, image in enumerate(document["images"]):
        path = folder / "images" / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(number, 100, 80).save(path, "PNG")
    (folder / "truth.json").write_text(json.dumps(document))
    source = {"coco": {"images": str(folder / "images"), "annotations": str(folder / "truth.json")}}
    pipeline = {"name": "trial", "source": source, "output": str(folder / "run"), "shard_size": 4,
                "ontology": ["car", "bus"], "steps": steps}  # fmt: skip
    (folder / "trial.yaml").write_text(yaml.safe_dump(pipeline))
    run(load_pipeline(folder / "trial.yaml", []), Options(inline=True), TerminalReporter())
    return str(folder / "run")


STEPS = ["tests.pipelines.label_errors.test_collect:Oracle", "labelmill.operators.label_errors:LabelErrors"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> str:
    return mill(tmp_path_factory.mktemp("errors"), STEPS)


def call(*words: str) -> Any:
    app = typer.Typer()
    app.command()(errors)
    return CliRunner().invoke(app, list(words))


class TestTheList:
    def test_is_ranked_across_shards(self, finished: str) -> None:
        found = list_label_errors(finished)
        assert found["counts"] == {"missing": 3, "class": 3, "invalid": 1} and found["images"] == 9
        assert [row["score"] for row in found["errors"]] == sorted((r["score"] for r in found["errors"]), reverse=True)
        told = [
            (row["kind"], row["key"][:2], row["label"], row["class"], row["suggested_class"]) for row in found["errors"]
        ]
        assert told == [
            ("invalid", "02", None, None, None),
            *(("class", f"0{n}", 0, "bus", "car") for n in (1, 4, 7)),
            *(("missing", f"0{n}", None, None, "bus") for n in (3, 6, 9)),
        ]

    def test_says_what_the_source_could_not_use(self, finished: str) -> None:
        (row,) = list_label_errors(finished, kinds=["invalid"])["errors"]
        assert (row["step"], row["score"]) == ("source", 1) and "without area" in row["reason"]

    def test_top_kind_and_least(self, finished: str) -> None:
        found = list_label_errors(finished, top=2, kinds=["missing"])
        assert [row["key"] for row in found["errors"]] == ["03.png", "06.png"] and found["counts"] == {"missing": 3}
        assert list_label_errors(finished, least=0.99)["counts"] == {"invalid": 1}

    def test_does_not_depend_on_the_size_of_shards(self, finished: str, tmp_path: Path) -> None:
        whole = list_label_errors(mill(tmp_path, STEPS))["errors"]
        known = list_label_errors(finished)["errors"]
        assert [{**row, "uri": ""} for row in whole] == [{**row, "uri": ""} for row in known]

    @pytest.mark.parametrize("suffix", [".parquet", ".csv"])
    def test_a_file_has_all_in_the_same_order(self, finished: str, suffix: str, tmp_path: Path) -> None:
        out = tmp_path / f"new/it's all{suffix}"
        found = list_label_errors(finished, top=2, least=0, out=out)
        full = list_label_errors(finished, top=1000, least=0)["errors"]
        assert len(full) == 7 and found["errors"] == full[:2]
        if suffix == ".parquet":
            table = pq.read_table(out)
            assert table.schema.types == TABLE.types and table.to_pylist() == full
        else:
            with out.open(newline="") as file:
                rows = list(csv.DictReader(file))
            assert [(row["key"], row["reason"]) for row in rows] == [(row["key"], row["reason"]) for row in full]
            assert list(rows[0]) == TABLE.names
        assert [path.name for path in out.parent.iterdir()] == [out.name]

    def test_what_is_wrong_is_said(self, finished: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"--kind must be one of .* but is 'mising'; did you mean 'missing'"):
            list_label_errors(finished, kinds=["mising"])
        with pytest.raises(UserError, match=r"--out must end in \.parquet or \.csv"):
            list_label_errors(finished, out=Path("errors.xlsx"))
        (tmp_path / "taken").write_text("")
        with pytest.raises(UserError, match="--out cannot be written"):
            list_label_errors(finished, out=tmp_path / "taken" / "errors.csv")
        with pytest.raises(UserError, match="has not looked for label errors: add the step `- label_errors`"):
            list_label_errors(mill(tmp_path, STEPS[:1], 3))

    def test_an_image_may_have_errors_of_several_steps(self, tmp_path: Path) -> None:
        steps = [
            STEPS[0],
            "inspect",
            {"labelmill.operators.label_conflicts:LabelConflicts": {"distance": 16}},
            STEPS[1],
        ]
        found = list_label_errors(mill(tmp_path, steps, 3))
        assert found["steps"] == ["label_conflicts", "label_errors"] and found["counts"]["class"] == 1


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


class TestTheSheet:
    def test_shows_both_boxes_on_a_crop_and_loads_nothing(self, finished: str) -> None:
        found = list_label_errors(finished)
        page = Page(Path(write_sheet(found)).read_text())
        assert [tag for tag, _ in page.tags].count("image") == 7 and "script" not in [tag for tag, _ in page.tags]
        links = [attrs["href"] for _, attrs in page.tags if "href" in attrs]
        assert all(str(link).startswith("data:image/jpeg;base64,") for link in links) and len(links) == 7
        assert ODD in page.text and "bus → car" in page.text and "no label covers it" in page.text
        drawn = [attrs for tag, attrs in page.tags if tag == "rect" and attrs["class"] in ("given", "suggested")]
        assert len(drawn) == 2 + 3 + 3, "the legend's; classes as given; what is missing as suggested"
        missing = next(attrs for attrs in drawn[2:] if attrs["class"] == "suggested")
        assert (missing["x"], missing["y"], missing["width"], missing["height"]) == ("24.0", "10.0", "30.0", "50.0")

    def test_says_why_a_picture_is_not_shown(self, finished: str) -> None:
        page = Page(render(list_label_errors(finished), lambda uri: b"no image <b>"))
        assert page.text.count("cannot be shown") == 7 and "b" not in [tag for tag, _ in page.tags]

    def test_boxes_that_are_none_are_not_drawn(self, finished: str) -> None:
        found = list_label_errors(finished, top=2)
        found["errors"][0] |= {"x1": float("nan"), "y1": 0.0, "x2": float("inf"), "y2": 5.0}
        found["errors"][1] |= {"x1": 50.0, "y1": 60.0, "x2": 10.0, "y2": 5.0}
        page = Page(render(found, lambda uri: encode(noise(0, 100, 80))))
        drawn = [attrs for tag, attrs in page.tags if tag == "rect" and attrs["class"] == "given"][1:]
        assert [(attrs["width"], attrs["height"]) for attrs in drawn] == [("40.0", "55.0")]

    def test_the_window_is_within_the_image(self) -> None:
        assert window([], 100, 80) == (0, 0, 100, 80)
        assert window([(40, 40, 50, 50)], 100, 80) == (16, 16, 74, 74)
        assert window([(-500, -500, -400, -400)], 100, 80) == (0, 0, 100, 80)
        assert window([(90, 70, 1e9, 1e9)], 100, 80)[2:] == (100, 80)


class TestTheCommand:
    def test_prints_80_columns(self, finished: str) -> None:
        told = call(finished)
        assert told.exit_code == 0, told.output
        lines = told.output.splitlines()
        head = "7 label errors with a score of 0.5 or more in 9 images: 3 missing, 3 class, 1 invalid"
        assert " ".join(told.output.split()).startswith(head)
        assert "contact sheet: " in lines[-1] and all(len(line) <= 80 for line in lines[:-1])

    def test_prints_json(self, finished: str) -> None:
        told = call(finished, "--json", "--top", "3", "--kind", "class", "--kind", "missing")
        found = json.loads(told.stdout)
        assert [row["kind"] for row in found["errors"]] == ["class"] * 3 and Path(found["sheet"]).is_file()
        assert found["counts"] == {"missing": 3, "class": 3}

    def test_finds_nothing_without_a_fuss(self, finished: str) -> None:
        told = call(finished, "--kind", "conflict")
        assert told.exit_code == 0 and told.output.startswith(
            "0 label errors of kind conflict with a score of 0.5 or more"
        )

    def test_an_error_is_one_line(self, finished: str) -> None:
        told = call(finished, "--kind", "clas")
        assert told.exit_code == 2 and told.output.startswith("error: --kind must be one of")
