"""Trains the miniature of Grounding DINO (Liu et al. 2023), in transformers' MM-Grounding-DINO class.

The loss is our own. transformers' gives the first stage no gradient (what it scores is detached), and from scratch
nothing is learned without one. Here the first stage's scores and boxes of all places and those of every decoder layer
have the same criterion: each object is given to the `REPEATS` places or queries that fit it best (one-to-many, as in
Chen et al. 2023, Group DETR; which ones, as in Ge et al. 2021, OTA), their tokens learn the box's IoU as their score
(Zhang et al. 2021, VarifocalNet), their boxes L1 and GIoU. Towards the end each object has one query.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labelmill.operators.engines.detection import captions, grounding_dino_model
from labelmill.operators.engines.detection.captions import Phrase
from labelmill.operators.miniatures.objects import kinds
from labelmill.operators.miniatures.training import crops, prompts
from labelmill.operators.miniatures.training.loop import Plan, train
from labelmill.operators.miniatures.training.scenes import Scenes
from labelmill.operators.models.card import ModelCard

if TYPE_CHECKING:
    import torch

NAME = "grounding-dino-miniature"
SCENES = 24_000
PLAN = Plan(steps=24_000, rate=7e-4, warm_up=300, decay=0.05, average=0.9985, clip=0.5)
BATCH = 8
NAMES = (4, 14)
"""Fewest and most names asked at once."""
BY_KIND = 0.25
"""Share of the batches that are asked without colours, for up to every kind."""
REPEATS = (6, 4)
"""Places of the first stage, and queries of the decoder, that learn one object."""
ALONE = 0.7
"""How far training has come when each object is left with one query."""


def run(card: ModelCard, scenes: Scenes, folder: Path, plan: Plan = PLAN) -> dict[str, torch.Tensor]:
    """Train, or go on with it.

    Args:
        card: Sizes, tokenizer and preprocessing.
        scenes: What to train on.
        folder: Where the training stands and its curve.
        plan: How long and how fast.

    Returns:
        The weights.
    """
    import torch

    from labelmill.operators.engines.detection.grounding_dino import Preprocess
    from labelmill.operators.models.device import pick_device

    device = pick_device()
    model = grounding_dino_model.initial(card, plan.seed).to(device).train()
    _start_calm(model)
    tokeniser = grounding_dino_model.tokenizer(card)
    given = card.section("preprocess", Preprocess)
    mean = 255 * torch.tensor(given.mean, device=device).view(3, 1, 1)
    std = 255 * torch.tensor(given.std, device=device).view(3, 1, 1)

    def loss(rng: np.random.Generator, far: float) -> dict[str, torch.Tensor]:
        pixels, ids, mask, targets = _batch(scenes, tokeniser, given.short, rng)
        targets = {key: value.to(device) for key, value in targets.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            outputs = model(
                pixel_values=(pixels.to(device).float() - mean) / std,
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
            )
            stages = _stages(model, outputs)
        parts: dict[str, torch.Tensor] = {}
        for number, (logits, boxes) in enumerate(stages):
            repeats = REPEATS[0] if number == 0 else REPEATS[1] if far < ALONE else 1
            found = _criterion(logits.float()[..., : ids.shape[1]], boxes.float(), targets, repeats)
            label = "first" if number == 0 else f"layer{number}"
            parts |= {f"{label} {key}": value for key, value in found.items()}
        return parts

    return train(NAME, model, loss, plan, folder)


def _start_calm(model: Any) -> None:
    """Scores start at one in a hundred, as in Lin et al. 2017 (focal loss)."""
    import torch

    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("class_embed.bias") or ("class_embed" in name and tensor.ndim == 0):
                tensor.fill_(-4.6)


def _batch(
    scenes: Scenes, tokeniser: Any, short: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Pieces of one shape, each with a caption of its own.

    Returns:
        uint8 (b, 3, h, w); token ids and mask (b, tokens); and the targets, with at least one thing: boxes
        (b, things, 4) as centre and size in shares of the image, which of them are there (b, things), and their tokens
        (b, things, tokens).
    """
    import torch
    from torch.nn import functional
    from torchvision.transforms.v2.functional import resize

    shape = rng.random()
    side = int(rng.integers(256, 321))
    width, height = (320, 240) if shape < 0.15 else (240, 320) if shape < 0.3 else (side, side)
    scale = short / min(width, height)
    size = [round(height * scale), round(width * scale)]
    by_kind = bool(rng.random() < BY_KIND)
    count = int(rng.integers(NAMES[0], (len(kinds()) + 2 if by_kind else NAMES[1]) + 1))
    pixels, texts, boxes, tokens = [], [], [], []
    for number in rng.integers(len(scenes), size=BATCH):
        scene = scenes[int(number)]
        piece = crops.cut(scene, width, height, rng)
        things = [scene.things[n] for n in piece.numbers]
        asked = prompts.ask(things, [scene.things[n] for n in piece.parts], count, rng, by_kind)
        (caption,) = captions.build_captions([Phrase(name, name, name) for name in asked.names], tokeniser)
        wanted = asked.answers.any(axis=1)
        image = torch.from_numpy(piece.pixels.copy()).permute(2, 0, 1)
        pixels.append(resize(image, size, antialias=True))
        texts.append(torch.tensor(caption.ids))
        tokens.append(torch.from_numpy(asked.answers[wanted] @ (caption.positive_map().T > 0)).float())
        xyxy = torch.from_numpy(piece.boxes[wanted]) / torch.tensor([width, height, width, height])
        boxes.append(torch.cat([(xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]], dim=1))
    pad = torch.nn.utils.rnn.pad_sequence
    length = max(len(text) for text in texts)
    most = max(1, max(len(each) for each in boxes))
    targets = {
        "boxes": torch.stack([functional.pad(each, (0, 0, 0, most - len(each)), value=0.5) for each in boxes]),
        "there": torch.tensor([[number < len(each) for number in range(most)] for each in boxes]),
        "tokens": torch.stack([functional.pad(t, (0, length - t.shape[1], 0, most - len(t))) for t in tokens]),
    }
    mask = pad([torch.ones_like(text) for text in texts], batch_first=True)
    return torch.stack(pixels), pad(texts, batch_first=True), mask, targets


