"""The demo's pipeline on drawn images: every operator in its place, run however, changed and run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from labelmill.operators.miniatures.write import write_world
from labelmill.pipelines.config.pipeline import load_pipeline
from labelmill.pipelines.engine.terminal import TerminalReporter
from labelmill.pipelines.run import Options, run
from tests.bad_images import Bad, Good, write_bad_images
from tests.pipelines.test_run import tree

CHECKOUT = Path(__file__).resolve().parents[2]
IMAGES = 24


def demo(output: str = "run", options: Options | None = None, *overrides: str) -> dict[str, Any]:
    document = yaml.safe_load((CHECKOUT / "conf/pipelines/demo.yaml").read_text())
    document |= {"source": {"folder": "world/images"}, "output": output, "shard_size": 7}
    Path("demo.yaml").write_text(yaml.safe_dump(document))
    pipeline = load_pipeline("demo.yaml", list(overrides))
    return run(pipeline, options or Options(inline=True), TerminalReporter())


def computed(output: str = "run") -> list[str]:
    """The step of every receipt that any run wrote for work that it did."""
    return [json.loads(line)["step"] for line in Path(output, "events.jsonl").read_text().splitlines()]


@pytest.fixture
def world() -> None:
    write_world(Path("world"), IMAGES - 1, 3, size=200, duplicates=0.2, bad=0.2)
    Path("world/images/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")


@pytest.mark.slow
@pytest.mark.usefixtures("world")
def test_a_change_computes_again_only_what_reads_it() -> None:
    first = demo()
    assert sum(first["outcome"].values()) == IMAGES
    assert first["outcome"]["failed"] == 1
    after_select = {"verify", "confirm", "segment", "gaze"}
    before = len(computed())
    demo("run", None, "select.score=0.6")
    assert set(computed()[before:]) == {"select", *after_select}
    before = len(computed())
    demo("run", None, "select.score=0.6", "detect.floor=0.4")
    assert set(computed()[before:]) == {"detect", "select", *after_select}
    before = len(computed())
    again = demo()
    assert computed()[before:] == [], "the first results are still there"
    assert {export["export"]: export["annotations"] for export in again["exports"]} == {
        export["export"]: export["annotations"] for export in first["exports"]
    }


@pytest.mark.slow
@pytest.mark.usefixtures("world")
def test_models_give_the_same_bytes_whatever_runs_them() -> None:
    demo("inline")
    demo("ray", Options(workers=2, ray=True))
    demo("local", Options(workers=2))

    def files(output: str) -> dict[str, str]:
        found = tree(f"{output}/exports", f"{output}/steps").items()
        return {path.removeprefix(output): digest for path, digest in found if "export.json" not in path}

    assert files("ray") == files("local") == files("inline")


@pytest.mark.slow
def test_every_kind_of_bad_file_is_a_row_that_says_why_and_its_neighbours_are_unharmed() -> None:
    Path("world/images").mkdir(parents=True)
    expected = write_bad_images(Path("world/images"))
    summary = demo()
    reasons = {row["key"]: row["reason"] for row in pq.read_table("run/quarantine.parquet").to_pylist()}
    keys = {
        row["key"] for path in Path("run/shards").glob("*.parquet") for row in pq.ParquetFile(path).read().to_pylist()
    }
    assert len(keys) > 20
    for key in keys:
        outcome = expected[key]
        if isinstance(outcome, Bad):
            assert outcome.says in reasons[key], key
        else:
            assert isinstance(outcome, Good)
            assert key not in reasons, reasons[key]
    assert set(reasons) <= keys
    assert summary["outcome"]["failed"] == len(reasons)
    duplicates = [row for row in pq.read_table("run/decisions.parquet").to_pylist() if row["decision"] == "duplicate"]
    assert not {row["key"] for row in duplicates} & set(reasons), "a broken file is never a duplicate"
