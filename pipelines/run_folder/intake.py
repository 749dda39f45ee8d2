"""From a source to shards: every image gets its place once and keeps it, whatever becomes of its source.

An image is its key and what it is: its version (size and time of change, or ETag) and what the source says of it. Where
either is another than when its row was written, what was computed from it is taken back, alone; where the source has it
no more, its row is *gone*: no step sees it until it comes back.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from labelmill.operators.base import RowError
from labelmill.operators.columns.schemas import SOURCE_COLUMNS
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.run_folder.departed import write_departed
from labelmill.pipelines.run_folder.invalidate import decided_together, forget_rows, reopen_all
from labelmill.pipelines.run_folder.layout import Layout
from labelmill.pipelines.run_folder.shards import (
    FOLDER,
    read_shard,
    shard_name,
    shard_numbers,
    shard_table,
    size_of_shards,
    stamps,
)
from labelmill.pipelines.run_folder.store import Store
from labelmill.pipelines.sources import Entry, Refused, Source
from labelmill.pipelines.steps import Step

BATCH = 1024
"""Entries of a source that are looked at together."""

Place = tuple[int, int]
"""A shard's number and a row in it."""


@dataclass
class Intake:
    """What reading the source gave.

    Attributes:
        shards: Number of images in each shard, by shard number.
        shard_size: Images in a full shard: what the run began with.
        added: Images that were not there before.
        changed: Keys whose bytes are others than when their row was written.
        relabelled: Keys of which the source says something else: labels, split, metadata.
        gone: Keys that the source no longer has.
        left: How many of them it still had when the run was last made.
        returned: How many that were gone it has again.
        problems: What is wrong with single entries, or with the source.
        ignored: Files of the source that are no images: suffix → how many.
        missing: Whole classes of labels that are missing; see `Source.missing`.
        orphans: Refused labels that belong to no image.
    """

    shards: dict[int, int] = field(default_factory=dict)
    shard_size: int = 0
    added: int = 0
    changed: list[str] = field(default_factory=list)
    relabelled: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    left: int = 0
    returned: int = 0
    problems: list[str] = field(default_factory=list)
    ignored: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    orphans: list[Refused] = field(default_factory=list)

    @property
    def images(self) -> int:
        """How many the source has."""
        return sum(self.shards.values()) - len(self.gone)


@dataclass(frozen=True, slots=True)
class _Known:
    """What a run knows of an image without its labels."""

    place: Place
    version: str | None
    stamp: str


@dataclass
class _Changes:
    """Rows that are to be written anew, and why.

    Attributes:
        entries: What the source says of them today.
        bytes: Those whose bytes are others.
        columns: Columns of the others in which the source says something else.
        stored: The shard that was looked at last, and its rows as they are stored.
    """

    entries: dict[Place, Entry] = field(default_factory=dict)
    bytes: set[Place] = field(default_factory=set)
    columns: dict[Place, set[str]] = field(default_factory=dict)
    stored: tuple[int, pa.Table] | None = None


def take_in(
    source: Source,
    store: Store,
    shard_size: int,
    steps: Sequence[Step] = (),
    write: bool = True,
    fetch: Callable[[str], bytes] | None = None,
) -> Intake:
    """Bring a run's rows to what its source has.

    New images are ordered by key and go into new shards, so an image keeps its shard, row and `image_id` for good.

    Args:
        source: Where images come from.
        store: The run's directory.
        shard_size: Images in a full shard of a new run; one that has shards keeps their size.
        steps: Of the pipeline, to know what depends on which words of the source.
        write: False to only say what would be there.
        fetch: Gives the bytes behind a uri. With it, a file that was only touched is told from one that changed where
            `inspect` knows what its bytes hashed to.

    Raises:
        UserError: The source holds no images.
    """
    intake, layout = Intake(), Layout.of(store, steps)
    known = _known(store, intake)
    intake.shard_size = size_of_shards(store, intake.shards, shard_size)
    departed = set(layout.departed.places())
    fresh: list[Entry] = []
    changes = _Changes()
    missing = {key: image.place for key, image in known.items()}
    seen = False
    for entries in _batches(source.scan()):
        seen = True
        table = shard_table(entries, 0)
        for row, (entry, stamp) in enumerate(zip(entries, stamps(table), strict=True)):
            if entry.problem:
                intake.problems.append(f"{entry.key}: {entry.problem}")
            image = known.get(entry.key)
            if image is None:
                fresh.append(entry)
                continue
            missing.pop(entry.key, None)
            _compare(layout, image, entry, stamp, table.slice(row, 1), changes, intake, fetch)
    if not seen and not known:
        raise UserError(f"the source {source} holds no images")

    gone = set(missing.values())
    left, returned = gone - departed, departed - gone
    intake.problems = sorted(intake.problems) + list(source.problems)
    intake.ignored = dict(source.ignored)
    intake.missing, intake.orphans = list(source.missing), list(source.refused)
    intake.changed.sort()
    intake.relabelled.sort()
    intake.gone = sorted(missing)
    intake.left, intake.returned, intake.added = len(left), len(returned), len(fresh)
    if write:
        if changes.bytes or any(changes.columns.values()) or left or returned:
            _take_back(layout, changes, left, returned)
            write_departed(store, gone, layout.departed.revision + 1)
        _rewrite(store, changes.entries)
    _add(store, fresh, intake, write)
    return intake


def _known(store: Store, intake: Intake) -> dict[str, _Known]:
    """Every image that a run has a row for, by key."""
    known: dict[str, _Known] = {}
    for shard in shard_numbers(store.names(FOLDER)):
        table = read_shard(store, shard, ["key", "version", "stamp"])
        rows = zip(*(table.column(name).to_pylist() for name in ("key", "version", "stamp")), strict=True)
        known.update((key, _Known((shard, row), version, stamp)) for row, (key, version, stamp) in enumerate(rows))
        intake.shards[shard] = table.num_rows
    return known


