"""Results with undone images in them: provisional files, of which the next run keeps what is good.

A step's result for a shard is provisional when an image is undone in it, or when it was made from a provisional one:
images may come to it later. It can be read like any other, but the step is not done for that shard. The next run
computes an image step for the images that have no result yet; table steps, which cost little, and dataset steps, which
look at all images together, are computed anew. Then the file is one as any other, as if nothing had happened.

The same file holds what is done of a shard while a slow model is at it, so that a kill costs a minute; and what is left
of a shard after images of it changed, went or came back (`labelmill.pipelines.run_folder.invalidate`). A row without a
decision is one to be computed, if the step sees its image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from labelmill.operators.applying.results import DECISION_FIELDS, RowValue, step_schema, step_table
from labelmill.operators.base import Decision, Operator
from labelmill.pipelines.run_folder.layout import Layout
from labelmill.pipelines.steps import Step

DECISION = "decision"


@dataclass(frozen=True, slots=True)
class Earlier:
    """What a step had of a shard before.

    Attributes:
        table: Its provisional result.
        good: bool, one per row: the rows of it that stand.
    """

    table: pa.Table
    good: np.ndarray

    def with_new(self, operator: Operator, table: pa.Table) -> pa.Table:
        """The rows that stand, and the others of a new result; made as if they had come at once, to the byte.

        Args:
            operator: Whose results both are.
            table: The new result; null for the rows that stand.
        """
        rows = [
            old if stands else new
            for old, new, stands in zip(*map(_values, (self.table, table)), self.good, strict=True)
        ]
        indices = np.array([index for index, row in enumerate(rows) if row is not None], dtype=np.int64)
        return step_table(operator, table.column("image_id"), indices, [row for row in rows if row is not None])


def earlier(layout: Layout, step: Step, shard: int, image_ids: pa.ChunkedArray, active: np.ndarray) -> Earlier | None:
    """What stands of a step's provisional result for a shard; None where there is none, or nothing stands.

    Args:
        layout: The run.
        step: Whose result.
        shard: Of which shard.
        image_ids: int64, of the shard's rows.
        active: bool, one per row: the images that the step sees now.
    """
    if not step.is_image or _reads_of_all(layout.steps, step):
        return None
    try:
        table = layout.store.read_table(layout.provisional(step.position, shard))
    except FileNotFoundError:
        return None
    if not table.schema.equals(step_schema(step.operator)) or not table.column("image_id").equals(image_ids):
        return None
    decisions = table.column(DECISION)
    decided = pc.and_(pc.is_valid(decisions), pc.fill_null(pc.not_equal(decisions, "undone"), False))
    good = active & decided.to_numpy()
    return Earlier(table, good) if good.any() else None


def _values(table: pa.Table) -> list[RowValue]:
    """What an operator gave for each row; None where it did not see the image."""
    names = table.column_names[1 : -len(DECISION_FIELDS)]
    found: list[RowValue] = []
    for row in table.to_pylist():
        kind, reason, *figures = (row[field.name] for field in DECISION_FIELDS)
        if kind is None:
            found.append(None)
        elif kind == "kept":
            found.append({name: row[name] for name in names})
        else:
            found.append(Decision(kind, reason or "", *figures))
    return found


def is_undone(table: pa.Table) -> bool:
    """Whether an image is undone in a step's result."""
    return bool(pc.any(pc.equal(table.column(DECISION), "undone")).as_py())


def is_provisional(layout: Layout, positions: Iterable[int], shards: Sequence[int]) -> bool:
    """Whether one of some steps has a provisional result for one of some shards."""
    wanted = set(shards)
    return any(not wanted.isdisjoint(layout.unfinished(position)) for position in positions)


def _reads_of_all(steps: Sequence[Step], step: Step) -> bool:
    """Whether something that a step reads is made from all images together: then it may change when some are added."""
    waiting, seen = [step], set()
    while waiting:
        for source in waiting.pop().inputs.values():
            if source.step is None or source.step in seen:
                continue
            if steps[source.step].is_dataset:
                return True
            seen.add(source.step)
            waiting.append(steps[source.step])
    return False
