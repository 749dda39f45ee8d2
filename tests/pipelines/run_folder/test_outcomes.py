"""The sums close, and a run in which they do not says so."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from labelmill.pipelines.engine.dataset_steps import run_dataset_step
from labelmill.pipelines.run_folder.layout import Layout
from labelmill.pipelines.run_folder.outcomes import SumsError, reason_kind, summarise
from tests.pipelines.engine.test_dataset_steps import prepared


@pytest.fixture
def layout() -> Layout:
    layout, step, shards = prepared("run", 14)
    run_dataset_step(layout, step, shards)
    return layout


SHARDS = {0: 4, 1: 4, 2: 4, 3: 2}


def rewrite(layout: Layout, position: int, shard: int, table: pa.Table) -> None:
    layout.store.write_table(layout.file(position, shard), table)


def test_sums_of_a_whole_run_close(layout: Layout) -> None:
    summary = summarise(layout, SHARDS)
    assert sum(summary["outcome"].values()) == summary["images"] == 14
    seen = {step["step"]: step["seen"] for step in summary["steps"]}
    kept = {step["step"]: step["kept"] for step in summary["steps"]}
    assert seen == {"bright": 14, "keep": 14, "rank": kept["keep"]}
    assert kept["rank"] == summary["outcome"]["kept"]


def test_a_lost_row_is_found(layout: Layout) -> None:
    rewrite(layout, 1, 2, layout.table(1, 2).slice(0, 3))
    with pytest.raises(SumsError, match="'keep' has 3 rows in shard 2, which has 4"):
        summarise(layout, SHARDS)


def test_an_image_that_was_not_decided_about_is_found(layout: Layout) -> None:
    table = layout.table(0, 1)
    silent = table.set_column(table.schema.get_field_index("decision"), "decision", pa.nulls(4, pa.string()))
    rewrite(layout, 0, 1, silent)
    with pytest.raises(SumsError, match="'bright' did not see the images of shard 1"):
        summarise(layout, SHARDS)


def test_a_failed_check_leaves_no_table_behind(layout: Layout) -> None:
    rewrite(layout, 1, 2, layout.table(1, 2).slice(0, 3))
    with pytest.raises(SumsError):
        summarise(layout, SHARDS)
    assert not Path("run/decisions.parquet").exists()


@pytest.mark.parametrize(
    ("decision", "reason", "kind"),
    [
        ("dropped", "sharpness >= 0.3 is false (sharpness = 0.12)", "sharpness >= 0.3 is false"),
        ("dropped", "(a or b) and least(c) > d is false (a = 0.1, b = 2)", "(a or b) and least(c) > d is false"),
        ("dropped", "name != 'street: (old)' is false (name = 'street: (old')", "name != 'street: (old)' is false"),
        ("dropped", "x is unknown (x is null)", "x is unknown"),
        ("dropped", "x in (1, 2) is false", "x in (1, 2) is false"),
        ("dropped", "leaks to val (same group as b/2 (1).jpg)", "leaks to val"),
        ("failed", "the file is empty: a/1 (copy).jpg", "the file is empty: …"),
        ("failed", "no permission to read /data/a/1 (copy).jpg", "no permission to read …"),
        ("failed", "too narrow for the model: 3 x 900 pixels", "too narrow for the model: … x … pixels"),
        ("failed", "OSError: image file is truncated (27 bytes not processed)", "OSError: image file is truncated"),
        ("failed", "x cannot be read: the server answered 503", "x cannot be read: the server answered 503"),
        ("failed", "x cannot be read: the server answered 404", "x cannot be read: the server answered 404"),
        ("failed", "the answer must be JSON but is 'a dog, 2 cats'", "the answer must be JSON but is …"),
        ("failed", "try dtype: float32", "try dtype: float32"),
        ("failed", "", ""),
    ],
)  # fmt: skip
def test_a_reason_is_counted_whole_without_what_differs_from_image_to_image(
    decision: str, reason: str, kind: str
) -> None:
    assert reason_kind(decision, reason, "a/1 (copy).jpg", "/data/a/1 (copy).jpg") == kind


def test_every_reason_is_in_the_summary() -> None:
    layout, step, shards = prepared("run", 14)
    run_dataset_step(layout, step, shards)
    table = layout.table(1, 0)
    texts = [f"kind {chr(97 + row)} is false" for row in range(table.num_rows)]
    for name, values in (("decision", ["dropped"] * len(texts)), ("decision.reason", texts)):
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.string()))
    rewrite(layout, 1, 0, table)
    layout.store.fs.rm(layout.store.path(f"steps/{layout.folders[2]}"), recursive=True)
    run_dataset_step(layout, step, shards)
    told = {reason["reason"] for reason in summarise(layout, SHARDS)["reasons"]}
    assert told >= set(texts)
