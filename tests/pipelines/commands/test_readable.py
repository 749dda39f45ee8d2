"""What is printed fits a terminal of 80 columns, mistakes say what to do next, and scripts get JSON."""

from __future__ import annotations

import io
import json
import socket
from pathlib import Path

import pytest
import typer
import yaml
from rich.console import Console
from typer.testing import CliRunner, Result

from labelmill.operators.registry import names
from labelmill.pipelines.cli import app
from labelmill.pipelines.commands import new
from labelmill.pipelines.commands.catalogue import print_prose
from tests.drawing import folder_of_images
from tests.pipelines.test_run import document


def labelmill(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "80", "TERM": "dumb"})
    assert result.exit_code == code, result.output + repr(result.exception)
    assert "Traceback" not in result.output
    return result


def fits(text: str) -> None:
    wide = [line for line in text.splitlines() if len(line) > 80]
    assert not wide


@pytest.fixture
def pipeline() -> str:
    folder_of_images(Path("data"), 12)
    Path("data/a/broken.jpg").write_bytes(b"\xff\xd8\xff")
    Path("p.yaml").write_text(yaml.safe_dump(document(output="runs/toy")))
    return "p.yaml"


def test_help_says_what_each_command_does_in_a_whole_sentence() -> None:
    told = labelmill("--help").output
    fits(told)
    assert "..." not in told.partition("Commands:")[2]
    for command in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        fits(labelmill(command, "--help").output)
    alone = typer.Typer(rich_markup_mode=None)
    alone.command()(new.new)
    fits(CliRunner().invoke(alone, ["--help"], env={"COLUMNS": "80"}).output)


def test_a_runs_output_plan_status_and_explanation_fit(pipeline: str) -> None:
    fits(labelmill("plan", pipeline).output)
    fits(labelmill("run", pipeline, "--inline").output)
    fits(labelmill("plan", pipeline).output)
    status = labelmill("status").output
    fits(status)
    assert "labelmill explain KEY --run runs/toy" in status
    story = labelmill("explain", "a/0000.jpg").output
    fits(story.replace(str(Path.cwd()), ""))
    assert "brightness" in story


def test_status_of_a_changed_run_shows_no_counts_of_the_old_one_and_how_to_go_on(pipeline: str) -> None:
    labelmill("run", pipeline, "--inline")
    Path("runs/toy/pipeline.yaml").write_text(yaml.safe_dump(document(output="runs/toy", keep={"at_least": 200.0})))
    told = labelmill("status", "runs/toy").output
    assert "not finished" in told
    assert " kept + " not in told
    going_on = told.rpartition("Go on with: labelmill ")[2].split()
    labelmill(*going_on, "--inline")
    assert "complete" in labelmill("status", "runs/toy").output


def test_lists_fit() -> None:
    fits(labelmill("models").output)
    fits(labelmill("ops").output)
    for name in names():
        fits(labelmill("ops", name).output)


def test_prose_flows_and_tables_are_drawn() -> None:
    text = (
        "One\ntwo [three].\n\n- a list\n- stays\n\n====  ===\nkind  is\n====  ===\nfile  [a]\n====  ===\n\n"
        + "word " * 40
    )
    console = Console(file=io.StringIO(), width=30)
    print_prose(text, console)
    assert isinstance(console.file, io.StringIO)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert lines[:9] == [
        "One two [three].",
        "",
        "- a list",
        "- stays",
        "",
        "kind  is",
        "file  [a]",
        "",
        "word word word word word word",
    ]
    assert max(map(len, lines)) <= 30


MISTAKES = [
    (["status", "runs/tyo"], "did you mean 'runs/toy'"),
    (["status", "elsewhere"], "there are runs/toy"),
    (["explain", "a/0000.jgp"], "did you mean 'a/0000.jpg'"),
    (["explain", "999"], "its keys are like 'a/0000.jpg'"),
    (["run", "q.yaml"], "did you mean 'p.yaml'"),
    (["run", "p.yaml", "--set", "brightnes.scale=1"], "did you mean 'brightness'"),
    (["run", "p.yaml", "--set", "brightness.scal=1"], "did you mean 'scale'"),
    (["models", "pull", "clip-vit-b-33"], "did you mean 'clip-vit-b-32'"),
    (["models", "pull", "nothing-like-it"], "`labelmill models` lists"),
    (["models", "pull", "cards/mien.yaml"], "did you mean 'mine.yaml'"),
    (["ops", "detct"], "did you mean 'detect'"),
    (["world", "data"], "choose another directory"),
    (["rnu", "p.yaml"], "Did you mean 'run'"),
]


def test_a_mistake_says_what_to_do_next(pipeline: str) -> None:
    labelmill("run", pipeline, "--inline")
    Path("cards").mkdir()
    Path("cards/mine.yaml").touch()
    for words, hint in MISTAKES:
        told = labelmill(*words, code=2).output
        assert hint in told
        assert len(told) < 700, "no mistake needs a screenful"


def test_a_wrong_address_is_told_at_once(pipeline: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = labelmill("run", pipeline, "--address", f"127.0.0.1:{port}", code=2).output
    assert f"nothing answers at 127.0.0.1:{port}" in told
    assert "ray start --head" in told
    assert not Path("runs").exists()


def test_scripts_get_json(pipeline: str) -> None:
    good = json.loads(labelmill("check", pipeline, "--json").stdout)
    assert good["good"] is True
    assert good["exports"] == ["coco", "yolo"]
    Path("bad.yaml").write_text("nme: x\nsteps: [inspct]\n")
    bad = json.loads(labelmill("check", "bad.yaml", "--json", code=2).stdout)
    assert bad["good"] is False
    assert any("did you mean 'inspect'" in problem for problem in bad["problems"])
    drawn = json.loads(labelmill("world", "drawn", "--images", "2", "--json").stdout)
    assert drawn["images"] == 2
    assert Path(drawn["source"]).is_dir()
    pulled = json.loads(labelmill("models", "pull", "clip-miniature", "--json").stdout)
    assert pulled[0]["card"] == "clip-miniature"
    assert pulled[0]["bytes"] == sum(Path(name).stat().st_size for name in pulled[0]["files"])
