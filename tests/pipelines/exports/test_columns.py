"""What exports are made of: the columns that a pipeline names, or the last ones of the right kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from labelmill.pipelines.config.pipeline import load_pipeline
from labelmill.pipelines.engine.terminal import TerminalReporter
from labelmill.pipelines.errors import ConfigError
from labelmill.pipelines.exports.columns import COLUMNS, find_column, models_used
from labelmill.pipelines.run import Options, run
from tests.drawing import folder_of_images

TOY = "tests.pipelines.exports.toys:Says"


def document(steps: list[Any], **export: Any) -> str:
    values = {"name": "toy", "source": {"folder": "data"}, "output": "run", "ontology": ["disc", "odd", "even"]}
    Path("p.yaml").write_text(yaml.safe_dump({**values, "steps": steps, "export": export}))
    return "p.yaml"


def problems(steps: list[Any], **export: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_pipeline(document(steps, **export))
    return str(caught.value).splitlines()


def test_the_last_column_of_its_kind_is_taken_unless_another_is_named() -> None:
    steps = [
        {"detect": {"model": "grounding-dino-random"}, "as": "first"},
        "select",
        {"read": {"model": "pp-ocrv6-small"}},
        {"ask": {"model": "qwen3-vl-endpoint"}, "as": "caption"},
        {"ask": {"model": "qwen3-vl-endpoint", "answers": ["yes", "no"]}, "as": "day"},
        {"ask": {"model": "qwen3-vl-endpoint", "schema": {"type": "object"}}, "as": "facts"},
        {"embed": {"model": "clip-random"}},
        {"classify": {"model": "clip-random"}},
    ]
    pipeline = load_pipeline(document(steps))
    names = [step.name for step in pipeline.steps]
    found = {key: find_column(key, pipeline.columns, pipeline.steps) for key in COLUMNS}
    assert {key: column and f"{names[column.step or 0]}.{column.column}" for key, column in found.items()} == {
        "labels": "select.detections",
        "words": "read.words",
        "caption": "caption.answer",
        "class": "classify.class",
    }
    named = load_pipeline(
        document(steps, **{"labels": "first.detections", "caption": "facts.answer", "class": "day.answer"})
    )
    assert named.columns.named() == {"labels": "first.detections", "caption": "facts.answer", "class": "day.answer"}
    column = find_column("class", named.columns, named.steps)
    assert column is not None
    assert (names[column.step or 0], column.column) == ("day", "answer")


def test_without_such_steps_there_are_source_labels_and_nothing_else() -> None:
    pipeline = load_pipeline(document(["inspect"], coco={}))
    labels = find_column("labels", pipeline.columns, pipeline.steps)
    assert labels is not None
    assert (labels.step, labels.column) == (None, "labels")
    assert [find_column(key, pipeline.columns, pipeline.steps) for key in COLUMNS[1:]] == [None] * 3


@pytest.mark.parametrize(
    ("export", "expected"),
    [
        ({"caption": "remrk"}, "export.caption: column 'remrk' is written by no step above; did you mean 'remark'?"),
        ({"caption": "says.number"}, "export.caption: column 'says.number' must hold text but is int64"),
        ({"class": "detections"}, "export.class: column 'detections' must hold text but is list<"),
        (
            {"words": "detections"},
            "export.words: column 'detections' must hold words, such as read.words, but is list<",
        ),
        ({"labels": "words"}, "export.labels: column 'words' must hold detections but is list<"),
        ({"words": 3}, "export.words: must be the name of a column but is 3"),
        ({"wrds": "words"}, "export.wrds: unknown export, must be one of coco, "),
        ({"coco": {"captions": True}}, "export.coco: must have captions but no step writes any: add an `ask` step"),
        (
            {"yolo": {"task": "classify"}},
            "export.yolo: must have classes of images but no step writes any: add a `clas",
        ),
    ],
)
def test_a_wrong_column_is_named_with_its_place(export: dict[str, Any], expected: str) -> None:
    (problem,) = problems([{TOY: {}, "as": "says"}], **export)
    assert expected in problem
    assert problem.startswith("p.yaml:")


def test_models_are_found_wherever_parameters_hold_cards() -> None:
    from labelmill.operators.registry import find
    from labelmill.pipelines.config.cards import find_card
    from labelmill.pipelines.steps import chain

    cards = [find_card(name) for name in ("clip-random", "grounding-dino-random")]
    says = find(TOY)
    steps = [chain([], "says", TOY, says(says.Params(card=cards[0], more=tuple(cards))))]
    steps.append(chain(steps, "plain", TOY, says(says.Params())))
    assert models_used(steps) == [
        {"step": "says", "parameter": name, "reference": card.reference(), "licence": card.licence}
        for name, card in (("card", cards[0]), ("more.0", cards[0]), ("more.1", cards[1]))
    ]


def test_a_run_hands_everything_to_its_exports_and_writes_anew_what_changed() -> None:
    folder_of_images(Path("data"), 6)

    def go(**export: Any) -> dict[str, dict[str, Any]]:
        steps = [{TOY: {"card": "clip-random"}, "as": "says"}]
        summary = run(load_pipeline(document(steps, **export)), Options(inline=True), TerminalReporter())
        return {each["export"]: each for each in summary["exports"]}

    columns = {"caption": "remark", "class": "says.kind"}
    exports = {"coco": {"captions": True}, "yolo": {"task": "obb"}, "crops": {}}
    first = go(**columns, **exports)
    assert first["yolo"]["annotations"] == {"disc": 6, "odd": 0, "even": 0, "text": 6}
    captions = json.loads(Path("run/exports/coco/annotations/captions.json").read_bytes())
    assert {each["image_id"]: each["caption"] for each in captions["annotations"]} == {
        number: f"Image {number}." for number in (1, 2, 3, 5, 6)
    }
    (model,) = captions["info"]["provenance"]["models"]
    assert (model["step"], model["parameter"]) == ("says", "card")
    assert model["reference"].startswith("clip-random@")
    instances = json.loads(Path("run/exports/coco/annotations/instances.json").read_bytes())
    assert instances["annotations"][0]["attributes"] == {"prompt": "a disc", "models": ["toy@0123456789ab"]}
    assert f"| says | {model['reference']} |" in Path("run/exports/crops/README.md").read_text()

    made = {name: Path(f"run/exports/{name}/README.md").stat().st_mtime_ns for name in exports}
    assert go(**columns, **exports) == first
    assert {name: Path(f"run/exports/{name}/README.md").stat().st_mtime_ns for name in exports} == made
    changed = go(**{**columns, "caption": "says.kind"}, **exports)
    assert changed["coco"]["fingerprint"] != first["coco"]["fingerprint"]
    captions = json.loads(Path("run/exports/coco/annotations/captions.json").read_bytes())
    assert {each["caption"] for each in captions["annotations"]} == {"odd", "even"}

    classes = go(**columns, yolo={"task": "classify"})["yolo"]
    assert classes["annotations"] == {"even": 3, "odd": 3}
    assert sorted(path.name for path in Path("run/exports/yolo/train").iterdir()) == ["even", "odd"]
