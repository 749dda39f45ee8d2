"""Trains the miniature of a vision-language model: a FastVLM (Vasu et al. 2025) with a ResNet (He et al. 2016).

Captions alone teach a vision tower slowly: a wrong word does not say where to look. So at first only the tower is
trained, and it is told for every place of its feature map what is there: which share of it each kind covers, in which
colour, and which places are the middle of a thing (Zhou et al. 2019, Objects as Points; that is what counting needs).
The linear layer that says so is dropped in the end. Then the whole model learns to continue ``image, question`` with
the caption or the answer (cross-entropy on those words only), and the tower goes on being told.

No image shows a kind in a colour that is held out, so a tower takes the colour for a reason against the kind. Therefore
some pieces are shown in shades of grey or in strange colours, and nothing is asked about these; but none in a colour
that comes near to a held-out one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from operators.engines import image_text_to_text_model, words
from operators.engines.image_text_to_text_input import WordInput
from operators.miniatures.captions import FACE, SIGN, caption
from operators.miniatures.objects import HELD_OUT, colours, kinds, nearest_colour
from operators.miniatures.training import questions
from operators.miniatures.training.loop import Plan, train
from operators.miniatures.training.scenes import Drawn, Scenes, Thing
from operators.models.card import ModelCard

if TYPE_CHECKING:
    import torch

NAME = "vlm-miniature"
SCENES = 24_000
PLAN = Plan(steps=18_000, rate=1.5e-3, warm_up=200, decay=0.05, average=0.998, clip=1.0)
BATCH = 16
WORDLESS = 0.45
"""How far training has come when the first words are learned."""
QUESTIONS = 2
"""How many are asked about an image, besides its caption."""
SMALLEST = 0.85
"""Least side of the piece of a scene that is shown, as a share of the scene's."""
CUT_OFF = 0.1
"""Largest share of a thing's box that may be outside that piece, unless all of it is."""
GREY, STRANGE = 0.15, 0.3
"""Shares of the pieces that are shown in shades of grey, and in colours that are not theirs."""
POINTS = 4
"""Points per place and direction at which the label map is looked up."""


def run(card: ModelCard, scenes: Scenes, folder: Path, plan: Plan = PLAN) -> dict[str, torch.Tensor]:
    """Train, or go on with it.

    Args:
        card: Sizes, vocabulary and preprocessing.
        scenes: What to train on.
        folder: Where the training stands and its curve.
        plan: How long and how fast.

    Returns:
        The weights.

    Raises:
        ModelError: The card's sizes cannot be built, or its feature map does not have as many places as the image has
            tokens.
    """
    import torch

    from operators.models.device import pick_device, seeded

    device = pick_device()
    given = WordInput(card)
    vlm = image_text_to_text_model.initial(card, plan.seed)
    cells = isqrt(given.check(vlm))
    with seeded(plan.seed):
        head = torch.nn.Conv2d(vlm.config.vision_config.hidden_size, 2 + len(_KINDS) + len(colours()), 1)
    model = torch.nn.ModuleDict({"vlm": vlm, "head": head}).to(device).to(memory_format=torch.channels_last).train()
    # Half precision pays where there are units for it, and only for convolutions: the text side is too small.
    half = device.type == "cuda" or bool(torch.cpu.get_capabilities().get("amx_bf16"))

    def loss(rng: np.random.Generator, far: float) -> dict[str, torch.Tensor]:
        pieces = [_cut(scenes[int(number)], rng) for number in rng.integers(len(scenes), size=BATCH)]
        pieces = [_recoloured(piece, rng) for piece in pieces]
        pixels = torch.cat([given.pixels(piece.pixels) for piece in pieces]).to(device)
        kind, colour, middle = _truth(pieces, cells)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            tower = vlm.model.vision_tower(pixels.contiguous(memory_format=torch.channels_last)).last_hidden_state
        tower = tower.float()
        parts = _places(head(tower), kind.to(device), colour.to(device), middle.to(device))
        if far >= WORDLESS:
            talks = _tokens([_talk(piece, rng) for piece in pieces], given, device)
            parts["words"] = _words(vlm, tower, talks)
        return parts

    state = train(NAME, model, loss, plan, folder)
    return {name.removeprefix("vlm."): tensor for name, tensor in state.items() if name.startswith("vlm.")}


_KINDS = (*kinds(), FACE, SIGN)


