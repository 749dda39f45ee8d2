"""The model card: how to build one model, as a YAML file under conf/models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from operators.base import OperatorError

Dtype = Literal["auto", "float32", "float16", "bfloat16"]
"""Arithmetic of the model. `auto` is float32 on a CPU and float16 on a GPU."""

ROOT = Path(__file__).parents[2]
"""The checkout. Cards inside it name local weights relative to it, because workers may unpack it elsewhere."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Section = TypeVar("Section", bound=BaseModel)


class ModelError(OperatorError):
    """A model cannot be built: its card is wrong, or its weights are missing, corrupt or of another model."""

    def __init__(self, message: str, param: tuple[str | int, ...] = ("model",)) -> None:
        super().__init__(message, param)


class Weights(BaseModel):
    """Where weights come from: exactly one of `hub`, `url`, `path` and `random`.

    Attributes:
        hub: A Hugging Face repository, with the `revision` (a commit or tag) and the `file` in it.
        url: Anything fsspec opens, with the `sha256` it must have.
        path: A local file; in a card, relative to the card's folder.
        random: A seed. Weights are drawn, not trained: for tests.
        sha256: Of the file, lower-case hexadecimal.
        extra_files: Files beside a `hub` or `path` file that the engine reads too (configuration, tokenizer).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    hub: str | None = Field(None, pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str | None = None
    file: str | None = None
    url: str | None = None
    path: str | None = None
    random: int | None = Field(None, ge=0)
    sha256: Sha256 | None = None
    extra_files: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_kind(self) -> Weights:
        given = [kind for kind in ("hub", "url", "path", "random") if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"must have exactly one of hub, url, path and random but has {given or 'none'}")
        kind = given[0]
        if kind == "hub" and not (self.revision and self.file):
            raise ValueError("with hub must name a revision and a file")
        if kind != "hub" and (self.revision or self.file):
            raise ValueError(f"revision and file belong to hub, not to {kind}")
        if kind == "url" and not self.sha256:
            raise ValueError("with url must give the sha256 that the file must have")
        if kind == "random" and self.sha256:
            raise ValueError("random weights have no sha256")
        if kind in ("url", "random") and self.extra_files:
            raise ValueError(f"extra_files belong to hub and path, not to {kind}")
        return self


class ModelCard(BaseModel):
    """How to build one model.

    Attributes:
        name: What a pipeline calls it; the file's stem unless the file says otherwise.
        task: What it does: embedding, detection, …
        engine: The builder in `operators.engines`: open_clip, transformers, …
        architecture: An open_clip model name, or a transformers class.
        weights: Where its weights come from.
        config: Sizes of the model and other settings of the engine, where the architecture's name does not say them.
        preprocess: How an image becomes the model's input; the keys are the engine's.
        licence: SPDX identifier of the weights' licence.
        memory_gb: Memory of the loaded model with a working batch, for placement.
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

    def digest(self) -> str:
        """Identifies everything in the card that changes results, without loading the model.

        Weights are identified by their sha256 where it is known, a local file by its contents, a file of a hub by
        repository, revision and name, random weights by their seed.

        Returns:
            64 hexadecimal digits.

        Raises:
            ModelError: A local file is not there.
        """
        weights = self.weights
        identity: dict[str, Any]
        if weights.path is not None:
            files = local_paths(self)
            identity = {"files": [weights.sha256 or file_sha256(files[0]), *map(file_sha256, files[1:])]}
        elif weights.random is not None:
            identity = {"random": weights.random}
        elif weights.sha256 is not None and not weights.extra_files:
            identity = {"files": [weights.sha256]}
        else:
            identity = weights.model_dump(include={"hub", "revision", "file", "sha256", "extra_files"})
        known = self.model_dump(mode="json", include={"engine", "architecture", "config", "preprocess", "dtype"})
        text = json.dumps({**known, "weights": identity}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def section(self, name: Literal["config", "preprocess"], schema: type[Section]) -> Section:
        """A section of the card, checked against what the engine understands.

        Raises:
            ModelError: Naming the key, what it must be and what it is.
        """
        try:
            return schema.model_validate(getattr(self, name))
        except ValidationError as error:
            raise ModelError(f"model card {self.name}: {_first(error, name)}") from error


def load_card(path: str | Path) -> ModelCard:
    """Read a model card.

    Args:
        path: A YAML file. A relative `weights.path` in it is relative to its folder.

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
        data["weights"] = {**weights, "path": _portable(path.parent / weights["path"])}
    try:
        return ModelCard.model_validate(data)
    except ValidationError as error:
        raise ModelError(f"model card {path}: {_first(error)}") from error


def require(task: str, engines: tuple[str, ...]) -> Callable[[ModelCard], ModelCard]:
    """A pydantic validator that accepts only cards for a task that one of the engines can build."""

    def check(card: ModelCard) -> ModelCard:
        if card.task != task or card.engine not in engines:
            wanted, one_of = f"for {task} with engine", " or ".join(engines)
            raise ValueError(
                f"must be a model card {wanted} {one_of} but {card.name} is for {card.task} with engine {card.engine}"
            )
        return card

    return check


def local_paths(card: ModelCard) -> list[Path]:
    """The files of a card whose weights are a `path`: the weights first, then the extra files beside them.

    Raises:
        ModelError: One is not there.
    """
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


def _portable(path: Path) -> str:
    """Relative to the checkout for a file inside it, else absolute."""
    path = path.expanduser().resolve()
    return str(path.relative_to(ROOT.resolve())) if path.is_relative_to(ROOT.resolve()) else str(path)


def _first(error: ValidationError, *prefix: str) -> str:
    """The first mistake that pydantic found, as one sentence."""
    details = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in (*prefix, *details["loc"])) or "the card"
    found = "" if details["type"] in ("missing", "value_error") else f", found {details['input']!r}"
    return f"{where}: {details['msg'].removeprefix('Value error, ')}{found}"
