"""Trains the miniature of a vision-language model: a FastVLM (Vasu et al. 2025) with a ResNet (He et al. 2016).

Captions alone teach a vision tower slowly: a wrong word does not say where to look. So at first only the tower is
trained, and it is told for every place of its feature map what is there: which share of it each kind covers, in which
colour, and which places are the middle of a thing (Zhou et al. 2019, Objects as Points; that is what counting needs).
The linear layer that says so is dropped in the end. Then the whole model learns to continue ``image, question`` with
the caption or the answer (cross-entropy on those words only), and the tower goes on being told.

No image shows a kind in a colour that is held out, so a model takes the colour for a reason against the kind. Therefore
no loss ever counts against a kind where the colour is one that is held out for it. And some pieces are shown in shades
of grey or in strange colours, and nothing is asked about these; but nothing in what comes near to a held-out colour of
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labelmill.operators.engines.image_text_to_text import transformers_model, word_tokenizer
from labelmill.operators.engines.image_text_to_text.transformers_input import WordInput
from labelmill.operators.miniatures.captions import FACE, SIGN, caption, plural
from labelmill.operators.miniatures.objects import HELD_OUT, colours, kinds
from labelmill.operators.miniatures.training import questions
from labelmill.operators.miniatures.training.loop import Plan, train
from labelmill.operators.miniatures.training.pieces import Piece, cut, recoloured
from labelmill.operators.miniatures.training.scenes import Scenes
from labelmill.operators.models.card import ModelCard

if TYPE_CHECKING:
    import torch

NAME = "vlm-miniature"
SCENES = 24_000
PLAN = Plan(steps=24_000, rate=1.5e-3, warm_up=200, decay=0.05, average=0.998, clip=1.0)
BATCH = 16
WORDLESS = 0.34
"""How far training has come when the first words are learned."""
PLAIN = 0.85
"""How far training has come when all pieces keep their colours."""
QUESTIONS = 2
"""How many are asked about an image, besides its caption."""
UNSAID = -1e4
"""In place of a logit that is not to count."""
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

    from labelmill.operators.models.device import pick_device, seeded

    device = pick_device()
    given = WordInput(card)
    vlm = transformers_model.initial(card, plan.seed)
    cells = isqrt(given.check(vlm))
    with seeded(plan.seed):
        head = torch.nn.Conv2d(vlm.config.vision_config.hidden_size, 2 + len(_KINDS) + len(colours()), 1)
    model = torch.nn.ModuleDict({"vlm": vlm, "head": head}).to(device).to(memory_format=torch.channels_last).train()
    held_out = _held_out_words(given, vlm.lm_head.out_features).to(device)
    # Half precision pays where there are units for it, and only for convolutions: the text side is too small.
    half = device.type == "cuda" or bool(torch.cpu.get_capabilities().get("amx_bf16"))

    def loss(rng: np.random.Generator, far: float) -> dict[str, torch.Tensor]:
        pieces = [cut(scenes[int(number)], rng) for number in rng.integers(len(scenes), size=BATCH)]
        if far < PLAIN:
            pieces = [recoloured(piece, rng) for piece in pieces]
        pixels = torch.cat([given.pixels(piece.pixels) for piece in pieces]).to(device)
        truth = [part.to(device) for part in _truth(pieces, cells)]
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            tower = vlm.model.vision_tower(pixels.contiguous(memory_format=torch.channels_last)).last_hidden_state
        tower = tower.float()
        parts = _places(head(tower), *truth)
        if far >= WORDLESS:
            talks = _tokens([_talk(piece, rng) for piece in pieces], given, device)
            parts["words"] = _words(vlm, tower, talks, held_out)
        return parts

    state = train(NAME, model, loss, plan, folder)
    return {name.removeprefix("vlm."): tensor for name, tensor in state.items() if name.startswith("vlm.")}


_KINDS = (*kinds(), FACE, SIGN)


def _truth(pieces: Sequence[Piece], cells: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What is at each place.

    Returns:
        float32 (b, 1 + kinds, cells, cells), the share of it that is background and that each kind covers; float32
        (b, colours, cells, cells), the same for colours; float32 (b, cells, cells), 1 in the middle of a thing; bool
        (b, 1 + kinds, cells, cells), for which kinds a colour there is held out.
    """
    import torch

    names = colours()
    kind_table = np.eye(1 + len(_KINDS), dtype=np.float32)
    colour_table = np.eye(len(names) + 1, len(names), dtype=np.float32)  # its last row is for what has no colour
    kind, colour, held_out = [], [], []
    middle = np.zeros((len(pieces), cells, cells), np.float32)
    for row, piece in enumerate(pieces):
        kind_of, colour_of = np.zeros(256, np.int64), np.full(256, len(names))
        held_out_of = np.zeros((256, 1 + len(_KINDS)), bool)
        for number, thing, looks, (x, y) in zip(piece.numbers, piece.things, piece.looks, piece.middles, strict=True):
            kind_of[number] = 1 + _KINDS.index(thing.kind)
            if thing.colour and piece.coloured:
                colour_of[number] = names.index(thing.colour)
            held_out_of[number, [1 + _KINDS.index(other) for other, name in HELD_OUT if name in looks]] = True
            middle[row, min(int(y * cells), cells - 1), min(int(x * cells), cells - 1)] = 1
        at = ((np.arange(cells * POINTS) + 0.5) * len(piece.labels) / (cells * POINTS)).astype(np.int64)
        points = piece.labels[np.ix_(at, at)].reshape(cells, POINTS, cells, POINTS)
        kind.append(kind_table[kind_of[points]].mean(axis=(1, 3)))
        colour.append(colour_table[colour_of[points]].mean(axis=(1, 3)))
        held_out.append(held_out_of[points].any(axis=(1, 3)))
    kinds_, colours_, held = (torch.from_numpy(np.stack(each)).permute(0, 3, 1, 2) for each in (kind, colour, held_out))
    return kinds_, colours_, torch.from_numpy(middle), held


