"""segment: masks from boxes, as segment-anything's own predictor gives them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.utils.amg import batched_mask_to_box, calculate_stability_score

from labelmill.operators.applying.apply import Job, ShardImages, apply
from labelmill.operators.applying.worker import Worker
from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.operators.engines.segmentation import segment_anything as engine
from labelmill.operators.errors import RowError
from labelmill.operators.models import ModelError, load_card
from labelmill.operators.models.card import ROOT
from labelmill.operators.segment import Segment
from tests.drawing import picture
from tests.operators.engines.segmentation.tiny_sams import (
    ALL_CARDS,
    CONFIG,
    SIZES,
    detections,
    masks_of,
    overlap,
    run,
    segment,
    unnamed,
)
from tests.operators.engines.segmentation.tiny_sams import ORIGINAL_CARD as CARD

FOLDER = ROOT / "conf" / "models"


@pytest.fixture(scope="module", params=ALL_CARDS, ids=lambda card: card.architecture)
def any_operator(request: pytest.FixtureRequest) -> Segment:
    """Every family of models."""
    return segment(request.param)


@pytest.fixture(scope="module")
def operator() -> Segment:
    return segment()


# ---------------------------------------------------------------- the model


@pytest.mark.parametrize("name", ["b", "l", "h"])
def test_full_size_cards_build_the_published_models(name: str) -> None:
    card = load_card(FOLDER / f"sam-vit-{name}.yaml")
    with torch.device("meta"):
        theirs, ours = sam_model_registry[f"vit_{name}"](), engine.initial(card, 0)
    shapes = [{key: tensor.shape for key, tensor in model.state_dict().items()} for model in (theirs, ours)]
    assert shapes[0] == shapes[1]
    assert [block.window_size for block in theirs.image_encoder.blocks] == [
        block.window_size for block in ours.image_encoder.blocks
    ]
    assert theirs.image_encoder.img_size == ours.image_encoder.img_size
    torch.testing.assert_close(torch.tensor(card.preprocess["mean"]), torch.tensor([123.675, 116.28, 103.53]))
    torch.testing.assert_close(torch.tensor(card.preprocess["std"]), torch.tensor([58.395, 57.12, 57.375]))


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_agrees_with_segment_anything_s_predictor(operator: Segment, width: int, height: int) -> None:
    image, found = picture(width, height), detections(width, height, 5)
    row = run(operator, image, found)
    predictor = SamPredictor(engine.build(CARD))
    predictor.set_image(image.pixels)
    boxes = np.array([[each[side] for side in ("x1", "y1", "x2", "y2")] for each in found])
    given = predictor.transform.apply_boxes_torch(torch.from_numpy(boxes), image.pixels.shape[:2])
    logits, predicted, _ = predictor.predict_torch(None, None, given, multimask_output=False, return_logits=True)
    np.testing.assert_allclose(row["predicted_iou"], predicted[:, 0].numpy(), atol=1e-4)
    np.testing.assert_allclose(row["stability"], calculate_stability_score(logits[:, 0], 0.0, 1.0).numpy(), atol=1e-3)
    mine, theirs = masks_of(row, image), (logits[:, 0] > 0).numpy()
    assert theirs.any(axis=(1, 2)).all()
    assert not theirs.all(axis=(1, 2)).any()
    sure = (logits[:, 0].abs() > 1e-4).numpy()
    assert sure.mean() > 0.99
    assert (mine == theirs)[sure].all()
    # Their box ends at the last pixel, ours at its edge.
    edges = batched_mask_to_box(torch.from_numpy(mine)).numpy() + np.array([0, 0, 1, 1])
    np.testing.assert_array_equal(
        [[each[side] for side in ("x1", "y1", "x2", "y2")] for each in row["mask_box"]], edges
    )


def test_neither_batch_nor_chunk_matters(any_operator: Segment) -> None:
    operator = any_operator
    images = [picture(*size) for size in SIZES]
    found = [detections(*size, count) for size, count in zip(SIZES, (3, 1, 0, 7, 2), strict=True)]
    rows = [{"detections": each} for each in found]
    together = operator.infer([operator.prepare(image, row) for image, row in zip(images, rows, strict=True)])
    small = segment(operator.params.model, chunk=2)
    for image, each, row in zip(images, found, together, strict=True):
        assert isinstance(row, dict)
        for other in (run(operator, image, each), run(small, image, each)):
            for name in ("predicted_iou", "stability"):
                np.testing.assert_allclose(row[name], other[name], atol=1e-4 if name == "predicted_iou" else 1e-2)
            if each:
                pairs = zip(masks_of(row, image), masks_of(other, image), strict=True)
                assert all(overlap(*pair) > 0.995 for pair in pairs)


def test_the_same_twice(any_operator: Segment) -> None:
    image, found = picture(200, 150), detections(200, 150, 6)
    assert run(any_operator, image, found) == run(any_operator, image, found)
    assert run(segment(any_operator.params.model), image, found) == run(any_operator, image, found)


@pytest.mark.parametrize(("dtype", "iou", "shared"), [("bfloat16", 0.01, 0.95), ("float16", 0.002, 0.99)])
def test_half_precision_gives_nearly_the_same(any_operator: Segment, dtype: str, iou: float, shared: float) -> None:
    """Measured: predicted IoU within 0.003 and 0.0005, mean IoU of the masks 0.977 and 0.996."""
    image, found = picture(200, 150), detections(200, 150, 6)
    full, half = run(any_operator, image, found), run(segment(any_operator.params.model, dtype=dtype), image, found)
    np.testing.assert_allclose(full["predicted_iou"], half["predicted_iou"], atol=iou)
    pairs = zip(masks_of(full, image), masks_of(half, image), strict=True)
    assert np.mean([overlap(*pair) for pair in pairs]) > shared


# ---------------------------------------------------------------- what comes out


def test_everything_but_the_mask_stays_as_it_was(operator: Segment) -> None:
    found = detections(120, 80, 4)
    found = [{**each, "models": ["a detector@0"]} for each in found]
    found[1] |= {"score": None, "prompt": None, "mask": "an old one"}
    row = run(operator, picture(120, 80), found)
    own = {"mask": None, "models": ["a detector@0", CARD.reference()]}
    assert [{**each, "mask": None} for each in row["detections"]] == [{**each, **own} for each in found]
    assert all(isinstance(each["mask"], str) and each["mask"] != "an old one" for each in row["detections"])
    assert {len(row[name]) for name in operator.writes().names} == {4}


def test_without_boxes_the_model_is_not_asked(operator: Segment, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> Any:
        raise AssertionError("the model must not be asked")

    monkeypatch.setattr(operator._engine, "encode", refuse)
    monkeypatch.setattr(operator._engine, "decode", refuse)
    monkeypatch.setattr(operator._engine, "prepare", refuse)
    empty, missing = run(operator, picture(64, 64), []), run(operator, picture(64, 64), None)
    assert empty == {name: [] for name in operator.writes().names}
    assert missing == dict.fromkeys(operator.writes().names)


def test_the_engine_takes_no_boxes(operator: Segment) -> None:
    (embedded,) = operator._engine.encode([operator._engine.prepare(picture(64, 64).pixels)])
    assert operator._engine.decode(embedded, np.zeros((0, 4), np.float32), 64, 64, 4) == []


@pytest.mark.parametrize(
    "wrong", [{"x1": float("nan")}, {"x2": float("inf")}, {"y1": None}, {"x1": 50.0, "x2": 20.0}], ids=str
)
def test_a_box_that_is_none_has_no_mask(operator: Segment, wrong: dict[str, Any]) -> None:
    image, found = picture(120, 80), detections(120, 80, 3)
    good = run(operator, image, [found[0], found[2]])
    found[1] |= wrong
    row = run(operator, image, found)
    assert row["detections"][1]["mask"] is None
    assert [row[name][1] for name in ("predicted_iou", "stability", "mask_box")] == [None] * 3
    for name in ("predicted_iou", "stability"):
        np.testing.assert_allclose([row[name][0], row[name][2]], good[name], atol=1e-2)
    alone = run(operator, image, [found[1]])
    assert alone["detections"][0]["mask"] is None


def test_a_mask_can_be_empty(operator: Segment, monkeypatch: pytest.MonkeyPatch) -> None:
    head = operator._engine._model.mask_decoder  # type: ignore[attr-defined]
    inner = head.predict_masks
    monkeypatch.setattr(head, "predict_masks", lambda **given: tuple(each * 0 - 5 for each in inner(**given)))
    image = picture(120, 80)
    row = run(operator, image, detections(120, 80, 2))
    assert not masks_of(row, image).any()
    assert row["mask_box"] == [None, None]
    assert row["stability"] == [0, 0]


@pytest.mark.parametrize("where", ["masks", "scores"])
def test_what_is_not_finite_fails_the_row(operator: Segment, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    head = operator._engine._model.mask_decoder
    inner = head.predict_masks

    def broken(**given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        masks, scores = inner(**given)
        (masks if where == "masks" else scores)[1] = torch.nan
        return masks, scores

    monkeypatch.setattr(head, "predict_masks", broken)
    (row,) = operator.infer([operator.prepare(picture(90, 90), {"detections": detections(90, 90, 2)})])
    assert isinstance(row, RowError)
    assert "try dtype: float32" in str(row)


def test_a_shard_keeps_its_types(operator: Segment) -> None:
    images = [picture(*size) for size in SIZES[:3]] + [picture(2000, 3)]
    found = [detections(*SIZES[0], 3), [], None, detections(2000, 3, 1)]
    data = [image.data for image in images]
    rows = pa.table(
        {
            "image_id": pa.array([1, 2, 3, 4], pa.int64()),
            "key": list("abcd"),
            "detections": pa.array(found, DETECTIONS),
        }
    )
    shard = ShardImages(list("0123"), lambda uri: data[int(uri)])
    table, _ = apply(Job(Worker(operator), rows, np.array([True] * 4)), shard)
    assert table.column("decision").to_pylist() == ["kept"] * 3 + ["failed"]
    assert "too narrow" in table.column("decision.reason")[3].as_py()
    for field in operator.writes():
        column = table.column(field.name)
        assert column.type == field.type
        assert [None if each is None else len(each) for each in column.to_pylist()] == [3, 0, None, None]


def test_reads_the_column_that_it_is_told(operator: Segment) -> None:
    assert operator.reads() == ("detections",)
    other = Segment(Segment.Params(model=CARD, detections="source.labels"))
    assert other.reads() == ("source.labels",)
    assert other.expects() == {"source.labels": DETECTIONS}
    assert "chunk" not in other.params.result_params()
    other.load()
    item = other.prepare(picture(60, 60), {"source.labels": detections(60, 60, 2)})
    (row,) = other.infer([item])
    assert isinstance(row, dict)
    assert len(row["detections"]) == 2


# ---------------------------------------------------------------- cards and weights


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"patch_size": 7}, "image_size must be a multiple of patch_size, 7, but is 96"),
        ({"encoder_num_heads": 5}, "encoder_embed_dim must be a multiple of encoder_num_heads, 5, but is 24"),
        ({"decoder_num_heads": 3}, "prompt_embed_dim must be a multiple of 2 x decoder_num_heads, 6, but is 32"),
        ({"encoder_global_attn_indexes": [2]}, "encoder_global_attn_indexes must be from 0 to 1 but has 2"),
        ({"windows": 5}, "config.windows"),
        ({"prompt_embed_dim": 12}, "config.prompt_embed_dim"),
    ],
    ids=str,
)
def test_refuses_sizes_that_do_not_fit(config: dict[str, Any], message: str) -> None:
    card = CARD.model_copy(update={"config": {**CONFIG, **config}})
    with pytest.raises(ModelError) as refused:
        Segment(Segment.Params(model=card)).check({"detections": DETECTIONS})
    assert message in str(refused.value)


def test_refuses_an_architecture_without_sizes() -> None:
    card = CARD.model_copy(update={"config": {"encoder_depth": 2}, "architecture": "vit_x"})
    with pytest.raises(ModelError, match=r"must be vit_b, vit_l, vit_h, or config must give encoder_embed_dim.*vit_x"):
        engine.check(card)


def test_refuses_unknown_preprocessing_and_other_cards() -> None:
    with pytest.raises(ModelError, match=r"preprocess\.size"):
        engine.check(CARD.model_copy(update={"preprocess": {"size": 3}}))
    with pytest.raises(ValidationError, match="must be a model card for segmentation"):
        Segment.Params(model=load_card(FOLDER / "clip-random.yaml"))


def test_weights_make_the_round_trip_and_others_are_refused(operator: Segment, tmp_path: Path) -> None:
    path = tmp_path / "sam.safetensors"
    state = engine.build(CARD).state_dict()
    save_file(state, path)
    card = CARD.model_copy(update={"weights": CARD.weights.model_validate({"path": str(path)})})
    image, found = picture(100, 70), detections(100, 70, 2)
    assert unnamed(run(segment(card), image, found)) == unnamed(run(operator, image, found))
    larger = card.model_copy(update={"config": {**CONFIG, "encoder_depth": 3}})
    with pytest.raises(ModelError, match="missing"):
        segment(larger)
    save_file({**state, "extra": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match="unexpected"):
        segment(card)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ModelError, match="cannot be read"):
        segment(card)


def test_full_size_weights_must_be_pulled_first() -> None:
    operator = Segment(Segment.Params(model=load_card(FOLDER / "sam-vit-b.yaml")))
    operator.check({"detections": DETECTIONS})
    with pytest.raises(ModelError, match="labelmill models pull sam-vit-b"):
        operator.ready()


def test_planning_imports_no_model_library() -> None:
    code = (
        "import sys; from labelmill.operators.models import load_card; from labelmill.operators.segment import "
        "Segment\n"
        "from labelmill.operators.columns.schemas import DETECTIONS\n"
        "for name in ('sam-vit-b', 'sam2.1-hiera-small', 'sam3'):\n"
        "    card = load_card(f'conf/models/{name}.yaml')\n"
        "    operator = Segment(Segment.Params(model=card, everything=True))\n"
        "    operator.check({}); operator.digest(); operator.needs(); operator.writes()\n"
        "    Segment(Segment.Params(model=card)).check({'detections': DETECTIONS})\n"
        "heavy = {'torch', 'transformers', 'segment_anything', 'pycocotools', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
