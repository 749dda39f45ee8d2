from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from labelmill.operators.engines.embedding import open_clip as engine
from labelmill.operators.miniatures.evaluation import clip as evaluation
from labelmill.operators.miniatures.objects import HELD_OUT
from labelmill.operators.miniatures.training import clip as training
from labelmill.operators.miniatures.training import loop
from labelmill.operators.miniatures.training.scenes import Drawn, Scenes, Thing, describe
from labelmill.operators.miniatures.world import World
from labelmill.operators.models import ModelCard, ModelError, load_card
from labelmill.operators.models.card import ROOT

CARD = load_card(ROOT / "conf" / "models" / "clip-miniature.yaml")
SMALL = CARD.model_copy(
    update={
        "config": {
            "embed_dim": 32,
            "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32},
            "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
        },
        "preprocess": {"size": 32, "resize_mode": "squash"},
    }
)
PLAN = replace(training.PLAN, steps=12, rate=3e-3, warm_up=4, average=0.8)


class Few(Scenes):
    """A few scenes without files."""

    def __init__(self) -> None:
        world = World(5, pairs="seen")
        drawn = [world.scene(index) for index in range(12)]
        self.count = len(drawn)
        self.caught = 0
        self._drawn = []
        for scene in drawn:
            labels, things = describe(scene)
            self._drawn.append(Drawn(scene.pixels, labels, tuple(things), (), scene.caption))

    def __getitem__(self, index: int) -> Drawn:
        self.caught += 1
        return self._drawn[index]


@pytest.fixture(scope="module")
def scenes() -> Few:
    return Few()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("DRAWN", 6), ("CUT", 6), ("COPIED", 4)):
        monkeypatch.setattr(training, name, value)


def test_a_few_steps_lower_the_loss(scenes: Few, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = loop.train
    monkeypatch.setattr(training, "train", lambda *args: train(*args, report=9))
    weights = training.run(SMALL, scenes, tmp_path, replace(PLAN, steps=27))
    points = [json.loads(line) for line in (tmp_path / f"{training.NAME}.jsonl").read_text().splitlines()]
    totals = [point["name"] + point["kind"] + point["colour"] + point["copy"] for point in points]
    assert len(totals) == 3
    assert totals[-1] < 0.95 * totals[0]
    loop.save_half(weights, tmp_path / "weights.safetensors")
    path = CARD.weights.model_validate({"path": str(tmp_path / "weights.safetensors")})
    model = engine.build(SMALL.model_copy(update={"weights": path}))
    torch.testing.assert_close(model.text_projection, weights["text_projection"], atol=1e-3, rtol=1e-3)


def test_stopped_and_gone_on_is_the_same_as_never_stopped(scenes: Few, tmp_path: Path) -> None:
    whole = training.run(SMALL, scenes, tmp_path / "whole", PLAN)

    class Stops(Few):
        """Asks to stop in a later batch."""

        def __getitem__(self, index: int) -> Drawn:
            if self.caught == 60:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        training.run(SMALL, Stops(), tmp_path / "parts", PLAN)
    stopped = torch.load(tmp_path / "parts" / f"{training.NAME}.pt", weights_only=True)["step"]
    assert 0 < stopped < PLAN.steps
    parts = training.run(SMALL, scenes, tmp_path / "parts", PLAN)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_no_held_out_pair_is_seen_or_named(scenes: Few) -> None:
    unseen = {f"{colour} {kind}" for kind, colour in HELD_OUT}
    for seed in range(40):
        texts = training._texts(np.random.default_rng(seed))
        assert len(set(texts)) == len(texts) == 140 + 22 + 8
        assert not [text for text in texts if any(name in text for name in unseen)]
        _, things = training._objects(scenes, np.random.default_rng(seed))
        assert not unseen & {thing.name for thing in things}


def test_answers_point_at_their_texts() -> None:
    names, kinds, colours = np.split(np.array(training._texts(np.random.default_rng(0))), [140, 162])
    name, kind, colour = training._answers(Thing("car", "red", (0, 0, 1, 1)))
    assert "red car" in names[name]
    assert "car" in kinds[kind]
    assert "red" in colours[colour]
    name, kind, colour = training._answers(Thing("face", None, (0, 0, 1, 1)))
    assert (name, colour) == (-1, -1)
    assert "face" in kinds[kind]


def test_the_loss_of_copies_is_least_where_copies_are_together() -> None:
    originals = torch.eye(4)
    right, wrong = torch.cat([originals, originals]), torch.cat([originals, originals.roll(1, 0)])
    assert float(training._contrast(right)) < 0.01 < 5 < float(training._contrast(wrong))


def test_copies_follow_their_originals(scenes: Few) -> None:
    pictures = training._copies(scenes, np.random.default_rng(3))
    assert len(pictures) == 2 * training.COPIED
    steps = engine.image_transform_of(engine.settings(SMALL)).transforms[:-2]
    flat = np.stack([training._shrunk(picture, steps).numpy().ravel() for picture in pictures]).astype(float)
    likeness = np.corrcoef(flat)[: training.COPIED, training.COPIED :]
    assert (likeness.argmax(axis=1) == np.arange(training.COPIED)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preprocess": {"size": 48}}, "preprocess.size must be 32 but is 48"),
        ({"config": {**SMALL.config, "text_cfg": {**SMALL.config["text_cfg"], "heads": 3}}}, "config cannot be built"),
    ],
)
def test_bad_sizes_are_refused(scenes: Few, tmp_path: Path, change: dict[str, object], message: str) -> None:
    card: ModelCard = SMALL.model_copy(update=change)
    with pytest.raises(ModelError, match=f"model card clip-miniature: .*{message}"):
        training.run(card, scenes, tmp_path, PLAN)


def test_evaluation_tells_the_trained_from_the_ignorant() -> None:
    ignorant = SMALL.model_copy(update={"weights": CARD.weights.model_validate({"random": 0})})
    good, bad = evaluation.evaluate(CARD, 24), evaluation.evaluate(ignorant, 24)
    assert good.keys() == bad.keys()
    assert good == evaluation.evaluate(CARD, 24)
    for key in ("top1", "top1_held_out", "top1_cut"):
        assert bad[key] < 0.1 < 0.6 < good[key]
    assert good["copies_ap"] > 0.95
    assert good["copies_precision"] > bad["copies_precision"]
    assert good["recall_exact"] == bad["recall_exact"] == 1.0
