from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from labelmill.operators.engines.gaze import l2cs
from labelmill.operators.miniatures.evaluation import gaze as evaluation
from labelmill.operators.miniatures.training import gaze as training
from labelmill.operators.miniatures.training.loop import save_half
from labelmill.operators.miniatures.training.scenes import Drawn, Scenes, Thing
from labelmill.operators.miniatures.world import World
from labelmill.operators.models import ModelCard, ModelError, load_card
from labelmill.operators.models.card import ROOT

CARD = load_card(ROOT / "conf" / "models" / "l2cs-miniature.yaml").model_copy(
    update={"config": {"width": 4}, "preprocess": {"crop": 32, "size": 32}}
)
PLAN = replace(training.PLAN, steps=24, rate=3e-3, warm_up=4, average=0.8)


class Few(Scenes):
    """A few scenes without files."""

    def __init__(self, faces: bool = True) -> None:
        drawn = [World(5).scene(index) for index in range(12)]
        self._drawn = [
            Drawn(
                scene.pixels,
                np.zeros(scene.pixels.shape[:2], np.uint8),
                tuple(Thing("face", None, face.box, (face.yaw, face.pitch)) for face in scene.faces if faces),
                (),
                "",
            )
            for scene in drawn
        ]
        self.count = len(drawn)

    def __getitem__(self, index: int) -> Drawn:
        return self._drawn[index]


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return Few()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "FROM_SCENES", 6)
    monkeypatch.setattr(training, "DRAWN", 4)


def entropies(folder: Path) -> list[float]:
    """The curve of the cross-entropies; the squared errors of so few faces go up and down."""
    lines = (folder / f"{training.NAME}.jsonl").read_text().splitlines()
    return [point["yaw"] + point["pitch"] for point in map(json.loads, lines)]


def test_a_few_steps_lower_the_loss(scenes: Scenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from labelmill.operators.miniatures.training import loop

    train = loop.train
    monkeypatch.setattr(training, "train", lambda *args: train(*args, report=6))
    weights = training.run(CARD, scenes, tmp_path, replace(PLAN, steps=36))
    curve = entropies(tmp_path)
    assert len(curve) == 6
    assert curve[-1] < 0.9 * curve[0]
    save_half(weights, tmp_path / "weights.safetensors")
    path = CARD.weights.model_validate({"path": str(tmp_path / "weights.safetensors")})
    model = l2cs.build(CARD.model_copy(update={"weights": path}))
    torch.testing.assert_close(model.conv1.weight, weights["conv1.weight"].contiguous(), atol=1e-3, rtol=1e-3)


def test_stopped_and_gone_on_is_the_same_as_never_stopped(scenes: Scenes, tmp_path: Path) -> None:
    whole = training.run(CARD, scenes, tmp_path / "whole", PLAN)

    class Stops(Few):
        """Asks to stop when a face of a later batch is cut."""

        asked = 0

        def __getitem__(self, index: int) -> Drawn:
            self.asked += 1
            if self.asked == 150:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        training.run(CARD, Stops(), tmp_path / "parts", PLAN)
    stopped = torch.load(tmp_path / "parts" / f"{training.NAME}.pt", weights_only=True)["step"]
    assert 0 < stopped < PLAN.steps
    parts = training.run(CARD, scenes, tmp_path / "parts", PLAN)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_batches_are_faces_with_their_gaze_and_half_are_mirrored(scenes: Scenes) -> None:
    faces = [(n, t) for n in range(len(scenes)) for t in range(len(scenes[n].things))]
    crops, gazes = training._batch(scenes, faces, 32, np.random.default_rng(0))
    assert crops.shape == (10, 32, 32, 3)
    assert crops.dtype == torch.uint8
    true = {tuple(np.float32(value) for value in thing.gaze or ()) for n, t in faces for thing in [scenes[n].things[t]]}
    straight = [tuple(gaze) in true for gaze in gazes.numpy()[:6]]
    mirrored = [(-yaw, pitch) in true for yaw, pitch in gazes.numpy()[:6]]
    assert [one != other for one, other in zip(straight, mirrored, strict=True)] == [True] * 6
    assert any(straight)
    assert any(mirrored)
    again = training._batch(scenes, faces, 32, np.random.default_rng(0))
    assert torch.equal(crops, again[0])
    assert torch.equal(gazes, again[1])


@pytest.mark.parametrize("wanted", [0.0, -33.0, 51.5, 20.0, -0.01])
def test_the_loss_is_least_where_the_angle_is_right(wanted: float) -> None:
    def loss(angle: float) -> float:
        place = (angle + 180) / 4
        low = int(np.floor(place))
        odds = torch.full((1, 90), 1e-6)
        odds[0, low], odds[0, low + 1] = 1 - (place - low) + 1e-6, place - low + 1e-6
        parts = training._criterion("yaw", odds.log(), torch.tensor([wanted]))
        assert set(parts) == {"yaw", "yaw square"}
        return float(sum(parts.values()))

    others = [loss(wanted + off) for off in (-8, -3, -1, 1, 3, 8)]
    assert loss(wanted) < min(others)
    assert others[0] > others[1] > others[2]
    assert others[5] > others[4] > others[3]


@pytest.mark.parametrize("change", [{"config": {"width": -4}}, {"preprocess": {"crop": 32, "size": 8}}])
def test_bad_sizes_are_refused(scenes: Scenes, tmp_path: Path, change: dict[str, object]) -> None:
    card: ModelCard = CARD.model_copy(update=change)
    with pytest.raises(ModelError, match=r"model card l2cs-miniature: (config.width|preprocess.size)"):
        training.run(card, scenes, tmp_path, PLAN)


def test_scenes_without_faces_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one face but none of the 12 has"):
        training.run(CARD, Few(faces=False), tmp_path, PLAN)


def test_evaluation_goes_through_the_operator() -> None:
    """A model that knows nothing is far off, the committed one is not, and both are judged on the same faces."""
    card = load_card(ROOT / "conf" / "models" / "l2cs-miniature.yaml")
    ignorant = CARD.model_copy(update={"weights": CARD.weights.model_validate({"random": 0})})
    good, bad = evaluation.evaluate(card, 20), evaluation.evaluate(ignorant, 20)
    assert good["faces"] == bad["faces"] > 3
    assert good["angular_error"] < 5 < 12 < bad["angular_error"]
    assert good["angular_error_inexact"] < 7
    assert good == evaluation.evaluate(card, 20)