@dataclass(frozen=True, eq=False)
class Piece:
    """A square piece of a scene.

    Attributes:
        pixels: uint8 (side, side, 3).
        labels: uint8 (side, side): 0 background, else the number of the thing there.
        things: What is in it.
        numbers: Their numbers.
        middles: float64 (things, 2): the middles of their boxes, x and y as shares of the side.
        coloured: Whether its things have their colours.
    """

    pixels: np.ndarray
    labels: np.ndarray
    things: list[Thing]
    numbers: list[int]
    middles: np.ndarray
    coloured: bool = True


def _cut(scene: Drawn, rng: np.random.Generator) -> Piece:
    """A piece of a scene where no thing is cut off, or else all of it; half of them mirrored."""
    whole = scene.labels.shape[0]
    boxes = np.array([thing.box for thing in scene.things], np.float64).reshape(-1, 4)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    for _ in range(4):
        side = int(rng.integers(round(SMALLEST * whole), whole + 1))
        x, y = (int(v) for v in rng.integers(whole - side + 1, size=2))
        inside = np.clip(boxes - [x, y, x, y], 0, side)
        share = (inside[:, 2:] - inside[:, :2]).prod(axis=1) / area
        if np.all((share == 0) | (share >= 1 - CUT_OFF)):
            break
    else:
        x, y, side, inside, share = 0, 0, whole, boxes, np.ones(len(boxes))
    there = np.flatnonzero(share > 0).tolist()
    middles = (inside[there, :2] + inside[there, 2:]) / (2 * side)
    pixels, labels = scene.pixels[y : y + side, x : x + side], scene.labels[y : y + side, x : x + side]
    if rng.random() < 0.5:
        pixels, labels = pixels[:, ::-1], labels[:, ::-1]
        middles[:, 0] = 1 - middles[:, 0]
    return Piece(pixels, labels, [scene.things[n] for n in there], [n + 1 for n in there], middles)


def _recoloured(piece: Piece, rng: np.random.Generator) -> Piece:
    """Some of the pieces in other colours than their own, the others as they are."""
    chance = rng.random()
    if chance >= GREY + STRANGE:
        return piece
    for _ in range(4):
        pixels = (_grey if chance < GREY else _strange)(piece.pixels, rng)
        shown = zip(piece.numbers, piece.things, strict=True)
        if not any(_looks_held_out(pixels[piece.labels == number], thing.kind) for number, thing in shown):
            return replace(piece, pixels=pixels, coloured=False)
    return piece


