from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from labelmill.pipelines.config.pipeline import load_pipeline
from labelmill.pipelines.config.yaml_file import read_yaml
from labelmill.pipelines.errors import ConfigError, UserError

GOOD = """\
name: street
source: {folder: data}
ontology:
  car: [car, taxi]
  stop sign: stop sign
steps:
  - inspect
  - keep: "sharpness >= 0.3 and min_side >= 64"
  - embed: {model: clip-random}
  - deduplicate: {keep: sharpest}
  - detect:
      model: grounding-dino-random
      floor: 0.2
  - select: {score: {car: 0.4}}
  - detect: {model: grounding-dino-random}
    as: again
export:
  split: {train: 0.8, val: 0.2}
  coco: {}
  yolo: {task: detect}
"""


def write(text: str) -> str:
    Path("p.yaml").write_text(text)
    return "p.yaml"


def problems(text: str, overrides: list[str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_pipeline(write(text), overrides)
    return str(caught.value)


def test_a_good_pipeline() -> None:
    pipeline = load_pipeline(write(GOOD))
    names = [step.name for step in pipeline.steps]
    assert names == ["inspect", "keep", "embed", "deduplicate", "detect", "select", "again", "split"]
    assert pipeline.settings.output == "runs/street"
    assert [export.name for export in pipeline.exports] == ["coco", "yolo"]
    assert pipeline.steps[4].operator.params.ontology.classes == ("car", "stop sign")
    assert pipeline.steps[4].operator.params.model.name == "grounding-dino-random"


def test_the_resolved_document_loads_to_the_same_steps() -> None:
    first = load_pipeline(write(GOOD), ["detect.floor=0.3", "output=elsewhere"])
    second = load_pipeline(write(yaml.safe_dump(first.document)))
    assert [step.fingerprint for step in first.steps] == [step.fingerprint for step in second.steps]
    assert second.settings.output == "elsewhere"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("source: {folder", "sorce: {folder", "p.yaml:2: sorce: unknown key, must be one of"),
        ("source: {folder", "sorce: {folder", "did you mean 'source'?"),
        ("source: {folder", "source: {foldr", "p.yaml:2: source.foldr:"),
        ("name: street\n", "", "p.yaml:1: name: must be given"),
        ("  - inspect\n", "  - inspct\n", "p.yaml:7: steps[0].inspct: operator must be one of"),
        ("  - inspect\n", "  - inspct\n", "did you mean 'inspect'?"),
        ("      floor: 0.2", "      flor: 0.2", "p.yaml:13: steps[4].detect.flor: unknown key, must be one of"),
        ("      floor: 0.2", "      flor: 0.2", "did you mean 'floor'?"),
        ("      floor: 0.2", "      floor: much", "p.yaml:13: steps[4].detect.floor: must be a valid number"),
        ("model: clip-random", "model: clip-randm", "p.yaml:9: steps[2].embed.model: model must be one of"),
        ("model: clip-random", "model: clip-randm", "did you mean 'clip-random'?"),
        ("sharpness >= 0.3", "sharpnes >= 0.3", "p.yaml:8: steps[1].keep"),
        ("sharpness >= 0.3", "sharpnes >= 0.3", "did you mean 'sharpness'?"),
        ("sharpness >= 0.3", "sharpness >= 'x'", "p.yaml:8: steps[1].keep"),
        ("score: {car: 0.4}", "score: {cra: 0.4}", "p.yaml:14: steps[5].select.score.cra:"),
        ("score: {car: 0.4}", "score: {cra: 0.4}", "'car'"),
        ("    as: again", "    as: detect", "p.yaml:15: steps[6].detect: two steps are called 'detect'"),
        ("    as: again", "    as: Two!", "p.yaml:16: steps[6].as: a step's name must be"),
        ("  coco: {}", "  coc: {}", "p.yaml:19: export.coc: unknown export"),
        ("task: detect", "task: detct", "p.yaml:20: export.yolo.task: must be"),
        ("val: 0.2", "val: 0.3", "p.yaml:18: export.split"),
        ("stop sign: stop sign", "stop sign: taxi", "p.yaml:3: ontology: prompt 'taxi' must mean one class"),
        ("  - inspect\n", "  - [inspect]\n", "p.yaml:7: steps[0]: must be one operator"),
        ("name: street", "name: [", "must be YAML but"),
        ("name: street", "name: ${oc.env:NOT_SET_ANYWHERE}", "p.yaml:1: name: "),
        ("  - inspect\n", "  - tests.toys:Nothing\n", "has no 'Nothing'"),
        ("  - inspect\n", "  - no_such_module:Nothing\n", "cannot be imported"),
        ("  - inspect\n", "  - pathlib:Path\n", "must be a subclass of one of"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_the_nearest_word(old: str, new: str, expected: str) -> None:
    assert old in GOOD
    assert expected in problems(GOOD.replace(old, new, 1))


def test_several_mistakes_are_told_at_once() -> None:
    told = problems(GOOD.replace("floor: 0.2", "flor: 0.2").replace("coco: {}", "coc: {}"))
    assert "flor" in told
    assert "coc" in told


def test_a_step_that_needs_classes_says_so() -> None:
    text = "name: a\nsource: data\nsteps:\n  - detect: {model: grounding-dino-random}\n"
    assert "p.yaml:4: steps[0].detect: detect needs classes to look for: add `ontology:`" in problems(text)


def test_a_missing_file_names_the_nearest() -> None:
    write(GOOD)
    with pytest.raises(UserError, match=r"there is no file 'q.yaml'; did you mean 'p.yaml'"):
        load_pipeline("q.yaml")


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just text\n", "name: x\nname: y\n"])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    assert "p.yaml:" in problems(text)


def test_overrides_reach_keys_and_steps() -> None:
    overrides = [
        "detect.floor=0.05",
        "again.floor=0.4",
        "select.score.car=0.9",
        "source.folder=x",
        "keep.where=width > 1",
    ]
    pipeline = load_pipeline(write(GOOD), overrides)
    steps = {step.name: step.operator.params for step in pipeline.steps}
    assert (steps["detect"].floor, steps["again"].floor) == (0.05, 0.4)
    assert steps["select"].score["car"] == 0.9
    assert steps["keep"].where == "width > 1"
    assert pipeline.settings.source.folder == "x"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("detct.floor=1", "there is no step or key 'detct'; did you mean 'detect'"),
        ("detect.floor", "--set must be KEY=VALUE"),
        ("detect=1", "name a parameter"),
        ("detect.flor=1", "did you mean 'floor'"),
    ],
)
def test_a_wrong_override_is_named(override: str, expected: str) -> None:
    assert expected in problems(GOOD, [override])


def test_environment_variables_are_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "some/where")
    assert read_yaml(write("output: ${oc.env:WHERE}\n")).values == {"output": "some/where"}


