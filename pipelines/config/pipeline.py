"""A pipeline: one YAML file, read, validated, its steps built and chained. Nothing runs here."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from labelmill.operators.base import Operator
from labelmill.operators.errors import OperatorError
from labelmill.operators.ontology import Ontology
from labelmill.operators.registry import UnknownOperator, find, step_name
from labelmill.operators.secrets import keep_options, plain_options
from labelmill.pipelines.config.cards import find_card
from labelmill.pipelines.config.validation import classes_of, validation_problems
from labelmill.pipelines.config.yaml_file import (
    TOP_LEVEL,
    KeyPath,
    YamlFile,
    expand,
    parse_yaml,
    read_yaml,
    with_references,
)
from labelmill.pipelines.errors import ConfigError, UserError, nearest
from labelmill.pipelines.exports import EXPORT_NAMES, exporter
from labelmill.pipelines.exports.columns import COLUMNS, ExportColumns, column_problem, missing_column
from labelmill.pipelines.sources.spec import SourceSpec
from labelmill.pipelines.sources.uri import has_user
from labelmill.pipelines.steps import ColumnError, Step, chain

STEP_NAME = re.compile(r"[a-z][a-z0-9_]*")
RESERVED = ("source", "decision", "image_id", "key")


class Settings(BaseModel):
    """What a pipeline says besides its steps and exports."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    source: SourceSpec
    output: str = ""
    ontology: Ontology | None = None
    shard_size: int = Field(256, ge=1, le=100_000)

    @field_validator("output", "name", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, (int, float)) else value

    @field_validator("output")
    @classmethod
    def _no_user(cls, value: str) -> str:
        if has_user(value):
            raise ValueError("must hold no user and password; give them to the store's own environment variables")
        return value


@dataclass(frozen=True)
class Export:
    """One format to write: its name and parameters."""

    name: str
    params: Any


@dataclass(frozen=True)
class Pipeline:
    """A validated pipeline.

    Attributes:
        settings: Name, source, output, ontology, shard size.
        steps: Built and chained, in order.
        exports: Formats to write at the end.
        columns: The columns that are exported, where the pipeline names them.
        document: The YAML document for `pipeline.yaml`: resolved, without secrets. What came from the environment is
            a reference to it.
    """

    settings: Settings
    steps: list[Step]
    exports: list[Export]
    columns: ExportColumns
    document: dict[str, Any]

    @property
    def labels(self) -> str | None:
        """The column whose detections are exported, or None for the last one written."""
        return self.columns.labels


def load_pipeline(file: str | os.PathLike[str], overrides: list[str] | None = None) -> Pipeline:
    """Read and validate a pipeline file.

    Args:
        file: A YAML file.
        overrides: ``a.b=value`` assignments.

    Raises:
        UserError: There is no such file. ConfigError: Every mistake found, each with file, line and key.
    """
    yaml_file = read_yaml(file, overrides)
    return build_pipeline(yaml_file)


