"""`evaluate` about classes, thresholds, verification and calibration: whole runs on drawn images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner

from labelmill.operators.base import OperatorParams, TableOperator, TableResult
from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.operators.fuse import Fuse, Platt
from labelmill.operators.miniatures.write import write_world
from labelmill.pipelines.cli import app
from labelmill.pipelines.config.pipeline import load_pipeline
from labelmill.pipelines.engine.terminal import TerminalReporter
from labelmill.pipelines.evaluation.calibrate_fuse import fit
from labelmill.pipelines.evaluation.evaluate import Calibration, evaluate_run
from labelmill.pipelines.run import Options, run

CLASSES = ["car", "cup", "tree", "face", "sign"]
TIMID, BOLD = {"sign"}, {"face"}  # of the other kinds there are hardly ten


class Noisy(TableOperator):
    """A detector that is right three times of four, with scores that mean something else for every class."""

    class Params(OperatorParams):
        truth: str
        seed: int = 0

    def writes(self) -> pa.Schema:
        return pa.schema([("detections", DETECTIONS)])

    def compute(self, table: pa.Table) -> TableResult:
        coco = json.loads((Path(self.params.truth) / "instances.json").read_text())
        numbers = {image["file_name"]: image["id"] for image in coco["images"]}
        rows = []
        for key in table.column("key").to_pylist():
            found, number = [], numbers.get(key)
            rng = np.random.default_rng([self.params.seed, number or 0])
            for each in coco["annotations"]:
                name = coco["categories"][each["category_id"] - 1]["name"]
                if each["image_id"] == number and name in CLASSES and rng.random() < 0.95:
                    x, y, width, height = each["bbox"]
                    right = np.array([x, y, x + width, y + height]) + rng.normal(0, 1, 4)
                    found.append(self._detection(right, name, rng.beta(6, 4), rng))
                    if rng.random() < 0.6:
                        wrong = np.tile(rng.uniform(0, 120, 2), 2) + np.array([0, 0, 30, 30])
                        found.append(self._detection(wrong, name, rng.beta(4, 7), rng))
            rows.append(found)
        return TableResult(pa.table([pa.array(rows, DETECTIONS)], schema=self.writes()))

    def _detection(self, box: Any, name: str, score: float, rng: np.random.Generator) -> dict[str, Any]:
        meant = score * 0.45 if name in TIMID else 1 - (1 - score) * 0.5 if name in BOLD else score
        corners = dict(zip(("x1", "y1", "x2", "y2"), np.float32(box).tolist(), strict=True))
        return {**corners, "class": name, "score": meant, "prompt": name, "mask": None, "models": ["noisy@1"]}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two samples of the drawn world."""
    folders = [tmp_path_factory.mktemp("world") / str(seed) for seed in (5, 6)]
    for seed, folder in enumerate(folders, 5):
        write_world(folder, 70, seed, size=172, duplicates=0, bad=0)
    return folders


NOISY = "tests.pipelines.evaluation.test_labels:Noisy"


def mill(world: Path, steps: list[Any], output: str = "run", **keys: Any) -> str:
    document = {"name": "test", "source": {"folder": str(world / "images")}, "output": output, "shard_size": 32,
                "ontology": CLASSES, "steps": steps, **keys}  # fmt: skip
    Path("test.yaml").write_text(yaml.safe_dump(document))
    run(load_pipeline("test.yaml", []), Options(inline=True), TerminalReporter())
    return output


def noisy(world: Path, seed: int = 0, **more: Any) -> dict[str, Any]:
    return {NOISY: {"truth": str(world / "truth"), "seed": seed}, **more}


def test_scores_for_f1_are_better_on_images_that_they_were_not_chosen_on(worlds: list[Path]) -> None:
    mill(worlds[0], [noisy(worlds[0]), "select"])
    told = CliRunner().invoke(
        app, ["evaluate", "run", "--truth", str(worlds[0] / "truth"), "--calibrate", "scores.yaml", "--json"]
    )
    assert told.exit_code == 0, told.output
    found = json.loads(told.output)
    calibration = found["calibration"]
    assert calibration["before"] == {key: found["labels"][key] for key in calibration["before"]}
    assert calibration["after"]["f1"] > calibration["before"]["f1"] + 0.03
    scores = yaml.safe_load(Path("scores.yaml").read_text())["score"]
    assert scores["default"] == 0.3
    assert all(scores[name] < 0.3 for name in TIMID) and all(scores[name] > 0.5 for name in BOLD)

    fresh, after = (
        evaluate_run(mill(worlds[1], [noisy(worlds[1]), {"select": params}], name), worlds[1] / "truth")["labels"]
        for name, params in (("fresh", {}), ("fresh2", {"score": scores}))
    )
    assert after["f1"] > fresh["f1"] + 0.03


