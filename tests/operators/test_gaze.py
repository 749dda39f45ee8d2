from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torchvision
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file

from labelmill.operators.applying.apply import Job, apply
from labelmill.operators.applying.shard_images import ShardImages
from labelmill.operators.applying.worker import Worker
from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.operators.engines.gaze import l2cs as engine
from labelmill.operators.errors import OperatorError, RowError
from labelmill.operators.gaze import GAZES, Gaze
from labelmill.operators.images.decoded import decode
from labelmill.operators.miniatures.crops import draw_face
from labelmill.operators.miniatures.faces import direction
from labelmill.operators.models import ModelCard, ModelError, load_card
from labelmill.operators.models.card import ROOT
from tests.drawing import encode, noise

FOLDER = ROOT / "conf" / "models"
MINIATURE = load_card(FOLDER / "l2cs-miniature.yaml")
RANDOM = ModelCard.model_validate(
    {
        "name": "l2cs-random",
        "task": "gaze",
        "engine": "l2cs",
        "architecture": "ResNet18",
        "weights": {"random": 3},
        "config": {"width": 8},
        "preprocess": {"crop": 40, "size": 64},
        "licence": "Apache-2.0",
        "memory_gb": 0.3,
    }
)
PICTURES = [encode(noise(index, width, height), "PNG") for index, (width, height) in enumerate([(90, 60), (31, 200)])]


def detection(*box: float, name: str | None = "face", score: float = 0.5) -> dict[str, Any]:
    sides = dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))
    return {**sides, "class": name, "score": score, "prompt": None, "mask": None}


def gaze(card: ModelCard = RANDOM, **params: Any) -> Gaze:
    operator = Gaze(Gaze.Params(model=card, **params))
    operator.check({"detections": DETECTIONS})
    operator.ready()
    operator.load()
    return operator


def look(operator: Gaze, *rows: tuple[bytes, list[dict[str, Any]] | None]) -> list[Any]:
    items = [operator.prepare(decode(data), {"detections": found}) for data, found in rows]
    return [row if isinstance(row, RowError) else row["gaze"] for row in operator.infer(items)]


def boxes_of(data: bytes, count: int) -> list[dict[str, Any]]:
    """Boxes of many sizes and shapes inside a picture."""
    image, rng = decode(data), np.random.default_rng(count)
    size = np.array([image.width, image.height] * 2)
    corners = np.sort(rng.random((count, 2, 2)), axis=1).reshape(count, 4) * size
    return [detection(*(float(np.float32(value)) for value in box)) for box in corners]


@pytest.fixture(scope="module")
def operator() -> Gaze:
    return gaze()


@pytest.mark.parametrize(
    ("architecture", "reference"),
    [("ResNet18", torchvision.models.resnet18), ("ResNet50", torchvision.models.resnet50)],
)
def test_the_network_is_torchvision_s_resnet_with_two_heads(architecture: str, reference: Any) -> None:
    torch.manual_seed(0)
    body = reference(weights=None).eval()
    model = engine.initial(RANDOM.model_copy(update={"architecture": architecture, "config": {}}), seed=0).eval()
    state = {name: tensor for name, tensor in body.state_dict().items() if not name.startswith("fc.")}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert unexpected == []
    assert missing == [f"fc_{angle}_gaze.{part}" for angle in ("yaw", "pitch") for part in ("weight", "bias")]
    body.fc = torch.nn.Identity()
    pixels = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        features = body(pixels)
        yaw, pitch = model(pixels)
        torch.testing.assert_close(yaw, model.fc_yaw_gaze(features))
        torch.testing.assert_close(pitch, model.fc_pitch_gaze(features))
    assert yaw.shape == pitch.shape == (2, 90)


