"""Runs a pipeline from source to exports. Read `run` from top to bottom."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from labelmill.operators.errors import OperatorError
from labelmill.pipelines.config.pipeline import Pipeline
from labelmill.pipelines.engine.export_run import export_all
from labelmill.pipelines.engine.foreseen import export_problems
from labelmill.pipelines.engine.outages import patient
from labelmill.pipelines.engine.placement import segments
from labelmill.pipelines.engine.receipts import News, Receipt
from labelmill.pipelines.engine.runners import Options as Options
from labelmill.pipelines.engine.runners import Reporter as Reporter
from labelmill.pipelines.engine.runners import Segment, runner_for
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.run_folder.arrived import Arrived, strict_problem, write_categories, write_refused
from labelmill.pipelines.run_folder.guard import guarded
from labelmill.pipelines.run_folder.intake import Intake, take_in
from labelmill.pipelines.run_folder.layout import Layout
from labelmill.pipelines.run_folder.outcomes import summarise, write_json
from labelmill.pipelines.run_folder.reopen import (
    PIPELINE_FILE,
    SUMMARY_FILE,
    export_classes,
    open_output,
    state_of,
    write_pipeline,
)
from labelmill.pipelines.run_folder.store import Store
from labelmill.pipelines.sources import Fetcher, Source, open_source
from labelmill.pipelines.steps import Step


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
    intake = take_in(source, store, pipeline.settings.shard_size, pipeline.steps, fetch=fetch)
    reporter.source_read(intake)
    if intake.shard_size != pipeline.settings.shard_size:
        reporter.note(
            f"shard_size stays {intake.shard_size}, with which the run began; choose another output for another"
        )
    write_pipeline(pipeline, store)
    write_categories(store, source.categories)
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
            todo = {step.position: [s for s in everything if s not in done[step.position]] for step in waiting}
            try:
                with runner_for(options, waiting, max(map(len, todo.values())), reporter) as runner:
                    for segment in segments(pipeline.steps):
                        shards = sorted({shard for step in segment for shard in todo.get(step.position, ())})
                        if shards:
                            runner(Segment(layout, segment, shards, everything, fetch, on_news))
            finally:
                store.clean()  # what a worker was writing when it died

    summary = _summary(pipeline, layout, intake, arrived)
    classes = export_classes(pipeline, layout, intake.shards, source)
    summary["exports"] = export_all(pipeline, layout, intake.shards, classes, patient(fetch, options.limits))
    write_json(layout, SUMMARY_FILE, summary)
    if options.report:
        from labelmill.pipelines.report.write import write_report

        summary["report"] = write_report(pipeline.settings.output, again=False)
    return summary


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
