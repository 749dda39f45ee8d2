"""What became of the labels that came in: how many images are read, unread and refused, and each refused label."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from labelmill.operators.columns.schemas import LABEL_STATES
from labelmill.operators.wording import counted
from labelmill.pipelines.run_folder.shards import read_shard
from labelmill.pipelines.run_folder.store import Store
from labelmill.pipelines.sources import Entry, Refused

FILE = "refused.parquet"

CATEGORIES = "categories.json"
"""What the source says of its classes: `Source.categories`."""

REFUSED_LABELS = pa.schema(
    [
        pa.field("image_id", pa.int64()),  # null: it belongs to no image of the source
        pa.field("key", pa.string()),
        pa.field("place", pa.string(), nullable=False),  # file and line, or the label's id
        pa.field("reason", pa.string(), nullable=False),
    ]
)
"""``refused.parquet``: one row per label that was there and could not be taken."""


@dataclass
class Arrived:
    """How images and labels came in from a source.

    Attributes:
        images: State of labels → how many images, of those in `LABEL_STATES`.
        refused: Labels that could not be taken.
        splits: Split that the source says → how many images; None for none.
        unsplit: Key of an image that is in no split, if there is one.
        examples: A few refused labels, as text.
    """

    images: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LABEL_STATES, 0))
    refused: int = 0
    splits: Counter[str | None] = field(default_factory=Counter)
    unsplit: str | None = None
    examples: list[str] = field(default_factory=list)

    def add(self, key: str, split: str | None, state: str, refused: Sequence[Mapping[str, Any]]) -> None:
        """Count one image; `refused` has place and reason of each label."""
        self.images[state] += 1
        self.splits[split] += 1
        if split is None and self.unsplit is None:
            self.unsplit = key
        self.add_refused(f"{each['place']} {each['reason']}" for each in refused)

    def add_refused(self, found: Iterable[str]) -> None:
        """Count refused labels."""
        for each in found:
            self.refused += 1
            if len(self.examples) < 5:
                self.examples.append(each)

    def add_entry(self, entry: Entry) -> None:
        """Count an image that a source gave."""
        refused = [{"place": each.place, "reason": each.reason} for each in entry.refused]
        self.add(entry.key, entry.split, entry.label_state, refused)


def write_refused(store: Store, shards: Iterable[int], orphans: Sequence[Refused]) -> Arrived:
    """Write the table of refused labels, or remove it where there is none; count what came in.

    Args:
        store: The run's directory.
        shards: Numbers of its shards.
        orphans: Refused labels that belong to no image.
    """
    arrived = Arrived()
    arrived.add_refused(map(str, orphans))
    rows: list[dict[str, Any]] = [{"place": each.place, "reason": each.reason} for each in orphans]
    for shard in sorted(shards):
        for row in read_shard(store, shard, ["image_id", "key", "split", "label_state", "refused"]).to_pylist():
            refused = row["refused"] or []
            arrived.add(row["key"], row["split"], row["label_state"], refused)
            rows += [{"image_id": row["image_id"], "key": row["key"], **each} for each in refused]
    if rows:
        store.write_table(FILE, pa.Table.from_pylist(rows, schema=REFUSED_LABELS))
    elif store.exists(FILE):
        store.fs.rm(store.path(FILE))
    return arrived


def write_categories(store: Store, categories: Mapping[str, Mapping[str, Any]]) -> None:
    """Keep what a source says of its classes, for exports that give it back; no file where it says nothing."""
    if categories:
        store.write(CATEGORIES, json.dumps(categories, indent=2, ensure_ascii=False, sort_keys=True).encode())
    elif store.exists(CATEGORIES):
        store.fs.rm(store.path(CATEGORIES))


def read_categories(store: Store) -> dict[str, dict[str, Any]]:
    """What `write_categories` wrote; empty for nothing."""
    try:
        found = json.loads(store.read(CATEGORIES))
    except FileNotFoundError:
        return {}
    return found if isinstance(found, dict) else {}


def arrived_line(found: Mapping[str, Any], where: str | None) -> str | None:
    """What came in, in a line; None where nobody looked at any image.

    Args:
        found: ``images`` and ``refused`` of `Arrived`, as in ``summary.json``.
        where: The run; None where there is none yet.
    """
    images, refused = found.get("images", {}), found.get("refused", 0)
    if not refused and not any(count for state, count in images.items() if state != "unread"):
        return None
    parts = [f"{images[state]:,} {state}" for state in LABEL_STATES if images.get(state)]
    text = f"of {counted(sum(images.values()), 'image')}: {', '.join(parts)}"
    return text + (f"; {counted(refused, 'label')} refused{f': {where}/{FILE}' if where else ''}" if refused else "")


def strict_problem(missing: Sequence[str], arrived: Arrived, where: str) -> str:
    """What ``--strict`` stops at."""
    found = list(missing)
    if arrived.refused:
        found.append(f"{counted(arrived.refused, 'label')} refused ({where}/{FILE}), such as {arrived.examples[0]}")
    return "with --strict all labels of the source must be taken, but " + "; ".join(found)
