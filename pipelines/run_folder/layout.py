"""Where a run keeps the result of each step for each shard, and how a step reads those of others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from labelmill.operators.applying.patience import Limits
from labelmill.pipelines.run_folder.departed import Departed, read_departed
from labelmill.pipelines.run_folder.shards import read_shard, shard_name, shard_numbers
from labelmill.pipelines.run_folder.store import Store
from labelmill.pipelines.steps import Input, Step

UNDONE = "undone"
"""Folder below a step's where its provisional results are."""


@dataclass(frozen=True)
class Layout:
    """Where a run keeps things: its store, its steps and the folder of each. Every worker of the run has it.

    Attributes:
        store: The run's directory.
        steps: All steps of the pipeline.
        folders: Folder of each step below ``steps/``, by position.
        limits: How the run meets what passes.
        departed: The rows whose images the source no longer has.
    """

    store: Store
    steps: tuple[Step, ...]
    folders: tuple[str, ...]
    limits: Limits = field(default_factory=Limits)
    departed: Departed = field(default_factory=Departed)

    @classmethod
    def of(cls, store: Store, steps: Sequence[Step], limits: Limits | None = None) -> Layout:
        """Find the folders of the steps. One with the same fingerprint is the same step, whatever its place or name."""
        there = {name.rpartition("-")[2]: name for name in store.names("steps")}
        folders = tuple(there.get(step.fingerprint, step.folder) for step in steps)
        return cls(store, tuple(steps), folders, limits or Limits(), read_departed(store))

    def position(self, name: str) -> int:
        """The place of the step of that name."""
        return next(step.position for step in self.steps if step.name == name)

    def file(self, position: int, shard: int) -> str:
        """The file of a step's result for a shard."""
        return f"steps/{self.folders[position]}/{shard_name(shard)}"

    def provisional(self, position: int, shard: int) -> str:
        """The file of a step's result for a shard as long as images are undone in it, or in what it was made from."""
        return f"steps/{self.folders[position]}/{UNDONE}/{shard_name(shard)}"

    def table(self, position: int, shard: int, columns: list[str] | None = None) -> pa.Table:
        """A step's result for a shard, be it provisional. Raises FileNotFoundError where there is none."""
        try:
            return self.store.read_table(self.file(position, shard), columns)
        except FileNotFoundError:
            return self.store.read_table(self.provisional(position, shard), columns)

    def done(self, position: int) -> set[int]:
        """The shards for which a step is done."""
        return set(shard_numbers(self.store.names(f"steps/{self.folders[position]}")))

    def unfinished(self, position: int) -> set[int]:
        """The shards for which a step has a provisional result and no other."""
        found = set(shard_numbers(self.store.names(f"steps/{self.folders[position]}/{UNDONE}")))
        return found - self.done(position) if found else found

    def provisional_state(self) -> str:
        """Identifies what is in the provisional results; empty where there are none."""
        digest = hashlib.sha256()
        found = [(position, shard) for position in range(len(self.steps)) for shard in self.unfinished(position)]
        for position, shard in sorted(found):
            digest.update(f"{position} {shard} ".encode() + self.store.read(self.provisional(position, shard)))
        return digest.hexdigest() if found else ""

    def write(self, position: int, shard: int, table: pa.Table, provisional: bool) -> None:
        """Write a step's result for a shard: for good, or until its undone images are done."""
        if provisional:
            self.store.write_table(self.provisional(position, shard), table)
            return
        self.store.write_table(self.file(position, shard), table)
        self.store.remove(self.provisional(position, shard))


def column_of(layout: Layout, source: Input, shard: int, tables: dict[int, pa.Table] | None = None) -> pa.ChunkedArray:
    """The values of one column for the rows of a shard."""
    if source.step is None:
        return read_shard(layout.store, shard, [source.column]).column(0)
    if tables and source.step in tables:
        return tables[source.step].column(source.column)
    return layout.table(source.step, shard, [source.column]).column(0)


def active_rows(
    layout: Layout, step: Step, shard: int, rows: int, tables: dict[int, pa.Table] | None = None
) -> np.ndarray:
    """Which images of a shard a step sees: those that the source has and every step it depends on has kept.

    Returns:
        bool, one per row.
    """
    active = np.ones(rows, dtype=bool)
    active[list(layout.departed.rows(shard))] = False
    for position in step.depends:
        decisions = column_of(layout, Input(position, "decision", pa.string()), shard, tables)
        active &= np.array([decision == "kept" for decision in decisions.to_pylist()], dtype=bool)
    return active
