from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from labelmill.operators.embed import Embed
from labelmill.operators.engines.embedding import open_clip as engine
from labelmill.operators.errors import RowError
from labelmill.operators.images.decoded import DecodedImage
from labelmill.operators.models import ModelCard, ModelError, load_card
from labelmill.operators.models.card import ROOT
from tests.drawing import picture

FOLDER = ROOT / "conf" / "models"
RANDOM = load_card(FOLDER / "clip-random.yaml")
SIZES = [(64, 64), (200, 90), (70, 311), (33, 21), (640, 480), (5, 400)]  # width, height


def embed(card: ModelCard = RANDOM, **params: Any) -> Embed:
    operator = Embed(Embed.Params(model=card, **params))
    operator.check({})
    operator.load()
    return operator


def vectors(operator: Embed, images: list[DecodedImage]) -> np.ndarray:
    rows = operator.infer([operator.prepare(image, {}) for image in images])
    return np.stack([row["embedding"] for row in rows if isinstance(row, dict)]).astype(np.float64)


@pytest.fixture(scope="module")
def operator() -> Embed:
    return embed()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    """The random card's weights as a file, and a card for it."""
    path = tmp_path_factory.mktemp("weights") / "clip.safetensors"
    save_file(engine.build(RANDOM).state_dict(), path)
    return RANDOM.model_copy(update={"weights": RANDOM.weights.model_validate({"path": str(path)})})


def reference(card: ModelCard) -> tuple[Any, Any]:
    """The same model and preprocessing made by open_clip alone."""
    from open_clip.model import CLIP
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from safetensors.torch import load_file

    model = CLIP(**engine.model_config(card)).eval()
    model.load_state_dict(load_file(str(card.weights.path)))
    return model, image_transform_v2(PreprocessCfg(size=64), is_train=False)


@pytest.mark.parametrize(("name", "width"), [("clip-vit-b-32", 512), ("clip-vit-l-14", 768), ("clip-random", 32)])
def test_writes_the_card_s_width_without_its_weights(name: str, width: int) -> None:
    operator = Embed(Embed.Params(model=load_card(FOLDER / f"{name}.yaml")))
    operator.check({})
    assert operator.writes() == pa.schema([pa.field("embedding", pa.list_(pa.float16(), width))])
    assert operator.needs().gpu
    assert operator.needs().memory_gb > 0


@pytest.mark.parametrize("size", SIZES)
def test_pixels_and_vectors_are_open_clip_s(operator: Embed, saved: ModelCard, size: tuple[int, int]) -> None:
    model, transform = reference(saved)
    image = picture(*size)
    expected = transform(image.pil())
    item = operator.prepare(image, {})
    assert item.dtype == torch.uint8
    encoder = operator._encoder
    pixels = (item.permute(2, 0, 1).float() / 255 - encoder._mean) / encoder._std
    grey_levels = ((pixels - expected) * encoder._std * 255).abs()
    assert grey_levels.max() < 2.01
    assert grey_levels.mean() < 0.2

    with torch.no_grad():
        vector = model.encode_image(pixels[None], normalize=True)[0].numpy()
        theirs = model.encode_image(expected[None], normalize=True)[0].numpy()
    assert vector @ theirs > 0.99999
    np.testing.assert_allclose(encoder.encode([item])[0], vector, atol=1e-5)
    (row,) = operator.infer([item])
    assert isinstance(row, dict)
    assert row["embedding"].dtype == np.float16
    np.testing.assert_array_equal(row["embedding"], vector.astype(np.float16).reshape(32))


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(640, 480), (50, 300), (64, 64), (31, 20)])
def test_every_resize_mode_is_open_clip_s_to_two_grey_levels(
    mode: Any, interpolation: Any, size: tuple[int, int]
) -> None:
    given = engine.Preprocess(size=64, resize_mode=mode, interpolation=interpolation)
    image = picture(*size)
    expected = image.pil()
    for step in engine.image_transform_of(given).transforms[:-2]:
        expected = step(expected)
    found = torch.from_numpy(np.array(image.pixels)).permute(2, 0, 1)
    for step in engine._geometry(given):
        found = step(found)
    difference = np.abs(found.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected))
    assert difference.max() <= 2
    assert difference.mean() < 0.2


@pytest.mark.parametrize("name", ["clip-vit-b-32", "clip-vit-l-14", "clip-vit-l-14-datacomp"])
def test_full_size_preprocessing_is_what_open_clip_does_for_these_weights(name: str) -> None:
    from open_clip.pretrained import get_pretrained_cfg
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    card = load_card(FOLDER / f"{name}.yaml")
    tags = {"clip-vit-b-32": "laion2b_s34b_b79k", "clip-vit-l-14": "laion2b_s32b_b82k"}
    tag = tags.get(name, "datacomp_xl_s13b_b90k")
    shipped = get_pretrained_cfg(card.architecture, tag)
    assert shipped["hf_hub"].strip("/") == card.weights.hub
    expected = image_transform_v2(PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(), shipped)), is_train=False)
    given = engine.settings(card)
    ours = engine.image_transform_of(given)
    assert repr(ours) == repr(expected)


