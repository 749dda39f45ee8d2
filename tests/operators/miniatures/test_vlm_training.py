from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from labelmill.operators.engines.image_text_to_text import transformers_model, word_tokenizer
from labelmill.operators.engines.image_text_to_text.transformers_input import WordInput
from labelmill.operators.miniatures.captions import parse_caption, plural
from labelmill.operators.miniatures.evaluation import vlm as evaluation
from labelmill.operators.miniatures.objects import HELD_OUT, colours, kinds, nearest_colour
from labelmill.operators.miniatures.training import pieces, questions, vlm
from labelmill.operators.miniatures.training.loop import Plan
from labelmill.operators.miniatures.training.scenes import Drawn, Scenes, Thing, describe
from labelmill.operators.miniatures.world import World
from labelmill.operators.models import ModelCard, ModelError, load_card
from labelmill.operators.models.card import ROOT

CARD = load_card(ROOT / "conf" / "models" / "vlm-miniature.yaml")


def smaller(**changes: Any) -> ModelCard:
    """The card's model with a narrow tower and text side, for images of 64 pixels."""
    model = CARD.config["model"]
    vision = {**model["vision_config"], "embedding_size": 8, "hidden_sizes": [8, 16, 24], "depths": [1, 1, 1]}
    text = {**model["text_config"], "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    small = {**model, "vision_config": {**vision, "hidden_size": 24}, "text_config": text, "image_seq_length": 16}
    return CARD.model_copy(
        update={"config": {**CARD.config, "model": {**small, **changes}}, "preprocess": {"size": 64}}
    )


class Few(Scenes):
    """Scenes drawn here, without a folder."""

    def __init__(self, count: int) -> None:
        self.count = count
        world = World(1, 160, pairs="seen", words="seen")
        self._drawn = []
        for index in range(count):
            scene = world.scene(index)
            labels, things = describe(scene)
            self._drawn.append(Drawn(scene.pixels, labels, tuple(things), (), scene.caption))

    def __getitem__(self, index: int) -> Drawn:
        return self._drawn[index]


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return Few(6)


def test_a_few_steps_lower_every_part_of_the_loss(
    scenes: Scenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curve: list[dict[str, float]] = []
    train = vlm.train

    def listen(name: str, model: Any, loss: Any, plan: Plan, folder: Path) -> Any:
        def kept(rng: np.random.Generator, far: float) -> Any:
            parts = loss(rng, far)
            curve.append({key: float(part) for key, part in parts.items()})
            return parts

        return train(name, model, kept, plan, folder)

    monkeypatch.setattr(vlm, "train", listen)
    monkeypatch.setattr(vlm, "WORDLESS", 0.0)
    state = vlm.run(smaller(), scenes, tmp_path, Plan(steps=40, rate=3e-3, warm_up=5))
    assert set(curve[0]) == {"middle", "kind", "colour", "words"}
    for part in curve[0]:
        first, last = (np.mean([point[part] for point in points]) for points in (curve[:4], curve[-4:]))
        assert last < 0.9 * first, part
    assert set(state) == set(transformers_model.initial(smaller(), 0).state_dict())


def test_words_come_later(scenes: Scenes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vlm.run(smaller(), scenes, tmp_path / "before", Plan(steps=1, rate=1e-3))
    before = capsys.readouterr().out
    assert "kind" in before
    assert "words" not in before


def test_stopped_and_gone_on_is_the_same(scenes: Scenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(steps=8, rate=1e-3, warm_up=2)
    whole = vlm.run(smaller(), scenes, tmp_path / "whole", plan)
    cut, calls = vlm.cut, 0

    def interrupt(scene: Drawn, rng: np.random.Generator) -> vlm.Piece:
        nonlocal calls
        calls += 1
        if calls == 5 * vlm.BATCH:  # within the fifth step, which is still finished
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)
        return cut(scene, rng)

    monkeypatch.setattr(vlm, "cut", interrupt)
    with pytest.raises(KeyboardInterrupt):
        vlm.run(smaller(), scenes, tmp_path / "parts", plan)
    monkeypatch.setattr(vlm, "cut", cut)
    parts = vlm.run(smaller(), scenes, tmp_path / "parts", plan)
    assert calls == 5 * vlm.BATCH
    assert whole.keys() == parts.keys()
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())


def test_turns_side_by_side_are_the_model_s_own_forward() -> None:
    card = smaller()
    model, given = transformers_model.initial(card, 0).eval(), WordInput(card)
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    talks = [
        [
            ("Describe the image.", "a red car and a face"),
            ("Is there a car?", "yes"),
            ("How many cups are there?", "none"),
        ],
        [("Describe the image.", "nothing"), ("What colour is the car?", "red")],
    ]
    total, count = 0.0, 0
    with torch.no_grad():
        tower = model.model.vision_tower(pixels).last_hidden_state
        tokens, size = vlm._tokens(talks, given, torch.device("cpu")), model.lm_head.out_features
        found = vlm._words(model, tower, tokens, torch.zeros(size, size, dtype=torch.bool))
        for row, talk in enumerate(talks):
            for question, answer in talk:
                asked, said = given.tokens(question), [*given.tokens(answer), word_tokenizer.END]
                ids = torch.tensor([[word_tokenizer.IMAGE] * 16 + asked + said])
                labels = ids.clone()
                labels[:, : 16 + len(asked)] = -100
                own = model(pixel_values=pixels[row : row + 1], input_ids=ids, labels=labels).loss
                total, count = total + float(own) * len(said), count + len(said)
        held_out = vlm._held_out_words(given, size)
        assert float(vlm._words(model, tower, tokens, held_out)) < float(found) - 1e-4  # "red car" stands there
    assert float(found) == pytest.approx(total / count, abs=1e-4)


def test_held_out_words_are_those_of_held_out_pairs() -> None:
    given = WordInput(CARD)
    held_out = vlm._held_out_words(given, 100)
    for kind in kinds():
        for colour in colours():
            (row,) = given.tokens(colour)
            for word in (kind, plural(kind)):
                assert bool(held_out[row, given.tokens(word)]) == ((kind, colour) in HELD_OUT)
    assert held_out.sum() == sum(1 + (plural(kind) != kind) for kind, _ in HELD_OUT)


def test_no_loss_counts_against_a_kind_where_its_colour_is_held_out() -> None:
    """Beside a purple cup, that the tower says car costs nothing; beside a red one it does."""
    names, column = [*kinds(), "face", "sign"], 1 + kinds().index("car")
    labels, middles = np.ones((8, 8), np.uint8), np.array([[0.5, 0.5]])
    costs = []
    for colour in ("purple", "red"):
        cup = Thing("cup", colour, (0, 0, 8, 8))
        piece = pieces.Piece(np.zeros((8, 8, 3), np.uint8), labels, [cup], [1], middles, [{colour}])
        truth = vlm._truth([piece], 2)
        assert truth[3][0, column].all() == (colour == "purple")
        assert not truth[3][0, 1 + kinds().index("cup")].any()
        said = torch.zeros(1, 2 + len(names) + len(colours()), 2, 2)
        before = vlm._places(said, *truth)["kind"]
        said[:, 1 + column] = 9
        costs.append(float(vlm._places(said, *truth)["kind"] - before))
    assert costs[0] == 0 and costs[1] > 5


def test_places_say_what_the_label_map_shows(scenes: Scenes) -> None:
    cells, rng = 8, np.random.default_rng(0)
    for index in range(len(scenes)):
        piece = pieces.cut(scenes[index], rng)
        kind, colour, middle, _ = vlm._truth([piece], cells)
        assert kind.shape == (1, 23, cells, cells)
        assert colour.shape == (1, 8, cells, cells)
        torch.testing.assert_close(kind.sum(dim=1), torch.ones(1, cells, cells))
        assert 0 < middle.sum() <= len(piece.things)
        # Shares of the whole piece, from every pixel.
        for thing in piece.things:
            same = [piece.numbers[n] for n, other in enumerate(piece.things) if other.kind == thing.kind]
            share = np.isin(piece.labels, same).mean()
            column = 1 + (*kinds(), "face", "sign").index(thing.kind)
            assert float(kind[0, column].mean()) == pytest.approx(share, abs=0.02)
            if thing.colour:
                alike = [
                    n for n, other in zip(piece.numbers, piece.things, strict=True) if other.colour == thing.colour
                ]
                found = float(colour[0, colours().index(thing.colour)].mean())
                assert found == pytest.approx(np.isin(piece.labels, alike).mean(), abs=0.02)


def test_pieces_cut_nothing_in_two() -> None:
    scenes, rng, smaller_ones = Few(4), np.random.default_rng(1), 0
    for _ in range(20):
        for index in range(len(scenes)):
            scene = scenes[index]
            piece = pieces.cut(scene, rng)
            whole = np.bincount(scene.labels.ravel(), minlength=256)
            left = np.bincount(piece.labels.ravel(), minlength=256)
            smaller_ones += piece.labels.shape != scene.labels.shape
            assert piece.pixels.shape == (*piece.labels.shape, 3)
            for number in range(1, len(scene.things) + 1):
                assert (number in piece.numbers) == bool(left[number])
                assert left[number] == 0 or left[number] > 0.7 * whole[number]
            for number, (x, y) in zip(piece.numbers, piece.middles, strict=True):
                rows, columns = np.nonzero(piece.labels == number)
                side = len(piece.labels)
                assert columns.min() / side - 0.02 <= x <= (columns.max() + 1) / side + 0.02
                assert rows.min() / side - 0.02 <= y <= (rows.max() + 1) / side + 0.02
    assert smaller_ones


@pytest.mark.parametrize("grey", [True, False], ids=["grey", "strange"])
def test_recoloured_pieces_tell_nothing_of_colours(scenes: Scenes, monkeypatch: pytest.MonkeyPatch, grey: bool) -> None:
    monkeypatch.setattr(pieces, "GREY", float(grey))
    monkeypatch.setattr(pieces, "STRANGE", float(not grey))
    rng, recoloured = np.random.default_rng(3), 0
    for index in list(range(len(scenes))) * 4:
        piece = pieces.cut(scenes[index], rng)
        other = pieces.recoloured(piece, rng)
        if other.coloured:
            assert other is piece
            continue
        recoloured += 1
        assert other.pixels.dtype == np.uint8 and other.pixels.shape == piece.pixels.shape
        assert np.abs(other.pixels.astype(int) - piece.pixels).max() > 20
        assert not grey or (other.pixels == other.pixels[..., :1]).all()
        for number, thing, looks in zip(other.numbers, other.things, other.looks, strict=True):
            name, apart = nearest_colour(tuple((other.pixels[other.labels == number].mean(axis=0) / 255).tolist()))
            assert name in looks
            assert (thing.kind, name) not in HELD_OUT or apart >= pieces.NEAR
        kind, colour, middle, _ = vlm._truth([piece], 8)
        other_kind, other_colour, other_middle, _ = vlm._truth([other], 8)
        assert torch.equal(kind, other_kind) and torch.equal(middle, other_middle)
        assert colour.any() and not other_colour.any()
        (question, described), *others = vlm._talk(other, rng)
        assert question == questions.DESCRIBE and len(others) == vlm.QUESTIONS
        for word in described.replace(",", "").split():
            assert word not in colours()
        for thing in piece.things:
            assert thing.kind in described or plural(thing.kind) in described
    assert recoloured > 2 * len(scenes)


def test_what_comes_near_to_a_held_out_colour_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A car that would always come out purple stays as it is; a cup does not."""
    monkeypatch.setattr(pieces, "STRANGE", 1.0)
    monkeypatch.setattr(pieces, "_strange", lambda pixels, _: np.full_like(pixels, [110, 45, 165]))
    monkeypatch.setattr(pieces, "GREY", 0.0)
    for kind, shown in (("car", False), ("cup", True)):
        thing = Thing(kind, "red", (0, 0, 8, 8))
        pixels = np.full((8, 8, 3), [210, 20, 20], np.uint8)
        piece = pieces.Piece(pixels, np.ones((8, 8), np.uint8), [thing], [1], np.array([[0.5, 0.5]]), [{"red"}])
        found = pieces.recoloured(piece, np.random.default_rng(0))
        assert (found is piece) != shown
        assert found.looks == [{"purple"} if shown else {"red"}]


def test_some_pieces_keep_their_colours(scenes: Scenes) -> None:
    rng = np.random.default_rng(4)
    cuts = [pieces.cut(scenes[index % len(scenes)], rng) for index in range(300)]
    kept = sum(pieces.recoloured(piece, rng) is piece for piece in cuts) / 300
    assert 1 - pieces.GREY - pieces.STRANGE - 0.1 < kept < 0.75


def _right(things: Sequence[Thing], question: str, answer: str) -> bool:
    """Answers a question by its words."""
    tokens = question.lower().rstrip("?").split()
    if tokens[0] == "what":
        return [thing.colour for thing in things if thing.kind == tokens[-1]] == [answer]
    if tokens[0] == "how":
        return questions.COUNTS[sum(plural(thing.kind) == tokens[2] for thing in things)] == answer
    name = " ".join(tokens[3:])
    return ("yes" if any(name in (thing.name, thing.kind) for thing in things) else "no") == answer


def test_questions_have_true_answers_and_no_held_out_pair(scenes: Scenes) -> None:
    rng, given = np.random.default_rng(0), WordInput(CARD)
    unseen = {f"{colour} {kind}" for kind, colour in HELD_OUT}
    seen: dict[str, set[str]] = {}
    for index in range(len(scenes)):
        for things in (scenes[index].things, ()):
            for _ in range(200):
                question, answer = questions.ask(things, rng)
                assert _right(things, question, answer), question
                assert not any(question.endswith(f" {name}?") for name in unseen)
                assert given.tokens(f"{question} {answer}")
                seen.setdefault(question.split()[0], set()).add(answer)
    assert seen["Is"] == {"yes", "no"}
    assert {"none", "one"} <= seen["How"]
    assert len(seen["What"]) > 3


def test_questions_about_kinds_have_true_answers_and_no_colours(scenes: Scenes) -> None:
    rng = np.random.default_rng(0)
    seen: dict[str, set[str]] = {}
    for things in (*(scenes[index].things for index in range(len(scenes))), ()):
        for _ in range(200):
            question, answer = questions.ask_kind(things, rng)
            assert _right(things, question, answer), question
            assert not set(question.rstrip("?").split()) & set(colours())
            seen.setdefault(question.split()[0], set()).add(answer)
    assert seen.keys() == {"Is", "How"}
    assert seen["Is"] == {"yes", "no"}
    assert {"none", "one"} <= seen["How"]


def test_the_card_s_words_are_enough() -> None:
    given = WordInput(CARD)
    for kind in (*kinds(), "face", "sign"):
        given.tokens(f"{kind} {plural(kind)}")
    given.tokens(" ".join((*colours(), *questions.COUNTS, questions.DESCRIBE)))
    text = "two orange fish, a blue cup, an orange car, three faces and a sign"
    assert given.text(given.tokens(text)) == text
    assert parse_caption(text).total() == 8


def test_evaluation_counts_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """An oracle reaches one everywhere; one that forgets every second scene reaches half."""
    world = World(evaluation.SEED, 320, words="held_out")

    class Oracle:
        def __init__(self, card: ModelCard) -> None:
            self.scenes = iter(())

        def ask(self, prompt: str, choices: Any, limit: int) -> None:
            self.prompt, self.choices = prompt, choices

        def prepare(self, pixels: np.ndarray) -> Any:
            return next((index, scene) for index, scene in enumerate(drawn) if np.array_equal(scene.pixels, pixels))

        def answer(self, items: Any) -> Any:
            from labelmill.operators.engines.image_text_to_text.answerer import Reply

            return [Reply(self.say(*item)) for item in items]

        def say(self, index: int, scene: Any) -> str:
            things = [Thing(kind, colour, (0, 0, 1, 1)) for colour, kind in scene.things]
            if self.choices:
                return next(choice for choice in self.choices if _right(things, self.prompt, choice))
            return scene.caption if index % 2 == 0 or not forgetful else "a car of sorts"

    drawn = [world.scene(index) for index in range(8)]
    monkeypatch.setattr(evaluation, "ImageTextToText", Oracle)
    forgetful = False
    assert set(evaluation.evaluate(CARD, 8).values()) == {1.0}
    forgetful = True
    half = evaluation.evaluate(CARD, 8)
    assert half["captions"] == 0.5
    assert half["precision"] == 1
    assert 0 < half["recall"] < 1
    assert half["yes_no"] == 1


def test_sizes_that_do_not_fit_are_refused(scenes: Scenes, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="image_seq_length must be 16 for images of 64 pixels but is 25"):
        vlm.run(smaller(image_seq_length=25), scenes, tmp_path, replace(vlm.PLAN, steps=1))
    with pytest.raises(ModelError, match="config cannot be built"):
        vlm.run(smaller(vision_config={"model_type": "resnet", "layer_type": "wrong"}), scenes, tmp_path)
