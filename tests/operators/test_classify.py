from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from labelmill.operators.applying.results import to_array
from labelmill.operators.classify import Classify
from labelmill.operators.columns.schemas import embedding
from labelmill.operators.engines.embedding import open_clip as engine
from labelmill.operators.errors import OperatorError
from labelmill.operators.models import load_card
from labelmill.operators.models.card import ROOT

RANDOM = load_card(ROOT / "conf" / "models" / "clip-random.yaml")
WIDTH = 32
ONTOLOGY = {"car": ["car", "taxi"], "stop sign": ["stop sign"], "dog {}": ["dog {}"]}
TEMPLATES = ("a photo of a {}.", "{} on a street", "{}, {}")


def classify(ontology: Any = ONTOLOGY, **params: Any) -> Classify:
    operator = Classify(Classify.Params(model=RANDOM, ontology=ontology, **params))
    operator.check({operator.params.embedding: embedding(WIDTH)})
    operator.load()
    return operator


def unit_vectors(count: int, seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(count, WIDTH))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float16)


def table(vectors: Any, name: str = "embedding") -> pa.Table:
    count = len(vectors)
    keys = [f"{row}.jpg" for row in range(count)]
    return pa.table(
        {"image_id": pa.array(range(1, count + 1), pa.int64()), "key": keys, name: to_array(vectors, embedding(WIDTH))}
    )


def probabilities(operator: Classify, vectors: Any) -> np.ndarray:
    result = operator.compute(table(vectors))
    assert result.columns is not None
    return np.array(result.columns.column("probabilities").to_pylist())


@pytest.fixture(scope="module")
def model() -> Any:
    return engine.build(RANDOM)


def test_probabilities_are_open_clip_s_zero_shot(model: Any) -> None:
    from open_clip import SimpleTokenizer, build_zero_shot_classifier

    names = ["car", "stop sign", "fire hydrant", "Großer Hund"]
    templates = ["a photo of a {}.", "art of the {}"]
    weights = build_zero_shot_classifier(model, SimpleTokenizer(), names, templates)
    vectors = unit_vectors(20)
    images = torch.nn.functional.normalize(torch.from_numpy(vectors.astype(np.float32)), dim=-1)
    expected = (model.logit_scale.exp() * images @ weights).softmax(dim=-1).detach().numpy()

    operator = classify(names, templates=tuple(templates))
    np.testing.assert_allclose(probabilities(operator, vectors), expected, atol=1e-5)
    result = operator.compute(table(vectors))
    assert result.columns is not None
    assert result.columns.column("class").to_pylist() == [names[best] for best in expected.argmax(axis=1)]
    np.testing.assert_allclose(result.columns.column("probability").to_numpy(), expected.max(axis=1), atol=1e-5)
    assert len(set(expected.argmax(axis=1))) > 1
    assert result.decisions is not None
    assert {decision.decision for decision in result.decisions} == {"kept"}


def test_a_class_is_the_mean_over_prompts_and_templates(model: Any) -> None:
    from open_clip import SimpleTokenizer

    operator = classify(templates=TEMPLATES)
    texts = ["a photo of a car.", "car on a street", "car, car", "a photo of a taxi.", "taxi on a street", "taxi, taxi"]
    with torch.no_grad():
        mean = model.encode_text(SimpleTokenizer()(texts), normalize=True).mean(dim=0)
    np.testing.assert_allclose(operator._vectors[0], (mean / mean.norm()).numpy(), atol=1e-5)
    braces = model.encode_text(SimpleTokenizer()(["a photo of a dog {}."]), normalize=True).detach().numpy()
    np.testing.assert_allclose(classify(["dog {}"])._vectors, braces, atol=1e-5)


def test_writes_exactly_what_it_promises() -> None:
    operator = classify()
    schema = pa.schema(
        [("class", pa.string()), ("probability", pa.float32()), ("probabilities", pa.list_(pa.float32()))]
    )
    assert operator.writes() == schema
    for vectors in (unit_vectors(0), unit_vectors(3), [None, None], [np.zeros(WIDTH)] * 2):
        result = operator.compute(table(vectors))
        assert result.columns is not None
        assert result.decisions is not None
        assert result.columns.schema == schema
        result.columns.validate(full=True)
        assert result.columns.num_rows == len(result.decisions) == len(vectors)


