"""Outages of what a run depends on: images are waited for, then undone, and the next run does just those."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from labelmill.operators.applying import shard_images
from labelmill.operators.applying.patience import Limits
from labelmill.operators.images.decoded import decode
from labelmill.pipelines.cli import app
from labelmill.pipelines.config.pipeline import load_pipeline
from labelmill.pipelines.engine.outages import AcceleratorLost, Outage
from labelmill.pipelines.engine.terminal import TerminalReporter
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.run import Options, run
from labelmill.pipelines.sources import storage
from tests.drawing import encode, noise
from tests.flaky_server import Answer, FlakyServer
from tests.operators.engines.image_text_to_text.chat_server import MODEL, ChatServer, Request, Response, says
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
    server.times.clear()
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
    times = server.times["/07.png"][:3]  # the export asks once more
    assert all(later - earlier >= 1 for earlier, later in pairwise(times))
    assert results("run") == undisturbed


@pytest.mark.parametrize(
    "where", ["inline", *(pytest.param(name, marks=pytest.mark.slow) for name in ("local", "ray"))]
)
def test_a_dead_server_stops_the_run_and_the_command_goes_on_later(
    server: FlakyServer, undisturbed: dict[str, str], where: str
) -> None:
    server.trouble = lambda path, before: Answer() if path >= "/04.png" else None
    file = write_pipeline(server)
    options = {"inline": False, "workers": 1, where: True}
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


# ---------------------------------------------------------------- other things that can be away


SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


def test_an_object_store_that_asks_to_slow_down(server: FlakyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    file = write_pipeline(server, images=12)
    labels = Path("labels.json").read_text().replace(server.url + "/", "s3://bucket/")
    Path("labels.json").write_text(labels)
    options = {"key": "test", "secret": "test", "client_kwargs": {"endpoint_url": server.url}}
    changes = {"source": {"coco": "labels.json", "storage_options": options}}
    Path(file).write_text(yaml.safe_dump({**yaml.safe_load(Path(file).read_text()), **changes}))
    away = {"/bucket/03.png", "/bucket/04.png"}
    server.files = {f"/bucket{path}": data for path, data in FILES.items()}

    def trouble(path: str, before: int) -> Answer | None:
        slow = path.partition("?")[0] in away
        return Answer(503, {"Content-Type": "application/xml"}, body=SLOW_DOWN) if slow else None

    server.trouble = trouble
    summary = go(file)
    assert summary["outcome"]["undone"] == 2
    assert "reduce your request rate" in json.dumps(summary["reasons"]) or "attempts" in json.dumps(summary["reasons"])
    away.clear()
    assert go(file)["outcome"]["undone"] == 0
    assert sorted(logged("bright.log")) == list(range(1, 13))


def local_pipeline(images: int, *steps: Any, **changes: Any) -> str:
    Path("data").mkdir(exist_ok=True)
    for path, data in list(FILES.items())[:images]:
        Path(f"data{path}").write_bytes(data)
    document = {"name": "near", "source": {"folder": "data"}, "output": "run", "shard_size": 4, "steps": list(steps)}
    Path("run.yaml").write_text(yaml.safe_dump({**document, **changes}))
    return "run.yaml"


def test_too_little_memory_for_one_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    large = FILES["/05.png"]

    def short(data: bytes) -> Any:
        if data == large:
            raise MemoryError
        return decode(data)

    file = local_pipeline(9, {"tests.toys:Brightness": {"log": str(Path("bright.log").absolute())}}, "inspect")
    monkeypatch.setattr(shard_images, "decode", short)
    summary = go(file, seconds=20)
    assert (summary["outcome"]["undone"], summary["outcome"]["failed"]) == (1, 0)
    monkeypatch.setattr(shard_images, "decode", decode)
    assert go(file)["outcome"] == {"kept": 9, "dropped": 0, "duplicate": 0, "failed": 0, "undone": 0, "gone": 0}
    assert sorted(logged("bright.log")) == list(range(1, 10))
    again = results("run")
    Path("run").rename("before")
    go(file)
    assert results("run") == again


def endpoint_pipeline(address: str, images: int = 8, **ask: Any) -> str:
    card = {
        "name": "far", "task": "image-text-to-text", "engine": "openai", "architecture": MODEL,
        "licence": "Apache-2.0", "memory_gb": 0.5, "weights": {"endpoint": address},
    }  # fmt: skip
    Path("far.yaml").write_text(yaml.safe_dump(card))
    step = {"ask": {"model": str(Path("far.yaml").absolute()), "retries": 0, "timeout": 1, "concurrency": 2, **ask}}
    return local_pipeline(images, step)


OVERLOADED = Response({"error": {"message": "overloaded"}}, 503, {"retry-after-ms": "1"})


@pytest.mark.parametrize(
    "response",
    [
        OVERLOADED,
        Response({"error": {"message": "too many"}}, 429, {"retry-after": "1"}),
        Response(says("late").body, delay=2),
        Response(b"<html>Bad gateway</html>", headers={"Content-Type": "text/html"}),
    ],
    ids=["503", "429", "hangs", "gateway"],
)
def test_a_model_endpoint_with_an_outage(response: Response, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    asked: list[str] = []
    troubled: set[str] = set()
    outage = True

    def answer(request: Request) -> Response:
        asked.append(request.image)
        if len(asked) > 1 and len(troubled) < 2:  # the first asks whether the endpoint is there
            troubled.add(request.image)
        return response if outage and request.image in troubled else says(f"seen {len(request.image)}")

    with ChatServer(answer) as server:
        file = endpoint_pipeline(server.address)
        summary = go(file)
        assert (summary["outcome"]["undone"], summary["outcome"]["kept"]) == (2, 6)
        outage, before = False, len(asked)
        assert go(file)["outcome"]["kept"] == 8
        assert set(asked[before + 1 :]) == troubled and len(asked) == before + 1 + 2
        repaired = results("run")
        Path("run").rename("before")
        go(file)
        assert results("run") == repaired


def test_an_endpoint_that_dies_stops_the_run_and_one_that_wants_a_key_does_so_at_once() -> None:
    asked = 0
    response = OVERLOADED

    def answer(request: Request) -> Response:
        nonlocal asked
        asked += 1
        return says("fine") if asked <= 5 else response

    with ChatServer(answer) as server:
        file = endpoint_pipeline(server.address, images=44, concurrency=1)
        with pytest.raises(Outage, match=r"step 'ask' is stopped: .* answered 503: .*overloaded.*run the same command"):
            go(file)
        assert asked < 44
        response, asked = Response({"error": {"message": "revoked"}}, 401), 0
        with pytest.raises(UserError, match=r"step 'ask' cannot go on: endpoint .* refuses .*revoked"):
            go(file)
        assert asked <= 5 + 4 + 1
        asked = -1000
        assert go(file)["outcome"]["kept"] == 44


# ---------------------------------------------------------------- a GPU that is lost


def test_a_lost_gpu_ends_a_run_in_one_process_with_the_reason() -> None:
    file = local_pipeline(9, {"tests.toys:LosesGpu": {"lose_at": 6}})
    with pytest.raises(AcceleratorLost, match=r"step 'loses_gpu' lost its GPU: CUDA error: an illegal memory access"):
        go(file)
    Path("run.yaml").write_text(Path("run.yaml").read_text().replace("lose_at: 6", "lose_at: 0"))
    assert go(file)["outcome"]["kept"] == 9


@pytest.mark.parametrize("where", ["local", pytest.param("ray", marks=pytest.mark.slow)])
@pytest.mark.parametrize("always", [False, True])
def test_another_process_does_the_shard_of_a_lost_gpu(where: str, always: bool) -> None:
    marker = "" if always else str(Path("lost").absolute())
    file = local_pipeline(9, {"tests.toys:LosesGpu": {"lose_at": 6, "marker": marker}})
    if always:
        with pytest.raises(AcceleratorLost, match="an illegal memory access"):
            go(file, **{"inline": False, "workers": 2, where: True})
        return
    assert go(file, **{"inline": False, "workers": 2, where: True})["outcome"]["kept"] == 9
    assert Path("lost").exists()


# ---------------------------------------------------------------- what is shown, and what is written out


def test_the_report_counts_what_is_undone(server: FlakyServer) -> None:
    server.trouble = lambda path, before: Answer() if path in ("/02.png", "/03.png") else None
    go(write_pipeline(server), report=True)
    page = Path("run/report.html").read_text()
    assert '<div class="undone"><dt><i></i>undone</dt><dd>2</dd>' in page
    server.trouble = lambda path, before: None
    go("run.yaml", report=True)
    assert 'class="undone"' not in Path("run/report.html").read_text(), "the page is of what is there now"


def test_an_export_waits_for_images_that_are_away_too(server: FlakyServer, undisturbed: dict[str, str]) -> None:
    asked_for_export: list[str] = []

    def trouble(path: str, before: int) -> Answer | None:
        if path == "/07.png" and before >= 1 and len(asked_for_export) < 6:
            asked_for_export.append(path)
            return Answer()
        return None

    server.trouble = trouble
    go(write_pipeline(server), seconds=20)
    assert len(asked_for_export) == 6
    assert results("run") == undisturbed


@pytest.mark.parametrize("seed", range(4))
def test_whatever_the_order_of_outages_the_same_comes_out(
    server: FlakyServer, undisturbed: dict[str, str], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs with random images away, by random kinds of outages, some of them stopped in the middle."""
    monkeypatch.setattr(storage, "ATTEMPTS", 1)
    chance = random.Random(seed)
    kinds = [Answer(), Answer(429), Answer(500), Answer(cut=True), Answer(503, {"Retry-After": "60"})]
    file, told = write_pipeline(server), []
    for share in [*(chance.choice([0.05, 0.3, 0.9]) for _ in range(5)), 0.0]:
        away = {path: chance.choice(kinds) for path in FILES if chance.random() < share}
        server.trouble = lambda path, before, away=away: away.get(path)  # type: ignore[misc]
        try:
            summary = go(file, limits=Limits(0, keep_going=chance.random() < 0.3))
        except (Outage, UserError) as error:
            told.append(str(error))
            continue
        assert sum(summary["outcome"].values()) == IMAGES
        assert summary["outcome"]["failed"] == 0
        assert summary["outcome"]["undone"] <= len(away)
    assert summary["outcome"]["undone"] == 0
    assert all("run the same command again" in text for text in told)
    assert results("run") == undisturbed
    assert sorted(logged("bright.log")) == list(range(1, IMAGES + 1)), "nothing is done twice"
