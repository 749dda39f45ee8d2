"""The label errors that a run found, across all its images, the surest first."""

from __future__ import annotations

import contextlib
import heapq
import os
import tempfile
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa

from labelmill.operators.columns.schemas import SIDES
from labelmill.operators.labels.findings import KINDS, LABEL_ERROR, LABEL_ERRORS
from labelmill.pipelines.errors import UserError, nearest
from labelmill.pipelines.run_folder.layout import Layout, column_of
from labelmill.pipelines.run_folder.reopen import reopen
from labelmill.pipelines.run_folder.shards import read_shard
from labelmill.pipelines.steps import Input

Figures = dict[str, Any]

OUT = (".parquet", ".csv")

TABLE = pa.schema(
    [
        pa.field("score", pa.float32()),
        pa.field("kind", pa.string()),
        pa.field("image_id", pa.int64()),
        pa.field("key", pa.string()),
        pa.field("label", pa.int32()),
        pa.field("class", pa.string()),
        *(pa.field(side, pa.float32()) for side in SIDES),
        pa.field("suggested_class", pa.string()),
        *(pa.field(f"suggested_{side}", pa.float32()) for side in SIDES),
        pa.field("reason", pa.string()),
        pa.field("step", pa.string()),
        pa.field("uri", pa.string()),
    ]
)
"""One row per error, flat: the fields of `operators.labels.findings.LABEL_ERROR`, the image and the step that found it.

What a source said about an entry when it was read stands here too: `invalid`, of no label, found by ``source``.
"""


def list_label_errors(
    folder: str, top: int = 50, kinds: Collection[str] = (), least: float = 0.5, out: Path | None = None
) -> Figures:
    """The label errors of a run, as plain values.

    Errors with the same score stand in the order of their keys. Memory does not grow with their number.

    Args:
        folder: The run. It need not be finished.
        top: How many are given word for word.
        kinds: Only these of `operators.labels.findings.KINDS`; none given: all.
        least: Only those with at least this score, 0…1.
        out: A file for all of them, ``.parquet`` or ``.csv``, with the columns of `TABLE` in the same order.

    Returns:
        ``run``; ``steps``: names of the steps that looked; ``images``: how many were looked at; ``counts``: errors by
        kind; ``errors``: the first of them, dicts with the fields of `TABLE`; ``out``: the file, or None.

    Raises:
        UserError: No step of the run looks for label errors, or an argument is not what it must be.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"--kind must be one of {', '.join(KINDS)} but is {kind!r}{nearest(kind, KINDS)}")
    if out is not None and out.suffix.lower() not in OUT:
        raise UserError(f"--out must end in {' or '.join(OUT)} but is {str(out)!r}")
    _, layout, shards = reopen(folder)
    columns = _columns(folder, layout)
    counts: Counter[str] = Counter()
    best: list[Figures] = []
    images = 0
    with tempfile.TemporaryDirectory(prefix="labelmill-") as temporary:
        everything = os.path.join(temporary, "errors.parquet")
        with _Rows(everything if out is not None else None) as written:
            for shard in sorted(shards):
                seen, found = _shard(layout, columns, shard)
                images += seen
                found = [row for row in found if row["score"] >= least and (not kinds or row["kind"] in kinds)]
                counts.update(row["kind"] for row in found)
                best = heapq.nsmallest(top, [*best, *found], key=_rank)
                written.add(found)
        if out is not None:
            _write_sorted(everything, out)
    return {
        "run": folder,
        "steps": [layout.steps[column.step].name for column in columns if column.step is not None],
        "images": images,
        "least": least,
        "kinds": [kind for kind in KINDS if kind in kinds],
        "counts": {kind: counts[kind] for kind in KINDS if counts[kind]},
        "errors": best,
        "out": None if out is None else str(out),
    }


def _columns(folder: str, layout: Layout) -> list[Input]:
    """The columns that hold label errors."""
    columns = [
        Input(step.position, field.name, field.type)
        for step in layout.steps
        for field in step.operator.writes()
        if field.type.equals(LABEL_ERRORS)
    ]
    if not columns:
        raise UserError(
            f"the run {folder} has not looked for label errors: add the step `- label_errors` below `detect`, "
            "or `- label_conflicts` below `inspect`, and run it"
        )
    return columns


def _shard(layout: Layout, columns: list[Input], shard: int) -> tuple[int, list[Figures]]:
    """How many images of a shard were looked at, and their errors."""
    rows = read_shard(layout.store, shard, ["image_id", "key", "uri", "labels", "problem"])
    images = rows.select(["image_id", "key", "uri"]).to_pylist()
    looked, found = [False] * len(images), []
    for column in columns:
        assert column.step is not None
        try:
            errors = column_of(layout, column, shard)
        except FileNotFoundError:  # the run goes on
            continue
        name = layout.steps[column.step].name
        for row, (image, errors_of_image) in enumerate(zip(images, errors.to_pylist(), strict=True)):
            looked[row] = looked[row] or errors_of_image is not None
            found += [_flat(error, image, name) for error in errors_of_image or ()]
    labelled = rows.column("labels").is_valid().to_pylist()
    for image, problem, there in zip(images, rows.column("problem").to_pylist(), labelled, strict=True):
        if problem is not None and there:
            nothing = {**dict.fromkeys(LABEL_ERROR.names), "kind": "invalid", "score": 1.0, "reason": problem}
            found.append(_flat(nothing, image, "source"))
    return sum(looked), found


def _flat(error: Figures, image: Figures, step: str) -> Figures:
    """A row of `TABLE`."""
    suggested = error["suggested"] or {}
    values = {**error, **image, "step": step, "suggested_class": suggested.get("class")}
    values |= {f"suggested_{side}": suggested.get(side) for side in SIDES}
    return {name: values[name] for name in TABLE.names}


def _rank(row: Figures) -> tuple[Any, ...]:
    label = row["label"]
    return -row["score"], row["key"], row["step"], -1 if label is None else label, row["reason"]


class _Rows:
    """A Parquet file that grows; without a name, nothing."""

    def __init__(self, name: str | None) -> None:
        import pyarrow.parquet as pq

        self._writer = None if name is None else pq.ParquetWriter(name, TABLE, compression="zstd")

    def add(self, rows: list[Figures]) -> None:
        if self._writer is not None and rows:
            self._writer.write_table(pa.Table.from_pylist(rows, TABLE))

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()


def _write_sorted(everything: str, out: Path) -> None:
    """Sort a file of `TABLE` as `_rank` does, on disk where memory is short, and put it in place whole."""
    import duckdb

    temporary = out.with_name(f".tmp-{out.name}")
    options = "FORMAT csv, HEADER" if out.suffix.lower() == ".csv" else "FORMAT parquet, COMPRESSION zstd"
    folder = os.path.dirname(everything)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with duckdb.connect(config={"threads": "1", "temp_directory": folder, "memory_limit": "1GB"}) as duck:
            order = "score DESC, key, step, coalesce(label, -1), reason"
            query = f"SELECT * FROM read_parquet($source) ORDER BY {order}"
            duck.execute(f"COPY ({query}) TO $out ({options})", {"source": everything, "out": str(temporary)})
        os.replace(temporary, out)
    except (OSError, duckdb.Error) as error:
        raise UserError(f"--out cannot be written to {out}: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
