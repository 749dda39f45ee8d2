"""The training of the small Grounding DINO: its batches, its loss, and that it goes on where it stopped."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou, generalized_box_iou
from torchvision.transforms.v2.functional import resize

from labelmill.operators.engines.detection import grounding_dino_model
from labelmill.operators.miniatures.objects import HELD_OUT, kinds
from labelmill.operators.miniatures.training import crops, prompts
from labelmill.operators.miniatures.training import grounding_dino as module
from labelmill.operators.miniatures.training import scenes as scenes_module
from labelmill.operators.miniatures.training.grounding_dino import _batch, _corners, _criterion, _overlaps, run
from labelmill.operators.miniatures.training.loop import Plan
from labelmill.operators.miniatures.training.scenes import Scenes, draw_scenes
from labelmill.operators.models import ModelError, load_card
from labelmill.operators.models.card import ROOT

CARD = load_card(ROOT / "conf" / "models" / "grounding-dino-miniature.yaml")
Targets = dict[str, torch.Tensor]


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes_module, "BLOCK", 8)
        patch.setattr(module, "BATCH", 2)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    return draw_scenes(tmp_path_factory.mktemp("scenes"), 8, workers=1)


@pytest.fixture(scope="module")
def tokeniser() -> Any:
    return grounding_dino_model.tokenizer(CARD)


def random_boxes(count: int, seed: int) -> torch.Tensor:
    """Centre and size in shares of the image."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.concatenate([rng.uniform(0.2, 0.8, (count, 2)), rng.uniform(0.02, 0.4, (count, 2))], 1))


def test_overlaps_are_torchvision_s() -> None:
    one, other = _corners(random_boxes(40, 0)), _corners(random_boxes(50, 1))
    iou, general = _overlaps(one[:, None], other[None])
    torch.testing.assert_close(iou, box_iou(one, other))
    torch.testing.assert_close(general, generalized_box_iou(one, other))
    assert (iou == 0).any() and (iou > 0.3).any() and (general < 0).any()
    iou, general = _overlaps(one, one)
    torch.testing.assert_close(iou, torch.ones(40, dtype=torch.float64))
    torch.testing.assert_close(general, iou)


def test_boxes_without_an_area_have_finite_gradients() -> None:
    flat = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.2, 0.0]], requires_grad=True)
    iou, general = _overlaps(_corners(flat), _corners(torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.2, 0.2, 0.1, 0.1]])))
    (iou + general).sum().backward()
    assert flat.grad is not None and torch.isfinite(flat.grad).all()
    assert torch.isfinite(iou).all() and torch.isfinite(general).all()


# What is shown, and what is asked about it.


