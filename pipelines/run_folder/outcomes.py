"""What became of every image: the sums that must close, and the tables that say why."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from labelmill.operators.wording import counted
from labelmill.pipelines.run_folder.layout import Layout, active_rows
from labelmill.pipelines.run_folder.shards import read_shard

DECISIONS = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("step", pa.string(), nullable=False),
        pa.field("decision", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("threshold", pa.float64()),
    ]
)
"""``decisions.parquet``: one row per image and step that decides, and per failure of any step."""

QUARANTINE = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("step", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
    ]
)
"""``quarantine.parquet``: one row per image that failed, at the first step where it did."""

KINDS = ("kept", "dropped", "duplicate", "failed", "undone", "gone")
"""What can become of an image; together they are all images."""

COLUMNS = ["decision", "decision.reason", "decision.score", "decision.threshold"]


class SumsError(Exception):
    """Images were lost or counted twice: a fault of the program."""


@dataclass(frozen=True)
class Outcome:
    """What became of the images of one shard.

    Attributes:
        shard: Its number.
        final: kept, dropped, duplicate, failed, undone or gone, one per row.
        step: Position of the step that said so; -1 for kept and gone.
        decisions: Of each step, the four decision columns; null for images that are gone.
    """

    shard: int
    final: list[str]
    step: list[int]
    decisions: list[pa.Table]


def outcomes(layout: Layout, shards: dict[int, int]) -> Iterator[Outcome]:
    """Shard after shard. An image's outcome is the first decision against it, in the order of the steps.

    Raises:
        SumsError: A step decided about an image that it was not to see, or did not about one that it was.
    """
    for shard in sorted(shards):
        count = shards[shard]
        final, at = ["kept"] * count, [-1] * count
        gone = layout.departed.rows(shard)
        for row in gone:
            final[row] = "gone"
        tables: list[pa.Table] = []
        cache: dict[int, pa.Table] = {}
        for step in layout.steps:
            table = without(layout.table(step.position, shard, COLUMNS), gone)
            cache[step.position] = table
            tables.append(table)
            if table.num_rows != count:
                raise SumsError(
                    f"step {step.name!r} has {counted(table.num_rows, 'row')} in shard {shard}, which has {count}"
                )
            decisions = table.column("decision").to_pylist()
            seen = np.array([decision is not None for decision in decisions], dtype=bool)
            if not np.array_equal(seen, active_rows(layout, step, shard, count, cache)):
                raise SumsError(f"step {step.name!r} did not see the images of shard {shard} that it was to see")
            for row in note_decisions(final, decisions):
                at[row] = step.position
        yield Outcome(shard, final, at, tables)


def without(table: pa.Table, rows: Sequence[int]) -> pa.Table:
    """The table with null in all columns of some rows."""
    if not rows:
        return table
    mask = np.zeros(table.num_rows, dtype=bool)
    mask[list(rows)] = True
    return table.take(pa.array(np.arange(table.num_rows), mask=mask))


def note_decisions(final: list[str], decisions: Sequence[str | None]) -> list[int]:
    """Write a step's decisions against images into their outcomes, unless there was one before; of which rows."""
    against = [
        row
        for row, decision in enumerate(decisions)
        if decision is not None and decision != "kept" and final[row] == "kept"
    ]
    for row in against:
        final[row] = str(decisions[row])
    return against