def test_a_file_of_the_authors_fits(tmp_path: Path) -> None:
    """Theirs is a pickled state dict that holds a layer more than the network uses."""
    state = engine.initial(RANDOM, seed=5).state_dict()
    spare = {"fc_finetune.weight": torch.zeros(3, 67), "fc_finetune.bias": torch.zeros(3)}
    torch.save({**state, **spare}, tmp_path / "L2CSNet.pkl")
    card = RANDOM.model_copy(update={"weights": RANDOM.weights.model_validate({"path": str(tmp_path / "L2CSNet.pkl")})})
    loaded = engine.build(card).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_heads_bins_and_signs(operator: Gaze, monkeypatch: pytest.MonkeyPatch) -> None:
    """Yaw comes from fc_yaw_gaze, in bins of 4 degrees from -180; the angle is the mean over the bins."""
    model = engine.build(RANDOM)
    for head, bins in ((model.fc_yaw_gaze, (50, 51)), (model.fc_pitch_gaze, (40, 40))):
        head.weight.zero_()
        head.bias.fill_(-100)
        head.bias[list(bins)] = 0
    monkeypatch.setattr(operator._estimator, "_model", model)
    ((found,),) = look(operator, (PICTURES[0], boxes_of(PICTURES[0], 1)))
    assert found["yaw"] == pytest.approx(22)
    assert found["pitch"] == pytest.approx(-20)


@pytest.mark.parametrize("seed", range(4))
def test_the_miniature_looks_where_faces_look(seed: int) -> None:
    """Up to the left edge is yaw > 0 and pitch > 0, as the truth of the drawn world has it; a mirror turns yaw over."""
    operator = gaze(MINIATURE)
    yaw, pitch = [(25, 15), (-25, 15), (25, -15), (-25, -15)][seed]
    pixels, *_ = draw_face(np.random.default_rng([77, seed]), 96, yaw, pitch)
    box = [detection(0, 0, pixels.shape[1], pixels.shape[0])]
    (found,), (turned,) = look(
        operator, *((encode(Image.fromarray(each), "PNG"), box) for each in (pixels, pixels[:, ::-1]))
    )
    for gaze_, truth in ((found, (yaw, pitch)), (turned, (-yaw, pitch))):
        cosine = direction(gaze_["yaw"], gaze_["pitch"]) @ direction(*truth)
        assert np.degrees(np.arccos(cosine)) < 8


def test_one_entry_for_each_face_with_its_box_and_its_place(operator: Gaze) -> None:
    found = [
        detection(1, 2, 30, 40, name="car"),
        detection(5.25, 6.5, 40, 50.75),
        detection(0, 0, 20, 20, name=None),
        detection(10, 10, 60, 55),
    ]
    ((first, second),) = look(operator, (PICTURES[0], found))
    assert [first["detection"], second["detection"]] == [1, 3]
    assert [first[side] for side in ("x1", "y1", "x2", "y2")] == [5.25, 6.5, 40, 50.75]
    assert -180 <= first["yaw"] <= 176
    assert (first["yaw"], first["pitch"]) != (second["yaw"], second["pitch"])
    ((only,),) = look(gaze(classes=["car", "lorry"]), (PICTURES[0], found))
    assert only["detection"] == 0


def test_no_faces_and_no_detections(operator: Gaze) -> None:
    some = boxes_of(PICTURES[0], 2)
    rows = look(operator, (PICTURES[0], []), (PICTURES[1], None), (PICTURES[0], some), (PICTURES[1], []))
    assert rows[0] == rows[3] == []
    assert rows[1] is None
    assert len(rows[2]) == 2
    assert look(operator, (PICTURES[0], None)) == [None]
    assert look(operator, (PICTURES[0], [])) == [[]]


def test_a_face_does_not_depend_on_what_is_batched_with_it(operator: Gaze) -> None:
    rows = [
        (PICTURES[index % 2], boxes_of(PICTURES[index % 2], count)) for index, count in enumerate((20, 0, 1, 30, 7))
    ]
    assert sum(len(found) for _, found in rows) > engine.FACES
    together = look(operator, *rows)
    for (data, found), faces in zip(rows, together, strict=True):
        alone = [look(operator, (data, [each]))[0][0] for each in found]
        for angle in ("yaw", "pitch"):
            np.testing.assert_allclose([face[angle] for face in faces], [face[angle] for face in alone], atol=1e-4)
    assert look(operator, *rows) == together


