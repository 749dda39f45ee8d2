"""What runs a pipeline's steps: this process, processes of this machine, or Ray; and which of them when."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from labelmill.operators.applying.patience import Limits
from labelmill.operators.wording import counted
from labelmill.pipelines.engine.placement import Phase, place
from labelmill.pipelines.engine.receipts import News, OnNews
from labelmill.pipelines.engine.resources import Resources, resources_here
from labelmill.pipelines.run_folder.layout import Layout
from labelmill.pipelines.run_folder.shards import Intake
from labelmill.pipelines.sources import Fetcher
from labelmill.pipelines.steps import Step


class Reporter(Protocol):
    """Who is told how a run goes."""

    def source_read(self, intake: Intake) -> None: ...
    def planned(self, layout: Layout, done: dict[int, set[int]], shards: dict[int, int]) -> None: ...
    def placed(self, steps: Sequence[Step], phases: Sequence[Phase]) -> None: ...
    def news(self, news: News) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass(frozen=True)
class Options:
    """How to run; none of it changes a result.

    Attributes:
        inline: In this process.
        workers: Upper bound of the workers of a pool.
        address: Of a Ray cluster; None for a local one.
        verbose: Let Ray's own messages through.
        strict: Stop before any work where labels of the source are missing or refused.
        report: Write ``report.html`` at the end, unless the one that is there shows the same results.
        gpu_memory_gb: Of one GPU, where it cannot be asked or is shared; None to ask it.
        limits: How long to wait for what passes, and whether to go on without it.
        ray: On Ray, also where processes of this machine would do.
        local: In processes of this machine, also where this one alone would do.
    """

    inline: bool = False
    workers: int | None = None
    address: str | None = None
    verbose: bool = False
    report: bool = False
    strict: bool = False
    gpu_memory_gb: float | None = None
    limits: Limits = field(default_factory=Limits)
    ray: bool = False
    local: bool = False


@dataclass(frozen=True)
class Segment:
    """Consecutive image and table steps, or one dataset step, to be run.

    Attributes:
        layout: The run.
        steps: In their order.
        shards: Those for which something is to be done.
        everything: All shards of the run.
        fetch: Gives the bytes behind a uri.
        on_news: Told of every receipt, and of what is under way.
    """

    layout: Layout
    steps: Sequence[Step]
    shards: Sequence[int]
    everything: Sequence[int]
    fetch: Fetcher
    on_news: OnNews


Runner = Callable[[Segment], None]


@contextmanager
def runner_for(options: Options, steps: Sequence[Step], shards: int, reporter: Reporter) -> Iterator[Runner]:
    """What runs segments, ready while the block is not left. The reporter is told which, and how to have another.

    Args:
        options: An option that names a runner has it.
        steps: Those that have something to do.
        shards: For which there is something to be done.
        reporter: Told.
    """
    if options.ray or options.address or (cluster_is_named() and not (options.inline or options.local)):
        _no_early_processes()
        with _ray(options, reporter) as runner:
            yield runner
        return
    resources = resources_here(options.workers, options.gpu_memory_gb)
    alone = shards == 1 or resources.cpus < 2
    if options.inline or (alone and not resources.gpus and not options.local):
        _no_early_processes()
        if not options.inline:
            why = "as there is one shard to do" if shards == 1 else "as there is one CPU for it"
            reporter.note(f"runs in this process, {why} (--local or --ray: in others)")
        yield _inline
        return
    with _local(options, resources, reporter) as runner:
        yield runner


def cluster_is_named() -> bool:
    """Whether the environment names a Ray cluster, as it does in a job of one."""
    return any(os.environ.get(name) for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"))


def _no_early_processes() -> None:
    from labelmill.pipelines.engine.local import end_early

    end_early()


def _inline(segment: Segment) -> None:
    from labelmill.pipelines.engine.inline import run_segment

    run_segment(segment.layout, segment.steps, segment.shards, segment.everything, segment.fetch, segment.on_news)


@contextmanager
def _local(options: Options, resources: Resources, reporter: Reporter) -> Iterator[Runner]:
    from labelmill.pipelines.engine.local import local_session

    with local_session() as processes:
        told = False

        def run(segment: Segment) -> None:
            nonlocal told
            layout, steps, fetch, on_news = segment.layout, segment.steps, segment.fetch, segment.on_news
            processes.prepare(steps)
            if steps[0].is_dataset:
                processes.run_barrier(layout, steps[0], segment.everything, fetch, on_news)
                return
            phases = place(steps, resources, options.workers, len(segment.shards))
            if not told:
                workers = max(sum(pool.workers for pool in phase.pools) for phase in phases)
                gpus = f" on {counted(int(resources.gpus), 'GPU')}" if resources.gpus else ""
                others = "--inline or --ray runs it otherwise"
                reporter.note(f"runs in {counted(workers, 'process', 'processes')} of this machine{gpus} ({others})")
                told = True
            reporter.placed(steps, phases)
            for phase in phases:
                processes.run_phase(layout, phase, segment.shards, fetch, on_news, resources)

        yield run


@contextmanager
def _ray(options: Options, reporter: Reporter) -> Iterator[Runner]:
    where = options.address or os.environ.get("RAY_ADDRESS")
    reporter.note(f"runs on the Ray cluster at {where}" if where else "starting Ray on this machine")
    from labelmill.pipelines.engine import on_ray, ray_resources
    from labelmill.pipelines.engine.ray_session import ray_session

    def run(segment: Segment) -> None:
        layout, steps = segment.layout, segment.steps
        if steps[0].is_dataset:
            on_ray.run_barrier(layout, steps[0], segment.everything, segment.on_news)
            return
        resources = ray_resources.cluster_resources(steps, options.gpu_memory_gb)
        phases = place(steps, resources, options.workers, len(segment.shards))
        reporter.placed(steps, phases)
        for phase in phases:
            on_ray.run_phase(layout, phase, segment.shards, segment.fetch, segment.on_news)

    with ray_session(options.address, options.workers, options.verbose):
        yield run