def test_vectors_have_length_one_and_differ(operator: Embed) -> None:
    found = vectors(operator, [picture(*size) for size in SIZES])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=2e-3)
    assert len(np.unique(found, axis=0)) == len(SIZES)


def test_a_batch_gives_what_single_images_give(operator: Embed) -> None:
    items = [operator.prepare(picture(*size, seed), {}) for seed in range(3) for size in SIZES]
    together = operator._encoder.encode(items)
    alone = np.concatenate([operator._encoder.encode([item]) for item in items])
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_the_same_twice_and_the_generator_untouched(operator: Embed) -> None:
    images = [picture(*size) for size in SIZES]
    state = torch.get_rng_state()
    again = embed()
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(vectors(operator, images), vectors(again, images))
    other = RANDOM.model_copy(update={"weights": RANDOM.weights.model_copy(update={"random": 1})})
    assert not np.allclose(vectors(operator, images), vectors(embed(other), images), atol=0.01)


def test_saved_weights_give_what_drawn_weights_give(operator: Embed, saved: ModelCard) -> None:
    images = [picture(*size) for size in SIZES]
    np.testing.assert_array_equal(vectors(embed(saved), images), vectors(operator, images))


def test_half_precision_stays_near(operator: Embed) -> None:
    images = [picture(*size) for size in SIZES]
    full, half = vectors(operator, images), vectors(embed(dtype="bfloat16"), images)
    assert (full * half).sum(axis=1).min() > 0.999
    assert not np.array_equal(full, half)


def test_nan_fails_its_row_only(operator: Embed, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [operator.prepare(picture(64, 64, seed), {}) for seed in range(3)]
    encode = operator._encoder.encode

    def broken(items: Any) -> np.ndarray:
        found = encode(items)
        found[1, 5] = np.nan
        return found

    monkeypatch.setattr(operator._encoder, "encode", broken)
    rows = operator.infer(items)
    assert isinstance(rows[1], RowError)
    assert "not finite" in str(rows[1])
    assert all(isinstance(rows[index], dict) for index in (0, 2))


def test_missing_weights_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    operator = Embed(Embed.Params(model=load_card(FOLDER / "clip-vit-b-32.yaml")))
    operator.check({})
    with pytest.raises(ModelError, match="run `labelmill models pull clip-vit-b-32`"):
        operator.load()


def test_corrupt_weights_stop_at_load(saved: ModelCard, tmp_path: Path) -> None:
    path = tmp_path / "clip.safetensors"
    path.write_bytes(Path(str(saved.weights.path)).read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be read from"):
        embed(saved.model_copy(update={"weights": saved.weights.model_validate({"path": str(path)})}))


def test_weights_of_another_architecture_stop_at_load(saved: ModelCard) -> None:
    config = {**RANDOM.config, "vision_cfg": {**RANDOM.config["vision_cfg"], "layers": 3, "patch_size": 8}}
    with pytest.raises(ModelError, match=r"must fit CLIP but: .*missing \(visual.*; .*visual.conv1.weight must be"):
        embed(saved.model_copy(update={"config": config}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preprocess": {"size": 224}}, "preprocess.size must be 64 but is 224"),
        ({"preprocess": {"means": [0, 0, 0]}}, "preprocess.means: Extra inputs"),
        ({"preprocess": {"interpolation": "nearest"}}, "preprocess.interpolation: .* found 'nearest'"),
        ({"config": {"embed_dim": 3}}, "config must have embed_dim, vision_cfg and text_cfg"),
        ({"config": {}}, "architecture must be one that open_clip ships .* but is 'CLIP'"),
        ({"config": {}, "architecture": "roberta-ViT-B-32"}, "text side comes from another library"),
        ({"config": {}, "architecture": "../../etc/passwd"}, "architecture must be one that open_clip ships"),
    ],
)
def test_cards_that_do_not_fit_are_refused_before_loading(changes: dict[str, Any], message: str) -> None:
    operator = Embed(Embed.Params(model=RANDOM.model_copy(update=changes)))
    with pytest.raises(ModelError, match=message):
        operator.check({})


def test_sizes_that_cannot_be_built() -> None:
    config = {**RANDOM.config, "vision_cfg": {**RANDOM.config["vision_cfg"], "depth": 3}}
    with pytest.raises(ModelError, match=r"config cannot be built: .*depth"):
        embed(RANDOM.model_copy(update={"config": config}))


def test_a_card_for_something_else_is_refused() -> None:
    with pytest.raises(ValidationError, match="for embedding with engine open_clip or transformers but "):
        Embed.Params(model=load_card(FOLDER / "grounding-dino-random.yaml"))


def test_fingerprint_holds_the_digest_and_not_the_card() -> None:
    operator = Embed(Embed.Params(model=RANDOM, batch=3))
    assert operator.params.result_params() == {"dtype": "auto"}
    assert operator.digest() == RANDOM.digest()
    assert operator.batch == 3
