"""The sums close, and a run in which they do not says so."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.dataset_steps import run_dataset_step
from pipelines.layout import Layout
from pipelines.outcomes import SumsError, summarise
from tests.pipelines.test_dataset_steps import prepared


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
