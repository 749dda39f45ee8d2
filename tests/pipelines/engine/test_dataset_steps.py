"""Dataset steps that were interrupted, or that see new shards later."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from labelmill.operators.images.decoded import decode
from labelmill.pipelines.engine.dataset_steps import run_dataset_step
from labelmill.pipelines.engine.work import ShardWorker
from labelmill.pipelines.run_folder.intake import take_in
from labelmill.pipelines.run_folder.layout import Layout
from labelmill.pipelines.run_folder.store import Store
from labelmill.pipelines.sources import Fetcher, SourceSpec, open_source
from labelmill.pipelines.steps import Step, chain
from tests.drawing import encode, folder_of_images, noise
from tests.pipelines.test_run import tree
from tests.toys import Brightness, Rank, Threshold, logged

SHARD = 4


def prepared(output: str, images: int) -> tuple[Layout, Step, list[int]]:
    """A run of which everything but the dataset step is done."""
    if not Path("data").exists():
        folder_of_images(Path("data"), images)
    steps: list[Step] = []
    steps.append(chain(steps, "bright", "b", Brightness(Brightness.Params())))
    steps.append(chain(steps, "keep", "k", Threshold(Threshold.Params(at_least=60.0))))
    steps.append(chain(steps, "rank", "r", Rank(Rank.Params(log=str(Path("rank.log").absolute())))))
    store = Store(output)
    intake = take_in(open_source(SourceSpec.model_validate("data")), store, SHARD)
    layout = Layout.of(store, steps)
    worker = ShardWorker(layout, (0, 1), Fetcher())
    for shard in sorted(intake.shards):
        worker.run(shard)
    return layout, steps[2], sorted(intake.shards)


@pytest.mark.parametrize("lost", [[0], [3], [1, 2], [0, 1, 2, 3]])
def test_a_generation_that_was_half_written_is_completed_with_the_same_bytes(lost: list[int]) -> None:
    layout, step, shards = prepared("run", 14)
    run_dataset_step(layout, step, shards)
    expected = tree("run/steps")
    for shard in lost:
        Path(layout.store.path(layout.file(step.position, shard))).unlink()
    run_dataset_step(layout, step, shards)
    assert tree("run/steps") == expected


def test_a_half_written_generation_is_completed_before_new_shards_are_decided() -> None:
    layout, step, shards = prepared("run", 14)
    run_dataset_step(layout, step, shards)
    first = tree("run/steps")
    Path(layout.store.path(layout.file(step.position, 1))).unlink()
    for index in range(14, 20):
        Path(f"data/a/z{index}.jpg").write_bytes(encode(noise(index)))
    layout, step, shards = prepared("run", 14)
    assert len(shards) == 6
    receipts = run_dataset_step(layout, step, shards)
    after = tree("run/steps")
    assert {path: after[path] for path in first} == first
    assert [receipt.shard for receipt in receipts] == shards
    ranks = [
        row["rank"]
        for shard in shards
        for row in pq.ParquetFile(layout.store.path(layout.file(step.position, shard))).read().to_pylist()
        if row["decision"] == "kept"
    ]
    assert sorted(ranks) == list(range(len(ranks))), "new ranks go above the old ones"


def test_nothing_is_computed_when_everything_is_there() -> None:
    layout, step, shards = prepared("run", 14)
    run_dataset_step(layout, step, shards)
    calls = len(logged("rank.log"))
    receipts = run_dataset_step(layout, step, shards)
    assert len(logged("rank.log")) == calls
    assert not any(receipt.computed for receipt in receipts)


def test_only_images_in_play_are_shown() -> None:
    prepared_run = prepared("run", 14)
    run_dataset_step(*prepared_run)
    bright = {
        index + 1: decode(path.read_bytes()).pixels.mean()
        for index, path in enumerate(sorted(Path("data").rglob("*.jpg")))
    }
    assert set(logged("rank.log")) == {image_id for image_id, value in bright.items() if value >= 60.0}