@pytest.mark.parametrize("box", [(10, 5, 50, 45), (-20, 5, 50, 300), (10.5, 5.25, 49.5, 44.75)])
def test_a_cut_is_the_inside_of_the_box(box: tuple[float, ...]) -> None:
    image = noise(1, 90, 60)
    cut = engine.cut_face(image, box, 40)
    left, top, right, bottom = box
    whole = image.crop((max(0, round(left)), max(0, round(top)), min(90, round(right)), min(60, round(bottom))))
    expected = np.asarray(whole.resize((40, 40), Image.Resampling.BILINEAR), dtype=int)
    assert cut.dtype == np.uint8
    inner = np.abs(cut - expected)[3:-3, 3:-3]  # sampling at the border takes in the neighbours outside
    if all(value == round(value) for value in box):
        assert inner.max() <= 1
    else:
        assert 1 < inner.max() < 25


@pytest.mark.parametrize("box", [(7, 3, 7, 3), (90, 60, 90, 60), (0, 0, 0, 60), (89.9, 0.2, 90, 0.3), (200, 9, 300, 9)])
def test_a_box_without_area_is_a_pixel(operator: Gaze, box: tuple[float, ...]) -> None:
    image = noise(1, 90, 60)
    x, y = min(int(box[0]), 89), min(int(box[1]), 59)
    near = np.asarray(image)[max(0, y - 1) : y + 60, max(0, x - 1) : x + 2].reshape(-1, 3)
    cut = engine.cut_face(image, box, 8).reshape(-1, 3)
    assert (cut >= near.min(axis=0)).all()
    assert (cut <= near.max(axis=0)).all()
    ((found,),) = look(operator, (encode(image, "PNG"), [detection(*box)]))
    assert np.isfinite([found["yaw"], found["pitch"]]).all()


def test_the_model_sees_the_crop_scaled_to_its_size_and_normalised(
    operator: Gaze, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Watch(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            seen.append(pixels)
            return torch.zeros(len(pixels), 90), torch.zeros(len(pixels), 90)

    monkeypatch.setattr(operator._estimator, "_model", Watch())
    (found,) = look(operator, (PICTURES[0], [detection(10, 5, 70, 45)]))
    assert found[0]["yaw"] == pytest.approx(-2)
    crop = Image.fromarray(engine.cut_face(decode(PICTURES[0]).pil(), (10, 5, 70, 45), 40))
    large = np.asarray(crop.resize((64, 64), Image.Resampling.BILINEAR)) / 255
    expected = (large - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(seen[0][0].permute(1, 2, 0).numpy(), expected, atol=1.01 / 255 / 0.224)


def test_through_a_shard_to_arrow(operator: Gaze) -> None:
    files = {"a": PICTURES[0], "b": PICTURES[1], "c": b"no image", "d": PICTURES[0]}
    found = [boxes_of(PICTURES[0], 2), [], [detection(0, 0, 9, 9)], None]
    rows = pa.table(
        {
            "image_id": pa.array(range(1, 5), pa.int64()),
            "key": list(files),
            "detections": pa.array(found, DETECTIONS),
        }
    )
    table, _ = apply(Job(Worker(operator), rows, np.ones(4, dtype=bool)), ShardImages(list(files), files.__getitem__))
    column = table.column("gaze")
    assert column.type == GAZES
    assert [None if row is None else len(row) for row in column.to_pylist()] == [2, 0, None, None]
    assert table.column("decision").to_pylist() == ["kept", "kept", "failed", "kept"]
    assert column[0].as_py() == look(operator, (PICTURES[0], found[0]))[0]


def test_half_precision_stays_near() -> None:
    rng = np.random.default_rng(3)
    pictures = [encode(Image.fromarray(draw_face(rng, 96)[0]), "PNG") for _ in range(8)]
    rows = [(data, [detection(0, 0, *decode(data).pixels.shape[1::-1])]) for data in pictures]
    full, half = (look(gaze(MINIATURE, dtype=dtype), *rows) for dtype in ("float32", "bfloat16"))
    off = [abs(a[0][angle] - b[0][angle]) for a, b in zip(full, half, strict=True) for angle in ("yaw", "pitch")]
    assert 0 < max(off) < 1


def test_nan_fails_its_row_only(operator: Gaze, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = operator._estimator.look
    monkeypatch.setattr(
        operator._estimator, "look", lambda faces: whole(faces) + np.array([[0, 0], [np.nan, 0], [0, 0]])
    )
    two, one = boxes_of(PICTURES[0], 2), boxes_of(PICTURES[1], 1)
    rows = look(operator, (PICTURES[0], two), (PICTURES[1], []), (PICTURES[1], one))
    assert isinstance(rows[0], RowError)
    assert "not finite" in str(rows[0])
    assert rows[1] == []
    assert len(rows[2]) == 1


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_box_that_is_none_fails_its_row(operator: Gaze, value: Any) -> None:
    with pytest.raises(RowError, match="the box of detection 1 must be four finite numbers but is "):
        look(operator, (PICTURES[0], [detection(0, 0, 5, 5), detection(0, value, 5, 5)]))


def test_reads_the_column_it_is_told_and_only_detections() -> None:
    operator = Gaze(Gaze.Params(model=RANDOM, detections="faces.detections"))
    assert operator.reads() == ("faces.detections",)
    operator.check({"faces.detections": DETECTIONS})
    with pytest.raises(OperatorError, match=r"column 'faces.detections' must be list.* but is list<item: string>"):
        operator.check({"faces.detections": pa.list_(pa.string())})
    with pytest.raises(ValidationError, match="at least 1 item"):
        Gaze.Params(model=RANDOM, classes=())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "ResNet20"}, "architecture must be one of ResNet18, .* but is 'ResNet20'"),
        ({"config": {"width": 0}}, "config.width: .* found 0"),
        ({"preprocess": {"size": 16}}, "preprocess.size: .* found 16"),
        ({"preprocess": {"margin": 0.1}}, "preprocess.margin: Extra inputs"),
    ],
)
def test_cards_that_do_not_fit_are_refused_before_loading(changes: dict[str, Any], message: str) -> None:
    operator = Gaze(Gaze.Params(model=RANDOM.model_copy(update=changes)))
    with pytest.raises(ModelError, match=message):
        operator.check({"detections": DETECTIONS})


