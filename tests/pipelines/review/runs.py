"""A finished run to review: drawn images, detections that are told, and tools that answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import yaml
from PIL import Image

from labelmill.operators.base import OperatorParams, TableOperator, TableResult
from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.pipelines.config.pipeline import load_pipeline
from labelmill.pipelines.engine.terminal import TerminalReporter
from labelmill.pipelines.run import Options, run
from tests.pipelines.exports.scenes import detection, disc

WIDTH, HEIGHT = 80, 60
IMAGES = 24
MODEL = ["toy@0123456789ab"]


class Told(TableOperator):
    """Detections and what a second opinion makes of them, by the number in the key."""

    class Params(OperatorParams):
        shift: float = 0.0

    def writes(self) -> pa.Schema:
        return pa.schema([("detections", DETECTIONS), ("agreement", pa.list_(pa.float32()))])

    def compute(self, table: pa.Table) -> TableResult:
        numbers = [int(Path(key).stem) for key in table.column("key").to_pylist()]
        found = [told(number, self.params.shift) for number in numbers]
        agreement = [[0.05 if number == 7 else 0.95] * len(each) for number, each in zip(numbers, found, strict=True)]
        return TableResult(pa.table([pa.array(found, DETECTIONS), pa.array(agreement)], schema=self.writes()))


def told(number: int, shift: float = 0.0) -> list[dict[str, Any]]:
    """A car with a mask and a bus with a box; image 5 has a car near the threshold, image 3 the only tram."""
    car = detection("car", mask=disc(HEIGHT, WIDTH, 20, 20, 9), score=0.9, prompt="a car", models=MODEL)
    bus = detection("bus", (40 + shift, 10, 70.5, 30.25), score=0.8, models=MODEL)
    found = [car, bus]
    if number == 5:
        found.append(detection("car", (50, 40, 75, 55), score=0.29, models=MODEL))
    if number == 3:
        found.append(detection("tram", (5, 40, 30, 55), score=0.7, models=MODEL))
    return found


def finished(folder: Path, *more: Any, images: int = IMAGES, output: str = "run") -> str:
    """Run the pipeline, with further steps; gives the run's directory."""
    (folder / "images").mkdir(exist_ok=True)
    for number in range(images):
        pixels = np.full((HEIGHT, WIDTH, 3), number * 10 % 256, np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number:03d}.png")
    document = {
        "name": "street",
        "source": {"folder": str(folder / "images")},
        "output": str(folder / output),
        "shard_size": 7,
        "ontology": {"car": "car", "bus": "bus", "tram": "tram"},
        "steps": ["inspect", {"tests.pipelines.review.runs:Told": {}, "as": "told"}, "select", *more],
    }
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(document))
    run(load_pipeline(folder / "pipeline.yaml"), Options(inline=True), TerminalReporter())
    return str(folder / output)


def label_studio_answers(tasks: Sequence[dict[str, Any]], **fields: Any) -> list[dict[str, Any]]:
    """The tasks as Label Studio exports them when a person submits every prediction as it is."""
    return [
        {
            "id": 100 + place,
            "data": task["data"],
            "annotations": [
                {
                    "id": 1000 + place,
                    "completed_by": {"id": 1, "email": "ada@example.org"},
                    "result": [{**region, "origin": "prediction"} for region in task["predictions"][0]["result"]],
                    "was_cancelled": False,
                    "created_at": "2026-03-01T10:00:00.000000Z",
                    "updated_at": f"2026-03-01T11:00:{place % 60:02d}.500000Z",
                    **fields,
                }
            ],
            "predictions": [],
        }
        for place, task in enumerate(tasks)
    ]


def tasks_in(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "tasks.json").read_bytes())
    return found


def cvat_answers(folder: Path) -> ElementTree.Element:
    """The annotations as CVAT exports them: its own meta, and where the images lie in a subfolder."""
    document = ElementTree.parse(folder / "annotations.xml").getroot()
    task = document.find("meta/task")
    assert task is not None
    for name, text in (("updated", "2026-03-02 12:00:00.123456+00:00"), ("created", "2026-03-01 12:00:00+00:00")):
        ElementTree.SubElement(task, name).text = text
    for role, name in (("owner", "boss"), ("assignee", "grace")):
        ElementTree.SubElement(ElementTree.SubElement(task, role), "username").text = name
    for image in document.iterfind("image"):
        image.set("name", f"upload/{image.get('name')}")
    return document
