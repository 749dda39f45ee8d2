"""`classify` with SigLIP 2, whose probabilities are sigmoids; and with models that cannot read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from labelmill.operators.applying.results import to_array
from labelmill.operators.classify import Classify
from labelmill.operators.columns.schemas import embedding
from labelmill.operators.errors import OperatorError
from labelmill.operators.models import ModelCard, ModelError, load_card
from labelmill.operators.models.card import ROOT
from tests.drawing import picture
from tests.operators.engines.embedding import tiny_encoders
from tests.operators.engines.embedding.test_transformers import PROCESSORS, exact, processor
from tests.operators.test_embed import SIZES, embed

TEXTS = ["a car", "A Car, a cat.", "über", "a", "cat cat cat"]
COLUMN = embedding(tiny_encoders.WIDTH)


@pytest.fixture(scope="module", params=[tiny_encoders.siglip, tiny_encoders.naflex], ids=["fixed", "naflex"])
def card(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    made: ModelCard = request.param(tmp_path_factory.mktemp("model"))
    return made


def folder(card: ModelCard) -> Path:
    return Path(str(card.weights.path)).parent


def classify(card: ModelCard, ontology: Any = TEXTS, **params: Any) -> Classify:
    operator = Classify(Classify.Params(model=card, ontology=ontology, **{"templates": ("{}",), **params}))
    operator.check({"embedding": COLUMN})
    operator.load()
    return operator


def table(vectors: Any) -> pa.Table:
    keys = [str(row) for row in range(len(vectors))]
    return pa.table({"image_id": range(len(vectors)), "key": keys, "embedding": to_array(list(vectors), COLUMN)})


def probabilities(operator: Classify, vectors: np.ndarray) -> np.ndarray:
    columns = operator.compute(table(vectors)).columns
    assert columns is not None
    return np.array(columns.column("probabilities").to_pylist())


def own_logits(card: ModelCard) -> np.ndarray:
    """`logits_per_image` of transformers' processor and model, for all pictures and texts."""
    import transformers

    model = getattr(transformers, card.architecture).from_pretrained(folder(card)).eval()
    tokenizer = transformers.Siglip2Tokenizer.from_pretrained(folder(card))
    texts = tokenizer(TEXTS, padding="max_length", max_length=tiny_encoders.LENGTH, return_tensors="pt")
    assert "attention_mask" not in texts
    prepare = processor(card, next(iter(PROCESSORS[card.architecture])))
    rows = []
    for size in SIZES:
        with torch.no_grad():
            output = model(**texts, **prepare(picture(*size).pil(), return_tensors="pt"))
        rows.append(output.logits_per_image[0].numpy())
    return np.stack(rows)


def test_probabilities_are_the_sigmoid_of_siglip_s_own_logits(card: ModelCard) -> None:
    expected = 1 / (1 + np.exp(-own_logits(card)))
    assert np.ptp(expected) > 0.1
    images = exact(embed(card), [picture(*size) for size in SIZES])
    operator = classify(card)
    np.testing.assert_allclose(operator._encoder.probabilities(images @ operator._vectors.T), expected, atol=1e-5)

    found = probabilities(operator, images.astype(np.float16))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    columns = operator.compute(table(images)).columns
    assert columns is not None
    assert columns.column("class").to_pylist() == [TEXTS[best] for best in expected.argmax(axis=1)]
    np.testing.assert_allclose(columns.column("probability").to_numpy(), expected.max(axis=1), atol=1e-3)


def test_a_class_is_judged_whatever_else_is_asked(card: ModelCard) -> None:
    images = exact(embed(card), [picture(*size) for size in SIZES])
    together = probabilities(classify(card), images)
    assert np.abs(together.sum(axis=1) - 1).min() > 0.01
    for index, text in enumerate(TEXTS):
        np.testing.assert_allclose(probabilities(classify(card, [text]), images)[:, 0], together[:, index], atol=1e-6)