def _stages(model: Any, outputs: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Logits (b, n, tokens) and boxes (b, n, 4) of the first stage and of every layer of the decoder."""
    import torch

    stages = [(outputs.enc_outputs_class, outputs.enc_outputs_coord_logits.float().sigmoid())]
    references = [outputs.init_reference_points, *outputs.intermediate_reference_points.unbind(1)]
    states = outputs.intermediate_hidden_states.unbind(1)
    for layer, state in enumerate(states[:-1]):
        reference = torch.special.logit(references[layer].float(), eps=1e-5)
        boxes = (model.bbox_embed[layer](state).float() + reference).sigmoid()
        stages.append((_score(model.class_embed[layer], state, outputs), boxes))
    return [*stages, (outputs.logits, outputs.pred_boxes)]


def _score(head: Any, state: torch.Tensor, outputs: Any) -> torch.Tensor:
    import torch

    text = outputs.encoder_last_hidden_state_text
    everything = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
    logits: torch.Tensor = head(vision_hidden_state=state, text_hidden_state=text, text_token_mask=everything)
    return logits


def _criterion(
    logits: torch.Tensor, boxes: torch.Tensor, targets: dict[str, torch.Tensor], repeats: int
) -> dict[str, torch.Tensor]:
    """The loss of one stage.

    Args:
        logits: (b, n, tokens); -inf for tokens that are not there.
        boxes: (b, n, 4), centre and size.
        targets: See `_batch`.
        repeats: How many of the n learn one object.
    """
    import torch
    from torch.nn import functional

    wanted, there, tokens = targets["boxes"], targets["there"], targets["tokens"]
    count = there.sum().clamp(min=1)
    logits = logits.masked_fill(logits == -torch.inf, -100.0)
    probabilities = logits.sigmoid()
    with torch.no_grad():
        share = tokens / tokens.sum(dim=-1, keepdim=True).clamp(min=1)
        likely = probabilities @ share.transpose(1, 2)
        far = torch.cdist(boxes, wanted, p=1)
        overlap, general = _overlaps(_corners(boxes)[:, :, None], _corners(wanted)[:, None])
        cost = -2 * likely + 5 * far - 2 * general
        cost = cost.masked_fill(~there[:, None], float("inf")).nan_to_num(nan=1e6, posinf=1e6)
        best = cost.topk(min(repeats, cost.shape[1]), dim=1, largest=False).indices
        chosen = torch.zeros_like(cost, dtype=torch.bool).scatter_(1, best, True) & there[:, None]
        # One that fits several objects best learns the one it fits best of all.
        object_cost, owner = cost.masked_fill(~chosen, float("inf")).min(dim=-1)
        positive = torch.isfinite(object_cost)
        row = torch.arange(len(boxes), device=boxes.device)[:, None].expand_as(owner)
        quality = overlap.gather(2, owner[..., None])[..., 0] * positive
        goal = tokens[row, owner] * quality[..., None]
        weight = torch.where(goal > 0, goal, 0.75 * probabilities.detach() ** 2)
    scores = (functional.binary_cross_entropy_with_logits(logits, goal, reduction="none") * weight).sum()
    got, aim = boxes[positive], wanted[row[positive], owner[positive]]
    places = positive.sum().clamp(min=1)
    _, nearness = _overlaps(_corners(got), _corners(aim))
    return {
        "score": scores / (count * repeats),
        "l1": 5 * (got - aim).abs().sum() / places,
        "giou": 2 * (1 - nearness).sum() / places,
    }


def _corners(boxes: torch.Tensor) -> torch.Tensor:
    import torch

    centre, size = boxes.split(2, dim=-1)
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def _overlaps(one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """IoU and GIoU (Rezatofighi et al. 2019) of xyxy boxes that broadcast."""
    import torch

    low, high = torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    both = (one[..., 2:] - one[..., :2]).prod(-1) + (other[..., 2:] - other[..., :2]).prod(-1) - shared
    iou = shared / both.clamp(min=1e-7)
    low, high = torch.minimum(one[..., :2], other[..., :2]), torch.maximum(one[..., 2:], other[..., 2:])
    around = (high - low).clamp(min=0).prod(-1).clamp(min=1e-7)
    return iou, iou - (around - both) / around
