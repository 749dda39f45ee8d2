"""Runs a pipeline from source to exports. Read `run` from top to bottom."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from operators.applying.patience import Limits
from operators.errors import OperatorError
from pipelines.config.pipeline import Pipeline
from pipelines.engine.export_run import export_all
from pipelines.engine.placement import Phase, place, segments
from pipelines.engine.receipts import News, OnNews, Receipt
from pipelines.errors import UserError
from pipelines.exports.foreseen import export_problems
from pipelines.run_folder.arrived import Arrived, strict_problem, write_refused
from pipelines.run_folder.guard import guarded
from pipelines.run_folder.layout import Layout
from pipelines.run_folder.outcomes import summarise, write_json
from pipelines.run_folder.reopen import (
    PIPELINE_FILE,
    SUMMARY_FILE,
    export_classes,
    open_output,
    state_of,
    write_pipeline,
)
from pipelines.run_folder.shards import Intake, take_in
from pipelines.run_folder.store import Store
from pipelines.sources import Fetcher, Source, open_source
from pipelines.steps import Step


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
        inline: In this process, without Ray.
        workers: Upper bound of the workers of a pool.
        address: Of a Ray cluster; None for a local one.
        verbose: Let Ray's own messages through.
        strict: Stop before any work where labels of the source are missing or refused.
        report: Write ``report.html`` at the end, unless the one that is there shows the same results.
        gpu_memory_gb: Of one GPU, where it cannot be asked or is shared; None to ask it.
        limits: How long to wait for what passes, and whether to go on without it.
    """

    inline: bool = False
    workers: int | None = None
    address: str | None = None
    verbose: bool = False
    report: bool = False
    strict: bool = False
    gpu_memory_gb: float | None = None
    limits: Limits = field(default_factory=Limits)


def run(pipeline: Pipeline, options: Options, reporter: Reporter) -> dict[str, Any]:
    """Do whatever of a pipeline is not done yet.

    Returns:
        What ``summary.json`` holds: the sums, and the exports.

    Raises:
        UserError: The source, the output or a model is not what it must be, or an outage stops the run.
    """
    store = open_output(pipeline)
    with store.locked(), guarded(store, PIPELINE_FILE):
        return _run(pipeline, store, options, reporter)


def _run(pipeline: Pipeline, store: Store, options: Options, reporter: Reporter) -> dict[str, Any]:
    source, fetch = _open(pipeline)
    store.clean()
    intake = take_in(source, store, pipeline.settings.shard_size)
    reporter.source_read(intake)
    write_pipeline(pipeline, store)
    arrived = write_refused(store, intake.shards, intake.orphans)
    if options.strict and (intake.missing or arrived.refused):
        raise UserError(strict_problem(intake.missing, arrived, store.address()))

    layout = Layout.of(store, pipeline.steps, options.limits)
    done = {step.position: layout.done(step.position) & intake.shards.keys() for step in pipeline.steps}
    reporter.planned(layout, done, intake.shards)
    everything = sorted(intake.shards)
    waiting = [step for step in pipeline.steps if len(done[step.position]) < len(everything)]
    _check_ready(waiting)
    if problems := export_problems(pipeline, arrived, source.classes):
        raise UserError("\n".join(problems))

    with _Events(store) as events:

        def on_news(news: News) -> None:
            if isinstance(news, Receipt) and news.computed:
                events.add("receipt", **news.as_dict())
            reporter.news(news)

        if waiting:
            with _session(options):
                for segment in segments(pipeline.steps):
                    shards = sorted({s for step in segment for s in everything if s not in done[step.position]})
                    if shards:
                        _run_segment(layout, segment, shards, everything, fetch, options, reporter, on_news)

    summary = _summary(pipeline, layout, intake, arrived)
    classes = export_classes(pipeline, layout, intake.shards, source)
    summary["exports"] = export_all(pipeline, layout, intake.shards, classes, fetch)
    write_json(layout, SUMMARY_FILE, summary)
    if options.report:
        from pipelines.report.write import write_report

        summary["report"] = write_report(pipeline.settings.output, again=False)
    return summary


def _run_segment(
    layout: Layout,
    segment: Sequence[Step],
    shards: Sequence[int],
    everything: Sequence[int],
    fetch: Fetcher,
    options: Options,
    reporter: Reporter,
    on_news: OnNews,
) -> None:
    if options.inline:
        from pipelines.engine.inline import run_segment

        run_segment(layout, segment, shards, everything, fetch, on_news)
        return
    from pipelines.engine import on_ray, ray_resources

    if segment[0].is_dataset:
        on_ray.run_barrier(layout, segment[0], everything, on_news)
        return
    resources = ray_resources.cluster_resources(segment, options.gpu_memory_gb)
    phases = place(segment, resources, options.workers, len(shards))
    reporter.placed(segment, phases)
    for phase in phases:
        on_ray.run_phase(layout, phase, shards, fetch, on_news)


def _session(options: Options) -> AbstractContextManager[None]:
    if options.inline:
        return nullcontext()
    from pipelines.engine.on_ray import ray_session

    return ray_session(options.address, options.workers, options.verbose)


def _open(pipeline: Pipeline) -> tuple[Source, Fetcher]:
    spec = pipeline.settings.source
    return open_source(spec), Fetcher(dict(spec.storage_options))


def _check_ready(steps: Sequence[Step]) -> None:
    """Refuse to start when a model's weights are missing or broken."""
    problems = []
    for step in steps:
        try:
            step.operator.ready()
        except OperatorError as error:
            problems.append(f"step {step.name!r}: {error}")
    if problems:
        raise UserError("\n".join(problems))


def _summary(pipeline: Pipeline, layout: Layout, intake: Intake, arrived: Arrived) -> dict[str, Any]:
    """The sums; those of the last run when nothing has changed since."""
    state = state_of(layout, intake.shards)
    if layout.store.exists(SUMMARY_FILE):
        earlier = json.loads(layout.store.read(SUMMARY_FILE))
        if earlier.get("state") == state:
            return dict(earlier)
    summary = {"pipeline": pipeline.settings.name, "state": state, **summarise(layout, intake.shards)}
    problems = {"source_problems": intake.problems[:1000], "source_problem_count": len(intake.problems)}
    return {**summary, **problems, "labels": {"images": arrived.images, "refused": arrived.refused}}


class _Events:
    """``events.jsonl``: one line per thing that happened, appended."""

    def __init__(self, store: Store) -> None:
        self._file = store.append("events.jsonl")

    def add(self, event: str, **values: Any) -> None:
        line = json.dumps({"event": event, "time": round(time.time(), 3), **values}, ensure_ascii=False)
        with suppress(OSError):  # a full disk: the results, which matter, will say so
            self._file.write(line.encode() + b"\n")
            self._file.flush()

    def __enter__(self) -> _Events:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._file.close()
