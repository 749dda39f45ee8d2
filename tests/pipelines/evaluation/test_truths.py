"""`evaluate` with truths of every kind, of every fault, and of nothing that the run has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from labelmill.operators.base import OperatorParams, TableOperator, TableResult
from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.operators.review import REVIEWS
from labelmill.pipelines.cli import app
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.evaluation.evaluate import evaluate_run
from labelmill.pipelines.sources.labels import detection
from tests.pipelines.evaluation.labelled_runs import (
    FOUND,
    HEIGHT,
    TAKE_ALL,
    TRUE,
    WIDTH,
    annotation,
    coco,
    found_run,
    mill,
    pictures,
)

PERFECT = {"precision": 1.0, "recall": 1.0, "f1": 1.0}


def told(*arguments: str) -> str:
    """What the command prints, on one line."""
    shown = CliRunner().invoke(app, ["evaluate", *arguments], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    return " ".join(shown.output.split())


def shares(found: dict[str, Any]) -> dict[str, float]:
    return {name: found["labels"][name] for name in PERFECT}


class TestCrowds:
    def test_detections_in_a_crowd_are_ignored_so_that_ap_is_1(self) -> None:
        """Case 2-evaluate-crowd: COCOeval says AP 1.000, not .400."""
        found = evaluate_run(found_run(), coco("truth.json", TRUE))
        assert found["labels"]["ap"] == pytest.approx(1, abs=1e-6)
        assert found["labels"]["ap50"] == pytest.approx(1, abs=1e-6)
        assert shares(found) == PERFECT
        assert (found["labels"]["objects"], found["labels"]["labels"], found["labels"]["ignored"]) == (2, 2, 3)
        assert (found["labels"]["classes"]["cat"]["labels"], found["labels"]["classes"]["cat"]["objects"]) == (2, 2)
        assert found["thresholds"]["ap"] == pytest.approx(1, abs=1e-6)
        (point,) = [each for each in found["thresholds"]["classes"]["cat"]["points"] if each["score"] == 0.5]
        assert (point["objects"], point["labels"], point["precision"]) == (2, 2, 1)
        assert "3 labels in regions to ignore, neither right nor wrong" in told("run", "--truth", "truth.json")

    def test_calibration_counts_them_neither_right_nor_wrong(self) -> None:
        """Ten cats at .6; in the crowd of another image there are labels at .9, which would else look wrong."""
        cats = [annotation(number, 1, [10 * number, 5, 8, 8], score=0.6) for number in range(1, 13)]
        crowded = [annotation(100 + number, 2, [60, 10 + number, 20, 20], score=0.9) for number in range(40)]
        truth = [{**each, "score": None} for each in cats] + [annotation(99, 2, [50, 0, 90, 90], iscrowd=1)]
        run = found_run([*cats, *crowded])
        text = told(run, "--truth", coco("truth.json", truth), "--calibrate", "scores.yaml")
        assert "cat 0.57" in text or "cat 0.5" in text, text
        assert "precision 1.000" in Path("scores.yaml").read_text()

    def test_masks_are_judged_with_a_crowd_that_is_only_a_box(self) -> None:
        square = [[10, 10, 40, 10, 40, 40, 10, 40]]
        inside = [[100, 10, 120, 10, 120, 30, 100, 30]]
        found = [{**FOUND[0], "segmentation": square}, {**FOUND[1], "segmentation": inside}]
        truth = [{**TRUE[0], "segmentation": square}, TRUE[1]]
        masks = evaluate_run(found_run(found), coco("truth.json", truth))["labels"]["masks"]
        assert masks["ap"] == pytest.approx(1, abs=1e-6)
        assert masks["mean_iou"] == 1

    def test_masks_are_not_judged_where_an_object_has_none_and_that_is_said(self) -> None:
        found = [{**FOUND[0], "segmentation": [[10, 10, 40, 10, 40, 40, 10, 40]]}]
        run = found_run(found)
        masks = evaluate_run(run, coco("truth.json", TRUE))["labels"]["masks"]
        assert masks == {"labels": 1, "objects_without_mask": 2}
        assert "1, not judged, since the truth has 2 objects without a mask" in told(run, "--truth", "truth.json")


class TestTruthIsReadAsASourceIs:
    """Case 12-truth-stricter-than-source: as tolerant as the coco source, and in its words."""

    box = [annotation(1, 1, [10, 10, 30, 30])]  # noqa: RUF012
    image = {"id": 1, "file_name": "a.png"}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("annotations", "keys"),
        [
            pytest.param([{**box[0], "segmentation": [[10, 10, 40, 40]]}], {}, id="a polygon of 4 numbers"),
            pytest.param([{**box[0], "segmentation": [10, 10, 40, 10, 40, 40]}], {}, id="a flat list"),
            pytest.param(
                [{**box[0], "bbox": None, "segmentation": [[10, 10, 40, 10, 40, 40, 10, 40]]}], {}, id="no box"
            ),
            pytest.param([*box, annotation(2, 77, [1, 1, 5, 5])], {}, id="an annotation of no image"),
            pytest.param(box, {"categories": [{"id": 1, "name": " cat "}]}, id="a name with spaces around"),
            pytest.param(
                box,
                {
                    "images": [
                        {"id": n, "file_name": f"./{k}.png", "width": 200, "height": 160}
                        for n, k in ((1, "a"), (2, "b"))
                    ]
                },
                id="./a.png",
            ),
        ],
    )
    def test_what_the_source_reads_is_truth(self, annotations: Any, keys: Any) -> None:
        found = evaluate_run(found_run(), coco("truth.json", annotations, **keys))["labels"]
        assert (found["objects"], found["labels"], found["recall"]) == (1, 5, 1.0)
        assert found["ap50"] == pytest.approx(0.25)

    def test_an_image_without_width_and_height_is_read(self) -> None:
        found = evaluate_run(found_run(), coco("truth.json", self.box, images=[self.image]))
        assert (found["labels"]["images"], found["labels"]["recall"]) == (1, 1.0)

    def test_a_label_without_box_and_mask_is_named_and_its_image_takes_no_part(self) -> None:
        run, truth = found_run(), coco("truth.json", [{**self.box[0], "bbox": None}])
        found = evaluate_run(run, truth)
        assert found["coverage"]["refused_labels"] == found["coverage"]["refused"] == 1
        assert found["labels"]["images"] == 1, "only the other image"
        text = told(run, "--truth", truth)
        assert "a.png: annotation 1 has neither a box nor a mask that can be used" in text
        assert "without 1 whose labels could not be taken" in text

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("t.json", "{"), ("t.json", "[]"), ("t.json", ""), ("t.json", "{}"), ("t.json", '{"images": 5}'),
            ("t.parquet", "no"), ("data.yaml", "names: ["), ("t.txt", "0 1"), ("t.json", "\udcff\udcfe"),
        ],
    )  # fmt: skip
    def test_what_is_no_truth_is_refused_in_a_sentence(self, name: str, content: str) -> None:
        run = found_run()
        Path(name).write_bytes(content.encode("utf-8", "surrogateescape"))
        with pytest.raises(UserError) as error:
            evaluate_run(run, name)
        assert not re.search(r"\b\w*Error\b|Traceback|codec", str(error.value)), error.value


THERE = {"a": (10, 10, 30, 30), "b": (20, 20, 40, 40)}
"""The two cats: x, y, width, height by image."""


def yolo() -> None:
    pictures("yolo/images/train")
    Path("yolo/labels/train").mkdir(parents=True)
    for name, (x, y, w, h) in THERE.items():
        text = f"0 {(x + w / 2) / WIDTH:.6f} {(y + h / 2) / HEIGHT:.6f} {w / WIDTH:.6f} {h / HEIGHT:.6f}\n"
        Path(f"yolo/labels/train/{name}.txt").write_text(text)
    Path("yolo/data.yaml").write_text("train: images/train\nval: images/train\nnames: {0: cat, 1: dog}\n")


def voc(*labelled: str) -> None:
    """Three images, some of them with an annotation file."""
    pictures("voc/JPEGImages", ("a.png", "b.png", "c.png"))
    Path("voc/Annotations").mkdir()
    for name in labelled:
        x, y, w, h = THERE[name]
        corners = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
        Path(f"voc/Annotations/{name}.xml").write_text(
            f"<annotation><filename>{name}.png</filename><size><width>{WIDTH}</width><height>{HEIGHT}</height>"
            f"<depth>3</depth></size><object><name>cat</name><bndbox>{corners}</bndbox></object></annotation>"
        )


class TestEveryKindOfTruth:
    @pytest.mark.parametrize("where", ["yolo", "yolo/data.yaml"])
    def test_yolo_as_a_folder_or_data_yaml_of_images_whose_keys_begin_elsewhere(self, where: str) -> None:
        run = found_run([FOUND[0], FOUND[4]])
        yolo()
        found = evaluate_run(run, where)
        assert shares(found) == PERFECT
        assert found["labels"]["ap"] == pytest.approx(1)
        assert found["coverage"]["kind"] == "yolo"
        assert any("'images/train/a.png' is taken for 'a.png'" in note for note in found["coverage"]["problems"])

    def test_voc_and_an_image_without_label_file_is_unread_not_background(self) -> None:
        voc("a", "b")
        found = [FOUND[0], FOUND[4], annotation(6, 3, [50, 50, 30, 30], score=0.99)]
        names = ("a.png", "b.png", "c.png")
        run = mill({"coco": {"annotations": coco("ann.json", found, names), "images": "voc/JPEGImages"}})
        report = evaluate_run(run, "voc")
        assert shares(report) == PERFECT, "what was found in it is not wrong"
        assert (report["coverage"]["kind"], report["coverage"]["unread"]) == ("voc", 1)
        assert (report["labels"]["images"], report["coverage"]["kept"]) == (2, 3)
        assert "without 1 that nobody has labelled" in told(run, "--truth", "voc")

    def test_yolo_s_image_without_label_file_is_unread_too(self) -> None:
        yolo()
        Path("yolo/labels/train/b.txt").unlink()
        found = evaluate_run(found_run([FOUND[0], FOUND[4]]), "yolo")
        assert (shares(found), found["coverage"]["unread"]) == (PERFECT, 1)
        Path("yolo/labels/train/b.txt").touch()
        found = evaluate_run("run", "yolo")
        assert found["labels"]["precision"] == 0.5, "an empty file says that nothing is there"

    def test_the_same_files_are_the_same_images_whatever_their_keys(self) -> None:
        """Both folders hold an a.png: which is meant is known by the file."""
        yolo()
        pictures("yolo/images/val", ("a.png",))
        Path("yolo/labels/val").mkdir()
        Path("yolo/labels/val/a.txt").write_text("1 0.5 0.5 0.1 0.1\n")
        Path("yolo/data.yaml").write_text("train: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n")
        source = {"coco": {"annotations": coco("ann.json", [FOUND[0], FOUND[4]]), "images": "yolo/images/train"}}
        assert shares(evaluate_run(mill(source), "yolo")) == PERFECT

    def test_an_image_that_could_be_two_takes_no_part(self) -> None:
        run = found_run([FOUND[0], FOUND[4]])
        both = [annotation(1, 1, [10, 10, 30, 30]), annotation(2, 2, [1, 1, 5, 5]), annotation(3, 3, [20, 20, 40, 40])]
        found = evaluate_run(run, coco("truth.json", both, ("x/a.png", "y/a.png", "x/b.png")))
        assert (found["labels"]["images"], found["labels"]["recall"]) == (1, 1.0)
        assert any("could be several" in problem for problem in found["coverage"]["problems"])

    def test_the_run_s_own_source_and_its_own_export(self) -> None:
        run = found_run(export={"coco": {}})
        assert shares(evaluate_run(run, "ann.json")) == PERFECT
        found = evaluate_run(run, "run/exports/coco/annotations/instances.json")
        assert shares(found) == PERFECT, "though its files are called 00000001-a.png"

    @pytest.mark.parametrize("name", ["coco", "yolo", "voc", "cvat", "label_studio", "huggingface", "webdataset"])
    def test_every_export_of_labels_is_truth_by_its_folder_alone(self, name: str) -> None:
        run = found_run([FOUND[0], FOUND[4]], export={name: {}})
        found = evaluate_run(run, f"run/exports/{name}")
        assert shares(found) == PERFECT
        assert (found["labels"]["images"], found["labels"]["objects"]) == (2, 2)

    def test_another_run(self) -> None:
        run = found_run()
        other = found_run([FOUND[0], FOUND[4]], output="other")
        found = evaluate_run(run, other)
        assert (found["labels"]["recall"], found["labels"]["precision"]) == (1, 0.4)
        assert found["coverage"]["kind"] == "run"

    def test_the_run_itself_unless_somebody_has_reviewed_it(self) -> None:
        run = found_run()
        with pytest.raises(UserError, match="somebody else's labels but is the run run itself"):
            evaluate_run(run, run)
        left = [detection((10, 10, 40, 40), "cat"), detection((60, 60, 90, 90), "dog")]
        row = {"key": "a.png", "image_id": 1, "detections": left, "reviewer": "ada", "reviewed_at": None}
        Path("run/review").mkdir()
        pa.parquet.write_table(pa.Table.from_pylist([row], REVIEWS), "run/review/decisions.parquet")
        for where in (run, "run/review/decisions.parquet"):
            found = evaluate_run(run, where)
            assert (found["labels"]["images"], found["labels"]["objects"], found["labels"]["labels"]) == (1, 2, 4)
            assert found["labels"]["classes"]["dog"]["recall"] == 0
            assert found["coverage"]["kind"] == "review"


class RawCats(TableOperator):
    """A detector that sees one cat in each image."""

    labels = "raw"

    class Params(OperatorParams):
        pass

    def writes(self) -> pa.Schema:
        return pa.schema([("detections", DETECTIONS)])

    def compute(self, table: pa.Table) -> TableResult:
        cats = [[detection((10, 10, 40, 40), "cat", 0.2)]] * len(table)
        return TableResult(pa.table([pa.array(cats, DETECTIONS)], schema=self.writes()))


class TestNothingIsSilent:
    def test_raw_detections_are_judged_and_called_so(self) -> None:
        run = found_run(steps=["inspect", f"{__name__}:RawCats"])
        found = evaluate_run(run, coco("truth.json", TRUE))["labels"]
        assert (found["labels"], found["recall"], found["raw"]) == (2, 0.5, True)
        assert "these are raw: no step has decided" in told(run, "--truth", "truth.json")
        assert not evaluate_run(found_run(output="decided"), "truth.json")["labels"]["raw"]

    def test_a_source_s_own_labels_give_figures(self) -> None:
        """Case 17-evaluate-says-nothing."""
        run = found_run(steps=["inspect"])
        found = evaluate_run(run, coco("truth.json", TRUE))
        assert shares(found) == PERFECT
        assert found["labels"]["ap"] == pytest.approx(1)
        assert "precision 1.000, recall 1.000" in told(run, "--truth", "truth.json")

    def test_a_source_without_labels_is_said(self) -> None:
        pictures("images")
        run = mill({"folder": "images"}, ["inspect"])
        with pytest.raises(UserError, match=r"2 images in common, but its labels, source\.labels, are null for all"):
            evaluate_run(run, coco("truth.json", TRUE))

    def test_a_truth_of_no_image_of_the_run_says_what_keys_look_like(self) -> None:
        with pytest.raises(UserError, match=r"2 images such as 'a\.png' .*read as coco, has 2 such as 'x\.jpg'"):
            evaluate_run(found_run(), coco("truth.json", [], ("x.jpg", "y.jpg")))

    def test_a_truth_of_no_class_of_the_run_says_which(self) -> None:
        truth = coco("truth.json", TRUE, categories=[{"id": 1, "name": "cats"}])
        with pytest.raises(UserError, match=r"run's are 'cat' and the truth's 'cats'; did you mean 'cats'\?"):
            evaluate_run(found_run(steps=["inspect"]), truth)

    def test_a_truth_that_nobody_has_labelled_says_so(self) -> None:
        voc("a")
        Path("voc/JPEGImages/a.png").unlink()
        with pytest.raises(UserError, match=r"has labels for none \(1 unread\)"):
            evaluate_run(found_run(), "voc")

    def test_a_run_that_kept_none_of_them_says_so(self) -> None:
        nothing = ["inspect", {"keep": "width > 9999"}]
        truth = coco("truth.json", TRUE)
        with pytest.raises(UserError, match="of the 2 images that it has labels for the run kept none"):
            evaluate_run(found_run(steps=nothing), truth)
        run = found_run(steps=[*nothing, TAKE_ALL], output="steps")
        assert "the run has 2 of them and kept 0" in told(run, "--truth", truth)

    def test_images_of_the_source_that_nobody_labelled_take_no_part(self) -> None:
        """b.png and c.png have no label file: the run's own labels do not say that they are empty."""
        voc("a")
        run = mill({"voc": "voc"}, ["inspect"])
        found = evaluate_run(run, coco("truth.json", TRUE, ("JPEGImages/a.png", "JPEGImages/b.png")))
        assert (found["labels"]["images"], found["labels"]["objects"], found["labels"]["recall"]) == (1, 1, 1.0)

    def test_the_report_counts_as_evaluate_does(self) -> None:
        from labelmill.pipelines.report.quality import Quality
        from labelmill.pipelines.report.run_reader import RunReader

        run = RunReader(found_run())
        quality = Quality(run, coco("truth.json", TRUE))
        run.walk([quality])
        assert quality.finish()["classes"] == [{"name": "cat", "right": 2, "wrong": 0, "missed": 0}]
        assert not quality.by_image


def test_sameness_of_a_truth_is_told_by_what_it_says() -> None:
    """Kept figures hold for the same labels, and not when one of them, or how it was read, is another."""
    run = found_run()
    first = evaluate_run(run, coco("truth.json", TRUE))
    kept = Path("run/evaluation.json").read_bytes()
    assert evaluate_run(run, coco("elsewhere/same.json", TRUE))["labels"] == first["labels"]
    assert Path("run/evaluation.json").read_bytes() == kept
    evaluate_run(run, coco("truth.json", TRUE[:1]))
    assert json.loads(Path("run/evaluation.json").read_bytes()) != json.loads(kept)