def build_pipeline(file: YamlFile) -> Pipeline:
    """Validate a read file; see `load_pipeline`."""
    problems: list[str] = []
    for key in file.values:
        if key not in TOP_LEVEL:
            known = ", ".join(TOP_LEVEL)
            problems.append(file.problem((key,), f"unknown key, must be one of {known}{nearest(key, TOP_LEVEL)}"))
    settings = _settings(file, problems)
    ontology = settings.ontology if settings is not None else None
    drafts = _drafts(file, problems)
    exports, columns, split = _exports(file, problems)
    if split is not None:
        drafts.append(Draft("split", "split", split, ("export", "split")))
    built: list[tuple[Draft, Operator | None]] = []
    for draft in drafts:
        if draft.path == ("export", "split"):
            draft = _with_groups(draft, built)
        built.append((draft, _build(file, draft, ontology, problems)))
    _check_names(file, drafts, problems)
    steps: list[Step] = []
    if not problems:
        for draft, operator in built:
            assert operator is not None
            try:
                steps.append(chain(steps, draft.name, draft.operator, operator))
            except (ColumnError, OperatorError) as error:
                problems.append(file.problem((*draft.path, *error.param), str(error)))
                break
        if not problems:
            problems += _check_columns(file, steps, columns, exports)
    if problems or settings is None:
        raise ConfigError(problems)
    if not steps and not exports:
        raise ConfigError([file.problem(("steps",), "a pipeline must have at least one step or export but has none")])
    settings = settings.model_copy(update={"output": settings.output or f"runs/{settings.name}"})
    document = {**with_references(file), "output": settings.output}
    if isinstance(document.get("source"), dict) and "storage_options" in document["source"]:
        options = plain_options(document["source"].pop("storage_options"))
        document["source"] |= {"storage_options": options} if options else {}
    keep_options(settings.source.storage_options)
    return Pipeline(settings, steps, exports, columns, document)


