"""Runs whose labels are a COCO file's own, and truths to hold them against."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from labelmill.pipelines.config.pipeline import load_pipeline
from labelmill.pipelines.engine.terminal import TerminalReporter
from labelmill.pipelines.run import Options, run

WIDTH, HEIGHT = 200, 160

TAKE_ALL = {"select": {"detections": "source.labels", "score": 0, "nms": None, "containment": None,
                       "ontology": ["cat", "dog"]}}  # fmt: skip
"""A step that makes the source's labels the run's."""


def annotation(number: int, image: int, box: Sequence[float], **keys: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": 1, "bbox": list(box), "iscrowd": 0, **keys}


FOUND = [
    annotation(1, 1, [10, 10, 30, 30], score=0.9),
    annotation(2, 1, [100, 10, 20, 20], score=0.95),
    annotation(3, 1, [125, 10, 20, 20], score=0.92),
    annotation(4, 1, [100, 40, 20, 20], score=0.91),
    annotation(5, 2, [20, 20, 40, 40], score=0.8),
]
"""What was found: a cat in each of two images, and three in a crowd of cats."""

TRUE = [
    annotation(1, 1, [10, 10, 30, 30], area=900),
    annotation(2, 1, [95, 5, 90, 90], area=8100, iscrowd=1),
    annotation(3, 2, [20, 20, 40, 40], area=1600),
]
"""What is there."""


def coco(name: str, annotations: Any = (), names: Sequence[str] = ("a.png", "b.png"), **keys: Any) -> str:
    """Write a COCO file; further keys replace what it says."""
    images = [
        {"id": number, "file_name": each, "width": WIDTH, "height": HEIGHT} for number, each in enumerate(names, 1)
    ]
    document = {"images": images, "annotations": list(annotations),
                "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}], **keys}  # fmt: skip
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(json.dumps(document))
    return name


def pictures(folder: str, names: Sequence[str] = ("a.png", "b.png")) -> None:
    for number, name in enumerate(names):
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


def mill(source: Any, steps: Sequence[Any] = ("inspect", TAKE_ALL), output: str = "run", **keys: Any) -> str:
    """Run a pipeline in this process."""
    document = {"name": "test", "source": source, "output": output, "steps": list(steps), **keys}
    Path("p.yaml").write_text(yaml.safe_dump(document))
    run(load_pipeline("p.yaml", []), Options(inline=True), TerminalReporter())
    return output


def found_run(found: Any = FOUND, **keys: Any) -> str:
    """A run whose labels are `FOUND`, or others."""
    pictures("images")
    return mill({"coco": {"annotations": coco("ann.json", found), "images": "images"}}, **keys)