def test_probabilities_sum_to_one_in_the_ontology_s_order() -> None:
    forward = probabilities(classify(), unit_vectors(9))
    assert forward.shape == (9, 3)
    np.testing.assert_allclose(forward.sum(axis=1), 1, atol=1e-6)
    backward = probabilities(classify(dict(reversed(ONTOLOGY.items()))), unit_vectors(9))
    np.testing.assert_allclose(backward, forward[:, ::-1], atol=1e-6)


def test_bad_embeddings_fail_their_rows_only() -> None:
    good = unit_vectors(3)
    nan, infinite, zero = good[0].copy(), good[1].copy(), np.zeros(WIDTH, dtype=np.float16)
    nan[7], infinite[0] = np.nan, np.inf
    operator = classify()
    result = operator.compute(table([good[0], nan, good[1], None, zero, infinite, good[2]]))
    assert result.columns is not None
    assert result.decisions is not None
    kinds = [decision.decision for decision in result.decisions]
    assert kinds == ["kept", "failed", "kept", "failed", "failed", "failed", "kept"]
    reasons = [decision.reason for decision in result.decisions if decision.decision == "failed"]
    assert reasons == [
        "the embedding must be finite",
        "there is no embedding",
        "the embedding must not be all zeros",
        "the embedding must be finite",
    ]
    rows = result.columns.to_pylist()
    assert all(value is None for row in (1, 3, 4, 5) for value in rows[row].values())
    alone = probabilities(operator, good)
    np.testing.assert_allclose([rows[row]["probabilities"] for row in (0, 2, 6)], alone, atol=1e-6)


def test_a_slice_of_a_table_is_read_where_it_starts() -> None:
    operator, vectors = classify(), unit_vectors(8)
    whole = probabilities(operator, vectors)
    part = operator.compute(table(vectors).slice(3, 2)).columns
    assert part is not None
    np.testing.assert_allclose(np.array(part.column("probabilities").to_pylist()), whole[3:5], atol=1e-6)


def test_reads_the_column_it_is_told() -> None:
    operator = classify(embedding="embed2.embedding")
    assert operator.reads() == ("embed2.embedding",)
    result = operator.compute(table(unit_vectors(2), "embed2.embedding"))
    assert result.columns is not None
    assert result.columns.num_rows == 2


@pytest.mark.parametrize("kind", [embedding(512), pa.list_(pa.float32(), WIDTH), pa.string()])
def test_refuses_embeddings_of_another_model(kind: pa.DataType) -> None:
    operator = Classify(Classify.Params(model=RANDOM, ontology=ONTOLOGY))
    with pytest.raises(OperatorError, match=r"column 'embedding' must be fixed_size_list<.*>\[32\] but is "):
        operator.check({"embedding": kind})


def test_refuses_an_ontology_without_classes() -> None:
    operator = Classify(Classify.Params(model=RANDOM, ontology={}))
    with pytest.raises(OperatorError, match="at least one class") as error:
        operator.check({"embedding": embedding(WIDTH)})
    assert error.value.param == ("ontology",)


@pytest.mark.parametrize("templates", [(), ("a photo",), ("a photo of a {}.", "{name}")])
def test_refuses_templates_without_a_place_for_the_prompt(templates: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match="templates"):
        Classify.Params(model=RANDOM, ontology=ONTOLOGY, templates=templates)


def test_refuses_a_prompt_that_would_be_cut_off() -> None:
    classify(["cat " * 70])
    with pytest.raises(OperatorError, match=r"must have at most 77 tokens but 'a photo of a cat cat.* has 8"):
        classify(["cat " * 80])


def test_refuses_a_card_without_a_text_side() -> None:
    card = load_card(ROOT / "conf" / "models" / "grounding-dino-random.yaml")
    with pytest.raises(ValidationError, match="must be a model card for embedding"):
        Classify.Params(model=card, ontology=ONTOLOGY)


def test_fingerprint_changes_with_the_order_of_classes() -> None:
    forward, backward = (
        Classify(Classify.Params(model=RANDOM, ontology=ontology))
        for ontology in (ONTOLOGY, dict(reversed(ONTOLOGY.items())))
    )
    assert forward.digest() != backward.digest()
    assert "model" not in forward.params.result_params()
