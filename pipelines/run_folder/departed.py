"""``departed.parquet``: the images that a run has rows for and its source no longer has, and how often rows changed."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from labelmill.pipelines.run_folder.store import Store, parquet_bytes

FILE = "departed.parquet"
_REVISION = b"labelmill.revision"
_SCHEMA = pa.schema([pa.field("shard", pa.int64(), nullable=False), pa.field("row", pa.int64(), nullable=False)])


@dataclass(frozen=True)
class Departed:
    """Rows whose images are gone. They keep their place and `image_id`, no step sees them, and no export has them.

    Attributes:
        by_shard: Their places in the shards, ascending, by the number of the shard.
        revision: How often a run found rows that had changed, gone or come back.
    """

    by_shard: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    revision: int = 0

    def rows(self, shard: int) -> tuple[int, ...]:
        """Places in one shard."""
        return self.by_shard.get(shard, ())

    def places(self) -> list[tuple[int, int]]:
        """All of them, as (shard, row)."""
        return [(shard, row) for shard, rows in sorted(self.by_shard.items()) for row in rows]

    @property
    def count(self) -> int:
        return sum(len(rows) for rows in self.by_shard.values())


def read_departed(store: Store) -> Departed:
    """What a run has noted; nothing where it has not."""
    try:
        data = store.read(FILE)
    except FileNotFoundError:
        return Departed()
    table = pq.read_table(io.BytesIO(data))
    by_shard: dict[int, list[int]] = {}
    for shard, row in zip(table.column("shard").to_pylist(), table.column("row").to_pylist(), strict=True):
        by_shard.setdefault(shard, []).append(row)
    revision = int((table.schema.metadata or {}).get(_REVISION, b"0"))
    return Departed({shard: tuple(sorted(rows)) for shard, rows in by_shard.items()}, revision)


def write_departed(store: Store, places: Iterable[tuple[int, int]], revision: int) -> Departed:
    """Note the rows that are gone, as (shard, row), and the revision."""
    ordered = sorted(places)
    columns = [[shard for shard, _ in ordered], [row for _, row in ordered]]
    table = pa.table(columns, schema=_SCHEMA.with_metadata({_REVISION: str(revision).encode()}))
    store.write(FILE, parquet_bytes(table))
    return read_departed(store)
