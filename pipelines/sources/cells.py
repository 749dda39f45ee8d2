"""Images in the cells of a column: bytes, a struct of bytes and path, or a path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa

from labelmill.pipelines.sources.base import SourceError

CellKind = Literal["bytes", "struct", "text"]
KEY_DIGITS = 8


def cell_kind(kind: pa.DataType) -> CellKind | None:
    """How a column of this type holds images; None if it cannot."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or str(kind) == "binary_view":
        return "bytes"
    if pa.types.is_struct(kind):
        names = {field.name: field.type for field in kind}
        return "struct" if "bytes" in names and cell_kind(names["bytes"]) == "bytes" else None
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or str(kind) == "string_view":
        return "text"
    return None


def image_column(schema: pa.Schema, wanted: str | None, where: str, declared: Sequence[str] = ()) -> str:
    """The column with the images.

    Args:
        schema: Columns of the file.
        wanted: The column that the user named, if any.
        where: The file, for messages.
        declared: Columns that the file itself says are images.

    Raises:
        SourceError: It is not there, cannot hold images, or several could be it.
    """
    columns = ", ".join(f"{field.name} ({_type_name(field.type)})" for field in schema) or "none"
    if wanted is not None:
        if wanted not in schema.names:
            raise SourceError(f"image must be a column of {where}, but {wanted!r} is not; its columns are {columns}")
        if cell_kind(schema.field(wanted).type) is None:
            raise SourceError(
                f"image must be a column of bytes, of a struct of bytes and path, or of paths, but {wanted!r} in "
                f"{where} is {schema.field(wanted).type}"
            )
        return wanted
    candidates = list(declared) or [f.name for f in schema if cell_kind(f.type) in ("bytes", "struct")]
    if len(candidates) != 1 and "image" in schema.names and cell_kind(schema.field("image").type) is not None:
        return "image"
    if len(candidates) != 1:
        raise SourceError(
            f"{'no column' if not candidates else 'more than one column'} of {where} looks like images; "
            f"name it with image: COLUMN; its columns are {columns}"
        )
    return candidates[0]


def row_name(row: int, rows: int) -> str:
    """A row's number, zero-padded so that the order of names is the order of rows."""
    return f"{row:0{max(KEY_DIGITS, len(str(max(rows - 1, 0))))}d}"


def cell_value(value: Any) -> bytes | str | None:
    """What a cell holds: bytes, a path or URL, or nothing."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    return value or None


def _type_name(kind: pa.DataType) -> str:
    shown = str(kind)
    return shown if len(shown) <= 40 else shown[:37] + "…"
