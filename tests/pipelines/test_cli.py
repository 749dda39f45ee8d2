from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner, Result

from labelmill.pipelines.cli import app
from tests.drawing import folder_of_images
from tests.pipelines.test_run import document

CHECKOUT = Path(__file__).resolve().parents[2]


def labelmill(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "80", "TERM": "dumb"})
    assert result.exit_code == code, result.output + repr(result.exception)
    assert "Traceback" not in result.output
    return result


@pytest.fixture
def pipeline() -> str:
    folder_of_images(Path("data"), 12)
    Path("data/a/broken.jpg").write_bytes(b"\xff\xd8\xff")
    Path("p.yaml").write_text(yaml.safe_dump(document()))
    return "p.yaml"


def test_help_names_every_command() -> None:
    told = labelmill("--help").output
    for command in ("run", "plan", "check", "status", "explain", "evaluate", "search", "ops", "models", "world"):
        assert command in told


def test_version() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    assert labelmill("--version").output == f"labelmill {project['version']}\n"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from labelmill.pipelines.cli import app;"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0;"
        "print(sorted({'torch','ray','transformers','pyarrow','pandas','numpy','cv2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_run_status_explain_and_plan(pipeline: str) -> None:
    assert "0/3" in labelmill("plan", pipeline).output
    assert not Path("run").exists(), "plan writes nothing"
    assert "good. 5 steps" in labelmill("check", pipeline).output
    told = labelmill("run", pipeline, "--inline").output
    assert "13 images = " in told
    assert "1 failed" in told
    assert "run/exports/coco" in told
    assert "3/3" in labelmill("plan", pipeline).output
    assert "a run computes nothing" in labelmill("plan", pipeline).output
    status = labelmill("status", "run").output
    assert "complete" in status
    story = labelmill("explain", "a/broken.jpg", "--run", "run").output
    assert "failed: " in story
    assert "a/0000.jpg" in labelmill("explain", "1", "--run", "run").output
    assert max(len(line) for line in status.splitlines()) <= 80
    again = labelmill("run", pipeline, "--inline").output
    assert "nothing to compute" in again


def test_json_is_json(pipeline: str) -> None:
    assert json.loads(labelmill("plan", pipeline, "--json").stdout)["images"] == 13
    ran = json.loads(labelmill("run", pipeline, "--inline", "--json").stdout)
    assert ran["outcome"]["failed"] == 1
    assert json.loads(labelmill("status", "run", "--json").stdout)["complete"] is True
    assert json.loads(labelmill("explain", "a/0000.jpg", "--run", "run", "--json").stdout)["key"] == "a/0000.jpg"
    assert {row["name"] for row in json.loads(labelmill("ops", "--json").stdout)} >= {"inspect", "keep", "detect"}
    assert json.loads(labelmill("models", "--json").stdout)


def test_status_and_explain_find_the_newest_run(pipeline: str) -> None:
    settings = document(output="runs/one")
    Path(pipeline).write_text(yaml.safe_dump(settings))
    assert "there is no run below runs/" in labelmill("status", code=2).output
    labelmill("run", pipeline, "--inline")
    assert "runs/one" in labelmill("status").output
    assert "a/0000.jpg" in labelmill("explain", "a/0000.jpg").output


def test_an_unfinished_run_says_so(pipeline: str) -> None:
    labelmill("run", pipeline, "--inline")
    next(Path("run/steps").glob("*rank*/00001.parquet")).unlink()
    told = labelmill("status", "run").output
    assert "not finished" in told
    assert "2/3" in told
    assert "not done yet" in labelmill("explain", "6", "--run", "run").output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "none.yaml"], "there is no file 'none.yaml'"),
        (["check", "bad.yaml"], "bad.yaml:1: nme: unknown key"),
        (["status", "nowhere"], "there is no run at 'nowhere'"),
        (["explain", "a/0000.jp", "--run", "run"], "did you mean 'a/0000.jpg'"),
        (["ops", "inspct"], "did you mean 'inspect'"),
    ],
)
def test_mistakes_end_with_2_and_a_sentence(pipeline: str, words: list[str], message: str) -> None:
    Path("bad.yaml").write_text("nme: x\n")
    if "run" in words[1:]:
        labelmill("run", pipeline, "--inline")
    result = labelmill(*words, code=2)
    assert message in result.output
    assert "error: " in result.output


def test_every_operator_and_model_is_described() -> None:
    for row in json.loads(labelmill("ops", "--json").stdout):
        assert row["summary"], row["name"]
        assert row["name"] in labelmill("ops", row["name"]).output
    assert "clip-random" in labelmill("models").output


def test_every_parameter_says_what_it_does() -> None:
    for row in json.loads(labelmill("ops", "--json").stdout):
        described = json.loads(labelmill("ops", row["name"], "--json").stdout)
        for parameter in described["parameters"]:
            assert parameter["about"], f"{row['name']}.{parameter['name']}"
            assert parameter["type"] != "any", f"{row['name']}.{parameter['name']}"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["my p.yaml", "--set", "keep.where=a > 'b'", "--set", "x=1"],
         ["my p.yaml", "--set=keep.where=a > 'b'", "--set=x=1"]),
        (["--no-report", "p.yaml", "--inline", "-v"], ["p.yaml", "--inline", "--verbose", "--no-report"]),
        (["p.yaml", "--workers", "2", "--json"], ["p.yaml", "--workers=2", "--json"]),
        (["--inline", "--", "-p.yaml"], ["--inline", "--", "-p.yaml"]),
    ],
)  # fmt: skip
def test_the_hint_of_a_stopped_run_is_the_command_line_that_was_used(
    words: list[str], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("labelmill.pipelines.config.pipeline.load_pipeline", lambda *_: SimpleNamespace(steps=[]))
    monkeypatch.setattr("labelmill.pipelines.run.run", stop)
    output = labelmill("run", *words, code=130).output
    hint = output.partition("Go on with: ")[2].strip()
    assert shlex.split(hint) == ["labelmill", "run", *told]
