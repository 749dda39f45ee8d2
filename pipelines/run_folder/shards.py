"""From a source to shards: every image gets its place once and keeps it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from labelmill.operators.columns.schemas import SHARD
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.run_folder.store import Store
from labelmill.pipelines.sources import Entry, Refused, Source

FOLDER = "shards"


def shard_name(shard: int) -> str:
    """The name of a shard's file in every folder."""
    return f"{shard:05d}.parquet"


def shard_numbers(names: list[str]) -> list[int]:
    """The shards that have a file among `names`, ascending."""
    return sorted(int(name.removesuffix(".parquet")) for name in names if name.endswith(".parquet"))


@dataclass
class Intake:
    """What reading the source gave.

    Attributes:
        shards: Number of images in each shard, by shard number.
        added: Images that were not there before.
        changed: Keys whose file is another one than when their shard was written.
        gone: Keys that the source no longer has.
        problems: What is wrong with single entries, or with the source.
        ignored: Files of the source that are no images: suffix → how many.
        missing: Whole classes of labels that are missing; see `Source.missing`.
        orphans: Refused labels that belong to no image.
    """

    shards: dict[int, int] = field(default_factory=dict)
    added: int = 0
    changed: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    ignored: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    orphans: list[Refused] = field(default_factory=list)

    @property
    def images(self) -> int:
        return sum(self.shards.values())


def take_in(source: Source, store: Store, shard_size: int, write: bool = True) -> Intake:
    """Write a shard file for every image that has none yet.

    Images are ordered by key. New ones go into new shards, so an image keeps its shard, row and `image_id` for good.

    Args:
        source: Where images come from.
        store: The run's directory.
        shard_size: Images in a full shard.
        write: False to only say what would be there.

    Raises:
        UserError: The source holds no images, or the run has shards of another size.
    """
    intake = Intake()
    known: dict[str, str | None] = {}
    existing = shard_numbers(store.names(FOLDER))
    for shard in existing:
        table = store.read_table(f"{FOLDER}/{shard_name(shard)}", ["image_id", "key", "version"])
        first = table.column("image_id")[0].as_py() if table.num_rows else 0
        if first != shard * shard_size + 1:
            raise UserError(
                f"{store.address()} holds shards of another size than shard_size = {shard_size}; "
                "set shard_size back, or choose another output"
            )
        known.update(zip(table.column("key").to_pylist(), table.column("version").to_pylist(), strict=True))
        intake.shards[shard] = table.num_rows

    fresh: list[Entry] = []
    seen: set[str] = set()
    for entry in source.scan():
        seen.add(entry.key)
        if entry.problem:
            intake.problems.append(f"{entry.key}: {entry.problem}")
        if entry.key not in known:
            fresh.append(entry)
        elif entry.version is not None and known[entry.key] is not None and known[entry.key] != entry.version:
            intake.changed.append(entry.key)
    intake.problems = sorted(intake.problems) + list(source.problems)
    intake.ignored = dict(source.ignored)
    intake.missing, intake.orphans = list(source.missing), list(source.refused)
    intake.changed.sort()
    intake.gone = sorted(known.keys() - seen)
    intake.added = len(fresh)
    if not seen and not known:
        raise UserError(f"the source {source} holds no images")

    fresh.sort(key=lambda entry: entry.key)
    shard = existing[-1] + 1 if existing else 0
    for start in range(0, len(fresh), shard_size):
        entries = fresh[start : start + shard_size]
        if write:
            store.write_table(f"{FOLDER}/{shard_name(shard)}", _shard_table(entries, shard * shard_size + 1))
        intake.shards[shard] = len(entries)
        shard += 1
    return intake


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
        if column not in table.column_names:
            table = table.append_column(SHARD.field(column), of(table))
    return table if columns is None else table.select(columns)


def _state_of_labels(table: pa.Table) -> pa.Array:
    return pc.if_else(table.column("labels").is_null(), "unread", "read")


LATER = {
    "label_state": _state_of_labels,
    "refused": lambda table: pa.nulls(table.num_rows, SHARD.field("refused").type),
}
"""Columns of `operators.columns.schemas.SHARD` that earlier versions did not write, and what they are then."""


def _shard_table(entries: list[Entry], first_id: int) -> pa.Table:
    return pa.table(
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
        },
        schema=SHARD,
    )
