"""The rows of a run's shards, as files."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from labelmill.operators.columns.schemas import SHARD
from labelmill.pipelines.run_folder.store import Store
from labelmill.pipelines.sources import Entry

FOLDER = "shards"


def shard_name(shard: int) -> str:
    """The name of a shard's file in every folder."""
    return f"{shard:05d}.parquet"


def shard_numbers(names: list[str]) -> list[int]:
    """The shards that have a file among `names`, ascending."""
    return sorted(int(name.removesuffix(".parquet")) for name in names if name.endswith(".parquet"))


def size_of_shards(store: Store, shards: Mapping[int, int], asked: int) -> int:
    """Images in a full shard of a run: what it began with, whatever is asked for now.

    An `image_id` is shard × this size + row + 1.

    Args:
        store: The run's directory.
        shards: Number of images in each of its shards.
        asked: The pipeline's `shard_size`.
    """
    last = max(shards, default=0)
    if not last:
        return max(asked, shards.get(0, 0))
    first = read_shard(store, last, ["image_id"]).column(0)[0].as_py()
    return int(first - 1) // last


def known_shards(store: Store) -> dict[int, int]:
    """Number of images in each shard that a run has, without reading its source."""
    import pyarrow.parquet as pq

    counts = {}
    for shard in shard_numbers(store.names(FOLDER)):
        with store.fs.open(store.path(f"{FOLDER}/{shard_name(shard)}"), "rb") as file:
            counts[shard] = pq.read_metadata(file).num_rows
    return counts


def read_shard(store: Store, shard: int, columns: list[str] | None = None) -> pa.Table:
    """The rows of a shard, all columns of `operators.columns.schemas.SHARD` or some."""
    name = f"{FOLDER}/{shard_name(shard)}"
    try:
        return store.read_table(name, columns or SHARD.names)
    except KeyError:
        table = store.read_table(name)
    for column, of in LATER.items():  # a run of an earlier version does not have them
        if column not in table.column_names and (column != "stamp" or columns is None or column in columns):
            table = table.append_column(SHARD.field(column), of(table))
    return table if columns is None else table.select(columns)


def _state_of_labels(table: pa.Table) -> pa.Array:
    return pc.if_else(table.column("labels").is_null(), "unread", "read")


LATER = {
    "label_state": _state_of_labels,
    "refused": lambda table: pa.nulls(table.num_rows, SHARD.field("refused").type),
    "stamp": lambda table: pa.array(stamps(table), pa.string()),
}
"""Columns of `operators.columns.schemas.SHARD` that earlier versions did not write, and what they are then."""


STAMPED = ("uri", "labels", "split", "metadata", "problem", "label_state", "refused")
"""What the stamp of a row is of: all that a source says of an image but its version."""


def stamps(table: pa.Table) -> list[str]:
    """For each row 16 hex digits that change with what the source says of the image."""
    import orjson
    from xxhash import xxh3_64_hexdigest

    return [xxh3_64_hexdigest(orjson.dumps(row)) for row in table.select(STAMPED).to_pylist()]


def shard_table(entries: list[Entry], first_id: int) -> pa.Table:
    """The rows of a shard; `image_id` counts from `first_id`."""
    table = pa.table(
        {
            "image_id": list(range(first_id, first_id + len(entries))),
            "key": [entry.key for entry in entries],
            "uri": [entry.uri for entry in entries],
            "version": [entry.version for entry in entries],
            "labels": pa.array([entry.labels for entry in entries], SHARD.field("labels").type),
            "split": [entry.split for entry in entries],
            "metadata": [
                None if entry.metadata is None else json.dumps(entry.metadata, ensure_ascii=False, sort_keys=True)
                for entry in entries
            ],
            "problem": [entry.problem for entry in entries],
            "label_state": [entry.label_state for entry in entries],
            "refused": pa.array(
                [[{"place": each.place, "reason": each.reason} for each in entry.refused] or None for entry in entries],
                SHARD.field("refused").type,
            ),
            "stamp": pa.nulls(len(entries), pa.string()),
        },
        schema=SHARD,
    )
    return table.set_column(table.num_columns - 1, SHARD.field("stamp"), pa.array(stamps(table), pa.string()))