def test_a_card_for_something_else_is_refused() -> None:
    with pytest.raises(ValidationError, match="must be a model card for gaze with engine l2cs but clip-random is"):
        Gaze.Params(model=load_card(FOLDER / "clip-random.yaml"))


def test_weights_that_are_wrong_missing_or_corrupt(tmp_path: Path) -> None:
    def with_file(name: str, **changes: Any) -> ModelCard:
        weights = RANDOM.weights.model_validate({"path": str(tmp_path / name)})
        return RANDOM.model_copy(update={"weights": weights, **changes})

    with pytest.raises(ModelError, match="but there is no such file"):
        gaze(with_file("none.safetensors"))
    save_file(engine.build(RANDOM).state_dict(), tmp_path / "good.safetensors")
    with pytest.raises(ModelError, match=r"must fit ResNet18 but: .* of another shape \(conv1.weight must be"):
        gaze(with_file("good.safetensors", config={"width": 16}))
    with pytest.raises(ModelError, match=r"must fit ResNet50 but: .*missing \(layer1.0.conv3.weight"):
        gaze(with_file("good.safetensors", architecture="ResNet50"))
    (tmp_path / "bad.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes()[:-50])
    with pytest.raises(ModelError, match="cannot be read from"):
        gaze(with_file("bad.safetensors"))


def test_the_full_size_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    card = load_card(FOLDER / "l2cs-gaze360.yaml")
    assert card.section("preprocess", engine.Preprocess) == engine.Preprocess.model_validate({})
    assert sum(tensor.numel() for tensor in engine.initial(card, 0).parameters()) == 23_508_032 + 2 * (2048 * 90 + 90)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    operator = Gaze(Gaze.Params(model=card))
    operator.check({"detections": DETECTIONS})
    assert operator.needs().gpu
    with pytest.raises(ModelError, match="run `labelmill models pull l2cs-gaze360`"):
        operator.ready()
