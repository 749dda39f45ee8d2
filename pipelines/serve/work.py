"""What a model is asked, as the batcher sees it: prepare one, then run many at once."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from labelmill.operators.applying.apply import Job, apply
from labelmill.operators.applying.bisect import bisect, failed
from labelmill.operators.applying.infer import infer
from labelmill.operators.applying.patience import Limits, Patience, StopError
from labelmill.operators.applying.results import step_table
from labelmill.operators.applying.shard_images import ShardImages
from labelmill.operators.applying.worker import Worker
from labelmill.operators.base import Decision, ImageOperator, TableOperator
from labelmill.operators.images.decoded import DecodedImage
from labelmill.operators.moment import kind_of
from labelmill.pipelines.serve.errors import ApiError, busy

PATIENCE = 5.0
"""Seconds that an image is tried again for what passes: a client waits, and can itself come back."""


class Work(Protocol):
    """One question to one model. Everything in a batch is asked the same question."""

    @property
    def batch(self) -> int:
        """Items per call of `run`, at most."""
        ...

    def bucket(self, item: Any) -> Hashable:
        """Items of different buckets never share a batch."""
        ...

    def run(self, items: list[Any]) -> Sequence[Any]:
        """For each item its answer, or the exception that is its own. In the model's thread."""
        ...


class OperatorWork:
    """An image operator, through the code that runs apply it with: halved, bisected, checked and cast alike.

    Args:
        operator: Loaded.
        batch: Images per call; None for the operator's own.
    """

    def __init__(self, operator: ImageOperator, batch: int | None = None) -> None:
        self.operator = operator
        self._worker = Worker(operator, Patience(Limits(PATIENCE, keep_going=True)))
        if batch is not None:
            self._worker.batch = batch
        self._none = ShardImages([], lambda uri: b"")

    @property
    def batch(self) -> int:
        """Images per call; less than at first when memory ran out."""
        return self._worker.batch

    def prepare(self, image: DecodedImage, row: Mapping[str, Any]) -> Any:
        """What the operator makes of one image; in a thread.

        Raises:
            ApiError: It cannot: 400 for what is the image's fault, 503 for what passes.
        """
        try:
            return self.operator.prepare(image, row)
        except Exception as error:
            raise refusal(failed(error)) from error

    def bucket(self, item: Any) -> Hashable:
        """See `Work`."""
        return self.operator.bucket(item)

    def run(self, items: list[Any]) -> list[Any]:
        """One row of the step's table for each item (`pyarrow.Table`, the columns of `writes()`), or its ApiError."""
        values = infer(self._worker, items, self._none)
        count = len(items)
        table = step_table(
            self.operator, pa.chunked_array([pa.array(range(count), pa.int64())]), np.arange(count), values
        )
        decisions, reasons = table["decision"].to_pylist(), table["decision.reason"].to_pylist()
        columns = table.select(self.operator.writes().names)
        return [
            columns.slice(place, 1) if decision == "kept" else refusal(Decision(decision, reason or ""))
            for place, (decision, reason) in enumerate(zip(decisions, reasons, strict=True))
        ]


class TableWork:
    """A table operator, a row for each image.

    Args:
        operator: Loaded.
        batch: Rows per call.
    """

    def __init__(self, operator: TableOperator, batch: int = 256) -> None:
        self.operator, self._batch = operator, batch

    @property
    def batch(self) -> int:
        """Rows per call."""
        return self._batch

    def bucket(self, item: pa.Table) -> Hashable:
        """See `Work`."""
        return None

    def run(self, items: list[pa.Table]) -> list[Any]:
        """One row of the step's table for each row that the operator reads (`pyarrow.Table`), or its ApiError."""
        return compute(self.operator, pa.concat_tables(items))


def compute(operator: TableOperator, read: pa.Table) -> list[Any]:
    """What a table operator writes for some rows, through the code that runs apply it with.

    Args:
        operator: Loaded.
        read: The columns that it reads.

    Returns:
        For each row a `pyarrow.Table`, the columns of `writes()`; or the ApiError of one that failed.
    """
    count = read.num_rows
    ids, keys = pa.array(range(count), pa.int64()), pa.array([str(place) for place in range(count)])
    rows = pa.table([ids, keys, *read.columns], names=["image_id", "key", *read.column_names])
    table, _ = apply(Job(Worker(operator), rows, np.ones(count, dtype=bool)))
    columns = table.select(operator.writes().names)
    decisions, reasons = table["decision"].to_pylist(), table["decision.reason"].to_pylist()
    return [
        refusal(Decision(decision, reason or "")) if decision in ("failed", "undone") else columns.slice(place, 1)
        for place, (decision, reason) in enumerate(zip(decisions, reasons, strict=True))
    ]


class TextWork:
    """The text side of an embedding model: texts of many requests in one call.

    Args:
        encoder: An `operators.engines.embedding.encoder.TextEncoder`.
        batch: Texts per call.
    """

    def __init__(self, encoder: Any, batch: int = 64) -> None:
        self.encoder, self._batch = encoder, batch

    @property
    def batch(self) -> int:
        """Texts per call."""
        return self._batch

    def bucket(self, item: str) -> Hashable:
        """See `Work`."""
        return None

    def run(self, items: list[str]) -> list[Any]:
        """A vector float32 (dimensions,), L2-normalised, of each text; or its ApiError."""

        def encode(texts: list[str]) -> list[Any]:
            return list(self.encoder.encode(texts))

        return bisect(encode, items, lambda error: [refusal(failed(error))], on_memory=lambda part: None)


class CallWork:
    """A function of the model for one item at a time, such as what a mask decoder does with an embedded image.

    Args:
        function: Called in the model's thread.
    """

    def __init__(self, function: Any) -> None:
        self._function = function

    @property
    def batch(self) -> int:
        """One."""
        return 1

    def bucket(self, item: Any) -> Hashable:
        """See `Work`."""
        return None

    def run(self, items: list[Any]) -> list[Any]:
        """What the function gives for each; or its ApiError."""

        def call(part: list[Any]) -> list[Any]:
            return [self._function(each) for each in part]

        return bisect(call, items, lambda error: [refusal(failed(error))], on_memory=lambda part: None)


def refusal(decision: Decision) -> ApiError:
    """What a client is told of an image that failed (400) or is undone (503)."""
    if decision.decision == "undone":
        return ApiError(503, f"not possible at the moment: {decision.reason}; ask again", 2)
    return ApiError(400, decision.reason or "the image cannot be processed")


def told(error: BaseException) -> ApiError:
    """What a client is told of an exception that no image is to blame for."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, StopError):
        return ApiError(502, f"the model cannot be asked: {error}; see the server's log")
    if kind_of(error) == "accelerator":
        return ApiError(503, "the accelerator is lost; the server must be started again", 10)
    if kind_of(error) is not None:
        return busy(str(error))
    return ApiError(500, "something is wrong in the server; its log has the details under this request's id")