def _places(
    said: torch.Tensor, kind: torch.Tensor, colour: torch.Tensor, middle: torch.Tensor, held_out: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The loss of what the tower says about each place. Middles of things, where it matters most, count more."""
    from torch.nn import functional

    is_middle, kinds_said, colours_said = said.split([1, kind.shape[1], colour.shape[1]], dim=1)
    weight = 1 + 4 * middle
    score = functional.binary_cross_entropy_with_logits(is_middle[:, 0], middle, weight=weight)
    kinds_said = kinds_said.masked_fill(held_out & (kind == 0), UNSAID)
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
            asked, said = given.tokens(question), [*given.tokens(answer), word_tokenizer.END]
            row += [(token, turn, place, place >= len(asked)) for place, token in enumerate([*asked, *said])]
        rows.append(row)
    longest = max(len(row) for row in rows)
    filled = torch.tensor(
        [row + [(word_tokenizer.PAD, -1, 0, 0)] * (longest - len(row)) for row in rows], device=device
    )
    ids, turns, places, answered = filled.unbind(-1)
    return Talks(ids, turns, places, answered.bool())


def _held_out_words(given: WordInput, count: int) -> torch.Tensor:
    """bool (count, count): for which words for kinds (columns) the colour before them (rows) is held out."""
    import torch

    found = torch.zeros((count, count), dtype=torch.bool)
    for kind, colour in HELD_OUT:
        (row,) = given.tokens(colour)
        for word in (kind, plural(kind)):
            found[row, given.tokens(word)] = True
    return found


def _words(vlm: Any, tower: torch.Tensor, talks: Talks, held_out: torch.Tensor) -> torch.Tensor:
    """The loss of the answers' words: what the model's own forward computes, for each turn by itself.

    The turns of an image stand in one row behind the image, but none sees another. What is held out after the word
    before does not count.
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
    logits = vlm.lm_head(states[:, count - 1 : -1])[talks.answered]
    before = torch.nn.functional.pad(talks.ids, (1, 0))[:, :-1][talks.answered]
    return torch.nn.functional.cross_entropy(logits.masked_fill(held_out[before], UNSAID), talks.ids[talks.answered])