def test_writes_the_same_columns_as_with_clip(card: ModelCard) -> None:
    operator = classify(card)
    kinds = [("class", pa.string()), ("probability", pa.float32()), ("probabilities", pa.list_(pa.float32()))]
    assert operator.writes() == pa.schema(kinds)
    for vectors in (np.zeros((0, tiny_encoders.WIDTH)), np.eye(3, tiny_encoders.WIDTH)):
        columns = operator.compute(table(vectors)).columns
        assert columns is not None
        assert columns.schema == operator.writes()
        assert columns.num_rows == len(vectors)


def test_texts_are_lowered_and_do_not_depend_on_their_company(card: ModelCard) -> None:
    encoder = classify(card)._encoder
    together = encoder.encode(["A CAR", "a car", "a cat"] + ["a"] * 70)
    np.testing.assert_array_equal(together[0], together[1])
    assert np.abs(together[1] - together[2]).max() > 1e-2
    np.testing.assert_allclose(together[2], encoder.encode(["a cat"])[0], atol=1e-5)


def test_refuses_a_prompt_that_would_be_cut_off(card: ModelCard) -> None:
    classify(card, ["a" * 11])
    with pytest.raises(OperatorError, match=r"must have at most 12 tokens but 'a{12}' has 13"):
        classify(card, ["a" * 12])


def moved(card: ModelCard, folder: Path, tokenizer: str) -> ModelCard:
    """The card with another tokenizer."""
    (folder / "model.safetensors").write_bytes(Path(str(card.weights.path)).read_bytes())
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    path = str(folder / "model.safetensors")
    return card.model_copy(update={"weights": card.weights.model_copy(update={"path": path})})


WORDS = '{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}'


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "tokenizer cannot be read from"), (WORDS, "the tokenizer .* must have <eos> and <pad>")],
)
def test_refuses_a_tokenizer_that_is_not_siglip_s(card: ModelCard, content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        classify(moved(card, tmp_path, content))


def test_refuses_a_tokenizer_with_more_tokens_than_the_model(card: ModelCard, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    larger = Tokenizer.from_file(str(folder(card) / "tokenizer.json"))
    size = larger.get_vocab_size()
    larger.add_tokens(["zebra"])
    with pytest.raises(ModelError, match=f"the tokenizer must have at most {size} tokens but has {size + 1}"):
        classify(moved(card, tmp_path, larger.to_str()))


def test_check_refuses_a_card_without_a_tokenizer(card: ModelCard) -> None:
    operator = Classify(
        Classify.Params(
            model=card.model_copy(update={"weights": card.weights.model_validate({"random": 0})}), ontology=["car"]
        )
    )
    with pytest.raises(ModelError, match=r"weights.extra_files must have tokenizer.json but has none"):
        operator.check({"embedding": COLUMN})


@pytest.mark.parametrize("name", ["dinov3-small", None])
def test_check_refuses_a_model_without_a_text_side(name: str | None, tmp_path: Path) -> None:
    shipped = load_card(ROOT / "conf" / "models" / f"{name}.yaml") if name else tiny_encoders.dinov3(tmp_path)
    operator = Classify(Classify.Params(model=shipped, ontology=["car"]))
    with pytest.raises(
        ModelError, match=r"must read text but DINOv3ViTModel has no text side; .* such as clip-vit-b-32"
    ):
        operator.check({"embedding": embedding(shipped.config["model"]["hidden_size"])})


def test_the_fingerprint_changes_with_the_tokenizer(card: ModelCard, tmp_path: Path) -> None:
    tokenizer = (folder(card) / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "same").mkdir()
    (tmp_path / "other").mkdir()
    usual, same, other = (
        Classify(Classify.Params(model=given, ontology=TEXTS)).digest()
        for given in (card, moved(card, tmp_path / "same", tokenizer), moved(card, tmp_path / "other", tokenizer + " "))
    )
    assert usual == same != other
