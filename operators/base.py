"""The operator contract: what a step needs, what it gives, and how it says no.

Three kinds, told apart by what they see:

=================  ==============================================  ==============================
kind               sees                                            gives
=================  ==============================================  ==============================
ImageOperator      decoded images, micro-batch by micro-batch      columns
TableOperator      the columns of one shard, no pixels             columns, decisions
DatasetOperator    chosen columns of all shards                    columns, decisions
=================  ==============================================  ==============================

Nothing here decodes, threads, batches, retries or writes: `operators.applying.apply` does that once, for all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from labelmill.operators.errors import OperatorError, RowError

if TYPE_CHECKING:
    from labelmill.operators.images.decoded import DecodedImage

DecisionKind = Literal["kept", "dropped", "duplicate", "failed", "undone"]


def tuning(default: Any, **kwargs: Any) -> Any:
    """A parameter that changes speed or memory, never the result: it stays out of the step's fingerprint."""
    return Field(default, json_schema_extra={"tuning": True}, **kwargs)


class OperatorParams(BaseModel):
    """Parameters of a step. Unknown keys are errors; values are read-only once validated."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def result_params(self) -> dict[str, Any]:
        """The parameters that can change the step's result, as JSON-ready values."""
        tuned = {
            name
            for name, field in type(self).model_fields.items()
            if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("tuning")
        }
        return self.model_dump(mode="json", by_alias=True, exclude=tuned)


@dataclass(frozen=True, slots=True)
class Decision:
    """What a step decided about one image, and why.

    Attributes:
        decision: kept, dropped, duplicate, failed, or undone: what was in the way passes, the next run does it again.
        reason: A sentence for a person; empty for `kept`.
        score: The figure that was compared, if there is one.
        threshold: What it was compared with.
    """

    decision: DecisionKind
    reason: str = ""
    score: float | None = None
    threshold: float | None = None


KEPT = Decision("kept")


@dataclass(frozen=True, slots=True)
class TableResult:
    """What a TableOperator or DatasetOperator gives for the rows it was shown, in their order.

    Attributes:
        columns: One value per row for every column of `writes()`; None when there are none.
        decisions: One per row; None means that every row is kept.
    """

    columns: pa.Table | None = None
    decisions: Sequence[Decision] | None = None


@dataclass(frozen=True, slots=True)
class Needs:
    """What one worker of a step occupies, for placement.

    Attributes:
        gpu: Whether the step runs faster on a GPU.
        memory_gb: Memory of the loaded model with a working batch: of the GPU if it runs there, else of the host.
        seconds: What an image costs one core where the step runs on a CPU, decoding left out, about; None for what
            is usual for its kind. CPUs are shared by it.
    """

    gpu: bool = False
    memory_gb: float = 0.0
    seconds: float | None = None


class Operator(ABC):
    """Common to the three kinds. Subclasses set `name` and `Params`, and describe themselves in their docstring.

    Attributes:
        name: The word used in a pipeline.
        version: Raised by whoever changes what the operator computes; part of the step's fingerprint.
        decides: Whether its decisions can drop images that an earlier step kept.
        labels: What its detections are, if it writes any. ``decided``: what an export may take for labels. ``raw``:
            everything from a low score up, about which a step must still decide. ``as read``: as those that it reads.
    """

    name: ClassVar[str] = ""
    labels: ClassVar[Literal["decided", "raw", "as read"]] = "decided"
    version: ClassVar[int] = 1
    decides: ClassVar[bool] = False

    class Params(OperatorParams):
        pass

    def __init__(self, params: Any) -> None:
        self.params = params

    def reads(self) -> tuple[str, ...]:
        """Columns it needs: ``step.column``, or a bare ``column`` for the nearest step above that writes it.

        ``source.labels``, ``source.split`` and ``source.metadata`` name what the source knew. `image_id` and `key`
        are always there and are not declared.
        """
        return ()

    @abstractmethod
    def writes(self) -> pa.Schema:
        """Names and exact Arrow types of its columns. Every column is nullable: null for images it did not see."""

    def check(self, columns: Mapping[str, pa.DataType]) -> None:
        """Refuse input that does not fit, before anything runs.

        Args:
            columns: The Arrow type of every column of `reads()`, under the name `reads()` gave it.

        Raises:
            OperatorError: A type or a parameter does not fit.
        """
        for column, found in columns.items():
            expected = self.expects().get(column)
            if expected is not None and not expected.equals(found):
                raise OperatorError(f"column {column!r} must be {expected} but is {found}")

    def expects(self) -> dict[str, pa.DataType]:
        """Exact types of read columns that `check` insists on; columns left out may have any type."""
        return {}

    def needs(self) -> Needs:
        """What one worker occupies."""
        return Needs()

    def libraries(self) -> tuple[str, ...]:
        """What `load` imports, for whoever wants it imported early: modules, or ``module:function`` that imports them.

        None of it may start a thread.
        """
        return ()

    def digest(self) -> str:
        """Identifies whatever else its results depend on, such as model weights. Must not load the model."""
        return ""

    def ready(self) -> None:
        """Refuse to start when what `load` needs is missing. Called in the driver before any image is read.

        Raises:
            OperatorError: Such as weights that are not here, or not those that the model card names.
        """

    def load(self) -> None:
        """Build what is built once per worker, such as the model. Called before the first shard."""


