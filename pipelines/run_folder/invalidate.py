"""Takes back what was computed from something that is another now, row by row.

A result that is taken back becomes provisional (see `labelmill.pipelines.engine.provisional`) before what it came from
is written, so that a run which is killed in between finds more to do, never less.
"""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa

from labelmill.pipelines.run_folder.layout import UNDONE
from labelmill.pipelines.run_folder.outcomes import without
from labelmill.pipelines.run_folder.shards import shard_name, shard_numbers
from labelmill.pipelines.run_folder.store import Store

GENERATION = b"labelmill.generation"
"""Metadata of the files of dataset steps: which shards were decided about together."""


def forget_rows(store: Store, folder: str, shard: int, rows: Collection[int]) -> None:
    """Leave a shard of a step to be done again, without what it has of some rows.

    Args:
        store: The run's directory.
        folder: The step's folder, such as ``03-detect-9f2c61ab04d7``.
        shard: Its number. Nothing happens if the step has nothing of it.
        rows: Places of the rows; may be none.
    """
    final, provisional = f"steps/{folder}/{shard_name(shard)}", f"steps/{folder}/{UNDONE}/{shard_name(shard)}"
    try:
        table, was_done = store.read_table(final), True
    except FileNotFoundError:
        try:
            table, was_done = store.read_table(provisional), False
        except FileNotFoundError:
            return
    store.write_table(provisional, without_rows(table, rows))
    if was_done:
        store.remove(final)


def without_rows(table: pa.Table, rows: Collection[int]) -> pa.Table:
    """A step's table in which some rows are still to be computed."""
    kept = without(table.drop_columns(["image_id"]), list(rows))
    return pa.table([table.column("image_id"), *kept.columns], schema=table.schema)


def reopen_all(store: Store, folder: str) -> None:
    """Leave all shards of a step to be looked at again, with what there is of them."""
    for shard in shard_numbers(store.names(f"steps/{folder}")):
        store.rename(f"steps/{folder}/{shard_name(shard)}", f"steps/{folder}/{UNDONE}/{shard_name(shard)}")


def decided_together(store: Store, folder: str) -> bool:
    """Whether a folder's files are those of a dataset step."""
    import pyarrow.parquet as pq

    for part in (f"steps/{folder}", f"steps/{folder}/{UNDONE}"):
        for shard in shard_numbers(store.names(part)):
            with store.fs.open(store.path(f"{part}/{shard_name(shard)}"), "rb") as file:
                return GENERATION in (pq.read_schema(file).metadata or {})
    return False