def test_scores_for_a_precision_reach_it(worlds: list[Path]) -> None:
    mill(worlds[0], [noisy(worlds[0]), "select"])
    found = evaluate_run("run", worlds[0] / "truth", Calibration(Path("scores.yaml"), 0.9))["calibration"]
    chosen = [each for each in found["classes"].values() if not each["reason"]]
    assert len(chosen) >= 2
    assert all(each["after"]["precision"] >= 0.9 and each["after"]["labels"] >= 10 for each in chosen)
    assert min(each["before"]["precision"] for each in chosen) < 0.8
    assert "precision of 0.9" in Path("scores.yaml").read_text()


def test_each_class_and_threshold_is_told(worlds: list[Path]) -> None:
    mill(worlds[0], [noisy(worlds[0]), "select"])
    found = evaluate_run("run", worlds[0] / "truth")
    assert "calibration" not in found
    labels, thresholds = found["labels"], found["thresholds"]
    assert set(labels["classes"]) == set(thresholds["classes"]) == set(CLASSES)
    assert sum(each["objects"] for each in labels["classes"].values()) == labels["objects"]
    assert sum(each["labels"] for each in labels["classes"].values()) == labels["labels"]
    assert labels["ap"] == pytest.approx(np.mean([each["ap"] for each in labels["classes"].values()]))
    assert labels["ap"] < thresholds["ap"], "without a threshold more is found"
    at = next(point for point in thresholds["classes"]["car"]["points"] if point["score"] == 0.3)
    assert at == {"score": 0.3, **{key: labels["classes"]["car"][key] for key in list(at)[1:]}}
    shown = CliRunner().invoke(app, ["evaluate", "run", "--truth", str(worlds[0] / "truth")])
    assert shown.exit_code == 0, shown.output
    for name in CLASSES:
        assert any(line.startswith(name) and "AP50" in line for line in shown.output.splitlines()), shown.output


def test_a_verify_step_is_worth_what_select_makes_of_it(worlds: list[Path]) -> None:
    steps: list[Any] = [
        noisy(worlds[0], **{"as": "first"}),
        noisy(worlds[0], 1, **{"as": "second"}),
        {"select": {"detections": "first.detections", "score": 0.2}},
        {"labelmill.operators.verify:Verify": {"against": "second.detections"}},
    ]
    truth = worlds[0] / "truth"
    alone = evaluate_run(mill(worlds[0], steps, "alone"), truth)
    part = alone["verification"]
    assert part["agreement"] == 0.5
    assert part["before"] == {key: alone["labels"][key] for key in part["before"]}
    decided = evaluate_run(mill(worlds[0], [*steps, {"select": {"score": 0, "agreement": 0.5}}], "decided"), truth)
    assert decided["verification"]["after"] == part["after"]
    assert part["after"] == {key: decided["labels"][key] for key in part["after"]}
    assert part["precision_gained"] == pytest.approx(part["after"]["precision"] - part["before"]["precision"])
    assert part["precision_gained"] > 0.15
    assert 0 <= part["recall_lost"] < 0.1
    assert [point["agreement"] for point in part["points"]] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert {**part["points"][4]} == {"agreement": 0.5, **part["after"]}
    shown = CliRunner().invoke(app, ["evaluate", "decided", "--truth", str(truth), "--calibrate", "scores.yaml"])
    assert "precision gained" in shown.output, shown.output
    assert "select_2" in Path("scores.yaml").read_text(), "the step that the labels come from"