def _batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    remaining = iter(entries)
    while batch := list(islice(remaining, BATCH)):
        yield batch


def _compare(
    layout: Layout,
    image: _Known,
    entry: Entry,
    stamp: str,
    row: pa.Table,
    changes: _Changes,
    intake: Intake,
    fetch: Callable[[str], bytes] | None,
) -> None:
    """Note what is another about an image that has a row already."""
    other_bytes = None not in (entry.version, image.version) and entry.version != image.version
    if stamp == image.stamp and not other_bytes:
        return
    shard, place = image.place
    if changes.stored is None or changes.stored[0] != shard:
        changes.stored = shard, read_shard(layout.store, shard)
    before = changes.stored[1].slice(place, 1).to_pylist()[0]
    now = row.to_pylist()[0]
    differ = {name for name in now if name not in ("image_id", "key", "stamp") and now[name] != before[name]}
    if "labels" in differ and _plain(before["labels"]) == before["labels"] == _plain(now["labels"]):
        differ.discard("labels")  # an earlier version did not read what more the source says of an object
    if entry.version is None and image.version is None:
        other_bytes = _address(now["uri"]) != _address(before["uri"])
    if not differ and not other_bytes:
        return
    changes.entries[image.place] = entry
    if other_bytes and not (fetch and _only_touched(layout, image.place, entry.uri, fetch)):
        changes.bytes.add(image.place)
        intake.changed.append(entry.key)
    else:
        changes.columns[image.place] = differ & set(SOURCE_COLUMNS)
        if changes.columns[image.place]:
            intake.relabelled.append(entry.key)


def _plain(labels: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Labels as runs of earlier versions have them."""
    return labels and [{**label, "crowd": None, "extra": None} for label in labels]


def _only_touched(layout: Layout, place: Place, uri: str, fetch: Callable[[str], bytes]) -> bool:
    """Whether a file has the bytes that `inspect` saw."""
    shard, row = place
    for step in layout.steps:
        if step.operator_name != "inspect":
            continue
        try:
            known = layout.table(step.position, shard, ["file_hash"]).column(0)[row].as_py()
            return known is not None and hashlib.sha256(fetch(uri)).hexdigest() == known
        except (FileNotFoundError, RowError):
            return False
    return False


def _address(uri: str) -> str:
    """A uri without the query in which links are signed."""
    return urlsplit(uri)._replace(query="").geturl() if uri.startswith(("http://", "https://")) else uri


def _take_back(layout: Layout, changes: _Changes, left: Collection[Place], returned: Collection[Place]) -> None:
    """Take back what was computed from rows that are others, and what was decided where rows went or came back.

    What a dataset step decided, it decided about all images together. It does so again, and what comes after it looks
    again at which images are in play; an image step keeps the rows that still are.
    """
    store = layout.store
    by_folder = dict(zip(layout.folders, layout.steps, strict=True))
    everywhere = _by_shard(changes.bytes)
    back = _by_shard(returned)
    again: set[int] = set()
    unknown = [folder for folder in store.names("steps") if folder not in by_folder]
    told = [place for place, columns in changes.columns.items() if columns]
    if (changes.bytes or left or returned or told) and any(decided_together(store, folder) for folder in unknown):
        for folder in unknown:
            reopen_all(store, folder)
    for folder in [*unknown, *layout.folders]:
        step = by_folder.get(folder)
        read = set(SOURCE_COLUMNS) if step is None else _source_columns(layout.steps, step)
        said = [place for place, columns in changes.columns.items() if columns & read]
        if step is not None:
            decides_anew = step.is_dataset and (changes.bytes or said or left or returned)
            if decides_anew or not again.isdisjoint(step.depends):
                again.add(step.position)
                reopen_all(store, folder)
            if step.is_dataset:
                continue
        rows = _by_shard(said)
        for shard in everywhere.keys() | rows.keys() | back.keys():
            forget_rows(store, folder, shard, everywhere.get(shard, set()) | rows.get(shard, set()))


def _source_columns(steps: Sequence[Step], step: Step) -> set[str]:
    """What of the source's words a step depends on, itself or through others."""
    found = {source.column for source in step.inputs.values() if source.step is None}
    for position in step.depends:
        found |= _source_columns(steps, steps[position])
    return found


def _by_shard(places: Iterable[Place]) -> dict[int, set[int]]:
    found: dict[int, set[int]] = defaultdict(set)
    for shard, row in places:
        found[shard].add(row)
    return found


def _rewrite(store: Store, entries: dict[Place, Entry]) -> None:
    for shard, rows in _by_shard(entries).items():
        table = read_shard(store, shard)
        order = sorted(rows)
        new = shard_table([entries[shard, row] for row in order], 0)
        taken: list[Any] = list(range(table.num_rows))
        for position, row in enumerate(order):
            taken[row] = table.num_rows + position
        joined = pa.concat_tables([table.cast(new.schema), new]).take(pa.array(taken))
        joined = joined.set_column(0, new.schema.field(0), table.column("image_id")).combine_chunks()
        store.write_table(f"{FOLDER}/{shard_name(shard)}", joined.cast(new.schema))


def _add(store: Store, fresh: list[Entry], intake: Intake, write: bool) -> None:
    fresh.sort(key=lambda entry: entry.key)
    size, shard = intake.shard_size, max(intake.shards, default=-1) + 1
    for start in range(0, len(fresh), size):
        entries = fresh[start : start + size]
        if write:
            store.write_table(f"{FOLDER}/{shard_name(shard)}", shard_table(entries, shard * size + 1))
        intake.shards[shard] = len(entries)
        shard += 1
