"""`evaluate`'s figures of a whole run against pycocotools run on the same two files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from labelmill.pipelines.evaluation.evaluate import evaluate_run
from tests.operators.measures.test_against_cocoeval import HEIGHT, WIDTH, drawn, plainly
from tests.pipelines.evaluation.labelled_runs import mill

FIGURES = ("ap50", "ap", "ap75", "ap_small", "ap_medium", "ap_large", "average_recall")


def inside(box: list[float]) -> list[float]:
    """The part of a box inside the image, as the source clips it."""
    x, y, width, height = box
    left, top = max(x, 0.0), max(y, 0.0)
    return [left, top, round(min(x + width, WIDTH) - left, 2), round(min(y + height, HEIGHT) - top, 2)]


def document(labels: list[dict[str, Any]], images: list[int]) -> dict[str, Any]:
    """A COCO file; the order of its images' names is not that of their ids."""
    return {
        "images": [
            {"id": number, "file_name": f"{number * 37 % 101:03d}.png", "width": WIDTH, "height": HEIGHT}
            for number in images
        ],
        "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "bus"}],
        "annotations": [{**each, "id": number} for number, each in enumerate(labels, 1)],
    }


def test_every_figure_of_a_run_is_cocoevals(tmp_path: Path) -> None:
    """Crowds, areas of the truth's own, ties; float32 in the run's files changes nothing."""
    truth, found = [], []
    for seed in range(25):
        for side, drawn_ones in zip((truth, found), drawn(seed), strict=True):
            side += [{**each, "image_id": 3 * seed + each["image_id"]} for each in drawn_ones]
    for each in found:
        each["bbox"] = inside(each["bbox"])
    images = list(range(75, 0, -1))
    Path("images").mkdir()
    for number in images:
        Image.new("L", (WIDTH, HEIGHT), number).save(f"images/{number * 37 % 101:03d}.png")
    Path("truth.json").write_text(json.dumps(document(truth, images)))
    Path("found.json").write_text(json.dumps(document(found, images)))
    run = mill({"coco": {"annotations": "found.json", "images": "images"}}, ["inspect"], shard_size=16)
    ours = evaluate_run(run, "truth.json")["labels"]
    assert ours["ignored"] > 20
    for part, by in ((ours, "bbox"), (ours["masks"], "segm")):
        expected = plainly(tmp_path, truth, found, by, images)
        assert [part[name] for name in FIGURES] == pytest.approx(expected, abs=1e-6), by
