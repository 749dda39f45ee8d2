"""Keys and passwords are in no file of a run and in no message, and a key may change between two runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from labelmill.operators.secrets import hide
from labelmill.pipelines.config.pipeline import load_pipeline
from labelmill.pipelines.engine.terminal import TerminalReporter
from labelmill.pipelines.errors import ConfigError
from labelmill.pipelines.run import Options, run
from tests.drawing import folder_of_images
from tests.pipelines.test_cli import labelmill

CHECKOUT = Path(__file__).resolve().parents[2]
KEYS, LITERAL = {"STORE_KEY": "hush-hush-one", "ENDPOINT_KEY": "hush-hush-two"}, "literal-hush"

OPERATOR = '''
import pyarrow as pa
from labelmill.operators.base import ImageOperator, OperatorParams, RowError, tuning

class Calls(ImageOperator):
    """Asks a server that repeats the key in its refusal."""
    class Params(OperatorParams):
        key: str = tuning("")
    def writes(self): return pa.schema([("said", pa.string())])
    def prepare(self, image, row):
        if row["image_id"] == 2:
            raise ValueError(f"401: the key {self.params.key} is not known at https://me:pass-word@host/x?sig=abcdef")
        return row["image_id"]
    def infer(self, items): return [{"said": "yes"} for _ in items]
'''


def document(**changes: Any) -> dict[str, Any]:
    options = {
        "endpoint_url": "http://127.0.0.1:1",
        "secret": "${oc.env:STORE_KEY}",
        "client_kwargs": {"aws_secret_access_key": LITERAL},
    }
    return {
        "name": "hush",
        "source": {"folder": "data", "storage_options": options},
        "output": "run",
        "steps": ["inspect", {"user_operator:Calls": {"key": "${oc.env:ENDPOINT_KEY}"}}],
        "export": {"coco": {}},
        **changes,
    }


@pytest.fixture(autouse=True)
def _pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labelmill.operators.secrets._known", {})
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    folder_of_images(Path("data"), 4)
    Path("user_operator.py").write_text(OPERATOR)
    Path("p.yaml").write_text(yaml.safe_dump(document()))


def files_with(secret: str) -> list[str]:
    """Files of the run that hold a text, compressed Parquet columns included."""
    found = []
    for path in Path("run").rglob("*"):
        if not path.is_file():
            continue
        text = path.read_bytes().decode("latin-1")
        if path.suffix == ".parquet":
            text += json.dumps(pq.ParquetFile(path).read().to_pylist(), default=str)
        if secret in text:
            found.append(str(path))
    return found


def go() -> dict[str, Any]:
    return run(load_pipeline("p.yaml"), Options(inline=True, report=True), TerminalReporter())


def test_no_file_of_a_run_holds_a_secret_and_a_failure_says_which_one_it_was() -> None:
    summary = go()
    assert summary["outcome"]["failed"] == 1
    assert files_with("hush-") == files_with(LITERAL) == files_with("pass-word") == files_with("abcdef") == []
    (row,) = pq.read_table("run/quarantine.parquet").to_pylist()
    assert "the key ${oc.env:ENDPOINT_KEY} is not known at https://•••@host/x?sig=•••" in row["reason"]


def test_what_is_written_is_a_reference_and_what_is_no_secret() -> None:
    go()
    written = yaml.safe_load(Path("run/pipeline.yaml").read_text())
    assert written["source"]["storage_options"] == {
        "endpoint_url": "http://127.0.0.1:1",
        "secret": "${oc.env:STORE_KEY}",
    }
    assert written["steps"][1] == {"user_operator:Calls": {"key": "${oc.env:ENDPOINT_KEY}"}}
    assert load_pipeline("run/pipeline.yaml").settings.source.storage_options["secret"] == KEYS["STORE_KEY"]


def test_a_rotated_key_is_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    first = go()
    done = {path: path.stat().st_mtime_ns for path in Path("run/steps").rglob("*.parquet")}
    for name, value in KEYS.items():
        monkeypatch.setenv(name, f"{value}-rotated")
    assert go()["state"] == first["state"]
    assert {path: path.stat().st_mtime_ns for path in Path("run/steps").rglob("*.parquet")} == done
    assert files_with("hush-") == []


def test_a_run_is_looked_at_without_the_keys_of_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    go()
    monkeypatch.delenv("STORE_KEY")
    assert "complete" in labelmill("status", "run").output
    monkeypatch.delenv("ENDPOINT_KEY")
    assert "'ENDPOINT_KEY' not found" in labelmill("status", "run", code=2).output
    assert "'STORE_KEY' not found" in labelmill("run", "run/pipeline.yaml", code=2).output


def test_commands_tell_no_secret(capfd: pytest.CaptureFixture[str]) -> None:
    go()
    told = labelmill("check", "p.yaml").output + labelmill("plan", "p.yaml").output
    told += labelmill("plan", "p.yaml", "--json").output + labelmill("status", "run", "--json").output
    told += labelmill("explain", "2", "--run", "run").output + "".join(capfd.readouterr())
    wrong = document(steps=[{"keep": {"where": "${oc.env:ENDPOINT_KEY}"}}, {"embed": "${oc.env:ENDPOINT_KEY}"}])
    Path("p.yaml").write_text(yaml.safe_dump(wrong))
    told += labelmill("check", "p.yaml", code=2).output + labelmill("check", "p.yaml", "--json", code=2).output
    assert "${oc.env:ENDPOINT_KEY}" in told
    assert "hush" not in told.replace("hush:", "").replace('"hush"', "").replace("hush,", "")


@pytest.mark.parametrize("key", ["source", "output"])
def test_a_location_with_a_password_is_refused_without_telling_it(key: str) -> None:
    Path("p.yaml").write_text(yaml.safe_dump(document(**{key: "https://me:pass-word@host/images"})))
    with pytest.raises(ConfigError, match="must hold no user and password") as caught:
        load_pipeline("p.yaml")
    assert "pass-word" not in str(caught.value)


def test_a_crash_tells_no_secret() -> None:
    code = (
        "import labelmill.pipelines.commands.running as running\n"
        "from labelmill.operators.secrets import keep_secret\n"
        "import labelmill.pipelines.config.pipeline as config\n"
        "def load(*a): keep_secret('hush-hush-one'); raise RuntimeError('with hush-hush-one')\n"
        "config.load_pipeline = load\n"
        "import sys; sys.argv = ['labelmill', 'plan', 'p.yaml']\n"
        "from labelmill.pipelines.cli import main; main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True)
    assert "RuntimeError: with •••" in done.stderr
    assert "hush-hush-one" not in done.stderr.replace("keep_secret('hush-hush-one')", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://key:secret@bucket/a", "s3://•••@bucket/a"),
        ("read https://h/a.jpg?X-Amz-Signature=12ab&x=1.", "read https://h/a.jpg?X-Amz-Signature=•••&x=1."),
        ("a@b.c wrote key=3", "a@b.c wrote key=3"),
        ("https://host/@user/a.jpg", "https://host/@user/a.jpg"),
    ],
)
def test_urls_are_told_without_what_opens_them(text: str, expected: str) -> None:
    assert hide(text) == expected


def test_text_that_looks_like_a_reference_stays_what_it_was() -> None:
    Path("p.yaml").write_text(yaml.safe_dump(document(steps=[{"keep": r"key != '\${x}'"}], export={})))
    first = load_pipeline("p.yaml")
    Path("q.yaml").write_text(yaml.safe_dump(first.document))
    second = load_pipeline("q.yaml")
    assert first.steps[0].operator.params == second.steps[0].operator.params
    assert first.steps[0].operator.params.where == "key != '${x}'"
