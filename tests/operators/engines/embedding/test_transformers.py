"""`embed` with transformers' models: SigLIP 2 and DINOv3."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from labelmill.operators.embed import Embed
from labelmill.operators.engines.embedding.transformers_model import ARCHITECTURES
from labelmill.operators.images.decoded import DecodedImage
from labelmill.operators.models import ModelCard, ModelError, load_card
from labelmill.operators.models.card import ROOT
from tests.drawing import picture
from tests.operators.engines.embedding.tiny_encoders import MODELS, WIDTH
from tests.operators.test_embed import SIZES, embed, vectors

FOLDER = ROOT / "conf" / "models"
FULL = {"siglip2-base": 768, "siglip2-base-naflex": 768, "dinov3-small": 384}
PARAMETERS = {"siglip2-base": 375_187_970, "dinov3-small": 21_596_544}  # as their authors' files have


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=MODELS)
def card(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    made: ModelCard = MODELS[request.param](tmp_path_factory.mktemp("model"))
    return made


@pytest.fixture(scope="module")
def operator(card: ModelCard) -> Embed:
    return embed(card)


@pytest.fixture(scope="module")
def images() -> list[DecodedImage]:
    return [picture(*size) for size in SIZES]


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    made: ModelCard = MODELS["SigLIP 2"](tmp_path_factory.mktemp("siglip"))
    return made


@pytest.fixture(scope="module")
def dinov3(tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    made: ModelCard = MODELS["DINOv3"](tmp_path_factory.mktemp("dinov3"))
    return made


PROCESSORS = {
    "SiglipModel": {"SiglipImageProcessorPil": 1e-5, "SiglipImageProcessor": 5e-3},
    "Siglip2Model": {"Siglip2ImageProcessorPil": 1e-5, "Siglip2ImageProcessor": 5e-3},
    "DINOv3ViTModel": {"SiglipImageProcessorPil": 1e-5, "DINOv3ViTImageProcessor": 5e-3},
}
"""Image processors of transformers, with Pillow or torchvision, and how far our vectors may be from theirs."""


def processor(card: ModelCard, name: str) -> Any:
    given = {"image_mean": card.preprocess["mean"], "image_std": card.preprocess["std"], "resample": 2}
    if "size" in card.preprocess:
        given["size"] = {"height": card.preprocess["size"], "width": card.preprocess["size"]}
    else:
        given |= {"max_num_patches": card.preprocess["patches"], "patch_size": 8}
    return getattr(transformers, name)(**given)


def reference(card: ModelCard, images: list[DecodedImage], name: str) -> np.ndarray:
    """Normalised vectors as transformers makes them, one image at a time."""
    model = getattr(transformers, card.architecture).from_pretrained(Path(str(card.weights.path)).parent).eval()
    prepare = processor(card, name)
    found = []
    for image in images:
        inputs = prepare(image.pil(), return_tensors="pt")
        with torch.no_grad():
            output = model(**inputs) if card.architecture.startswith("DINO") else model.get_image_features(**inputs)
        found.append(torch.nn.functional.normalize(output.pooler_output[0], dim=-1).numpy())
    return np.stack(found)


def exact(operator: Embed, images: list[DecodedImage]) -> np.ndarray:
    """Vectors before they are stored as float16."""
    found: np.ndarray = operator._encoder.encode([operator.prepare(image, {}) for image in images])
    return found


def test_vectors_are_transformers_own(card: ModelCard, operator: Embed, images: list[DecodedImage]) -> None:
    found = exact(operator, images)
    assert np.abs(found[0] - found[1]).max() > 0.05
    for name, tolerance in PROCESSORS[card.architecture].items():
        np.testing.assert_allclose(found, reference(card, images, name), atol=tolerance, err_msg=name)


def test_writes_vectors_of_length_one(operator: Embed, images: list[DecodedImage]) -> None:
    assert operator.writes() == pa.schema([pa.field("embedding", pa.list_(pa.float16(), WIDTH))])
    (row,) = operator.infer([operator.prepare(images[0], {})])
    assert isinstance(row, dict)
    assert row["embedding"].dtype == np.float16
    found = vectors(operator, images)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=2e-3)
    assert len(np.unique(found, axis=0)) == len(images)


def test_a_batch_gives_what_single_images_give(operator: Embed, images: list[DecodedImage]) -> None:
    alone = np.concatenate([exact(operator, [image]) for image in images])
    np.testing.assert_allclose(exact(operator, images), alone, atol=1e-4)
    np.testing.assert_allclose(exact(operator, images[::-1])[::-1], alone, atol=1e-4)


def test_the_same_twice(card: ModelCard, operator: Embed, images: list[DecodedImage]) -> None:
    state = torch.get_rng_state()
    np.testing.assert_array_equal(exact(embed(card), images), exact(operator, images))
    assert torch.equal(torch.get_rng_state(), state)


def test_half_precision_stays_near(card: ModelCard, operator: Embed, images: list[DecodedImage]) -> None:
    full, half = exact(operator, images), exact(embed(card, dtype="bfloat16"), images)
    assert (full * half).sum(axis=1).min() > 0.999
    assert not np.array_equal(full, half)


def test_an_image_keeps_its_aspect_where_the_model_can(tmp_path: Path) -> None:
    operator = embed(MODELS["SigLIP 2 NaFlex"](tmp_path))
    shapes = {size: operator.prepare(picture(*size), {})["spatial_shapes"].tolist() for size in SIZES}
    assert shapes[(64, 64)] == [4, 4]
    assert shapes[(5, 400)][0] > 5 * shapes[(5, 400)][1]
    assert all(rows * columns <= 24 for rows, columns in shapes.values())


def test_random_weights_need_no_files(card: ModelCard, images: list[DecodedImage]) -> None:
    drawn = [
        embed(card.model_copy(update={"weights": card.weights.model_validate({"random": seed})})) for seed in (0, 1)
    ]
    found = [exact(operator, images) for operator in drawn]
    assert np.isfinite(found).all()
    assert not np.allclose(*found, atol=1e-3)


@pytest.mark.parametrize(("name", "width"), FULL.items())
def test_full_size_cards_say_their_width_and_what_to_pull(
    name: str, width: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    operator = Embed(Embed.Params(model=load_card(FOLDER / f"{name}.yaml")))
    operator.check({})
    assert operator.writes().field("embedding").type.list_size == width
    with pytest.raises(ModelError, match=f"are not here .*run `labelmill models pull {name}`"):
        operator.ready()


@pytest.mark.parametrize("name", FULL)
def test_full_size_cards_have_the_sizes_that_transformers_documents(name: str) -> None:
    card = load_card(FOLDER / f"{name}.yaml")
    wanted = getattr(transformers, ARCHITECTURES[card.architecture])
    found, usual = wanted(**card.config["model"]), wanted()
    if "siglip" in name:
        usual.text_config.vocab_size = 256_000  # Gemma's
    else:
        usual.num_register_tokens = 4
    assert found.to_dict() == usual.to_dict()
    if name in PARAMETERS:
        with torch.device("meta"):
            model = getattr(transformers, card.architecture)(found)
        assert sum(tensor.numel() for tensor in model.parameters()) == PARAMETERS[name]


def test_a_card_for_a_gated_model_says_how_to_get_it() -> None:
    note = load_card(FOLDER / "dinov3-small.yaml").note
    assert all(word in note for word in ("licence", "accept", "hf auth login", "labelmill models pull dinov3-small"))


def test_planning_imports_no_model_library() -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from labelmill.operators.models import load_card\n"
        "from labelmill.operators.embed import Embed; from labelmill.operators.classify import Classify\n"
        "for name in ('siglip2-base', 'dinov3-small'):\n"
        "    card = load_card(Path(f'conf/models/{name}.yaml'))\n"
        "    embed = Embed(Embed.Params(model=card)); embed.check({}); embed.writes(); embed.digest(); embed.needs()\n"
        "siglip = load_card(Path('conf/models/siglip2-base.yaml'))\n"
        "classify = Classify(Classify.Params(model=siglip, ontology=['car']))\n"
        "classify.check({}); classify.digest()\n"
        "heavy = {'torch', 'transformers', 'open_clip', 'tokenizers', 'onnxruntime'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# ---------------------------------------------------------------- weights that do not fit


def stored(card: ModelCard, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> ModelCard:
    """The card with changed weights, in an empty folder."""
    folder.mkdir()
    for name in card.weights.extra_files:
        (folder / name).write_bytes((Path(str(card.weights.path)).parent / name).read_bytes())
    state = load_file(str(card.weights.path))
    change(state)
    save_file(state, folder / "model.safetensors")
    return card.model_copy(
        update={"weights": card.weights.model_copy(update={"path": str(folder / "model.safetensors")})}
    )


def test_names_as_published_fit(dinov3: ModelCard, tmp_path: Path, images: list[DecodedImage]) -> None:
    """The authors' file says `layer.0`, transformers 5 says `model.layer.0`."""

    def rename(state: dict[str, torch.Tensor]) -> None:
        for name in [name for name in state if "layer." in name]:
            state["layer." + name.partition("layer.")[2]] = state.pop(name)
        assert any(name.startswith("layer.0.") for name in state)

    found = exact(embed(stored(dinov3, tmp_path / "renamed", rename)), images)
    np.testing.assert_array_equal(found, exact(embed(dinov3), images))


