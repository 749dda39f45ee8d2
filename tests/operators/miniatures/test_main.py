from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from labelmill.operators.miniatures import __main__ as command
from labelmill.operators.miniatures.catalogue import GOALS, TRAININGS, table


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The scores and their table in a folder of the test, and evaluations that give every goal its bound."""
    (tmp_path / "README.md").write_text("before\n<!-- scores -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr(command, "SCORES", tmp_path / "scores.json")
    monkeypatch.setattr(command, "README", tmp_path / "README.md")
    monkeypatch.setattr(command, "evaluate", lambda name, scenes: {goal.key: goal.bound for goal in GOALS[name]})
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["miniatures", *arguments])
    command.main()


def test_measuring_one_changes_its_scores_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "scores.json").write_text(
        json.dumps({"1000": {"clip": {"top1": 0.5, "top1_held_out": 0.5, "copies_ap": 0.5}}})
    )
    call(monkeypatch, "gaze", "--evaluate")
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["1000"]["clip"]["top1"] == 0.5
    assert scores["1000"]["gaze"] == scores["100"]["gaze"] == {"angular_error": 5.0}
    assert (
        folder / "README.md"
    ).read_text() == f"before\n<!-- scores -->\n{table(scores['1000'])}<!-- end -->\nafter\n"


def test_a_missed_goal_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "evaluate", lambda name, scenes: {goal.key: goal.bound + 0.01 for goal in GOALS[name]})
    call(monkeypatch, "gaze", "--evaluate")
    assert "MISSED" in capsys.readouterr().out
    assert "5.010 (missed)" in (folder / "README.md").read_text()
    assert "not measured" in (folder / "README.md").read_text()


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, "dino")
    assert stop.value.code == 2
    assert TRAININGS[0].name in capsys.readouterr().err


def test_trainings_run_side_by_side_and_one_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run(arguments: list[str]) -> subprocess.CompletedProcess[bytes]:
        asked.append(arguments)
        return subprocess.CompletedProcess(arguments, returncode="gaze" in arguments)

    monkeypatch.setattr(command.subprocess, "run", run)
    assert command._side_by_side(["clip", "sam"], Path("state"), Path("scenes"), 2)
    assert not command._side_by_side(["clip", "gaze"], Path("state"), Path("scenes"), 2)
    assert all(
        arguments[1:3] == ["-m", "labelmill.operators.miniatures"] and "--train" in arguments for arguments in asked
    )
    assert [arguments[3] for arguments in asked[:2]] in (["clip", "sam"], ["sam", "clip"])
