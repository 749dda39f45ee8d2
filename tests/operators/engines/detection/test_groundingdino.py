"""Grounding DINO in its authors' own code, beside transformers'."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from labelmill.operators.detect import Detect
from labelmill.operators.engines.detection import grounding_dino_model
from labelmill.operators.engines.detection.wordpiece import vocabulary
from labelmill.operators.errors import OperatorError
from labelmill.operators.models import ModelCard, ModelError, load_card
from tests.drawing import picture
from tests.operators.engines.detection.tiny_detectors import (
    FOLDER,
    ONTOLOGY,
    ORIGINAL,
    SIZES,
    SWIN,
    WIDE,
    answers,
    detect,
    original,
    original_state,
    renamed,
    unnamed,
)

pytest.importorskip("groundingdino", reason="needs the extra groundingdino")


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    return original(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def operator(card: ModelCard) -> Detect:
    return detect(card)


@pytest.fixture(scope="module")
def transformers_s() -> Detect:
    return detect(WIDE)


def source(path: Path, **changes: Any) -> ModelCard:
    weights = ORIGINAL.weights.model_validate({"path": str(path), **changes})
    return ORIGINAL.model_copy(update={"weights": weights})


# ---------------------------------------------------------------- the two engines agree


def test_every_tensor_of_transformers_has_one_place_in_the_authors_checkpoint() -> None:
    theirs = grounding_dino_model.build(WIDE).state_dict()
    used = [name for own in original_state(theirs) for name in renamed(own)]
    shared = {name for name in theirs if ".bbox_embed." in name or name.startswith("bbox_embed.")}
    # Of Swin's last norm and of BERT's pooler detection uses nothing.
    assert set(theirs) - set(used) == {name for name in theirs if ".swin.layernorm." in name}
    once = [name for name in used if name in theirs and name not in shared]
    assert len(once) == len(set(once))


@pytest.mark.parametrize("size", SIZES)
def test_scores_and_boxes_are_those_of_transformers(
    operator: Detect, transformers_s: Detect, size: tuple[int, int]
) -> None:
    assert operator._asked == transformers_s._asked
    images = [picture(*size, seed) for seed in range(2)]
    (scores, boxes), (expected, places) = answers(operator, images), answers(transformers_s, images)
    assert expected.std() > 0.05
    assert places.std() > 0.05
    np.testing.assert_allclose(scores, expected, atol=1e-3)
    np.testing.assert_allclose(boxes, places, atol=1e-3)


def test_rows_are_those_of_transformers(operator: Detect, transformers_s: Detect) -> None:
    rows = []
    for each in (operator, transformers_s):
        (row,) = each.infer([each.prepare(picture(320, 240), {})])
        assert isinstance(row, dict)
        rows.append(
            sorted((found["prompt"], round(found["score"], 2), round(found["x1"])) for found in row["detections"])
        )
    assert len(rows[0]) > 100
    same = len(set(rows[0]) & set(rows[1]))
    assert same > 0.95 * len(set(rows[0]))  # a score or side may round the other way


def test_the_authors_module_is_left_as_it_was(operator: Detect) -> None:
    from groundingdino.models.GroundingDINO.bertwarper import BertModelWarper
    from groundingdino.util import get_tokenlizer

    module = sys.modules["groundingdino.models.GroundingDINO.groundingdino"]
    assert module.get_tokenlizer is get_tokenlizer and module.BertModelWarper is BertModelWarper


# ---------------------------------------------------------------- weights


def test_checkpoints_in_every_form_give_the_same(operator: Detect, card: ModelCard, tmp_path: Path) -> None:
    from safetensors.torch import save_model

    image = picture(320, 240)
    expected = operator.infer([operator.prepare(image, {})])
    saved = torch.load(str(card.weights.path), weights_only=True)
    assert set(saved) == {"model"}
    assert all(name.startswith("module.") for name in saved["model"])
    plain = {name.removeprefix("module."): tensor for name, tensor in saved["model"].items()}
    torch.save(plain, tmp_path / "plain.pth")
    engine = operator._engine
    model, engine.model.bert = engine.model, engine.model.bert.backbone
    try:
        save_model(model, str(tmp_path / "model.safetensors"))  # which keeps shared layers once
    finally:
        engine.model.bert = engine._texts
    for name in ("plain.pth", "model.safetensors"):
        other = detect(source(tmp_path / name))
        assert unnamed(other.infer([other.prepare(image, {})])) == unnamed(expected)


def test_weights_that_do_not_fit(card: ModelCard, tmp_path: Path) -> None:
    state = torch.load(str(card.weights.path), weights_only=True)["model"]
    state.pop("module.feat_map.weight")
    state["module.transformer.enc_output.weight"] = torch.zeros(3, 3)
    state["module.something.else"] = torch.zeros(1)
    torch.save({"model": state}, tmp_path / "other.pth")
    with pytest.raises(ModelError) as error:
        detect(source(tmp_path / "other.pth"))
    assert "must fit GroundingDINO_SwinT_OGC but: 1 missing (feat_map.weight)" in str(error.value)
    assert "1 unexpected (something.else)" in str(error.value)
    assert "transformer.enc_output.weight must be (256, 256) but is (3, 3)" in str(error.value)


def test_missing_and_corrupt_files(card: ModelCard, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such file"):
        detect(source(tmp_path / "gone.pth"))
    half = tmp_path / "half.pth"
    half.write_bytes(Path(str(card.weights.path)).read_bytes()[:100_000])
    with pytest.raises(ModelError, match="cannot be read from"):
        detect(source(half))
    with pytest.raises(ModelError, match=r"must have sha256 0000.* but .*half.pth has"):
        Detect(Detect.Params(model=source(half, sha256="0" * 64), ontology=ONTOLOGY)).ready()
    for name, content in (("list.pth", [1, 2]), ("nested.pth", {"model": {"epoch": 3}})):
        torch.save(content, tmp_path / name)
        with pytest.raises(ModelError, match="must be a mapping of names to tensors"):
            detect(source(tmp_path / name))


def test_a_checkpoint_that_would_run_code_is_not_read(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"model": Harm()}, tmp_path / "harm.pth")
    with pytest.raises(ModelError, match="cannot be read from"):
        detect(source(tmp_path / "harm.pth"))
    assert not (tmp_path / "ran").exists()


def test_the_tokenizer_is_the_card_s_file(operator: Detect, card: ModelCard, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    path.symlink_to(str(card.weights.path))
    words = tmp_path / "vocab.txt"
    words.write_text("\n".join(vocabulary()) + "\n")
    config = {name: value for name, value in ORIGINAL.config.items() if name != "tokenizer"}
    beside = source(path, extra_files=["vocab.txt"]).model_copy(update={"config": config})
    other, image = detect(beside), picture(320, 240)
    given = operator.infer([operator.prepare(image, {})])
    assert unnamed(other.infer([other.prepare(image, {})])) == unnamed(given)
    words.write_text("\n".join(list(vocabulary())[3:]) + "\n")
    with pytest.raises(ModelError, match=r"ids of \[CLS\] \[SEP\] \. \? must be"):
        detect(beside)
    words.unlink()
    with pytest.raises(ModelError, match=r"vocab.txt but there is no such file"):
        detect(beside)


# ---------------------------------------------------------------- the card


def test_the_full_size_card_builds_the_authors_model() -> None:
    """With one layer where theirs have many, for time; every width is theirs."""
    from labelmill.operators.engines.detection.groundingdino import build
    from labelmill.operators.engines.detection.wordpiece import ascii_tokenizer

    full = load_card(FOLDER / "grounding-dino-swint-ogc.yaml")
    small = {"model": {"enc_layers": 1, "dec_layers": 1}, "bert": {"num_hidden_layers": 1}, "tokenizer": "ascii"}
    drawn = full.weights.model_validate({"random": 0})
    model = build(full.model_copy(update={"weights": drawn, "config": small}), ascii_tokenizer())
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes["bert.embeddings.word_embeddings.weight"] == (30522, 768)
    assert shapes["bert.embeddings.position_embeddings.weight"] == (512, 768)
    assert shapes["backbone.0.layers.2.blocks.5.attn.qkv.weight"] == (1152, 384)
    assert shapes["backbone.0.norm3.weight"] == (768,)
    assert shapes["transformer.tgt_embed.weight"] == (900, 256)
    assert shapes["transformer.encoder.layers.0.linear1.weight"] == (2048, 256)
    assert shapes["input_proj.3.0.weight"] == (256, 768, 3, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {}}, "weights must have extra_files with the tokenizer's files"),
        ({"config": {"tokenizer": "ascii", "layers": 6}}, "config.layers: Extra inputs"),
        (
            {"architecture": "GroundingDINO_SwinL"},
            "one of GroundingDINO_SwinT_OGC, GroundingDINO_SwinB_cfg but is",
        ),
        ({"preprocess": {"short": 900, "long": 800}}, "preprocess.short must be at most 800 but is 900"),
    ],
)
def test_cards_that_do_not_fit_are_refused_before_loading(changes: dict[str, Any], message: str) -> None:
    operator = Detect(Detect.Params(model=ORIGINAL.model_copy(update=changes), ontology=ONTOLOGY))
    with pytest.raises(ModelError, match=message):
        operator.check({})


def test_prompts_are_refused_as_with_transformers() -> None:
    with pytest.raises(OperatorError, match="must differ"):
        Detect(Detect.Params(model=ORIGINAL, ontology={"a": "T.V.", "b": "t v"})).check({})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model": {"layers": 6}}, "model must have only keys of GroundingDINO_SwinT_OGC but has layers"),
        ({"model": {"backbone": {**SWIN, "depths": 2}}, "bert": ORIGINAL.config["bert"]}, "config cannot be built"),
        ({"bert": {"hidden_size": 63}}, "config cannot be built"),
    ],
)
def test_sizes_that_cannot_be_built(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        detect(ORIGINAL.model_copy(update={"config": {"tokenizer": "ascii", **config}}))