def test_secrets_of_a_source_are_not_kept() -> None:
    text = GOOD.replace("{folder: data}", "{folder: s3://b/x, storage_options: {secret: hush}}")
    assert "hush" not in yaml.safe_dump(load_pipeline(write(text)).document)


def test_two_keeps_are_numbered() -> None:
    text = "name: a\nsource: data\nsteps:\n  - inspect\n  - keep: width > 1\n  - keep: height > 1\n"
    assert [step.name for step in load_pipeline(write(text)).steps] == ["inspect", "keep", "keep_2"]


def test_duplicate_groups_stay_in_one_split() -> None:
    steps = {step.name: step for step in load_pipeline(write(GOOD)).steps}
    assert steps["split"].operator.params.group == "deduplicate.group"
    without = load_pipeline(write(GOOD.replace("  - deduplicate: {keep: sharpest}\n", "")))
    assert without.steps[-1].operator.params.group is None


@pytest.mark.parametrize("in_a_file", [False, True])
def test_names_that_yaml_takes_for_other_things_stay_text(tmp_path: Path, in_a_file: bool) -> None:
    """Case 14: yes, no, on, null, 1.50, 007 as classes, and as keys of scores."""
    names = ["yes", "no", "on", "null", "1.50", "007", "~", "2024-01-01", "1e3"]
    lines = [f"{name}: [{name}]" if name in ("null", "~") else f"{name}: {name}" for name in names]
    written = f"ontology: [{', '.join(names)}]\n"
    if in_a_file:
        (tmp_path / "classes.yaml").write_text("\n".join(lines))
        written = f"ontology: {tmp_path / 'classes.yaml'}\n"
    (tmp_path / "p.yaml").write_text(
        f"name: words\nsource: {{folder: images}}\n{written}"
        "steps:\n  - detect: {model: grounding-dino-random}\n  - select: {score: {default: 0.3, yes: 0.5, 007: 0.1}}\n"
    )
    pipeline = load_pipeline(tmp_path / "p.yaml")
    assert pipeline.settings.ontology is not None
    assert list(pipeline.settings.ontology.classes) == names
    assert [prompt for prompt, _ in pipeline.settings.ontology.prompts()] == names
