"""The training of the small SAM: its views, its loss, and that it goes on where it stopped."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from labelmill.operators.engines.segmentation import segment_anything
from labelmill.operators.miniatures.canvas import mask_box
from labelmill.operators.miniatures.evaluation.sam import evaluate
from labelmill.operators.miniatures.training import loop
from labelmill.operators.miniatures.training import sam as training
from labelmill.operators.miniatures.training.crops import Piece
from labelmill.operators.miniatures.training.loop import Plan, save_half
from labelmill.operators.miniatures.training.scenes import SIDE, Drawn, Scenes, describe
from labelmill.operators.miniatures.world import World
from labelmill.operators.models import ModelCard, ModelError, load_card
from labelmill.operators.models.card import ROOT

MINIATURE = load_card(ROOT / "conf" / "models" / "sam-miniature.yaml")
SMALL = {
    "encoder_embed_dim": 16,
    "encoder_depth": 1,
    "prompt_embed_dim": 16,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
}
CARD = MINIATURE.model_copy(update={"config": {**MINIATURE.config, **SMALL, "patch_size": 20, "window_size": 4}})
PLAN = Plan(steps=10, rate=3e-3, warm_up=2, average=0.5)


class Few(Scenes):
    """A few scenes without files; the first is empty."""

    def __init__(self) -> None:
        world = World(5, SIDE)
        self._drawn = [Drawn(world.scene(0).pixels, np.zeros((SIDE, SIDE), np.uint8), (), (), "")]
        for index in range(1, 6):
            scene = world.scene(index)
            labels, things = describe(scene)
            self._drawn.append(Drawn(scene.pixels, labels, tuple(things), (), scene.caption))
        self.count = len(self._drawn)

    def __getitem__(self, index: int) -> Drawn:
        return self._drawn[index]


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return Few()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "VIEWS", 3)
    monkeypatch.setattr(training, "FRAMES", 2)
    train = loop.train
    monkeypatch.setattr(training, "train", lambda *args: train(*args, report=5))


def moved(card: ModelCard) -> Any:
    """A model in which positions matter: it begins with none."""
    model = segment_anything.initial(card, 0).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "pos" in name:
                tensor.normal_(generator=torch.Generator().manual_seed(len(name)))
    return model


def test_a_few_steps_lower_the_loss(scenes: Scenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The same views at every step: so few steps learn these, but nothing about others.
    view = training._view
    monkeypatch.setattr(training, "_view", lambda scenes, side, rng: view(scenes, side, np.random.default_rng(6)))
    weights = training.run(CARD, scenes, tmp_path, replace(PLAN, steps=60, rate=1e-2))
    points = [json.loads(line) for line in (tmp_path / f"{training.NAME}.jsonl").read_text().splitlines()]
    curve = [point["entropy"] + point["dice"] for point in points]
    assert len(curve) == 12
    assert curve[9] < 0.7 * curve[0]  # the last two points are of whole frames too
    save_half(weights, tmp_path / "weights.safetensors")
    path = CARD.weights.model_validate({"path": str(tmp_path / "weights.safetensors")})
    scores = evaluate(CARD.model_copy(update={"weights": path}), 3)
    assert {"iou", "iou objects", "iou lowest tenth", "predicted iou error"} <= scores.keys()
    assert all(0 <= score <= 1.5 for score in scores.values())


def test_stopped_and_gone_on_is_the_same_as_never_stopped(scenes: Scenes, tmp_path: Path) -> None:
    whole = training.run(CARD, scenes, tmp_path / "whole", PLAN)

    class Stops(Few):
        """Asks to stop when a scene of a later batch is looked up."""

        asked = 0

        def __getitem__(self, index: int) -> Drawn:
            self.asked += 1
            if self.asked == 15:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        training.run(CARD, Stops(), tmp_path / "parts", PLAN)
    stopped = torch.load(tmp_path / "parts" / f"{training.NAME}.pt", weights_only=True)["step"]
    assert 0 < stopped < PLAN.steps
    parts = training.run(CARD, scenes, tmp_path / "parts", PLAN)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_size": 160}, "image_size must be 320, as the scenes have, but is 160"),
        ({"window_size": 3}, "windows must divide 160 pixels.*windows have 60 pixels"),
        ({"encoder_global_attn_indexes": [0]}, r"global layers are \[0\]"),
    ],
    ids=str,
)
def test_sizes_that_it_cannot_train_are_refused(
    scenes: Scenes, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        training.run(CARD.model_copy(update={"config": {**CARD.config, **config}}), scenes, tmp_path, PLAN)


# ---------------------------------------------------------------- what is shown


def test_a_view_is_around_a_thing_and_its_boxes_are_those_of_what_it_shows(scenes: Scenes) -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        view = training._view(scenes, SIDE // 2, rng)
        assert view.pixels.shape == (SIDE // 2, SIDE // 2, 3)
        assert len(view.numbers) == len(view.boxes) > 0
        for number, box in zip(view.numbers, view.boxes, strict=True):
            assert mask_box(view.labels == number + 1) == tuple(box)


def test_a_view_shows_all_of_what_fits(scenes: Scenes) -> None:
    rng = np.random.default_rng(1)
    for low, high in ((0, 20), (310, 320), (100, 259), (80.0, 240.0), (3, 150)):
        starts = [training._start(low, high, 160, rng) for _ in range(30)]
        assert all(0 <= start <= low and high <= start + 160 <= SIDE for start in starts)
    wide = [training._start(40, 280, 160, rng) for _ in range(30)]
    assert all(40 <= start <= 120 for start in wide)
    assert len(set(wide)) > 5


def test_a_batch_has_the_mask_of_every_box(scenes: Scenes) -> None:
    pieces = [
        training._cut(scenes[index], 80, 100, 160, mirror) for index, mirror in ((1, False), (2, True), (3, False))
    ]
    pieces = [piece for piece in pieces if piece.numbers]
    rng = np.random.default_rng(2)
    pixels, boxes, masks, owner = training._batch(pieces, 160, rng)
    assert pixels.shape == (len(pieces), 3, 160, 160)
    assert (pixels.dtype, masks.dtype) == (torch.uint8, torch.bool)
    assert owner.tolist() == [index for index, piece in enumerate(pieces) for _ in piece.numbers]
    true = torch.tensor([mask_box(mask) for mask in masks.numpy()])
    sides = (true[:, 2:] - true[:, :2]).repeat(1, 2)
    assert ((boxes - true).abs() <= 2 * training.NOISE * sides + 1e-4).all()
    many = torch.cat([training._batch(pieces, 160, rng)[1] - true for _ in range(20)])
    assert 0.2 < (many == 0).all(dim=1).float().mean() < 0.8


def test_frames_have_one_shape_and_something_in_them(scenes: Scenes) -> None:
    rng = np.random.default_rng(3)
    shapes = set()
    for _ in range(20):
        first, second = training._frames(scenes, rng)
        assert first.numbers
        assert second.numbers
        assert first.labels.shape == second.labels.shape
        assert max(first.labels.shape) == SIDE
        shapes.add(first.labels.shape)
    assert len(shapes) > 3


# ---------------------------------------------------------------- what the model says about it


def test_a_whole_frame_is_what_the_engine_makes_of_it(scenes: Scenes) -> None:
    model = moved(CARD)
    scene = scenes[1]
    piece = Piece(scene.pixels[:200], scene.labels[:200], [0], np.array([[30, 20, 120, 180]], np.float32))
    other = replace(piece, pixels=piece.pixels[::-1], boxes=np.array([[100, 60, 300, 190]], np.float32))
    pixels, boxes, _, owner = training._batch([piece, other], SIDE, np.random.default_rng(4))
    with torch.no_grad():
        logits, predicted = training._predict(model, pixels, boxes, owner, SIDE, np.zeros(2, np.int64))
        for index, each in enumerate((piece, other)):
            image = torch.from_numpy(each.pixels.copy()).permute(2, 0, 1)
            given = {"image": image, "boxes": boxes[index : index + 1], "original_size": (200, SIDE)}
            (expected,) = model([given], multimask_output=False)
            torch.testing.assert_close(logits[index], expected["low_res_logits"][0, 0], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(predicted[index], expected["iou_predictions"][0, 0], atol=1e-4, rtol=1e-4)


def test_a_view_is_computed_as_in_the_whole_frame(scenes: Scenes) -> None:
    model = moved(CARD)
    pixels = torch.from_numpy(scenes[2].pixels.copy()).permute(2, 0, 1)[None]
    every, rows, columns = slice(0, 16), slice(4, 12), slice(8, 16)
    with torch.no_grad():
        whole = training._embed(model, pixels, SIDE, every, every)[:, :, rows, columns]
        view = training._embed(model, pixels[:, :, 80:240, 160:], SIDE // 2, rows, columns)
    # The convolution at the end of the encoder sees one token beyond the view.
    inner = slice(1, -1)
    torch.testing.assert_close(view[:, :, inner, inner], whole[:, :, inner, inner], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(view, whole, atol=1e-3)


def test_the_loss_is_least_for_the_true_mask() -> None:
    masks = torch.zeros(2, 160, 160, dtype=torch.bool)
    masks[0, 20:80, 30:90] = masks[1, 100:130, 10:150] = True
    logits = torch.where(masks[:, ::2, ::2], 12.0, -12.0)
    right = training._criterion(logits, torch.ones(2), masks)
    assert right["dice"] < 0.02
    assert right["quality"] < 1e-6
    shifted = training._criterion(logits.roll(5, 1), torch.ones(2), masks)
    assert all(shifted[name] > right[name] + 0.01 for name in right)
    iou = torch.stack([(mask & mask.roll(10, 0)).sum() / (mask | mask.roll(10, 0)).sum() for mask in masks])
    assert float(training._criterion(logits.roll(5, 1), iou, masks)["quality"]) < 1e-6
