"""What Grounding DINO needs besides what every detector does; with transformers' own code as the measure."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from labelmill.operators.detect import Detect
from labelmill.operators.engines.detection import grounding_dino_model as engine
from labelmill.operators.errors import RowError
from labelmill.operators.models import ModelCard, ModelError, load_card
from tests.drawing import picture
from tests.operators.engines.detection.tiny_detectors import (
    CARDS,
    FOLDER,
    MM,
    PLAIN,
    SIZES,
    answers,
    card_of,
    detect,
    permuted,
    saved,
    unnamed,
)


@pytest.fixture(scope="module", params=CARDS[:3])
def card(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    return card_of(request.param, tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def operator(card: ModelCard) -> Detect:
    return detect(card)


def test_many_captions_give_what_each_gives_alone(card: ModelCard) -> None:
    names = [f"a rather long name for a thing {index}" for index in range(20)]
    operator, image = detect(card, names), picture(320, 240)
    assert len(operator._engine.captions) > 1
    together, _ = answers(operator, [image])
    width = together.shape[1] // len(operator._engine.captions)
    for index, caption in enumerate(operator._engine.captions):
        alone = detect(card, [operator._asked[phrase][0] for phrase in caption.phrases])
        scores, _ = answers(alone, [image])
        part = together[0, index * width : (index + 1) * width]
        np.testing.assert_allclose(part[:, list(caption.phrases)], scores[0], atol=1e-5)


def test_image_features_are_let_go(operator: Detect, monkeypatch: pytest.MonkeyPatch) -> None:
    item = operator.prepare(picture(160, 160), {})
    operator.infer([item])
    assert operator._engine._images.kept is None
    monkeypatch.setattr(operator._engine, "_mean", torch.zeros(7))
    with pytest.raises(RuntimeError):
        operator.infer([item])
    assert operator._engine._images.kept is None


@pytest.mark.parametrize("size", [(4000, 3), (3, 4000)])
def test_an_image_that_is_a_thread_fails_its_row(operator: Detect, size: tuple[int, int]) -> None:
    with pytest.raises(RowError, match=rf"an image of {size[0]} × {size[1]} is too long and thin"):
        operator.prepare(picture(*size), {})


def test_permuting_the_phrases_of_a_caption_changes_scores_little(operator: Detect) -> None:
    image = picture(320, 240)
    before, _ = answers(operator, [image])
    (caption,) = operator._engine.captions
    other = permuted(caption, np.random.default_rng(1).permutation(len(caption.phrases)))
    assert sorted(other.ids) == sorted(caption.ids)
    assert other.ids != caption.ids
    operator._engine.captions = [other]
    operator._engine._texts.forget()
    try:
        after, _ = answers(operator, [image])
    finally:
        operator._engine.captions = [caption]
        operator._engine._texts.forget()
    np.testing.assert_allclose(after, before, atol=1e-3)


def test_images_of_one_shape_share_a_batch(operator: Detect) -> None:
    buckets = [operator.bucket(operator.prepare(picture(*size), {})) for size in SIZES]
    assert buckets[0] == buckets[-1]
    assert len(set(buckets)) == len(SIZES) - 1


# ---------------------------------------------------------------- transformers' own


@pytest.fixture(scope="module", params=[PLAIN, MM], ids=lambda card: card.name)
def ours(request: pytest.FixtureRequest) -> Detect:
    """Through transformers."""
    return detect(request.param)


@pytest.mark.parametrize("size", SIZES)
def test_scores_and_boxes_are_transformers_own(ours: Detect, size: tuple[int, int]) -> None:
    """Its processor and model, unwrapped, and its own map from tokens to phrases."""
    from transformers import GroundingDinoImageProcessor, GroundingDinoProcessor
    from transformers.models.grounding_dino.modeling_grounding_dino import build_label_maps

    image = picture(*size)
    given = ours._engine._size
    processor = GroundingDinoProcessor(
        GroundingDinoImageProcessor(size={"shortest_edge": given.short, "longest_edge": given.long}),
        engine.tokenizer(ours.params.model),
    )
    (caption,) = ours._engine.captions
    texts = [ours._asked[index][0].replace(".", " ") for index in caption.phrases]
    inputs = processor(images=image.pil(), text=[texts], return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == list(caption.ids)

    item = ours.prepare(image, {})
    pixels = (item.given.float() - ours._engine._mean) / ours._engine._std
    torch.testing.assert_close(pixels, inputs["pixel_values"][0], atol=1e-5, rtol=0)

    with torch.no_grad():
        outputs = engine.build(ours.params.model)(**inputs)
    (maps,) = build_label_maps(outputs.logits, inputs["input_ids"])
    tokens = outputs.logits.sigmoid()[0]
    expected = torch.stack([tokens[:, positive.bool()].mean(dim=1) for positive in maps], dim=1).numpy()
    scores, boxes = answers(ours, [image])
    np.testing.assert_allclose(scores[0][:, list(caption.phrases)], expected, atol=1e-5)
    from transformers.image_transforms import center_to_corners_format

    np.testing.assert_allclose(boxes[0], center_to_corners_format(outputs.pred_boxes[0]).numpy(), atol=1e-5)
    assert expected.std() > 0.01
    assert boxes[0].std() > 0.05


@pytest.mark.parametrize("size", [*SIZES, (800, 800), (1, 1), (2000, 1500), (1201, 801), (333, 200)])
def test_resize_is_the_image_processor_s(size: tuple[int, int]) -> None:
    from transformers import GroundingDinoImageProcessor

    full = load_card(FOLDER / "grounding-dino-tiny.yaml")
    small = PLAIN.model_copy(update={"preprocess": full.preprocess})
    given = detect(small)._engine
    image = picture(*size)
    item = given.prepare(image.pixels)
    expected = GroundingDinoImageProcessor()(images=image.pil(), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close((item.float() - given._mean) / given._std, expected, atol=1e-5, rtol=0)
    assert given.bucket(item) == tuple(expected.shape)


def test_places_are_those_that_the_model_chooses_from(ours: Detect) -> None:
    given = ours._engine
    for size in [(160, 160), (17, 266), (266, 33), (1, 266)]:
        pixels = torch.zeros(1, 3, *size)
        with given._images.one_batch(), torch.no_grad():
            given._texts.use(0)
            outputs = given.model(pixel_values=pixels, input_ids=torch.tensor([given.captions[0].ids]))
        assert outputs.enc_outputs_class.shape[1] == given.places(*size)


# ---------------------------------------------------------------- weights


def test_a_folder_that_transformers_wrote_gives_the_same(ours: Detect, tmp_path: Path) -> None:
    loaded, image = detect(saved(ours.params.model, tmp_path)), picture(320, 240)
    assert unnamed(loaded.infer([loaded.prepare(image, {})])) == unnamed(ours.infer([ours.prepare(image, {})]))


def test_weights_in_half_precision_are_used_in_full(ours: Detect, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    half = saved(ours.params.model, tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    loaded, image = detect(half), picture(320, 240)
    assert {parameter.dtype for parameter in loaded._engine.model.parameters()} == {torch.float32}
    full, rounded = answers(ours, [image])[0], answers(loaded, [image])[0]
    assert np.abs(np.sort(full.max(axis=2)) - np.sort(rounded.max(axis=2))).max() < 0.02


def test_tables_that_old_versions_saved_are_no_obstacle(ours: Detect, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    whole, path = saved(ours.params.model, tmp_path), tmp_path / "model.safetensors"
    block = "model.backbone.conv_encoder.model.encoder.layers.0.blocks.0.attention.self"
    tables = {
        f"{block}.relative_position_index": torch.zeros(25, 25, dtype=torch.long),
        "model.text_backbone.embeddings.position_ids": torch.arange(256)[None],
    }
    save_file({**load_file(path), **tables}, path)
    loaded, image = detect(whole), picture(320, 240)
    assert unnamed(loaded.infer([loaded.prepare(image, {})])) == unnamed(ours.infer([ours.prepare(image, {})]))


def test_weights_that_do_not_fit(ours: Detect, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    whole, path = saved(ours.params.model, tmp_path), tmp_path / "model.safetensors"
    state = load_file(path)
    state.pop("model.text_projection.weight")
    state["model.enc_output.weight"] = torch.zeros(3, 3)
    state["something.else"] = torch.zeros(1)
    save_file(state, path)
    with pytest.raises(ModelError) as error:
        detect(whole)
    assert f"must fit {ours.params.model.architecture} but: 1 missing (model.text_projection.weight)" in str(
        error.value
    )
    assert "1 unexpected (something.else)" in str(error.value)
    assert "model.enc_output.weight must be (96, 96) but is (3, 3)" in str(error.value)


def test_weights_of_the_other_architecture(tmp_path: Path) -> None:
    plain = saved(PLAIN, tmp_path)
    sizes = MM.config
    other = plain.model_copy(update={"architecture": "MMGroundingDinoForObjectDetection", "config": sizes})
    with pytest.raises(ModelError, match=r"must fit MMGroundingDinoForObjectDetection but: .*class_embed"):
        detect(other)


def test_missing_and_corrupt_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ModelError, match=r"not here \(model.safetensors, config.json, .*run `labelmill models pull gr"):
        detect(load_card(FOLDER / "grounding-dino-tiny.yaml"))

    whole = saved(PLAIN, tmp_path / "whole")
    for name, message in (
        ("model.safetensors", "cannot be read from"),
        ("config.json", "config cannot be built"),
        ("tokenizer.json", "tokenizer cannot be read from"),
    ):
        folder = tmp_path / f"broken {name}"
        shutil.copytree(tmp_path / "whole", folder)
        source = {**whole.weights.model_dump(exclude_none=True), "path": str(folder / "model.safetensors")}
        broken = whole.model_copy(update={"weights": whole.weights.model_validate(source)})
        (folder / name).write_bytes((folder / name).read_bytes()[:-200])
        with pytest.raises(ModelError, match=message):
            detect(broken)
        (folder / name).unlink()
        with pytest.raises(ModelError, match="there is no such file"):
            detect(broken)


def test_a_tokenizer_with_other_ids(tmp_path: Path) -> None:
    from transformers import BertTokenizer

    whole = saved(PLAIN, tmp_path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "a"]
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"ids of \[CLS\] \[SEP\] \. \? must be \[101, 102, 1012, 1029\] but are"):
        detect(whole)


def test_a_tokenizer_that_is_larger_than_the_model() -> None:
    sizes = PLAIN.config["model"]
    smaller = {**sizes, "text_config": {**sizes["text_config"], "vocab_size": 1000}}
    with pytest.raises(ModelError, match="must have at most the model's 1000 tokens but gives token 1012"):
        detect(PLAIN.model_copy(update={"config": {**PLAIN.config, "model": smaller}}))
