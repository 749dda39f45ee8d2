"""A pipeline over HTTP says what a run says; a run is searched as the command searches it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from starlette.testclient import TestClient
from typer.testing import CliRunner

from labelmill.pipelines.cli import app
from labelmill.pipelines.config.pipeline import load_pipeline
from labelmill.pipelines.run_folder.layout import Layout
from labelmill.pipelines.run_folder.reopen import reopen
from labelmill.pipelines.serve.app import create_app
from labelmill.pipelines.serve.settings import Settings
from tests.drawing import encode
from tests.pipelines.serve.serving import sent

PIPELINE = """\
name: scenes
source: {folder: HERE/images}
output: HERE/run
ontology: [car, face, sign, tree]
steps:
  - inspect
  - keep: "sharpness >= 0.03"
  - deduplicate: {distance: 4}
  - embed: {model: clip-miniature, batch: 1}
  - detect: {model: grounding-dino-miniature, batch: 1}
  - select: {score: 0.35}
  - segment: {model: sam-miniature}
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, scenes: list[bytes]) -> Path:
    """Where the pipeline has run over scenes, a grey image and a broken one, in one process."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "images").mkdir()
    grey = encode(Image.new("RGB", (200, 200), (128, 128, 128)))
    for place, data in enumerate([*scenes[:6], grey, scenes[6][:1500]]):
        (folder / "images" / f"{place}.jpg").write_bytes(data)
    (folder / "pipeline.yaml").write_text(PIPELINE.replace("HERE", str(folder)))
    result = CliRunner().invoke(app, ["run", str(folder / "pipeline.yaml"), "--inline", "--no-report"])
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def own(here: Path) -> Iterator[TestClient]:
    pipeline = load_pipeline(str(here / "pipeline.yaml"))
    settings = Settings(cards=("clip-miniature",), runs=(str(here / "run"),))
    with TestClient(create_app(settings, pipeline=pipeline)) as made:
        yield made


def written(layout: Layout) -> dict[str, dict[str, dict[str, Any]]]:
    """Each step's rows by the image's key."""
    keys = layout.store.read_table("shards/00000.parquet", ["key"]).column("key").to_pylist()
    return {
        step.name: dict(zip(keys, layout.table(step.position, 0).to_pylist(), strict=True)) for step in layout.steps
    }


def test_the_values_are_those_of_a_run(own: TestClient, here: Path) -> None:
    _, layout, _ = reopen(str(here / "run"))
    steps = written(layout)
    keys = [f"{place}.jpg" for place in range(8)]
    body = {"image": [sent((here / "images" / key).read_bytes()) for key in keys], "keys": keys}
    answer = own.post("/v1/run", json=body)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["left_out"] == ["deduplicate"]
    outcomes = {each["key"]: each["outcome"] for each in found["images"]}
    assert outcomes["6.jpg"] == "dropped" and outcomes["7.jpg"] == "failed"
    assert list(outcomes.values()).count("kept") == 6
    for each in found["images"]:
        for name, told in each["decisions"].items():
            row = steps[name][each["key"]]
            assert (told["decision"], told["reason"]) == (row["decision"], row["decision.reason"] or ""), name
            assert told["score"] == row["decision.score"]
        for name, value in each["columns"].items():
            step, column = name.split(".")
            same(value, json.loads(json.dumps(steps[step][each["key"]][column], default=str)), name)

    kept = next(each for each in found["images"] if each["outcome"] == "kept")
    assert any(each["mask"] for one in found["images"] for each in one["columns"]["segment.detections"] or [])
    one = {"image": body["image"][int(kept["key"][0])], "columns": ["inspect.width", "embed.embedding"]}
    table = pa.ipc.open_stream(io.BytesIO(own.post("/v1/run", json={**one, "format": "arrow"}).content)).read_all()
    assert table["embed.embedding"].type == pa.list_(pa.float16(), 128)
    assert table["inspect.width"].to_pylist() == [kept["columns"]["inspect.width"]]


def same(found: Any, expected: Any, name: str) -> None:
    if isinstance(expected, float):
        assert found == pytest.approx(expected, abs=2e-4), name
    elif isinstance(expected, dict):
        assert set(found) == set(expected)
        for key in expected:
            same(found[key], expected[key], f"{name}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), name
        for one, other in zip(found, expected, strict=True):
            same(one, other, name)
    elif name.endswith(("phash", "bytes")) or expected is None:
        assert (found is None) == (expected is None)
    else:
        assert found == expected, name


def test_what_cannot_be_run(own: TestClient, server: TestClient, scenes: list[bytes]) -> None:
    image = sent(scenes[0])
    assert "among" in own.post("/v1/run", json={"image": image, "columns": ["nothing"]}).json()["message"]
    assert own.post("/v1/run", json={"image": image, "keys": ["a", "b"]}).status_code == 422
    assert server.post("/v1/run", json={"image": image}).status_code == 404
    assert server.post("/v1/search", json={"text": "a car"}).status_code == 404


def test_the_pipelines_classes_are_the_default(own: TestClient, scenes: list[bytes]) -> None:
    answer = own.post(
        "/infer/object_detection", json={"image": sent(scenes[0]), "model_id": "grounding-dino-miniature"}
    )
    assert answer.status_code == 200, answer.text
    assert {each["class"] for each in answer.json()["predictions"]} <= {"car", "face", "sign", "tree"}


def test_a_search_is_the_commands(own: TestClient, here: Path) -> None:
    result = CliRunner().invoke(app, ["search", str(here / "run"), "a face", "--json"])
    assert result.exit_code == 0, result.output
    answer = own.post("/v1/search", json={"text": "a face"})
    assert answer.status_code == 200, answer.text
    by_command = json.loads(result.output[result.output.index("{") :])["results"]
    assert [each["key"] for each in answer.json()["results"]] == [each["key"] for each in by_command]
    near = own.post("/v1/search", json={"key": "0.jpg", "top": 2}).json()["results"]
    assert len(near) == 2 and np.diff([each["cosine"] for each in near])[0] <= 0
    for body, status in (
        ({}, 422),
        ({"text": "a", "key": "b"}, 422),
        ({"key": "no.jpg"}, 400),
        ({"text": "a", "run": "/etc"}, 404),
        ({"text": "a", "step": "no"}, 400),
    ):
        refused = own.post("/v1/search", json=body)
        assert refused.status_code == status
        assert refused.json()["message"]