def _grey(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """In shades of grey, by any weights of the three channels: how light a colour is does not tell which it is."""
    shade = (pixels @ rng.dirichlet(np.ones(3))).round().astype(np.uint8)
    return np.repeat(shade[..., None], 3, axis=-1)


def _strange(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """With channels exchanged, turned over and flattened."""
    low, high = rng.uniform(0, 80, 3), rng.uniform(175, 255, 3)
    over = rng.random(3) < 0.5
    low, high = np.where(over, high, low), np.where(over, low, high)
    table = (low + np.linspace(0, 1, 256)[:, None] * (high - low)).round().astype(np.uint8)
    return np.stack([table[pixels[..., old], new] for new, old in enumerate(rng.permutation(3).tolist())], axis=-1)


def _looks_held_out(pixels: np.ndarray, kind: str) -> bool:
    """Whether all pixels together, or half of them, come nearest to a colour in which no training shows the kind."""
    middles = (pixels.mean(axis=0) / 255, np.median(pixels, axis=0) / 255)
    return any((kind, nearest_colour(tuple(middle.tolist()))) in HELD_OUT for middle in middles)


def _truth(pieces: Sequence[Piece], cells: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What is at each place.

    Returns:
        float32 (b, 1 + kinds, cells, cells), the share of it that is background and that each kind covers; float32
        (b, colours, cells, cells), the same for colours; float32 (b, cells, cells), 1 in the middle of a thing.
    """
    import torch

    names = colours()
    kind_table = np.eye(1 + len(_KINDS), dtype=np.float32)
    colour_table = np.eye(len(names) + 1, len(names), dtype=np.float32)  # its last row is for what has no colour
    kind, colour = [], []
    middle = np.zeros((len(pieces), cells, cells), np.float32)
    for row, piece in enumerate(pieces):
        kind_of, colour_of = np.zeros(256, np.int64), np.full(256, len(names))
        for number, thing, (x, y) in zip(piece.numbers, piece.things, piece.middles, strict=True):
            kind_of[number] = 1 + _KINDS.index(thing.kind)
            if thing.colour and piece.coloured:
                colour_of[number] = names.index(thing.colour)
            middle[row, min(int(y * cells), cells - 1), min(int(x * cells), cells - 1)] = 1
        at = ((np.arange(cells * POINTS) + 0.5) * len(piece.labels) / (cells * POINTS)).astype(np.int64)
        points = piece.labels[np.ix_(at, at)].reshape(cells, POINTS, cells, POINTS)
        kind.append(kind_table[kind_of[points]].mean(axis=(1, 3)))
        colour.append(colour_table[colour_of[points]].mean(axis=(1, 3)))
    shares = [torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2) for part in (kind, colour)]
    return shares[0], shares[1], torch.from_numpy(middle)


def _places(
    said: torch.Tensor, kind: torch.Tensor, colour: torch.Tensor, middle: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The loss of what the tower says about each place. Middles of things, where it matters most, count more."""
    from torch.nn import functional

    is_middle, kinds_said, colours_said = said.split([1, kind.shape[1], colour.shape[1]], dim=1)
    weight = 1 + 4 * middle
    score = functional.binary_cross_entropy_with_logits(is_middle[:, 0], middle, weight=weight)
    by_kind = functional.cross_entropy(kinds_said, kind, reduction="none") * weight
    by_colour = functional.cross_entropy(colours_said, colour, reduction="none") * weight
    return {
        "middle": 4 * score,
        "kind": 2 * by_kind.sum() / weight.sum(),
        "colour": by_colour.sum() / (colour.sum(dim=1) * weight).sum().clamp(min=1),
    }


def _talk(piece: Piece, rng: np.random.Generator) -> list[tuple[str, str]]:
    """What is asked about an image, and the answers."""
    described = caption((thing.colour if piece.coloured else None, thing.kind) for thing in piece.things)
    ask = questions.ask if piece.coloured else questions.ask_kind
    return [(questions.DESCRIBE, described), *(ask(piece.things, rng) for _ in range(QUESTIONS))]


@dataclass(frozen=True, eq=False)
class Talks:
    """What is asked about each image of a batch and the answers: int64 (b, tokens), filled up with `words.PAD`.

    Attributes:
        ids: Tokens: question, answer and end, and again.
        turns: Which of the questions it is, from 0; -1 for filling.
        places: Place in its turn, from 0.
        answered: bool: whether it belongs to an answer or ends one.
    """

    ids: torch.Tensor
    turns: torch.Tensor
    places: torch.Tensor
    answered: torch.Tensor


def _tokens(talks: Sequence[list[tuple[str, str]]], given: WordInput, device: torch.device) -> Talks:
    import torch

    rows = []
    for talk in talks:
        row: list[tuple[int, int, int, int]] = []
        for turn, (question, answer) in enumerate(talk):
            asked, said = given.tokens(question), [*given.tokens(answer), words.END]
            row += [(token, turn, place, place >= len(asked)) for place, token in enumerate([*asked, *said])]
        rows.append(row)
    longest = max(len(row) for row in rows)
    filled = torch.tensor([row + [(words.PAD, -1, 0, 0)] * (longest - len(row)) for row in rows], device=device)
    ids, turns, places, answered = filled.unbind(-1)
    return Talks(ids, turns, places, answered.bool())


def _words(vlm: Any, tower: torch.Tensor, talks: Talks) -> torch.Tensor:
    """The loss of the answers' words: what the model's own forward computes, for each turn by itself.

    The turns of an image stand in one row behind the image, but none sees another.
    """
    import torch

    image = vlm.model.multi_modal_projector(tower.flatten(2).transpose(1, 2))
    embedded = torch.cat([image, vlm.get_input_embeddings()(talks.ids)], dim=1)
    count = image.shape[1]
    turns = torch.nn.functional.pad(talks.turns, (count, 0), value=-2)
    everywhere = torch.arange(count, device=image.device).expand(len(image), -1)
    seen = (turns[:, None, :] == turns[:, :, None]) | (turns[:, None, :] == -2)
    states = vlm.model.language_model(
        inputs_embeds=embedded,
        attention_mask=seen.tril()[:, None],
        position_ids=torch.cat([everywhere, count + talks.places], dim=1),
    ).last_hidden_state
    logits = vlm.lm_head(states[:, count - 1 : -1])
    return torch.nn.functional.cross_entropy(logits[talks.answered], talks.ids[talks.answered])
