"""Puts the labels that people checked in the place of the models', for the images that they looked at."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from labelmill.operators.base import KEPT, Decision, OperatorParams, TableOperator, TableResult
from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.operators.errors import OperatorError

REVIEWED_AT = pa.timestamp("ms", tz="UTC")

REVIEWS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("detections", DETECTIONS, nullable=False),
        pa.field("reviewer", pa.string()),  # null where the tool did not say who
        pa.field("reviewed_at", REVIEWED_AT),  # null where the tool did not say when
    ]
)
"""One row per reviewed image; what `labelmill review import` writes."""


class Review(TableOperator):
    """Put the labels of people in the place of those of models, for the images that somebody reviewed.

    `labelmill review import` writes the file of decisions. Images are known by their key, so the decisions of one run
    serve another one over the same source. A reviewed image gets exactly the labels that its reviewer left: an empty
    list where everything was wrong. Labels that the reviewer left as they were keep score, prompt, mask and models;
    those that a person drew or changed have none.

    Columns: `detections`; `reviewer` and `reviewed_at`, which are null for images that nobody reviewed.
    """

    name = "review"

    class Params(OperatorParams):
        """Where the decisions are.

        Attributes:
            decisions: A Parquet file, local or any fsspec URL. Its content is part of the step's fingerprint, its place
                is not.
            detections: The column whose detections are reviewed.
        """

        shorthand: ClassVar[str] = "decisions"

        decisions: str = Field(min_length=1, json_schema_extra={"tuning": True})
        detections: str = "detections"

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self._digest: str | None = None

    def reads(self) -> tuple[str, ...]:
        return (self.params.detections,)

    def expects(self) -> dict[str, pa.DataType]:
        return {self.params.detections: DETECTIONS}

    def writes(self) -> pa.Schema:
        return pa.schema([("detections", DETECTIONS), ("reviewer", pa.string()), ("reviewed_at", REVIEWED_AT)])

    def digest(self) -> str:
        if self._digest is None:
            try:
                self._digest = hashlib.sha256(self._read()).hexdigest()
            except FileNotFoundError:
                return ""
        return self._digest

    def ready(self) -> None:
        try:
            self._table()
        except FileNotFoundError as error:
            raise OperatorError(
                f"decisions must be a file that `labelmill review import` wrote but there is none at "
                f"{self.params.decisions}",
                ("decisions",),
            ) from error

    def load(self) -> None:
        table = self._table()
        self._reviews = table
        self._rows = {key: row for row, key in enumerate(table.column("key").to_pylist())}

    def compute(self, table: pa.Table) -> TableResult:
        keys = table.column("key").to_pylist()
        given = table.column(self.params.detections)
        rows = np.array([self._rows.get(key, -1) for key in keys], dtype=np.int64)
        where = pa.array(rows, mask=rows < 0)
        # Reviewed ones stand behind the given ones: one `take` picks from either.
        both = pa.chunked_array([*given.chunks, *self._reviews.column("detections").chunks], DETECTIONS)
        picked = np.where(rows < 0, np.arange(len(keys)), rows + len(keys))
        detections = both.take(pa.array(picked))
        missing = detections.is_null().to_pylist()
        failed = Decision("failed", f"no {self.params.detections}: nobody looked for objects in this image")
        told = [self._reviews.column(name).take(where) for name in ("reviewer", "reviewed_at")]
        columns = pa.table([detections, *told], schema=self.writes())
        return TableResult(columns, [failed if each else KEPT for each in missing])

    def _read(self) -> bytes:
        import fsspec

        with fsspec.open(self.params.decisions, "rb") as file:
            content: bytes = file.read()
        return content

    def _table(self) -> pa.Table:
        """The decisions, one row for each key.

        Raises:
            FileNotFoundError: There are none.
            OperatorError: They are something else, or have changed since the step's fingerprint was taken.
        """
        import pyarrow.parquet as pq

        content = self._read()
        where = self.params.decisions
        if self._digest not in (None, hashlib.sha256(content).hexdigest()):
            message = f"decisions must stay as they are while a run lasts but {where} has changed; start the run again"
            raise OperatorError(message, ("decisions",))
        try:
            table = pq.read_table(pa.BufferReader(content)).select(REVIEWS.names).cast(REVIEWS)
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise OperatorError(
                f"decisions must be a file that `labelmill review import` wrote but {where} is not: {error}",
                ("decisions",),
            ) from error
        keys = table.column("key").to_pylist()
        if len(set(keys)) < len(keys):
            twice = next(key for key, count in Counter(keys).items() if count > 1)
            message = f"decisions must have one row for each key but {where} has several for {twice!r}"
            raise OperatorError(message, ("decisions",))
        return table
