"""What the tests of the streamed exports share: scenes with words, captions and classes, and a way to write them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from labelmill.pipelines.exports.dataset import ExportImage
from tests.pipelines.exports.scenes import detection, disc, scenes, write_dataset

MODELS = ["grounding-dino-tiny@9f2c61ab04d7", "sam-vit-b@0123456789ab"]
PROVENANCE = {
    "pipeline": "street & <co>",
    "models": [{"step": "detect", "parameter": "model", "reference": MODELS[0], "licence": "Apache-2.0"}],
}
WORD = {"text": "STOP \u2013 <b>", "confidence": 0.5, "quad": [10, 11, 40, 12, 40, 30, 10, 28], "line": 0}


export = partial(write_dataset, provenance=PROVENANCE)


def full_scenes(folder: Path, count: int, splits: tuple[str, ...] = ()) -> list[ExportImage]:
    """`scenes` with models; every third image has a word, every second a caption, some a class."""
    found = []
    for image in scenes(folder, count, splits):
        labels = [{**label, "models": MODELS if label["mask"] else None} for label in image.detections]
        number = image.image_id
        found.append(
            replace(
                image,
                detections=labels,
                words=[WORD] if number % 3 == 0 else None,
                caption=f"Image {number}: \u201cdisc\u201d." if number % 2 == 0 else None,
                image_class=["day", "night"][number % 2] if number < 4 else None,
            )
        )
    return found


def peak(name: str, folder: Path, original: Path, count: int, **params: Any) -> int:
    """Bytes at the highest point of exporting `count` images with one label each, all of them one file."""
    masked = [detection("disc", mask=disc(48, 64, 20, 20, 10), prompt="a disc")]
    boxed = [detection("disc", (1, 1, 9, 9), prompt="a disc")]

    def stream() -> Iterator[ExportImage]:
        for number in range(1, count + 1):
            labels = boxed if number % 10 else masked
            yield ExportImage(number, f"folder/{number}.png", str(original), 64, 48, None, labels, "PNG")

    tracemalloc.start()
    try:
        export(name, folder, stream(), **params)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