def test_fused_detectors_are_better_than_either(worlds: list[Path]) -> None:
    both = [noisy(worlds[0], **{"as": "first"}), noisy(worlds[0], 1, **{"as": "second"})]
    fuse = {"labelmill.operators.fuse:Fuse": {"detections": ["first.detections", "second.detections"]}}
    truth = worlds[0] / "truth"
    one = evaluate_run(mill(worlds[0], [both[0], "select"], "one"), truth)["thresholds"]
    two = evaluate_run(mill(worlds[0], [*both, fuse, "select"], "two"), truth)["thresholds"]
    assert two["ap"] > one["ap"] + 0.02


def test_detectors_are_calibrated_before_they_are_fused(worlds: list[Path]) -> None:
    both = [noisy(worlds[0], **{"as": "first"}), noisy(worlds[0], 1, **{"as": "second"})]
    fuse = {"labelmill.operators.fuse:Fuse": {"detections": ["first.detections", "second.detections"]}, "as": "fuse"}
    mill(worlds[0], [*both, fuse, "select"])
    told = CliRunner().invoke(
        app, ["evaluate", "run", "--truth", str(worlds[0] / "truth"), "--calibrate", "scores.yaml"]
    )
    assert told.exit_code == 0 and "slope" in told.output, told.output
    text = Path("scores.yaml").read_text()
    assert list(yaml.safe_load(text)) == ["score"]
    # The comment is what `fuse` takes.
    comment = text[text.index("#   scores:") :].splitlines()
    scores = yaml.safe_load("\n".join(line.removeprefix("#") for line in comment))["scores"]
    params = Fuse.Params(detections=["first.detections", "second.detections"], scores=scores)
    assert all(each is not None and each.slope > 0.1 for each in params.scores or ())


def test_probabilities_are_how_often_it_is_right() -> None:
    rng = np.random.default_rng(0)
    true = Platt(slope=1.7, intercept=-0.8)
    scores = rng.uniform(0.02, 0.98, 20_000)
    right = rng.random(20_000) < true.probability(scores)
    found = fit(scores, right)
    assert found is not None
    assert (found.slope, found.intercept) == pytest.approx((1.7, -0.8), abs=0.1)
    assert fit(scores[:30], np.arange(30) < 9) is None, "too few are right"
    assert fit(scores, scores < 0.5) is None, "higher scores are worse"


def test_nothing_can_be_calibrated_without_a_select_step(worlds: list[Path]) -> None:
    mill(worlds[0], [noisy(worlds[0])])
    arguments = ["evaluate", "run", "--truth", str(worlds[0] / "truth")]
    refused = CliRunner().invoke(app, [*arguments, "--calibrate", "scores.yaml"])
    assert refused.exit_code == 2 and "come from a `select` step" in refused.output
    assert not Path("scores.yaml").exists()
    refused = CliRunner().invoke(app, [*arguments, "--precision", "0.9"])
    assert refused.exit_code == 2 and "give both" in refused.output


@pytest.mark.slow
def test_scores_for_a_real_detector_are_better_on_other_images(worlds: list[Path]) -> None:
    detect = {"detect": {"model": "grounding-dino-miniature"}}
    truths = [world / "truth" for world in worlds]
    mill(worlds[0], [detect, "select"], "first")
    chosen = evaluate_run("first", truths[0], Calibration(Path("scores.yaml")))["calibration"]
    assert chosen["after"]["f1"] > chosen["before"]["f1"]
    score = yaml.safe_load(Path("scores.yaml").read_text())["score"]
    before = evaluate_run(mill(worlds[1], [detect, "select"], "second"), truths[1])["labels"]
    after = evaluate_run(mill(worlds[1], [detect, {"select": {"score": score}}], "second"), truths[1])["labels"]
    assert after["f1"] > before["f1"]


@pytest.mark.slow
def test_a_second_look_at_the_crops_makes_labels_of_a_real_detector_more_precise(worlds: list[Path]) -> None:
    steps = [
        {"detect": {"model": "grounding-dino-miniature"}},
        {"select": {"score": 0.2}},
        {"labelmill.operators.verify:Verify": {"model": "clip-miniature"}},
        {"select": {"score": 0.2, "agreement": 0.3}},
    ]
    found = evaluate_run(mill(worlds[0], steps), worlds[0] / "truth")["verification"]
    assert found["agreement"] == 0.3
    assert found["precision_gained"] > 0.05
    assert found["recall_lost"] < found["precision_gained"]
