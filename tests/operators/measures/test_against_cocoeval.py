"""Average precision against pycocotools run as anyone runs it, from files: crowds, areas, ties, boxes and masks."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labelmill.operators.measures.detections import average_precision

Labels = list[dict[str, Any]]

CLASSES = ("car", "bus")
HEIGHT, WIDTH = 120, 160
STATS = (1, 0, 2, 3, 4, 5, 8)
"""Where COCOeval has AP50, AP, AP75, AP of small, medium and large objects, and AR with 100 detections."""


def shape(rng: np.random.Generator, box: list[float]) -> dict[str, Any]:
    """The mask of an ellipse in a box, RLE as JSON holds it."""
    from pycocotools import mask

    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    x, y, width, height = box
    inside = ((columns - x - width / 2) / (width / 2)) ** 2 + ((rows - y - height / 2) / (height / 2)) ** 2 <= 1
    inside |= rng.random() < 0.05  # now and then a mask that has nothing to do with its box
    encoded = mask.encode(np.asfortranarray(inside.astype(np.uint8)))
    return {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()}


def drawn(seed: int) -> tuple[Labels, Labels]:
    """True objects, a third of the images with regions to ignore; and detections of them, in them and of nothing."""
    rng = np.random.default_rng(seed)

    def box() -> list[float]:
        width, height = (float(round(side, 2)) for side in rng.uniform(6, 110, 2) * rng.uniform(0.2, 1))
        return [round(float(rng.uniform(0, WIDTH - width)), 2), round(float(rng.uniform(0, HEIGHT - height)), 2),
                width, height]  # fmt: skip

    def near(one: list[float], by: float) -> list[float]:
        x, y, width, height = (value + move for value, move in zip(one, rng.normal(0, by, 4), strict=True))
        return [round(float(each), 2) for each in (x, y, max(width, 2.0), max(height, 2.0))]

    truth: Labels = []
    found: Labels = []
    for image in (3, 1, 2):
        crowded = rng.random() < 0.4
        for _ in range(int(rng.integers(0, 7))):
            place, number = box(), int(rng.integers(1, 3))
            crowd = crowded and rng.random() < 0.4
            object_ = {"image_id": image, "category_id": number, "bbox": place, "segmentation": shape(rng, place)}
            if rng.random() < 0.5:  # as LVIS and COCO say it: not quite the mask's, and now and then of another size
                object_["area"] = round(place[2] * place[3] * float(rng.uniform(0.3, 1.1)), 4)
            truth.append({**object_, "iscrowd": int(crowd)})
            for _ in range(int(rng.integers(0, 4 if crowd else 3))):
                inner = [place[0] + place[2] * 0.2, place[1] + place[3] * 0.2, place[2] * 0.3, place[3] * 0.3]
                moved = near(inner if crowd else place, 2 if crowd else 4)
                other = number if rng.random() < 0.9 else 3 - number
                found.append(
                    {"image_id": image, "category_id": other, "bbox": moved, "segmentation": shape(rng, moved)}
                )
        for _ in range(int(rng.integers(0, 3))):
            place = box()
            found.append({"image_id": image, "category_id": int(rng.integers(1, 3)), "bbox": place,
                          "segmentation": shape(rng, place)})  # fmt: skip
    for each in found:  # few distinct scores: many ties, within an image and between images
        each["score"] = round(float(rng.random()), int(rng.integers(1, 4)))
    rng.shuffle(found)  # type: ignore[arg-type]
    return truth, found


def plainly(folder: Path, truth: Labels, found: Labels, by: str, images: Sequence[int] = (3, 1, 2)) -> list[float]:
    """What COCOeval sums up of a truth file and a file of results for boxes, or for masks."""
    from pycocotools import mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations = []
    for number, each in enumerate(truth, 1):
        size = each.get("area", float(mask.area(each["segmentation"])))
        annotations.append({**each, "id": number, "area": size})
    listed = [{"id": image, "height": HEIGHT, "width": WIDTH} for image in images]
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    document = {"info": {}, "images": listed, "categories": categories, "annotations": annotations}
    (folder / "truth.json").write_text(json.dumps(document))
    other = "segmentation" if by == "bbox" else "bbox"
    results = [{key: value for key, value in each.items() if key != other} for each in found]
    (folder / "found.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / "truth.json"))
        scores = COCOeval(coco, coco.loadRes(str(folder / "found.json")), by)
        scores.evaluate()
        scores.accumulate()
        scores.summarize()
    return [float(scores.stats[place]) for place in STATS]


@pytest.mark.parametrize("by", ["bbox", "segm"])
def test_every_figure_is_cocoevals_on_200_random_truths(by: Any, tmp_path: Path) -> None:
    crowds, sizes = 0, set()
    for seed in range(200):
        truth, found = drawn(seed)
        if not found:
            continue
        crowds += any(each["iscrowd"] for each in truth)
        ours = average_precision(truth, found, (1, 2, 3), CLASSES, by)
        figures = [ours.ap50, ours.ap, ours.ap75, ours.small, ours.medium, ours.large, ours.recall]
        told = [float(np.nanmean(each)) if np.isfinite(each).any() else -1 for each in figures]
        expected = plainly(tmp_path, truth, found, by)
        assert told == pytest.approx(expected, abs=1e-9), seed
        sizes |= {place for place, value in enumerate(expected[3:6]) if value > 0}
    assert crowds > 40
    assert sizes == {0, 1, 2}, "objects of every size were found"
