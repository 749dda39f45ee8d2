"""A run that was made before the operators moved into rooms is read as done: no step of it is computed again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from labelmill.pipelines.cli import app
from labelmill.pipelines.config.pipeline import load_pipeline

BEFORE = Path(__file__).parent / "made_before"
"""A run of labelmill 0.1.0 of 2026-11-22, from a COCO file, with models whose weights are drawn from a seed.

Should a test here fail, results that people have would be computed again. That is right where an operator computes
something else now and its `version` was raised: then make the run anew, in a folder with a neutral name:

    rm -r run; labelmill run pipeline.yaml --inline --no-report; rm run/.lock
"""


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_fingerprints_are_those_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BEFORE)
    steps = load_pipeline(Path("pipeline.yaml")).steps
    assert [step.folder for step in steps] == sorted(path.name for path in Path("run/steps").iterdir())


def test_nothing_is_computed_again(working_directory: Path) -> None:
    shutil.copytree(BEFORE, working_directory, dirs_exist_ok=True)
    before = files(working_directory / "run")
    assert len(before) > 30
    said = CliRunner().invoke(app, ["run", "pipeline.yaml", "--inline", "--no-report"])
    assert said.exit_code == 0, said.output
    assert "every step is done for every shard; nothing to compute" in said.output
    after = files(working_directory / "run")
    # A checkout gives files another time: what `inspect` knows of their bytes says that they were only touched, and
    # their rows get the new version. Nothing else is written.
    shards = {name for name in before if name.startswith("shards/")}
    assert {name: data for name, data in after.items() if name not in shards} == {
        name: data for name, data in before.items() if name not in shards
    }
    for name in shards:
        old, new = (pq.read_table(folder / "run" / name) for folder in (BEFORE, working_directory))
        kept = [column for column in old.column_names if column not in ("version", "labels", "uri")]
        assert new.select(kept).equals(old.select(kept))