def test_missing_weights_stop_before_any_image(card: ModelCard, tmp_path: Path) -> None:
    gone = card.model_copy(
        update={"weights": card.weights.model_copy(update={"path": str(tmp_path / "no.safetensors")})}
    )
    with pytest.raises(ModelError, match="no such file"):
        Embed(Embed.Params(model=gone)).ready()
    with pytest.raises(ModelError, match="no such file"):
        embed(gone)


def test_corrupt_weights_stop_at_load(card: ModelCard, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(Path(str(card.weights.path)).read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be read from"):
        embed(card.model_copy(update={"weights": card.weights.model_validate({"path": str(path)})}))


def test_other_weights_stop_at_load(siglip: ModelCard, dinov3: ModelCard, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"must fit DINOv3ViTModel but: .* missing .*; .* unexpected"):
        embed(dinov3.model_copy(update={"weights": siglip.weights}))
    less = stored(siglip, tmp_path / "less", lambda state: state.__delitem__("logit_bias"))
    with pytest.raises(ModelError, match=r"must fit SiglipModel but: 1 missing \(logit_bias\)"):
        embed(less)
    config = {"model": {**siglip.config["model"], "vision_config": {**siglip.config["model"]["vision_config"]}}}
    config["model"]["vision_config"]["intermediate_size"] = 40
    with pytest.raises(ModelError, match="of another shape"):
        embed(siglip.model_copy(update={"config": config}))


@pytest.mark.parametrize(
    ("model", "section", "changes", "message"),
    [
        ("SigLIP 2", "preprocess", {"size": 224}, "preprocess.size must be 48 but is 224"),
        ("SigLIP 2", "preprocess", {"patches": 4}, "preprocess.patches: Extra inputs"),
        ("SigLIP 2", "preprocess", {"interpolation": "nearest"}, "preprocess.interpolation: .* found 'nearest'"),
        ("SigLIP 2 NaFlex", "preprocess", {"size": 64}, "preprocess.size: Extra inputs"),
        ("SigLIP 2 NaFlex", "preprocess", {"patches": 0}, "preprocess.patches: .* found 0"),
        ("DINOv3", "preprocess", {"size": 50}, "preprocess.size must be a multiple of the patch size 16 but is 50"),
        ("DINOv3", "config", {"words": ["a"]}, "config.words: Extra inputs"),
        ("DINOv3", "config", {"model": {"hidden_size": "x"}}, "config.model.hidden_size must be a positive whole"),
        ("SigLIP 2", "config", {"model": {"hidden_size": 8}}, "config.model must have vision_config and text_config"),
    ],
)
def test_cards_that_do_not_fit_are_refused_before_loading(
    model: str, section: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    card = MODELS[model](tmp_path)
    card = card.model_copy(update={section: {**getattr(card, section), **changes}})
    with pytest.raises(ModelError, match=message):
        Embed(Embed.Params(model=card)).check({})


def test_sizes_that_cannot_be_built_are_refused(dinov3: ModelCard) -> None:
    card = dinov3.model_copy(update={"config": {"model": {**dinov3.config["model"], "num_hidden_layers": "two"}}})
    with pytest.raises(ModelError, match=r"config cannot be built: .*num_hidden_layers"):
        embed(card)


def test_an_unknown_architecture_is_refused_with_the_known_ones(siglip: ModelCard) -> None:
    operator = Embed(Embed.Params(model=siglip.model_copy(update={"architecture": "ViTModel"})))
    with pytest.raises(ModelError, match=r"one of SiglipModel, Siglip2Model, DINOv3ViTModel .* but is ViTModel"):
        operator.check({})


def test_an_unknown_engine_is_refused(siglip: ModelCard) -> None:
    with pytest.raises(ValidationError, match=r"for embedding with engine open_clip or transformers but .* engine jax"):
        Embed.Params(model=siglip.model_copy(update={"engine": "jax"}))