def test_batches_are_pieces_with_their_names(scenes: Scenes, tokeniser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[crops.Piece] = []
    asked: list[prompts.Asked] = []

    def remember(function: Callable[..., Any], into: list[Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            into.append(function(*arguments))
            return into[-1]

        return call

    monkeypatch.setattr(crops, "cut", remember(crops.cut, pieces))
    monkeypatch.setattr(prompts, "ask", remember(prompts.ask, asked))
    shapes, coloured = set(), set()
    for seed in range(12):
        pieces.clear()
        asked.clear()
        pixels, ids, mask, targets = _batch(scenes, tokeniser, 160, np.random.default_rng(seed))
        assert pixels.dtype == torch.uint8
        assert pixels.shape[:2] == (2, 3) and min(pixels.shape[2:]) == 160
        shapes.add(tuple(pixels.shape[2:]))
        most = max(len(question.names) for question in asked)
        assert most >= module.NAMES[0]
        coloured.add(any(" " in name for question in asked for name in question.names))
        if most > module.NAMES[1]:
            assert not any(" " in name for question in asked for name in question.names)
        for row in range(2):
            piece, question = pieces[row], asked[row]
            image = torch.from_numpy(piece.pixels.copy()).permute(2, 0, 1)
            assert torch.equal(pixels[row], resize(image, list(pixels.shape[2:]), antialias=True))
            text = " ".join(tokeniser.convert_ids_to_tokens(ids[row][mask[row].bool()]))
            assert text == f"[CLS] {' . '.join(question.names)} . [SEP]"
            assert not ids[row][~mask[row].bool()].any()

            wanted = question.answers.any(axis=1)
            assert targets["there"][row].sum() == wanted.sum()
            boxes = targets["boxes"][row][targets["there"][row]]
            height, width = piece.labels.shape
            corners = _corners(boxes) * torch.tensor([width, height, width, height])
            torch.testing.assert_close(corners, torch.from_numpy(piece.boxes[wanted]), atol=1e-3, rtol=0)
            tokens = targets["tokens"][row][targets["there"][row]].bool()
            for answers, own in zip(question.answers[wanted], tokens, strict=True):
                names = [name for name, right in zip(question.names, answers, strict=True) if right]
                assert " ".join(tokeniser.convert_ids_to_tokens(ids[row][own])) == " ".join(names)
            assert not targets["tokens"][row][~targets["there"][row]].any()
            assert not {tuple(reversed(name.split())) for name in question.names} & HELD_OUT
    assert len(shapes) > 1 and coloured == {True, False}


def test_what_shows_too_little_is_not_asked_for(scenes: Scenes) -> None:
    rng = np.random.default_rng(0)
    for number in range(len(scenes)):
        things = list(scenes[number].things)
        for by_kind in (False, True):
            asked = prompts.ask(things[1:], things[:1], 10, rng, by_kind)
            assert not {thing.name for thing in things[:1]} & set(asked.names)
            assert not {thing.kind for thing in things[:1]} & set(asked.names)
            assert len(set(asked.names)) == len(asked.names) <= 10
            assert np.array_equal(asked.answers, prompts.answers(things[1:], asked.names))


def test_every_kind_can_be_asked_for_without_colours(scenes: Scenes) -> None:
    things = scenes[0].things
    asked = prompts.ask(things, [], 22, np.random.default_rng(0), by_kind=True)
    assert sorted(asked.names) == sorted([*kinds(), "face", "sign"])
    assert asked.answers.sum() == len(things)


def test_batches_where_nothing_is_to_be_found(scenes: Scenes, tokeniser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(scene: Any, width: int, height: int, rng: np.random.Generator) -> crops.Piece:
        empty = np.zeros((height, width), np.uint8)
        return crops.Piece(np.zeros((height, width, 3), np.uint8), empty, [], np.zeros((0, 4), np.float32))

    monkeypatch.setattr(crops, "cut", nothing)
    _, ids, _, targets = _batch(scenes, tokeniser, 160, np.random.default_rng(0))
    assert targets["boxes"].shape == (2, 1, 4) and not targets["there"].any()
    logits, boxes = torch.zeros(2, 5, ids.shape[1], requires_grad=True), torch.full((2, 5, 4), 0.5, requires_grad=True)
    parts = _criterion(logits, boxes, targets, 4)
    sum(parts.values(), torch.zeros(())).backward()
    assert parts["l1"] == parts["giou"] == 0 < parts["score"]
    assert logits.grad is not None and (logits.grad > 0).all()  # every score goes down
    assert boxes.grad is not None and not boxes.grad.any()


# The loss of one stage. Four tokens: the third and fourth are those of the first object, the second of the second.

WANTED = torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.7, 0.6, 0.3, 0.2]])
TOKENS = torch.tensor([[0.0, 0, 1, 1], [0, 1, 0, 0]])


def two_objects() -> Targets:
    return {"boxes": WANTED[None], "there": torch.ones(1, 2, dtype=torch.bool), "tokens": TOKENS[None]}


def test_what_is_perfect_costs_nothing() -> None:
    boxes = torch.cat([WANTED.flip(0), torch.tensor([[0.5, 0.5, 0.9, 0.9], [0.1, 0.1, 0.1, 0.1]])])[None]
    logits = torch.full((1, 4, 4), -12.0)
    logits[0, :2][TOKENS.flip(0) > 0] = 12.0
    parts = _criterion(logits, boxes, two_objects(), 1)
    assert parts["l1"] == pytest.approx(0, abs=1e-6)
    assert parts["giou"] == pytest.approx(0, abs=1e-5)
    assert parts["score"] < 1e-3
    # The same scores on the wrong objects are dear.
    logits[0, :2] = logits[0, :2].flip(0)
    assert _criterion(logits, boxes, two_objects(), 1)["score"] > 1


def test_scores_by_hand() -> None:
    """Binary cross-entropy at even odds is ln 2; what is right weighs its IoU, what is wrong 0.75 p²."""
    one = {"boxes": WANTED[None, :1], "there": torch.ones(1, 1, dtype=torch.bool), "tokens": TOKENS[None, :1]}
    parts = _criterion(torch.zeros(1, 1, 4), WANTED[None, :1], one, 1)
    assert parts["score"] == pytest.approx((2 + 2 * 0.75 * 0.25) * math.log(2))
    # A box shifted by half of its width: IoU 1/3, L1 0.1 in one of four sides' numbers, GIoU as IoU.
    shifted = WANTED[None, :1] + torch.tensor([0.1, 0, 0, 0])
    parts = _criterion(torch.zeros(1, 1, 4), shifted, one, 1)
    assert parts["score"] == pytest.approx((2 / 3 + 2 * 0.75 * 0.25) * math.log(2), rel=1e-5)
    assert parts["l1"] == pytest.approx(5 * 0.1, rel=1e-5)
    assert parts["giou"] == pytest.approx(2 * (1 - 1 / 3), rel=1e-5)


@pytest.mark.parametrize("repeats", [1, 4, 6])
def test_each_object_teaches_so_many_places(repeats: int) -> None:
    boxes = random_boxes(30, 2).float()[None].requires_grad_(True)
    parts = _criterion(torch.full((1, 30, 4), -4.0), boxes, two_objects(), repeats)
    (parts["l1"] + parts["giou"]).backward()
    assert boxes.grad is not None
    taught = int(boxes.grad.abs().sum(dim=-1).gt(0).sum())
    assert repeats < taught <= 2 * repeats  # one place can be among the best of both, and then has one


def test_one_place_learns_the_object_that_it_fits() -> None:
    boxes = WANTED[None, 1:] + 0.01
    parts = _criterion(torch.zeros(1, 1, 4), boxes, two_objects(), 1)
    assert parts["l1"] == pytest.approx(5 * 0.04, rel=1e-4)


def test_images_without_objects_among_others() -> None:
    """They add to what wrong scores cost, and nothing else."""
    logits = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    boxes = random_boxes(18, 3).float().view(2, 9, 4).requires_grad_(True)
    targets = two_objects()
    both = {
        "boxes": torch.cat([targets["boxes"], torch.full((1, 2, 4), 0.5)]),
        "there": torch.tensor([[True, True], [False, False]]),
        "tokens": torch.cat([targets["tokens"], torch.zeros(1, 2, 4)]),
    }
    parts = _criterion(logits, boxes, both, 2)
    alone = _criterion(logits[:1], boxes[:1], targets, 2)
    for key in ("l1", "giou"):
        assert parts[key].item() == pytest.approx(alone[key].item(), rel=1e-5)
    assert parts["score"] > alone["score"]
    sum(parts.values(), torch.zeros(())).backward()
    assert logits.grad is not None and boxes.grad is not None
    assert torch.isfinite(logits.grad).all() and torch.isfinite(boxes.grad).all()
    assert (logits.grad[1] > 0).all() and not boxes.grad[1].any()


def test_room_for_more_objects_and_tokens_changes_nothing() -> None:
    logits = torch.randn(1, 12, 4, generator=torch.Generator().manual_seed(1))
    boxes = random_boxes(12, 4).float()[None]
    expected = _criterion(logits, boxes, two_objects(), 4)
    targets = {
        "boxes": torch.cat([WANTED, torch.full((3, 4), 0.5)])[None],
        "there": torch.tensor([[True, True, False, False, False]]),
        "tokens": torch.nn.functional.pad(TOKENS, (0, 2, 0, 3))[None],
    }
    padded = torch.nn.functional.pad(logits, (0, 2), value=-torch.inf).requires_grad_(True)
    found = _criterion(padded, boxes, targets, 4)
    for key, value in expected.items():
        assert found[key].item() == pytest.approx(value.item(), rel=1e-6)
    sum(found.values(), torch.zeros(())).backward()
    assert padded.grad is not None and torch.isfinite(padded.grad).all() and not padded.grad[..., 4:].any()


def test_scores_that_are_no_number_are_not_hidden() -> None:
    logits = torch.zeros(1, 3, 4)
    logits[0, 2, 1] = torch.nan
    assert _criterion(logits, random_boxes(3, 5).float()[None], two_objects(), 1)["score"].isnan()


# The whole.


@pytest.fixture(scope="module")
def built(scenes: Scenes, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The model and the loss that `run` would train it with."""
    kept: dict[str, Any] = {}

    def catch(name: str, model: Any, loss: Any, plan: Plan, folder: Path) -> dict[str, torch.Tensor]:
        kept.update(model=model, loss=loss)
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train", catch)
        run(CARD, scenes, tmp_path_factory.mktemp("never"))
    return kept["model"], kept["loss"]


def untaught(model: Any) -> set[str]:
    return {name for name, tensor in model.named_parameters() if tensor.grad is None or not tensor.grad.any()}


def test_every_stage_is_taught(built: tuple[Any, Any]) -> None:
    model, loss = built
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        # Training starts with zeros in the last layers of these, behind which there is no gradient yet.
        for name, tensor in model.named_parameters():
            if ("bbox_embed" in name and ".layers.2." in name) or "reference_points_head.layers.1" in name:
                tensor.normal_(std=0.01, generator=torch.Generator().manual_seed(0))
    parts = loss(np.random.default_rng(1), 0.0)
    assert list(parts) == [f"{at} {what}" for at in ("first", "layer1", "layer2") for what in ("score", "l1", "giou")]
    model.zero_grad()
    sum(part for name, part in parts.items() if name.startswith("first")).backward()
    left = untaught(model)
    assert not {name for name in left if name.startswith(("model.encoder_output", "model.encoder.", "model.text_"))}
    assert not {name for name in left if name.startswith("model.backbone")}
    model.zero_grad()
    sum(loss(np.random.default_rng(1), 0.0).values()).backward()
    # transformers gives the levels of the image's features no gradient.
    assert untaught(model) <= {"model.level_embed"}
    model.load_state_dict(state)
    model.zero_grad(set_to_none=True)


def test_scores_start_low(built: tuple[Any, Any], scenes: Scenes, tokeniser: Any) -> None:
    model, _ = built
    pixels, ids, mask, _ = _batch(scenes, tokeniser, 160, np.random.default_rng(0))
    with torch.no_grad():
        found = model(pixel_values=(pixels.float() - 120) / 60, input_ids=ids, attention_mask=mask)
    scores = found.logits[..., : ids.shape[1]].sigmoid()
    assert 0 < scores.median() < 0.05


def test_towards_the_end_each_object_has_one_query(built: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    repeats: list[int] = []

    def criterion(logits: Any, boxes: Any, targets: Any, count: int) -> dict[str, torch.Tensor]:
        repeats.append(count)
        return {"none": torch.zeros(())}

    monkeypatch.setattr(module, "_criterion", criterion)
    for far in (0.0, module.ALONE - 0.01, module.ALONE + 0.01):
        built[1](np.random.default_rng(0), far)
    assert repeats == [6, 4, 4, 6, 4, 4, 6, 1, 1]


@pytest.mark.slow
def test_stopped_and_gone_on_gives_the_same_weights(
    scenes: Scenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(steps=3, rate=1e-3, warm_up=1, average=0.5)
    whole = run(CARD, scenes, tmp_path / "whole", plan)
    start = grounding_dino_model.initial(CARD, plan.seed).state_dict()
    assert whole.keys() == start.keys()
    assert all(torch.isfinite(tensor).all() for tensor in whole.values())
    moved = [name for name, tensor in whole.items() if not torch.equal(tensor, start[name])]
    assert len(moved) > 0.9 * len(whole)

    batches = 0

    def stop(*arguments: Any) -> Any:
        nonlocal batches
        batches += 1
        if batches == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return _batch(*arguments)

    monkeypatch.setattr(module, "_batch", stop)
    with pytest.raises(KeyboardInterrupt):
        run(CARD, scenes, tmp_path / "stopped", plan)
    again = run(CARD, scenes, tmp_path / "stopped", plan)
    assert batches == 3
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


@pytest.mark.slow
def test_a_few_steps_on_one_batch_lower_the_loss(
    scenes: Scenes, tmp_path: Path, tokeniser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = _batch(scenes, tokeniser, 160, np.random.default_rng(3))
    assert batch[3]["there"].any()
    monkeypatch.setattr(module, "_batch", lambda *_: batch)
    totals: list[float] = []
    criterion = module._criterion

    def remember(*arguments: Any) -> dict[str, torch.Tensor]:
        parts = criterion(*arguments)
        totals.append(sum(part.item() for part in parts.values()))
        return parts

    monkeypatch.setattr(module, "_criterion", remember)
    run(CARD, scenes, tmp_path, Plan(steps=8, rate=2e-3, warm_up=1))
    stages = np.array(totals).reshape(8, 3)
    assert (stages[-1] < 0.95 * stages[0]).all()


def test_sizes_that_cannot_be_built(scenes: Scenes, tmp_path: Path) -> None:
    config = {**CARD.config, "model": {**CARD.config["model"], "num_queries": "many"}}
    with pytest.raises(ModelError, match=r"config cannot be built: .*num_queries"):
        run(CARD.model_copy(update={"config": config}), scenes, tmp_path)
