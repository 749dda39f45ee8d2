from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

import labelmill.pipelines.evaluation.evaluate
from labelmill.operators.base import OperatorParams, TableOperator, TableResult
from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.operators.miniatures.write import write_world
from labelmill.pipelines.cli import app
from labelmill.pipelines.config.pipeline import load_pipeline
from labelmill.pipelines.engine.terminal import TerminalReporter
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.evaluation.evaluate import evaluate_run
from labelmill.pipelines.evaluation.truth import read_truth
from labelmill.pipelines.run import Options, run

SIDES = ("x1", "y1", "x2", "y2")
TRUTH = Path("world/truth")


class Oracle(TableOperator):
    """Says what is true, but for the keys that it is told to lie about."""

    class Params(OperatorParams):
        lies: tuple[str, ...] = ()

    def writes(self) -> pa.Schema:
        boxes = [pa.field(side, pa.float32()) for side in SIDES]
        words = pa.list_(pa.struct([pa.field("text", pa.string()), *boxes]))
        gaze = pa.list_(pa.struct([pa.field("yaw", pa.float32()), pa.field("pitch", pa.float32()), *boxes]))
        return pa.schema([("labels", DETECTIONS), ("words", words), ("gaze", gaze), ("answer", pa.string())])

    def compute(self, table: pa.Table) -> TableResult:
        coco = json.loads((TRUTH / "instances.json").read_text())
        numbers = {image["file_name"]: image["id"] for image in coco["images"]}
        tables = {name: pq.read_table(TRUTH / f"{name}.parquet").to_pylist() for name in ("words", "gaze", "captions")}
        rows = []
        for key in table.column("key").to_pylist():
            labels = [self._label(coco, each) for each in coco["annotations"] if each["image_id"] == numbers.get(key)]
            words, gaze, captions = ([row for row in rows if row["key"] == key] for rows in tables.values())
            answer = captions[0]["caption"] if captions else ""
            if key in self.params.lies:
                labels = labels[1:]
                words = [{**word, "text": word["text"] + "x"} for word in words]
                gaze = [{**face, "yaw": face["yaw"] + 10, "pitch": 0.0} for face in gaze]
                answer = "a unicorn"
            rows.append({"labels": labels, "words": words, "gaze": gaze, "answer": answer})
        picked = [{name: row[name] for name in self.writes().names} for row in rows]
        return TableResult(pa.Table.from_pylist(_only(picked), self.writes()))

    def _label(self, coco: dict[str, Any], each: dict[str, Any]) -> dict[str, Any]:
        x, y, width, height = each["bbox"]
        name = coco["categories"][each["category_id"] - 1]["name"]
        box = dict(zip(SIDES, (x, y, x + width, y + height), strict=True))
        return {**box, "class": name, "score": 0.9, "prompt": None, "mask": each["segmentation"]["counts"]}


