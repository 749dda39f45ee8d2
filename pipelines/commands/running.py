"""Commands about a pipeline file: run, check, plan."""

from __future__ import annotations

import json
import shlex
import signal
from typing import Annotated

import typer

from labelmill.operators.wording import counted
from labelmill.pipelines.commands.options import (
    Address,
    AsJson,
    GpuMemory,
    Overrides,
    PipelineFile,
    Strict,
    Workers,
    command_line,
    console,
    show,
    user_errors,
)


@user_errors
def run(
    context: typer.Context,
    pipeline: PipelineFile,
    set_: Overrides = None,
    inline: Annotated[bool, typer.Option("--inline", help="Run in this process alone, for debugging.")] = False,
    local: Annotated[
        bool, typer.Option("--local", help="Run in processes of this machine; what is done where nothing is said.")
    ] = False,
    ray: Annotated[
        bool, typer.Option("--ray", help="Run on Ray: the cluster of --address or RAY_ADDRESS, else a local one.")
    ] = False,
    workers: Workers = None,
    address: Address = None,
    gpu_memory: GpuMemory = None,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Show Ray's own messages and full tracebacks.")
    ] = False,
    report: Annotated[bool, typer.Option(help="Write report.html at the end.")] = True,
    strict: Strict = False,
    patience: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="How long an image is tried again while a server, a network or memory is lacking.",
        ),
    ] = 90,
    keep_going: Annotated[
        bool,
        typer.Option(
            "--keep-going", help="Leave images undone, however many, where an outage would otherwise stop the run."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a pipeline: do whatever of it is not done yet.

    The exit status is 0 when every image has an outcome; 3 when some are undone, which the same command does next time;
    2 when something is to be mended first; 1 when the run was stopped.
    """
    from labelmill.operators.applying.patience import Limits
    from labelmill.operators.applying.results import ContractError
    from labelmill.operators.secrets import hide
    from labelmill.pipelines.config.pipeline import load_pipeline
    from labelmill.pipelines.engine.local import end_early, prepare, start_early
    from labelmill.pipelines.engine.outages import EXIT_UNDONE, undone_line
    from labelmill.pipelines.engine.runners import cluster_is_named
    from labelmill.pipelines.engine.terminal import TerminalReporter
    from labelmill.pipelines.run import Options
    from labelmill.pipelines.run import run as run_pipeline

    if inline + local + ray > 1 or (address and (inline or local)):
        raise typer.BadParameter("--inline, --local and --ray (or --address) say where to run; give one of them")
    reporter = TerminalReporter(console(stderr=as_json))
    limits = Limits(patience, keep_going)
    options = Options(
        inline,
        workers,
        address,
        verbose,
        report=report,
        strict=strict,
        gpu_memory_gb=gpu_memory,
        limits=limits,
        ray=ray,
        local=local,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is as clean as a person's
    try:
        if not (inline or ray or address or (cluster_is_named() and not local)):
            start_early()
        loaded = load_pipeline(pipeline, set_)
        prepare(loaded.steps)
        summary = run_pipeline(loaded, options, reporter)
    except KeyboardInterrupt:
        reporter.close()
        typer.echo(f"\nstopped; what was finished is kept. Go on with: {hide(command_line(context))}", err=True)
        raise typer.Exit(130) from None
    except ContractError as error:
        reporter.close()
        typer.echo(f"error: {hide(str(error))}\nThis is a mistake in the operator's code.", err=True)
        raise typer.Exit(1) from error if verbose else None
    finally:
        reporter.close()
        end_early()
    if as_json:
        typer.echo(json.dumps(summary, indent=2, ensure_ascii=False))
    else:
        reporter.finished(summary, loaded.settings.output)
    undone = undone_line(summary)
    if undone is not None:
        typer.echo(f"{undone}: {hide(command_line(context))}", err=True)
        raise typer.Exit(EXIT_UNDONE)


@user_errors
def check(pipeline: PipelineFile, set_: Overrides = None, strict: Strict = False, as_json: AsJson = False) -> None:
    """Check a pipeline file: names, parameters, columns and types.

    Looks also whether weights and source are here, and what labels the source has, unless it is remote. Decodes no
    image and starts nothing. With --json the mistakes found are printed as JSON too.
    """
    from labelmill.pipelines.config.pipeline import load_pipeline
    from labelmill.pipelines.errors import ConfigError
    from labelmill.pipelines.inspection.look import look_at

    try:
        loaded = load_pipeline(pipeline, set_)
    except ConfigError as error:
        if not as_json:
            raise
        typer.echo(json.dumps({"pipeline": pipeline, "good": False, "problems": error.problems}, indent=2))
        raise typer.Exit(2) from None
    looked = look_at(loaded)
    problems = looked.problems + (looked.missing + looked.refused if strict else [])
    if problems and not as_json:
        raise ConfigError([f"{pipeline}: {problem}" for problem in problems])
    if problems:
        typer.echo(json.dumps({"pipeline": pipeline, "good": False, "problems": problems}, indent=2))
        raise typer.Exit(2)
    steps = [step.name for step in loaded.steps]
    exports = [export.name for export in loaded.exports]
    output = loaded.settings.output
    if as_json:
        found = {"pipeline": pipeline, "good": True, "steps": steps, "exports": exports, "output": output}
        found |= {"source": looked.told, "warnings": looked.warnings, "before_a_run": looked.first}
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        told = f"{counted(len(steps), 'step')}, exports: {', '.join(exports) or 'none'}, output: {output}"
        for warning in looked.warnings:
            typer.echo(f"warning {warning}")
        typer.echo(f"source  {looked.told}")
        typer.echo(f"{pipeline}: good. {told}")
        for problem in looked.first:
            typer.echo(f"before a run: {problem}")
        typer.echo(f"{'Then' if looked.first else 'Next'}: labelmill run {shlex.quote(pipeline)}")


@user_errors
def plan(
    pipeline: PipelineFile,
    set_: Overrides = None,
    workers: Workers = None,
    resources: Annotated[
        str | None,
        typer.Option(
            metavar="WORDS",
            help="A cluster that is not here: 'nodes=100,cpus=128,gpus=8,gpu_memory=80' (of each node; memory too).",
        ),
    ] = None,
    gpu_memory: GpuMemory = None,
    as_json: AsJson = False,
) -> None:
    """Show what a run would do, without running anything.

    Tells each step, how much of it is done already, and how the rest is placed on this machine or on another cluster.
    """
    from labelmill.pipelines.config.pipeline import load_pipeline
    from labelmill.pipelines.inspection.plan import plan_of, print_plan

    planned = plan_of(load_pipeline(pipeline, set_), workers, resources, gpu_memory)
    show(planned, as_json, print_plan)