class ImageOperator(Operator):
    """Sees decoded images; gives one dict of columns per image."""

    @property
    def batch(self) -> int:
        """Images per call of `infer`: the `batch` parameter where there is one, else 16."""
        return int(getattr(self.params, "batch", 16))

    def prepare(self, image: DecodedImage, row: Mapping[str, Any]) -> Any:
        """Turn one image into what `infer` takes. Runs in threads ahead of the model, so it must be pure.

        Args:
            image: The decoded image; see `operators.images.decoded.DecodedImage`.
            row: ``image_id``, ``key`` and the columns of `reads()`, as Python values.

        Raises:
            RowError: This image cannot be processed. Any other exception fails the row too.
        """
        return image

    def bucket(self, item: Any) -> Hashable:
        """Items of different buckets never share a micro-batch (for models that need equal shapes)."""
        return None

    @abstractmethod
    def infer(self, items: list[Any]) -> list[dict[str, Any] | RowError]:
        """Run one micro-batch.

        Args:
            items: What `prepare` gave, 1 to `batch` of them, all of one bucket.

        Returns:
            For each item, in order, the value of every column of `writes()`, or the RowError that fails its row.
        """


class TableOperator(Operator):
    """Sees the columns of one shard; gives columns or decisions."""

    @abstractmethod
    def compute(self, table: pa.Table) -> TableResult:
        """Compute one shard.

        Args:
            table: `image_id` (int64), `key` (string) and the columns of `reads()`, for the images still in play.
                May have zero rows.

        Returns:
            As many rows, in the same order.
        """


class DatasetOperator(Operator):
    """Sees chosen columns of all shards; gives columns or decisions.

    Images that arrive later come in new shards. What was decided for earlier shards stands, so the operator sees the
    earlier rows with their results and decides only about the new ones.

    Attributes:
        tasks: Where `compute` may have parts of its work done; None for in its own process. The result is the same.
    """

    tasks: Tasks | None = None

    @abstractmethod
    def compute(self, new: pa.Table, old: pa.Table) -> TableResult:
        """Compute the new rows.

        Args:
            new: `image_id` (int64), `key` (string) and the columns of `reads()`, for the images still in play,
                ordered by image_id. Memory-mapped; may have zero rows.
            old: The same columns, those of `writes()` and `decision` (string), for the rows decided in earlier runs.
                Has zero rows in a first run.

        Returns:
            As many rows as `new`, in the same order. Must not depend on anything but the two tables.
        """


class Tasks(Protocol):
    """Where parts are computed: in other processes, on other machines.

    Attributes:
        folder: Path or fsspec URL of a folder that every part can read and write. It is there while the operator
            computes, and gone afterwards.
        width: How many parts are computed at once, at least 1.
    """

    folder: str
    width: int

    def map(
        self, function: Callable[[Any, Any], Any], shared: Any, arguments: Iterable[Any]
    ) -> Iterator[tuple[int, Any]]:
        """Call a function with each of many arguments.

        Args:
            function: Of a module that every worker has; called as ``function(shared, argument)``. It may be called
                again with the same argument if a worker dies, so it must give and write the same every time.
            shared: Sent to each machine once.
            arguments: Taken one by one, `width` and one ahead of the results at most.

        Returns:
            The number of each argument and what the function gave, in the order in which they end.

        Raises:
            Exception: What the function raised.
        """
        ...
