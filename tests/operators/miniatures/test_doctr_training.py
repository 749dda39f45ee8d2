"""The trainings of docTR's two small models: what they are shown, that they learn, and that they can go on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from labelmill.operators.engines.text import doctr_model
from labelmill.operators.miniatures.training import doctr_detection as detection
from labelmill.operators.miniatures.training import doctr_recognition as recognition
from labelmill.operators.miniatures.training import scenes as scenes_module
from labelmill.operators.miniatures.training.loop import Plan
from labelmill.operators.miniatures.training.scenes import Drawn, Scenes, Word, draw_scenes
from labelmill.operators.miniatures.words import held_out
from labelmill.operators.models import ModelError, load_card
from labelmill.operators.models.card import ROOT, ModelCard

CARDS = {
    detection: load_card(ROOT / "conf" / "models" / "doctr-detection-miniature.yaml"),
    recognition: load_card(ROOT / "conf" / "models" / "doctr-recognition-miniature.yaml"),
}
KNOWN = ("about", "above", "stop", "1905")


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes_module, "BLOCK", 8)
        patch.setattr(detection, "BATCH", 2)
        patch.setattr(detection, "SIDE", 96)
        patch.setattr(recognition, "BATCH", 4)
        patch.setattr(recognition, "MADE_UP", 6)
        patch.setattr(recognition, "BLOCK", 4)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    return draw_scenes(tmp_path_factory.mktemp("scenes"), 8, workers=1)


def scene(*quads: list[list[float]]) -> Drawn:
    """Black, with a white box around each quad."""
    pixels = np.zeros((320, 320, 3), np.uint8)
    for (x1, y1), _, (x2, y2), _ in quads:
        pixels[int(y1) : int(y2), int(x1) : int(x2)] = 255
    return Drawn(pixels, np.zeros((320, 320), np.uint8), (), tuple(Word("word", quad) for quad in quads), "")


def box(x1: float, y1: float, x2: float, y2: float) -> list[list[float]]:
    return [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]


def test_no_word_is_cut_and_corners_follow_the_pixels() -> None:
    drawn = scene(box(20, 30, 100, 50), box(110, 70, 170, 90), box(200, 250, 260, 280))
    seen = set()
    for seed in range(60):
        pixels, quads = detection.cut_piece(drawn, np.random.default_rng(seed))
        side = len(pixels)
        assert pixels.shape == (side, side, 3) and pixels.dtype == np.uint8
        assert quads.dtype == np.float32 and len(quads)
        white = np.zeros((side, side), bool)
        for quad in quads * side:
            (x1, y1), (x2, y2) = np.rint(quad.min(axis=0)).astype(int), np.rint(quad.max(axis=0)).astype(int)
            white[y1:y2, x1:x2] = True
        assert np.array_equal(white, pixels[:, :, 0] == 255)
        seen.add((side, len(quads)))
    assert len({side for side, _ in seen}) > 10
    assert {count for _, count in seen} >= {1, 2}


def test_a_word_that_no_piece_holds_is_shown_in_the_whole_scene() -> None:
    pixels, quads = detection.cut_piece(scene(box(10, 100, 310, 130)), np.random.default_rng(0))
    assert len(pixels) == 320
    np.testing.assert_allclose(quads[0] * 320, box(10, 100, 310, 130), atol=1e-3)


def test_scenes_without_a_word_are_background_all_over() -> None:
    model = doctr_model.initial(CARDS[detection], 0)
    _, quads = detection.cut_piece(scene(), np.random.default_rng(0))
    target, mask, *_ = model.build_target([{"words": quads}], (1, 96, 96))
    assert not target.any()
    assert not mask.all() and mask.sum() >= 96 * 96 - 9
    _, ignored, *_ = model.build_target([{"words": np.zeros((0, 4, 2), np.float32)}], (1, 96, 96))
    assert not ignored.any()  # why the corner has a box


def test_scenes_without_any_word_are_refused(tmp_path: Path, scenes: Scenes) -> None:
    class Wordless(Scenes):
        def __init__(self) -> None:
            self.count = 3

        def __getitem__(self, index: int) -> Drawn:
            return scene()

    with pytest.raises(ValueError, match="must have words on some of them but none of the 3 has"):
        detection.run(CARDS[detection], Wordless(), tmp_path, Plan(steps=1, rate=1e-3))


def test_made_up_words_are_never_held_out() -> None:
    known = tuple(word for word in KNOWN if not held_out(word))
    rng = np.random.default_rng(0)
    texts = [recognition.make_up(known, rng) for _ in range(400)]
    assert not any(held_out(text) for text in texts)
    assert {text.isdigit() for text in texts} == {True, False}
    assert all(len(text) <= 10 for text in texts)
    letters = [text for text in texts if text.isalpha() and len(text) > 1]
    assert any(text.isupper() for text in letters) and any(text.islower() for text in letters)
    assert set("".join(texts)) == set(CARDS[recognition].config["vocab"])


def test_words_are_kept_as_they_were_cut_out(scenes: Scenes, tmp_path: Path) -> None:
    words = recognition.patches(scenes, tmp_path, 6, workers=1)
    printed = [word for number in range(len(scenes)) for word in scenes[number].words]
    assert len(words) == len(printed) + 6
    assert [words[index][0] for index in range(len(printed))] == [word.text for word in printed]
    for index, word in enumerate(printed):
        _, pixels, quad = words[index]
        shape = np.array(word.quad)
        np.testing.assert_allclose(quad - quad[0], shape - shape[0], atol=1e-3)
        assert (quad >= -0.01).all() and (quad <= np.array(pixels.shape[1::-1]) + 0.01).all()
    made = [words[index] for index in range(len(printed), len(words))]
    # In blocks of another size, and read from the file: the same.
    again = recognition.patches(scenes, tmp_path, 6, workers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recognition, "BLOCK", 5)
        other = recognition.patches(scenes, tmp_path / "other", 6, workers=2)
    for index in range(len(words)):
        assert words[index][0] == other[index][0]
        assert np.array_equal(words[index][1], other[index][1])
        assert np.array_equal(words[index][2], other[index][2])
        assert again[index][0] == words[index][0]
    assert len({text for text, *_ in made}) > 3


def test_a_word_is_cut_out_upright() -> None:
    """A turned white bar becomes a straight one that fills nearly all of the crop."""
    import cv2

    pixels = np.zeros((80, 160, 3), np.uint8)
    quad = cv2.boxPoints(((80, 40), (100, 20), 10))
    quad = quad[np.argsort(np.arctan2(*(quad - quad.mean(axis=0)).T[::-1]))]
    cv2.fillPoly(pixels, [np.rint(quad).astype(np.int32)], (255, 255, 255))
    shares = []
    for seed in range(20):
        crop = recognition.cut_word(pixels, quad, np.random.default_rng(seed))
        assert crop is not None
        assert 88 <= crop.shape[1] <= 104 and 10 <= crop.shape[0] <= 24
        shares.append((crop > 128).mean())
    assert min(shares) > 0.8 and len(set(shares)) > 10
    # What the constants say of DBNet is what docTR does.
    model = doctr_model.initial(CARDS[detection], 0)
    assert (model.shrink_ratio, model.postprocessor.unclip_ratio) == (recognition.SHRINK, recognition.UNCLIP)


@pytest.mark.parametrize(("module", "part"), [(detection, "cut_piece"), (recognition, "cut_word")])
def test_stopped_and_gone_on_gives_the_same_weights(
    module: Any, part: str, scenes: Scenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(steps=3, rate=1e-3, warm_up=1, average=0.5)
    card = CARDS[module]
    whole = module.run(card, scenes, tmp_path / "whole", plan)
    start = doctr_model.initial(card, plan.seed).state_dict()
    assert whole.keys() == start.keys()
    assert all(torch.isfinite(tensor).all() for tensor in whole.values())
    moved = [name for name, tensor in whole.items() if not torch.equal(tensor, start[name])]
    assert len(moved) > 0.9 * len(whole)

    cut, calls = getattr(module, part), 0

    def stop(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return cut(*arguments)

    monkeypatch.setattr(module, part, stop)
    with pytest.raises(KeyboardInterrupt):
        module.run(card, scenes, tmp_path / "stopped", plan)
    again = module.run(card, scenes, tmp_path / "stopped", plan)
    assert calls >= 3 * module.BATCH
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize(("module", "key", "least"), [(detection, "db", 0.9), (recognition, "ctc", 0.5)])
def test_a_few_steps_lower_the_loss(module: Any, key: str, least: float, scenes: Scenes, tmp_path: Path) -> None:
    import json

    plan = Plan(steps=16, rate=2e-3, warm_up=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.train, "__kwdefaults__", {"report": 4, "keep": 120.0})
        module.run(CARDS[module], scenes, tmp_path, plan)
    curve = [json.loads(line)[key] for line in (tmp_path / f"{module.NAME}.jsonl").read_text().splitlines()]
    assert len(curve) == 4
    assert curve[-1] < least * curve[0]


@pytest.mark.parametrize(
    ("module", "config", "message"),
    [
        (detection, {"stem": 0}, "config.stem"),
        (detection, {"channels": [8, 8, 8]}, "config.channels"),
        (detection, {"head": 30}, "config.head"),
        (recognition, {"strides": [[2, 2]]}, "as many pairs as config.channels has numbers, 5, but has 1"),
        (recognition, {"vocab": ""}, "config.vocab"),
        (recognition, {"units": 0}, "config.units"),
        (recognition, {"hidden": 3}, "config.hidden"),
    ],
)
def test_sizes_that_cannot_be_built(
    module: Any, config: dict[str, Any], message: str, scenes: Scenes, tmp_path: Path
) -> None:
    card: ModelCard = CARDS[module].model_copy(update={"config": {**CARDS[module].config, **config}})
    with pytest.raises(ModelError, match=message):
        module.run(card, scenes, tmp_path, Plan(steps=1, rate=1e-3))


def test_both_trainings_say_what_they_need() -> None:
    modules: list[ModuleType] = [detection, recognition]
    for module in modules:
        assert CARDS[module].name == module.NAME
        assert module.PLAN.steps > module.PLAN.warm_up
