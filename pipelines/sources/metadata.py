"""Metadata: what a source knows of an image besides its labels, as values that JSON can hold."""

from __future__ import annotations

import datetime
import decimal
import math
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from labelmill.pipelines.sources.base import valid_text

MAX_TEXT = 2000
"""Longest string that is carried; longer ones are cut and end in ``…``."""


def scalars(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The scalar values among `values`; None when there is none. Lists, mappings and binary values are left out."""
    found = {}
    for name, value in values.items():
        known, plain = _plain(value)
        if known:
            found[valid_text(str(name))] = plain
    return found or None


def scalar_columns(schema: pa.Schema, without: Iterable[str]) -> list[str]:
    """Names of the columns whose values `scalars` keeps."""
    skipped = set(without)
    return [field.name for field in schema if field.name not in skipped and _is_scalar(field.type)]


def said_size(values: Mapping[str, Any]) -> tuple[int, int] | None:
    """Width and height of an image as a row says them under these names; None where it does not."""
    size = values.get("width"), values.get("height")
    if all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in size):
        return size  # type: ignore[return-value]
    return None


def bounded_text(text: str) -> str:
    """The text, cut to `MAX_TEXT` characters."""
    text = valid_text(text)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def json_value(value: Any) -> Any:
    """Parsed JSON with valid text and without NaN and infinity, which JSON does not have (they become null)."""
    if isinstance(value, dict):
        return {valid_text(str(name)): json_value(item) for name, item in value.items()}
    if isinstance(value, list):
        return [json_value(item) for item in value]
    if isinstance(value, str):
        return valid_text(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_scalar(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_scalar(kind.value_type)
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    return not (pa.types.is_nested(kind) or binary or str(kind) == "binary_view" or pa.types.is_null(kind))


def _plain(value: Any) -> tuple[bool, Any]:
    if value is None or isinstance(value, (bool, int)):
        return True, value
    if isinstance(value, float):
        return True, value if math.isfinite(value) else None
    if isinstance(value, str):
        return True, bounded_text(value)
    if isinstance(value, (datetime.date, datetime.time)):
        return True, value.isoformat()
    if isinstance(value, (decimal.Decimal, datetime.timedelta, uuid.UUID)):
        return True, str(value)
    return False, None