def summarise(layout: Layout, shards: dict[int, int]) -> dict[str, Any]:
    """Write ``decisions.parquet`` and ``quarantine.parquet``; give the sums.

    Returns:
        ``images``: how many; ``outcome``: how many of them became what (`KINDS`); ``steps``: for each step what it saw,
        and what became of it; ``reasons``: how often each step failed or dropped for which reason.

    Raises:
        SumsError: They do not close.
    """
    steps = [
        {
            "step": step.name,
            "operator": step.operator_name,
            "seen": 0,
            "kept": 0,
            "dropped": 0,
            "duplicate": 0,
            "failed": 0,
            "undone": 0,
        }
        for step in layout.steps
    ]
    total: Counter[str] = Counter()
    reasons: Counter[tuple[str, str, str]] = Counter()
    with (
        _Table(layout, "decisions.parquet", DECISIONS) as decided,
        _Table(layout, "quarantine.parquet", QUARANTINE) as quarantined,
    ):
        for outcome in outcomes(layout, shards):
            total.update(outcome.final)
            rows = read_shard(layout.store, outcome.shard, ["image_id", "key", "uri"])
            for step, sums, table in zip(layout.steps, steps, outcome.decisions, strict=True):
                kinds = table.column("decision").to_pylist()
                for kind, number in Counter(kinds).items():
                    if kind is not None:
                        sums["seen"] += number  # type: ignore[operator]
                        sums[kind] += number  # type: ignore[operator]
                told = [
                    r for r, kind in enumerate(kinds) if kind is not None and (step.operator.decides or kind != "kept")
                ]
                where = pa.array(told, pa.int64())
                part = table.take(where)
                decided.add(
                    [
                        rows.column("image_id").take(where),
                        rows.column("key").take(where),
                        pa.array([step.name] * len(told), pa.string()),
                        *part.columns,
                    ]
                )
                for row, kind, reason in zip(told, part.column(0).to_pylist(), part.column(1).to_pylist(), strict=True):
                    if kind in ("dropped", "failed", "undone"):
                        names = (rows.column("key")[row].as_py(), rows.column("uri")[row].as_py())
                        reasons[(step.name, kind, reason_kind(kind, reason or "", *names))] += 1
            bad = [row for row, final in enumerate(outcome.final) if final == "failed"]
            where = pa.array(bad, pa.int64())
            quarantined.add(
                [
                    *rows.take(where).columns,
                    pa.array([layout.steps[outcome.step[row]].name for row in bad], pa.string()),
                    pa.array([outcome.decisions[outcome.step[row]].column(1)[row].as_py() for row in bad], pa.string()),
                ]
            )
    images = sum(shards.values())
    _check_sums(images, total, steps)
    return {
        "images": images,
        "outcome": {kind: total.get(kind, 0) for kind in KINDS},
        "steps": steps,
        "reasons": [
            {"step": step, "decision": kind, "reason": reason, "images": number}
            for (step, kind, reason), number in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
        ],
    }


def _check_sums(images: int, total: Counter[str], steps: list[dict[str, Any]]) -> None:
    if sum(total.values()) != images:
        raise SumsError(f"the run has {counted(images, 'image')} but outcomes for {sum(total.values())}")
    for sums in steps:
        parts = sum(sums[kind] for kind in KINDS if kind != "gone")
        if sums["seen"] != parts:
            raise SumsError(
                f"step {sums['step']!r} saw {counted(int(sums['seen']), 'image')} but decided about {parts}"
            )


_NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.]*\w)")
_CODE = re.compile(r"(?:answered|status|code|errno|error|exit)[\s:=\[(]*$", re.IGNORECASE)
_SHOWN = re.compile(r"(.+? is (?:false|unknown)) \(.*\)$", re.DOTALL)
"""A condition of `keep` that is not met, and the values behind it, which may hold brackets of their own."""

_QUOTED = re.compile(r"(?<=[\s(=:])(['\"])(?![\w.]{1,40}\1).*?\1")


def reason_kind(decision: str, reason: str, *names: str) -> str:
    """A reason without what differs from image to image, so that like ones are counted together.

    What an image measures stands in brackets at the end of a reason (``sharpness >= 0.3 is false (sharpness 0.1)``),
    and is left out. A condition is told whole: its numbers are the pipeline's. A failure is told by libraries too, so
    numbers and quoted texts in it are those of one image, but for codes as in "the server answered 503".

    Args:
        decision: dropped, failed, …
        reason: As the step gave it.
        names: The image's key and uri.
    """
    for name in sorted(filter(None, names), key=len, reverse=True):
        reason = reason.replace(name, "…")
    shown = _SHOWN.match(reason)
    text = shown[1] if shown else _without_brackets(reason)
    if decision in ("failed", "undone"):
        text = _QUOTED.sub("…", text)
        text = _NUMBER.sub(lambda found: found[0] if _CODE.search(text[: found.start()]) else "…", text)
    return text


def _without_brackets(text: str) -> str:
    """The text without the last pair of brackets, if it ends in one."""
    if not text.endswith(")"):
        return text
    depth = 0
    for place in range(len(text) - 1, 0, -1):
        depth += (text[place] == ")") - (text[place] == "(")
        if depth == 0:
            return text[: place - 1] if text[place - 1] == " " else text
    return text


class _Table:
    """A Parquet file at the head of the run, written part by part and put in place whole."""

    def __init__(self, layout: Layout, name: str, schema: pa.Schema) -> None:
        import pyarrow.parquet as pq

        self._store, self._name, self._schema = layout.store, name, schema
        self._buffer = io.BytesIO()
        self._writer = pq.ParquetWriter(self._buffer, schema, compression="zstd")

    def add(self, columns: list[pa.Array | pa.ChunkedArray]) -> None:
        table = pa.table(columns, schema=self._schema)
        if table.num_rows:
            self._writer.write_table(table)

    def __enter__(self) -> _Table:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._writer.close()
        if error is None:
            self._store.write(self._name, self._buffer.getvalue())


def write_json(layout: Layout, name: str, value: dict[str, Any]) -> None:
    """A JSON file at the head of the run, keys in the order given."""
    layout.store.write(name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
