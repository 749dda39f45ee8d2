"""Outages of what a run depends on: images are waited for, then undone, and the next run does just those."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from operators.applying.patience import Limits
from pipelines.cli import app
from pipelines.config.pipeline import load_pipeline
from pipelines.engine.outages import Outage
from pipelines.engine.terminal import TerminalReporter
from pipelines.run import Options, run
from pipelines.sources import storage
from tests.drawing import encode, noise
from tests.flaky_server import Answer, FlakyServer
from tests.toys import logged

IMAGES = 44
FILES = {f"/{number:02d}.png": encode(noise(number, 16, 8), "PNG") for number in range(IMAGES)}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyServer]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(storage, "PAUSE", 0.001)
    with FlakyServer(FILES) as flaky:
        yield flaky


def write_pipeline(server: FlakyServer, images: int = IMAGES, output: str = "run", **changes: Any) -> str:
    chosen = list(FILES)[:images]
    labels = {
        "images": [
            {"id": number, "file_name": path.lstrip("/"), "width": 16, "height": 8, "coco_url": server.url + path}
            for number, path in enumerate(chosen)
        ],
        "annotations": [],
        "categories": [],
    }
    Path("labels.json").write_text(json.dumps(labels))
    document = {
        "name": "far",
        "source": {"coco": "labels.json"},
        "output": output,
        "shard_size": 8,
        "steps": [
            {"tests.toys:Brightness": {"log": str(Path("bright.log").absolute())}},
            {"tests.toys:Threshold": {"at_least": 60.0}},
            {"tests.toys:Rank": {}},
            {"tests.toys:Brightness": {"scale": 2.0, "log": str(Path("again.log").absolute())}, "as": "again"},
        ],
        "export": {"coco": {}},
        **changes,
    }
    Path(f"{output}.yaml").write_text(yaml.safe_dump(document))
    return f"{output}.yaml"


def go(file: str, seconds: float = 0.0, **options: Any) -> dict[str, Any]:
    given = Options(**{"inline": True, "limits": Limits(seconds), **options})
    return run(load_pipeline(file), given, TerminalReporter())


def results(folder: str) -> dict[str, str]:
    """Digest of every file of a run that is a result, without what tells of the time and the address."""
    skipped = {"events.jsonl", "pipeline.yaml", "summary.json", "coco.export.json", "README.md"}
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.name not in skipped
    }


@pytest.fixture
def undisturbed(server: FlakyServer) -> dict[str, str]:
    summary = go(write_pipeline(server, output="undisturbed"))
    assert summary["outcome"]["undone"] == 0
    for log in ("bright.log", "again.log"):
        Path(log).unlink()
    server.asked.clear()
    return results("undisturbed")


def test_a_server_that_is_away_for_a_while_is_waited_for(server: FlakyServer, undisturbed: dict[str, str]) -> None:
    server.trouble = lambda path, before: Answer() if path in ("/03.png", "/20.png") and before < 6 else None
    summary = go(write_pipeline(server), seconds=20)
    assert summary["outcome"]["undone"] == 0
    assert results("run") == undisturbed


def test_the_next_run_does_what_was_undone_and_nothing_else(server: FlakyServer, undisturbed: dict[str, str]) -> None:
    away = {f"/{number:02d}.png" for number in (2, 3, 9, 40)}
    server.trouble = lambda path, before: Answer() if path in away else None
    file = write_pipeline(server)
    summary = go(file)
    assert summary["outcome"]["undone"] == 4
    assert summary["outcome"]["failed"] == 0
    assert sum(summary["outcome"].values()) == summary["images"] == IMAGES
    first = next(step for step in summary["steps"] if step["step"] == "brightness")
    assert (first["seen"], first["undone"]) == (IMAGES, 4)
    assert any("503" in reason["reason"] or "attempts" in reason["reason"] for reason in summary["reasons"])
    assert len(logged("bright.log")) == IMAGES - 4

    away.discard("/40.png")
    again = go(file)
    assert again["outcome"]["undone"] == 3
    assert sorted(logged("bright.log")[IMAGES - 4 :]) == [41]

    away.clear()
    last = go(file)
    assert last["outcome"]["undone"] == 0
    assert sorted(logged("bright.log")[IMAGES - 3 :]) == [3, 4, 10]
    assert results("run") == undisturbed
    assert go(file)["outcome"] == last["outcome"]
    assert len(logged("bright.log")) == IMAGES, "nothing is done twice"


def test_what_is_gone_is_an_answer(server: FlakyServer) -> None:
    server.trouble = lambda path, before: Answer(404) if path == "/05.png" else None
    summary = go(write_pipeline(server), seconds=20)
    assert (summary["outcome"]["failed"], summary["outcome"]["undone"]) == (1, 0)
    assert server.asked["/05.png"] <= 2


@pytest.mark.parametrize(
    "answer",
    [
        Answer(503),
        Answer(500),
        Answer(cut=True),
        Answer(503, {"Retry-After": "3600"}),
    ],
    ids=str,
)
def test_kinds_of_outages(server: FlakyServer, undisturbed: dict[str, str], answer: Answer) -> None:
    server.trouble = lambda path, before: answer if path == "/07.png" else None
    file = write_pipeline(server)
    assert go(file)["outcome"]["undone"] == 1
    server.trouble = lambda path, before: None
    assert go(file)["outcome"]["undone"] == 0
    assert results("run") == undisturbed


def test_a_server_that_hangs(server: FlakyServer, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    server.trouble = lambda path, before: Answer(hang=5) if path == "/07.png" else None
    monkeypatch.setattr(storage, "ATTEMPTS", 1)
    options = {"client_kwargs": {"timeout": 0.3}}
    file = write_pipeline(server, source={"coco": "labels.json", "storage_options": options})
    assert go(file)["outcome"]["undone"] == 1
    server.trouble = lambda path, before: None
    assert go(file)["outcome"]["undone"] == 0
    assert results("run") == undisturbed


def test_a_server_that_asks_for_a_pause_gets_it(server: FlakyServer, undisturbed: dict[str, str]) -> None:
    server.trouble = lambda path, before: (
        Answer(429, {"Retry-After": "1"}) if path == "/07.png" and before < 2 else None
    )
    assert go(write_pipeline(server), seconds=20)["outcome"]["undone"] == 0
    times = server.times["/07.png"]
    assert all(later - earlier >= 1 for earlier, later in pairwise(times))
    assert results("run") == undisturbed


@pytest.mark.parametrize("ray", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_dead_server_stops_the_run_and_the_command_goes_on_later(
    server: FlakyServer, undisturbed: dict[str, str], ray: bool
) -> None:
    server.trouble = lambda path, before: Answer() if path >= "/04.png" else None
    file = write_pipeline(server)
    options = {"inline": not ray, "workers": 1}
    with pytest.raises(Outage, match=r"step 'brightness' is stopped: \d+ of its latest \d+ images .*--keep-going"):
        go(file, **options)
    assert len(logged("bright.log")) == 4
    asked = sum(server.asked[path] for path in FILES if path > "/42.png")
    assert asked == 0, "it does not burn through the images"
    server.trouble = lambda path, before: None
    assert go(file, **options)["outcome"]["undone"] == 0
    assert sorted(logged("bright.log")) == list(range(1, IMAGES + 1))
    assert results("run") == undisturbed


def test_whoever_wants_to_goes_on(server: FlakyServer) -> None:
    server.trouble = lambda path, before: Answer() if path >= "/04.png" else None
    summary = go(write_pipeline(server), limits=Limits(0, keep_going=True))
    assert summary["outcome"]["undone"] == IMAGES - 4


def test_the_command_says_so_and_ends_with_3(server: FlakyServer) -> None:
    server.trouble = lambda path, before: Answer() if path in ("/02.png", "/03.png") else None
    file = write_pipeline(server)
    words = ["run", file, "--inline", "--patience", "0"]
    ended = CliRunner().invoke(app, words)
    assert ended.exit_code == 3, ended.output
    assert "44 images = " in ended.output and " + 2 undone" in ended.output
    (line,) = [line for line in ended.stderr.splitlines() if "undone" in line]
    assert line.startswith("2 images are undone (brightness: ")
    assert f"run the same command again to do them: labelmill run {file} --inline --patience=0.0" in line
    status = CliRunner().invoke(app, ["status", "run"])
    assert "not finished" in status.stdout and "undone" in status.stdout
    ended = CliRunner().invoke(app, [*words, "--json"])
    assert ended.exit_code == 3
    assert json.loads(ended.stdout)["outcome"]["undone"] == 2
    server.trouble = lambda path, before: None
    ended = CliRunner().invoke(app, words)
    assert ended.exit_code == 0 and "undone" not in ended.output
    assert "complete" in CliRunner().invoke(app, ["status", "run"]).stdout