def build_alone(name: str, params: Mapping[str, Any]) -> Operator:
    """An operator with parameters as a pipeline would write them, in no pipeline.

    Raises:
        ConfigError: There is no such operator, or a parameter is wrong.
    """
    import yaml

    document = {"steps": [{name: dict(params)} if params else name]}
    file = parse_yaml(name, yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
    problems: list[str] = []
    built = [_build(file, draft, None, problems) for draft in _drafts(file, problems)]
    if problems or not built or built[0] is None:
        raise ConfigError(problems)
    return built[0]


@dataclass(frozen=True)
class Draft:
    """A step as written: its name, operator and parameters, and where it stands in the file."""

    name: str
    operator: str
    params: dict[str, Any]
    path: KeyPath


def _with_groups(split: Draft, above: list[tuple[Draft, Operator | None]]) -> Draft:
    """Images that a step above has put into one group stay in one split, unless the pipeline says otherwise."""
    grouping = [draft.name for draft, operator in above if operator is not None and "group" in operator.writes().names]
    if "group" in split.params or not grouping:
        return split
    return replace(split, params={**split.params, "group": f"{grouping[-1]}.group"})


def _settings(file: YamlFile, problems: list[str]) -> Settings | None:
    values = {key: file.values[key] for key in Settings.model_fields if key in file.values}
    if isinstance(values.get("ontology"), str):
        try:
            values["ontology"] = read_yaml(values["ontology"], names=True).values
        except UserError as error:
            problems.append(file.problem(("ontology",), str(error)))
            return None
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        problems += validation_problems(file, (), error, Settings)
        return None


def _drafts(file: YamlFile, problems: list[str]) -> list[Draft]:
    steps = file.values.get("steps") or []
    if not isinstance(steps, list):
        problems.append(file.problem(("steps",), f"must be a list of steps but is {type(steps).__name__}"))
        return []
    drafts: list[Draft] = []
    counts: dict[str, int] = {}
    for index, step in enumerate(steps):
        path: KeyPath = ("steps", index)
        if isinstance(step, str):
            step = {step: None}
        keys = [key for key in step if key != "as"] if isinstance(step, dict) else []
        if len(keys) != 1:
            problems.append(file.problem(path, f"must be one operator and its parameters but is {step!r}"))
            continue
        operator, value = str(keys[0]), step[keys[0]]
        try:
            find(operator)
            params = {} if value is None else value if isinstance(value, dict) else expand(operator, value)
        except (UnknownOperator, ValueError) as error:
            problems.append(file.problem((*path, operator), str(error)))
            continue
        name = step.get("as")
        if name is None:
            name = step_name(operator)
            counts[name] = counts.get(name, 0) + 1
            name = name if counts[name] == 1 else f"{name}_{counts[name]}"
        drafts.append(Draft(str(name), operator, params, (*path, operator)))
    return drafts


def _check_names(file: YamlFile, drafts: list[Draft], problems: list[str]) -> None:
    seen: dict[str, Draft] = {}
    for draft in drafts:
        if not STEP_NAME.fullmatch(draft.name) or draft.name in RESERVED:
            message = f"a step's name must be lower-case letters, digits and '_', and none of {', '.join(RESERVED)}"
            problems.append(file.problem((*draft.path[:-1], "as"), f"{message}, but is {draft.name!r}"))
        if draft.name in seen:
            message = f"two steps are called {draft.name!r}; give one of them another name with `as:`"
            problems.append(file.problem(draft.path, message))
        seen[draft.name] = draft


def _exports(file: YamlFile, problems: list[str]) -> tuple[list[Export], ExportColumns, dict[str, Any] | None]:
    section = file.values.get("export") or {}
    if not isinstance(section, dict):
        problems.append(file.problem(("export",), f"must be a mapping but is {type(section).__name__}"))
        return [], ExportColumns(), None
    exports: list[Export] = []
    for name, value in section.items():
        if name == "split" or name in COLUMNS:
            continue
        if name not in EXPORT_NAMES:
            known = [*EXPORT_NAMES, "split", *COLUMNS]
            message = f"unknown export, must be one of {', '.join(known)}{nearest(str(name), known)}"
            problems.append(file.problem(("export", str(name)), message))
            continue
        model = exporter(name).Params
        try:
            exports.append(Export(name, model.model_validate(value or {})))
        except ValidationError as error:
            problems += validation_problems(file, ("export", name), error, model)
    split = section.get("split")
    if split is not None and not isinstance(split, dict):
        problems.append(
            file.problem(("export", "split"), f"must be a mapping such as {{train: 0.9, val: 0.1}} but is {split!r}")
        )
        split = None
    named: list[str | None] = []
    for key in COLUMNS:
        column = section.get(key)
        if column is not None and not isinstance(column, str):
            problems.append(file.problem(("export", key), f"must be the name of a column but is {column!r}"))
            column = None
        named.append(column)
    return exports, ExportColumns(*named), split


def _check_columns(file: YamlFile, steps: list[Step], columns: ExportColumns, exports: list[Export]) -> list[str]:
    found = [((key,), column_problem(key, column, steps)) for key, column in columns.named().items()]
    if all(problem is None for _, problem in found):
        found += [
            ((export.name,), missing_column(key, columns, steps))
            for export in exports
            for key in exporter(export.name)(export.params).needs()
        ]
    return [file.problem(("export", *key), problem) for key, problem in found if problem is not None]


def _build(file: YamlFile, draft: Draft, ontology: Ontology | None, problems: list[str]) -> Operator | None:
    """The operator of a step, with names of model cards and the pipeline's ontology put in."""
    from labelmill.operators.models.card import ModelCard

    cls = find(draft.operator)
    params = dict(draft.params)
    for name, field in cls.Params.model_fields.items():
        wanted = classes_of(field.annotation)
        if Ontology in wanted:
            if name not in params and ontology is not None:
                params[name] = ontology
            elif isinstance(params.get(name), str):
                try:
                    params[name] = read_yaml(params[name], names=True).values
                except UserError as error:
                    problems.append(file.problem((*draft.path, name), str(error)))
                    return None
            elif name not in params and field.is_required():
                problems.append(
                    file.problem(draft.path, f"{draft.operator} needs classes to look for: add `ontology:`")
                )
                return None
        if ModelCard in wanted and isinstance(params.get(name), str):
            try:
                params[name] = find_card(params[name])
            except UserError as error:
                problems.append(file.problem((*draft.path, name), str(error)))
                return None
    try:
        return cls(cls.Params.model_validate(params))
    except ValidationError as error:
        problems += validation_problems(file, draft.path, error, cls.Params)
    except OperatorError as error:
        problems.append(file.problem((*draft.path, *error.param), str(error)))
    return None
