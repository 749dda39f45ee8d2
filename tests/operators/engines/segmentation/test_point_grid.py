"""segment without prompts: what segment-anything's SamAutomaticMaskGenerator finds, as detections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.utils.amg import build_point_grid
from torchvision.ops import batched_nms

from labelmill.operators.applying.apply import Job, ShardImages, apply
from labelmill.operators.applying.worker import Worker
from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.operators.engines.segmentation import segment_anything as engine
from labelmill.operators.engines.segmentation.masks import Mask
from labelmill.operators.engines.segmentation.point_grid import Everything
from labelmill.operators.errors import RowError
from labelmill.operators.models import ModelCard, ModelError, load_card
from labelmill.operators.models.card import ROOT
from labelmill.operators.segment import Segment
from tests.drawing import picture
from tests.operators.engines.segmentation.tiny_sams import (
    ALL_CARDS,
    ORIGINAL_CARD,
    SIZES,
    masks_of,
    overlap,
    run,
    segment,
    stirred,
    with_weights,
)

LOW = {"points_per_side": 6, "floor": 0.0, "stability": 0.3, "nms": 1.0}
"""So low that a model that was never trained has masks."""


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    path = tmp_path_factory.mktemp("sam") / "sam.safetensors"
    save_file(stirred(engine.build(ORIGINAL_CARD)).state_dict(), path)
    return with_weights(ORIGINAL_CARD, path)


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize(("floor", "stability", "nms"), [(0.0, 0.3, 1.0), (0.2, 0.2, 0.8)])
def test_gives_what_the_authors_generator_gives(
    card: ModelCard, width: int, height: int, floor: float, stability: float, nms: float
) -> None:
    image = picture(width, height)
    settings = {"points_per_side": 6, "floor": floor, "stability": stability, "nms": nms}
    row = run(segment(card, everything=settings, chunk=7), image)
    generator = SamAutomaticMaskGenerator(
        engine.build(card),
        points_per_side=6,
        points_per_batch=7,
        pred_iou_thresh=floor,
        stability_score_thresh=stability,
        box_nms_thresh=nms,
    )
    theirs = generator.generate(image.pixels)
    assert len(row["detections"]) == len(theirs)
    np.testing.assert_allclose(row["predicted_iou"], [each["predicted_iou"] for each in theirs], atol=1e-4)
    np.testing.assert_allclose(row["stability"], [each["stability_score"] for each in theirs], atol=1e-3)
    for mine, other in zip(masks_of(row, image), theirs, strict=True):
        assert overlap(mine, other["segmentation"]) > 0.999
    for box, other in zip(row["mask_box"], theirs, strict=True):
        x, y, wide, high = other["bbox"]  # ends at the last pixel, ours at its edge
        assert (box["x1"], box["y1"], box["x2"], box["y2"]) == (x, y, x + wide + 1, y + high + 1)
    if nms == 1.0 and floor == 0.0 and (width, height) == (200, 90):
        assert len(theirs) > 5


def test_everything_comes_out_as_detections(card: ModelCard) -> None:
    image = picture(200, 90)
    operator = segment(card, everything=LOW)
    assert operator.reads() == ()
    assert operator.expects() == {}
    row = run(operator, image)
    assert {len(row[name]) for name in operator.writes().names} == {len(row["detections"])}
    assert row["predicted_iou"] == sorted(row["predicted_iou"], reverse=True)
    for each, box, iou in zip(row["detections"], row["mask_box"], row["predicted_iou"], strict=True):
        assert (each["class"], each["prompt"]) == ("object", None)
        assert {side: each[side] for side in box} == box
        assert each["score"] == pytest.approx(min(iou, 1.0))
        assert 0 <= each["x1"] < each["x2"] <= 200
        assert 0 <= each["y1"] < each["y2"] <= 90


def test_a_higher_score_later_is_a_higher_floor(card: ModelCard) -> None:
    image = picture(200, 90)
    low = run(segment(card, everything={**LOW, "nms": 0.7}), image)
    ious = run(segment(card, everything=LOW), image)["predicted_iou"]
    floor = float(np.median(ious))
    high = run(segment(card, everything={**LOW, "nms": 0.7, "floor": floor}), image)
    pairs = zip(low["detections"], low["predicted_iou"], strict=True)
    assert high["detections"] == [each for each, iou in pairs if iou > floor]
    assert len(high["detections"]) > 0


def test_a_shard_keeps_its_types(card: ModelCard) -> None:
    images = [picture(200, 90), picture(2000, 3)]
    operator = segment(card, everything=LOW)
    rows = pa.table({"image_id": pa.array([1, 2], pa.int64()), "key": ["a", "b"]})
    shard = ShardImages(list("01"), lambda uri: images[int(uri)].data)
    table, _ = apply(Job(Worker(operator), rows, np.array([True, True])), shard)
    assert table.column("decision").to_pylist() == ["kept", "failed"]
    assert "too narrow" in table.column("decision.reason")[1].as_py()
    for field in operator.writes():
        column = table.column(field.name)
        assert column.type == field.type
        assert column[0].as_py()
        assert column[1].as_py() is None


def test_nothing_found_is_an_empty_list(card: ModelCard) -> None:
    operator = segment(card, everything={"stability": 1.0, "floor": 1.0, "points_per_side": 2})
    assert run(operator, picture(64, 48)) == {name: [] for name in operator.writes().names}


@pytest.mark.parametrize("card", ALL_CARDS, ids=lambda card: card.architecture)
def test_neither_batch_nor_chunk_matters(card: ModelCard) -> None:
    settings = {"points_per_side": 4, "floor": 0.0, "stability": 0.0, "nms": 1.0}
    operator, small = segment(card, everything=settings), segment(card, everything=settings, chunk=3)
    images = [picture(*size) for size in SIZES[:4]]
    together = operator.infer([operator.prepare(image, {}) for image in images])
    for image, row in zip(images, together, strict=True):
        assert isinstance(row, dict)
        for other in (run(operator, image), run(small, image)):
            assert len(other["detections"]) == len(row["detections"])
            np.testing.assert_allclose(other["predicted_iou"], row["predicted_iou"], atol=1e-4)
    assert any(row["detections"] for row in together if isinstance(row, dict))


@pytest.mark.parametrize("where", ["masks", "scores"])
def test_what_is_not_finite_fails_the_row(card: ModelCard, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    operator = segment(card, everything=LOW)
    head = operator._engine._model.mask_decoder  # type: ignore[attr-defined]
    inner = head.predict_masks

    def broken(**given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        masks, scores = inner(**given)
        (masks if where == "masks" else scores)[1] = torch.nan
        return masks, scores

    monkeypatch.setattr(head, "predict_masks", broken)
    (row,) = operator.infer([operator.prepare(picture(90, 90), {})])
    assert isinstance(row, RowError)
    assert "try dtype: float32" in str(row)


def test_half_precision_finds_nearly_the_same(card: ModelCard) -> None:
    image = picture(200, 90)
    full, half = (run(segment(card, everything=LOW, dtype=dtype), image) for dtype in ("float32", "bfloat16"))
    assert abs(len(full["detections"]) - len(half["detections"])) <= 0.3 * len(full["detections"])
    best = [max(overlap(one, other) for other in masks_of(half, image)) for one in masks_of(full, image)]
    assert np.median(best) > 0.8


# ---------------------------------------------------------------- settings


def test_true_means_the_defaults_and_false_means_boxes() -> None:
    assert Segment.Params(model=ORIGINAL_CARD, everything=True).everything == Everything()
    assert Segment.Params(model=ORIGINAL_CARD, everything=False) == Segment.Params(model=ORIGINAL_CARD)
    assert Segment(Segment.Params(model=ORIGINAL_CARD, everything=True)).reads() == ()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"everything": True, "detections": "detect.detections"}, "detections or everything but has both"),
        ({"everything": {"points": 3}}, "everything.points"),
        ({"everything": {"floor": 2}}, "less than or equal to 1"),
        ({"everything": {"points_per_side": 0}}, "greater than or equal to 1"),
    ],
    ids=str,
)
def test_refuses_settings(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Segment.Params(model=ORIGINAL_CARD, **params)


def test_refuses_a_model_that_knows_boxes_only() -> None:
    card = load_card(ROOT / "conf" / "models" / "sam-miniature.yaml")
    Segment(Segment.Params(model=card)).check({"detections": DETECTIONS})
    with pytest.raises(ModelError, match="sam-miniature must take points but knows boxes only"):
        Segment(Segment.Params(model=card, everything=True)).check({})


@pytest.mark.parametrize("side", [1, 6, 32])
def test_the_grid_is_the_authors(side: int) -> None:
    theirs = build_point_grid(side) * np.array([[311, 70]])
    np.testing.assert_allclose(Everything(points_per_side=side).grid(70, 311), theirs, rtol=1e-6)


def test_doubles_go_as_with_batched_nms(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    low = rng.integers(0, 60, (80, 2))
    boxes = np.concatenate([low, low + rng.integers(1, 40, (80, 2))], axis=1).astype(float)
    scores = rng.choice([0.5, 0.7, 0.9], 80)  # with ties
    pairs = zip(boxes.tolist(), scores.tolist(), strict=True)
    masks = [Mask(str(index), tuple(box), score, 1.0) for index, (box, score) in enumerate(pairs)]
    kept = batched_nms(
        torch.from_numpy(boxes - [0, 0, 1, 1]).float(), torch.from_numpy(scores).float(), torch.zeros(80), 0.4
    )
    found = Everything(nms=0.4).choose([*masks, Mask("unstable", (0, 0, 9, 9), 1.0, 0.9), Mask("none", None, 1.0, 1.0)])
    assert [mask.counts for mask in found] == [str(index) for index in kept.tolist()]
    assert 5 < len(found) < 75
