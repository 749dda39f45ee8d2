"""What image operators with a model card have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from labelmill.operators.base import Needs
from labelmill.operators.images.decoded import DecodedImage
from labelmill.operators.models import ModelCard, ModelError
from labelmill.operators.models.card import Weights
from labelmill.operators.models.operator import ModelOperator, ModelParams


class Look(ModelOperator):
    """The least that one can be."""

    name = "look"
    Params = ModelParams

    def writes(self) -> pa.Schema:
        return pa.schema([pa.field("seen", pa.bool_())])

    def prepare(self, image: DecodedImage, row: Mapping[str, Any]) -> None:
        raise AssertionError("nothing must be prepared")

    def infer(self, items: Sequence[Any]) -> list[Any]:
        raise AssertionError("the model must not be used")


def card(**changes: Any) -> ModelCard:
    given = {"name": "small", "task": "looking", "engine": "eyes", "architecture": "Eye", "licence": "MIT"}
    return ModelCard.model_validate({**given, "memory_gb": 1.5, "weights": {"random": 0}, **changes})


def look(**params: Any) -> Look:
    return Look(Look.Params(**{"model": card(), **params}))


def test_it_needs_the_card_s_memory_of_a_gpu() -> None:
    assert look().needs() == Needs(gpu=True, memory_gb=1.5)


def test_arithmetic_is_in_the_fingerprint_and_what_is_only_speed_is_not() -> None:
    assert look(batch=3).params.result_params() == look().params.result_params() == {"dtype": "auto"}
    assert look(dtype="float16").params.result_params() == {"dtype": "float16"}
    assert look(batch=3).batch == 3
    assert look().batch == 16


def test_the_card_s_digest_stands_for_the_card() -> None:
    assert look().digest() == card().digest()
    assert look(model=card(memory_gb=9)).digest() == look().digest()
    assert look(model=card(weights={"random": 1})).digest() != look().digest()


@pytest.mark.parametrize("params", [{"batch": 0}, {"dtype": "float8"}, {"size": 3}])
def test_parameters_out_of_range(params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(params))):
        look(**params)


def test_a_model_must_be_named() -> None:
    with pytest.raises(ValidationError, match="model"):
        Look.Params.model_validate({})


def test_ready_when_the_weights_are_those_of_the_card(tmp_path: Path) -> None:
    look().ready()
    path = tmp_path / "eye.safetensors"
    operator = look(model=card(weights={"path": str(path)}))
    with pytest.raises(ModelError, match=r"eye\.safetensors") as error:
        operator.ready()
    assert error.value.param == ("model",)
    path.write_bytes(b"weights")
    operator.ready()  # they are read in `load`, which is not called here
    right = Weights(path=str(path), sha256=hashlib.sha256(b"weights").hexdigest())
    look(model=card(weights=right)).ready()
    path.write_bytes(b"others!")
    with pytest.raises(ModelError, match="must have sha256"):
        look(model=card(weights=right)).ready()
