"""Runs segments of a pipeline in this process, one shard after the other: for debugging, tests and small jobs."""

from __future__ import annotations

from collections.abc import Sequence

from labelmill.operators.applying.apply import THREADS
from labelmill.pipelines.engine.dataset_steps import run_dataset_step
from labelmill.pipelines.engine.receipts import OnNews
from labelmill.pipelines.engine.work import ShardWorker, use_threads
from labelmill.pipelines.run_folder.layout import Layout
from labelmill.pipelines.sources import Fetcher
from labelmill.pipelines.steps import Step


def run_segment(
    layout: Layout,
    segment: Sequence[Step],
    shards: Sequence[int],
    everything: Sequence[int],
    fetch: Fetcher,
    on_news: OnNews,
) -> None:
    """Do what is not done yet.

    Args:
        layout: The run.
        segment: Consecutive image and table steps, or one dataset step.
        shards: Those for which something is to be done.
        everything: All shards of the run.
        fetch: Gives the bytes behind a uri.
        on_news: Told of every receipt, and of what is under way.
    """
    if segment[0].is_dataset:
        run_dataset_step(layout, segment[0], everything, on_news)
        return
    use_threads()
    worker = ShardWorker(layout, [step.position for step in segment], fetch, THREADS)
    for shard in shards:
        worker.run(shard, on_news)
