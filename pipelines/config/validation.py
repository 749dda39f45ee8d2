"""What pydantic finds wrong with a part of a pipeline file, in our words and with its place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from labelmill.pipelines.config.yaml_file import KeyPath, YamlFile
from labelmill.pipelines.errors import nearest


def validation_problems(file: YamlFile, path: KeyPath, error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line per mistake pydantic found, in our words."""
    problems = []
    for item in error.errors(include_url=False):
        loc = tuple(
            part for part in item["loc"] if not (isinstance(part, str) and not part.isidentifier() and "[" in part)
        )
        at = (*path, *loc)
        if item["type"] == "extra_forbidden":
            known = _fields_at(model, loc[:-1])
            message = f"unknown key, must be one of {', '.join(known)}{nearest(str(loc[-1]), known)}"
            if not known:
                message = "unknown key; this step takes no parameters"
        elif item["type"] == "missing":
            message = "must be given"
        else:
            text = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
            message = text if item["type"] == "value_error" else f"must be {text} but is {item['input']!r}"
        problems.append(file.problem(at, message))
    return list(dict.fromkeys(problems))


def _fields_at(model: type[BaseModel], loc: Iterable[str | int]) -> list[str]:
    fields = _names(model)
    for part in loc:
        field = model.model_fields.get(str(part))
        inner = (
            next((c for c in classes_of(field.annotation) if isinstance(c, type) and issubclass(c, BaseModel)), None)
            if field
            else None
        )
        if inner is None:
            return fields
        model, fields = inner, _names(inner)
    return fields


def _names(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def classes_of(annotation: Any) -> set[Any]:
    """What a field's type hint allows: itself and, of a union, its members."""
    return {annotation, *get_args(annotation)}