def _only(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of truth without what the columns lack."""
    for row in rows:
        row["words"] = [{name: word[name] for name in ("text", *SIDES)} for word in row["words"]]
        row["gaze"] = [{name: face[name] for name in ("yaw", "pitch", *SIDES)} for face in row["gaze"]]
    return rows


def mill(output: str = "run", steps: list[Any] | None = None, **keys: Any) -> str:
    """Run a pipeline on the drawn world."""
    default = [
        "inspect",
        {"deduplicate": {"by": ["file", "pixels"]}},
        "tests.pipelines.evaluation.test_evaluate:Oracle",
    ]
    document = {"name": "test", "source": {"folder": "world/images"}, "output": output, "shard_size": 16,
                "steps": default if steps is None else steps, **keys}  # fmt: skip
    Path("test.yaml").write_text(yaml.safe_dump(document))
    run(load_pipeline("test.yaml", []), Options(inline=True), TerminalReporter())
    return output


@pytest.fixture
def world() -> None:
    write_world(Path("world"), 40, 5, size=200, duplicates=0.2, bad=0.25)


@pytest.mark.usefixtures("world")
class TestARun:
    def test_that_says_the_truth_is_right(self) -> None:
        found = evaluate_run(mill(), TRUTH)
        labels = found["labels"]
        assert labels["objects"] == labels["labels"] > 20
        assert [labels[name] for name in ("precision", "recall")] == [1, 1]
        assert [labels[name] for name in ("ap50", "ap")] == pytest.approx([1, 1])
        assert labels["masks"]["mean_iou"] == 1
        assert labels["masks"]["ap"] == pytest.approx(1)
        assert labels["classes_not_in_truth"] == {}
        words = found["words"]
        assert (words["recall"], words["precision"], words["character_error_rate"]) == (1, 1, 0)
        assert found["gaze"]["matched"] == found["gaze"]["faces"] > 0
        assert found["gaze"]["mean_angular_error"] == pytest.approx(0, abs=0.02)  # float32 through arccos
        assert found["captions"]["share"] == 1

    def test_that_lies_is_wrong_by_just_that(self) -> None:
        coco = read_truth(TRUTH)
        honest = evaluate_run(mill(), TRUTH)
        kept = [key for key in sorted(coco.images) if _outcome(key) == "kept"]
        liar = next(key for key in kept if _count(coco, key) and key in {row["key"] for row in coco.tables["words"]})
        lie = {"tests.pipelines.evaluation.test_evaluate:Oracle": {"lies": [liar]}}
        found = evaluate_run(mill("lie", ["inspect", {"deduplicate": {"by": ["file", "pixels"]}}, lie]), TRUTH)
        objects = honest["labels"]["objects"]
        assert found["labels"]["recall"] == pytest.approx((objects - 1) / objects)
        assert found["labels"]["precision"] == 1
        said = [row for row in coco.tables["words"] if row["key"] == liar]
        everything = [row for row in coco.tables["words"] if row["key"] in kept]
        letters = sum(len(row["text"]) for row in everything)
        assert found["words"]["character_error_rate"] == pytest.approx(len(said) / letters)
        assert found["words"]["recall"] == 1
        assert found["captions"]["right"] == honest["captions"]["right"] - 1

    def test_is_judged_on_duplicates_and_bad_images(self) -> None:
        found = evaluate_run(mill(), TRUTH)
        kinds = found["duplicates"]["recall_by_kind"]
        assert kinds["exact"]["found"] == kinds["exact"]["of"] > 0
        assert kinds["recoloured"]["found"] == 0, "no exact copy"
        assert found["duplicates"]["pairs_right"] == found["duplicates"]["pairs_found"] > 0
        broken = found["images"]["by_defect"]
        assert all(set(broken[name]) == {"failed"} for name in ("truncated", "empty", "not_an_image"))
        assert found["images"]["good_lost"] == 0

    def test_is_judged_only_on_what_it_was_asked(self) -> None:
        truth = read_truth(TRUTH)
        found = evaluate_run(mill(ontology=["car", "cup"]), TRUTH)
        asked = {truth.classes.index(name) + 1 for name in ("car", "cup")}
        there = [each for each in truth.objects if each["category_id"] in asked]
        assert found["labels"]["objects"] <= len(there)
        assert found["labels"]["recall"] == 1

    def test_without_columns_for_it_is_judged_on_less(self) -> None:
        found = evaluate_run(mill(steps=["inspect"]), TRUTH)
        assert set(found) == {"run", "truth", "coverage", "images"}

    def test_is_judged_from_the_command_line(self) -> None:
        mill()
        shown = CliRunner().invoke(app, ["evaluate", "run", "--truth", str(TRUTH)])
        assert shown.exit_code == 0, shown.output
        assert "precision 1.000, recall 1.000" in " ".join(shown.output.split())
        told = CliRunner().invoke(app, ["evaluate", "run", "--truth", str(TRUTH), "--json"])
        assert json.loads(told.output) == evaluate_run("run", TRUTH)

    def test_is_judged_once_until_it_or_the_truth_changes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        judged = []

        def evaluate(*arguments: Any) -> dict[str, Any]:
            judged.append(arguments)
            return real(*arguments)

        real = labelmill.pipelines.evaluation.evaluate._evaluate
        monkeypatch.setattr(labelmill.pipelines.evaluation.evaluate, "_evaluate", evaluate)
        mill()
        first = evaluate_run("run", TRUTH)
        kept = Path("run/evaluation.json").read_bytes()
        assert list(evaluate_run("run", TRUTH).items()) == list(first.items())
        shutil.copytree(TRUTH, "elsewhere")
        assert evaluate_run("run", Path("elsewhere")) == {**first, "truth": "elsewhere"}, "the same truth"
        assert len(judged) == 1
        Path("elsewhere/words.parquet").unlink()
        assert "words" not in evaluate_run("run", Path("elsewhere"))
        assert evaluate_run("run", TRUTH) == first
        assert len(judged) == 3
        assert Path("run/evaluation.json").read_bytes() == kept
        mill(ontology=["car", "cup"])
        assert evaluate_run("run", TRUTH)["labels"]["objects"] < first["labels"]["objects"]
        mill(steps=["inspect"])
        assert set(evaluate_run("run", TRUTH)) == {"run", "truth", "coverage", "images"}
        assert len(judged) == 5

    def test_must_be_finished(self) -> None:
        evaluate_run(mill(), TRUTH)
        next(Path("run/steps").glob("*/*.parquet")).unlink()
        with pytest.raises(UserError, match="not finished"):
            evaluate_run("run", TRUTH)

    def test_must_have_images_of_the_truth(self) -> None:
        mill()
        Path("other.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
        with pytest.raises(UserError, match=r"other\.json lists no image"):
            evaluate_run("run", Path("other.json"))
        image = {"id": 1, "file_name": "elsewhere/a.jpg", "width": 8, "height": 6}
        Path("other.json").write_text(json.dumps({"images": [image], "annotations": [], "categories": []}))
        told = r"run has 40 images such as '.+' and the truth, read as coco, has 1 such as 'elsewhere/a\.jpg'"
        with pytest.raises(UserError, match=told):
            evaluate_run("run", Path("other.json"))


def _outcome(key: str) -> str:
    decisions = pq.read_table("run/decisions.parquet").to_pylist()
    return next((row["decision"] for row in decisions if row["key"] == key and row["decision"] != "kept"), "kept")


def _count(truth: Any, key: str) -> int:
    return sum(each["image_id"] == truth.images[key] for each in truth.objects)


class TestTruth:
    document: dict[str, Any] = {  # noqa: RUF012
        "images": [{"id": 7, "file_name": "a/b.jpg", "width": 8, "height": 6}],
        "categories": [{"id": 3, "name": "car"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 1, 4, 2], "iscrowd": 0,
             "segmentation": [[1, 1, 5, 1, 5, 3, 1, 3]]},
            {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 8, 6], "iscrowd": 1},
            {"id": 3, "image_id": 7, "category_id": 3, "bbox": [0, 0, 1, 6], "iscrowd": 0,
             "segmentation": {"size": [6, 8], "counts": [0, 6, 42]}},
        ],
    }  # fmt: skip

    def test_is_read_from_coco_however_masks_are_written(self) -> None:
        from pycocotools import mask

        Path("coco.json").write_text(json.dumps(self.document))
        truth = read_truth(Path("coco.json"))
        assert truth.images == {"a/b.jpg": 1}
        assert truth.classes == ("car",)
        assert [(each["category_id"], each["iscrowd"]) for each in truth.objects] == [(1, 0), (1, 1), (1, 0)]
        masks = [each["segmentation"] for each in truth.objects]
        assert [None if each is None else int(mask.area(each)) for each in masks] == [8, None, 6]

    def test_keeps_what_it_says_of_an_object_s_area(self) -> None:
        said = [{**each, "area": area} for each, area in zip(self.document["annotations"], (7.5, 48, 6), strict=True)]
        Path("coco.json").write_text(json.dumps({**self.document, "annotations": said}))
        areas = [each.get("area") for each in read_truth(Path("coco.json")).objects]
        assert areas[0] == 7.5

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"images": None}, "list of images|no list of images"),
            ({"images": "none"}, "no list of images"),
        ],
    )
    def test_that_is_not_coco_is_refused(self, change: dict[str, Any], says: str) -> None:
        Path("coco.json").write_text(json.dumps({**self.document, **change}))
        with pytest.raises(UserError, match=says):
            read_truth(Path("coco.json"))

    @pytest.mark.parametrize(
        ("annotation", "says"),
        [
            ({"image_id": 9, "category_id": 3, "bbox": [0, 0, 1, 1]}, "image id 9, which is not listed"),
            ({"image_id": 7, "category_id": 3, "bbox": ["one", 0, 1, 1]}, "must have numbers"),
            ({"image_id": 7, "category_id": 3, "bbox": None}, "neither a box nor a mask"),
            ({"image_id": 7, "category_id": 8, "bbox": [0, 0, 1, 1]}, "category id 8, which is not listed"),
            ("none", "must be an object"),
        ],
    )
    def test_with_a_label_that_cannot_be_taken_says_which(self, annotation: Any, says: str) -> None:
        Path("coco.json").write_text(json.dumps({**self.document, "annotations": [annotation]}))
        truth = read_truth(Path("coco.json"))
        assert truth.refused == 1
        assert not truth.objects
        (problem,) = truth.problems
        assert re.search(says, problem)

    @pytest.mark.parametrize("text", ["", "[]", "{"])
    def test_that_is_not_json_is_refused(self, text: str) -> None:
        Path("coco.json").write_text(text)
        with pytest.raises(UserError):
            read_truth(Path("coco.json"))

    def test_that_is_not_there_is_refused(self) -> None:
        with pytest.raises(UserError, match="nothing at nowhere"):
            read_truth(Path("nowhere"))

    def test_table_without_its_columns_is_refused(self) -> None:
        Path("truth").mkdir()
        Path("truth/instances.json").write_text(json.dumps(self.document))
        pq.write_table(pa.table({"key": ["a"]}), "truth/captions.parquet")
        with pytest.raises(UserError, match="lacks caption"):
            read_truth(Path("truth"))
