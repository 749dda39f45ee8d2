"""What `pipeline` refuses, and where it finds models."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from labelmill.operators.engines.any_pipeline import transformers_pipeline
from labelmill.operators.errors import OperatorError
from labelmill.operators.models import ModelError
from labelmill.operators.pipeline import Pipeline
from tests.operators.engines.any_pipeline import tiny_pipelines as tiny
from tests.operators.test_pipeline import PICTURES, look, step


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"task": "image-clasification"}, "did you mean image-classification"),
        ({"task": "summarization"}, "transformers has it no more"),
        ({"task": "video-classification"}, "looks at something else than one image or one text"),
        ({"task": "object-detection", "model": "no such folder"}, "but there is no folder no such folder"),
        ({"task": "object-detection", "options": {"threshold": float("nan")}}, "must be numbers, texts"),
        ({"task": "object-detection", "trust_remote_code": True}, "trust_remote_code"),
    ],
)
def test_parameters_that_cannot_be(params: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=message):
        Pipeline.Params.model_validate({"model": str(tmp_path), **params})


@pytest.mark.parametrize(
    ("params", "message", "where"),
    [
        (
            {"task": "object-detection", "options": {"treshold": 0.1}},
            "one is treshold; did you mean threshold",
            "options",
        ),
        ({"task": "object-detection", "options": {"batch_size": 4}}, "must not have batch_size", "options"),
        ({"task": "zero-shot-object-detection"}, "must have candidate_labels", "options"),
        (
            {"task": "zero-shot-object-detection", "options": {"candidate_labels": "dog"}},
            "must be a list of texts but is 'dog'",
            "options",
        ),
        (
            {"task": "text-generation", "column": "t", "options": {"generate_kwargs": {"do_sample": True}}},
            "must not have generate_kwargs",
            "options",
        ),
        ({"task": "text-classification"}, "column must name a column of texts", "column"),
        ({"task": "object-detection", "column": "t"}, "column must not be given with object-detection", "column"),
        ({"task": "object-detection", "revision": "main"}, "revision must not be given with a folder", "revision"),
        (
            {"task": "object-detection", "model": "some/repo"},
            "revision must name a commit or tag of some/repo",
            "revision",
        ),
    ],
)
def test_parameters_that_do_not_go_together(params: dict[str, Any], message: str, where: str, tmp_path: Path) -> None:
    operator = Pipeline(Pipeline.Params.model_validate({"model": str(tmp_path), **params}))
    with pytest.raises(OperatorError, match=message) as error:
        operator.check({operator.params.column: pa.string()} if operator.params.column else {})
    assert error.value.param[0] == where


def test_a_column_of_another_type_is_refused(tmp_path: Path) -> None:
    operator = Pipeline(Pipeline.Params(task="ner", model=str(tmp_path), column="width"))
    assert operator.params.task == "token-classification" and operator.reads() == ("width",)
    with pytest.raises(OperatorError, match="column 'width' must be string but is int32"):
        operator.check({"width": pa.int32()})


def test_a_model_that_is_not_here_says_how_to_bring_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("a run must not use the network"))
    operator = Pipeline(Pipeline.Params(task="object-detection", model="hustvl/yolos-tiny", revision="95a90f3"))
    operator.check({})
    for ask in (operator.ready, operator.digest, operator.needs):
        with pytest.raises(ModelError, match=r"not here; run `hf download hustvl/yolos-tiny --revision 95a90f3 "):
            ask()


def test_a_model_in_the_hub_s_cache_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--some--vit" / "snapshots" / commit
    tiny.vit(snapshot)
    operator = Pipeline(Pipeline.Params(task="image-classification", model="some/vit", revision=commit))
    operator.check({})
    operator.ready()
    operator.load()
    assert look(operator, PICTURES[:1])[0]["label"] in tiny.LABELS.values()
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"must have a file model.safetensors but .* has none; run `hf download"):
        operator.ready()


def test_wrong_weights_are_refused(tmp_path: Path) -> None:
    folder = tiny.vit(tmp_path / "vit")
    with pytest.raises(ModelError, match=r"must be able to do fill-mask but .* is a vit model"):
        step("fill-mask", folder)
    headless = tiny.bert(tmp_path / "bert", "BertModel")
    with pytest.raises(ModelError, match=r"must be trained for text-classification but 2 tensors .* \(classifier"):
        step("text-classification", headless)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:2000])
    with pytest.raises(ModelError, match="cannot be loaded for image-classification"):
        step("image-classification", folder)
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"must have a file model\.safetensors"):
        step("image-classification", folder)
    weights.write_bytes(whole)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 40}))
    with pytest.raises(ModelError, match="cannot be loaded for image-classification"):
        step("image-classification", folder)


def test_code_of_a_repository_never_runs(tmp_path: Path) -> None:
    folder = tiny.vit(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "their_own", "auto_map": {"AutoConfig": "code.Config"}, "architectures": ["Theirs"]}
    (folder / "config.json").write_text(json.dumps({**config, **own}))
    (folder / "code.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(ModelError, match="cannot be loaded"):
        step("image-classification", folder)


def test_the_fingerprint_is_that_of_the_files(tmp_path: Path) -> None:
    first, second = tiny.vit(tmp_path / "here"), tiny.vit(tmp_path / "there")
    one, other = (step("image-classification", folder, load=False) for folder in (first, second))
    names, digests = zip(*(each.digest().split("@") for each in (one, other)), strict=True)
    assert names == ("here", "there") and digests[0] == digests[1] and len(digests[0]) == 64
    assert one.params.result_params() == other.params.result_params()
    (second / "README.md").write_text("about it")
    assert other.digest() == f"there@{digests[0]}"
    processor = json.loads((second / "preprocessor_config.json").read_text())
    (second / "preprocessor_config.json").write_text(json.dumps({**processor, "image_mean": [0, 0, 0]}))
    changed = step("image-classification", second, load=False)
    assert digests[0] not in changed.digest()
    assert transformers_pipeline.memory_gb(first) == pytest.approx(0.5, abs=0.01)
