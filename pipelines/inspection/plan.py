"""What a run would do: what is done already, and how the rest is placed."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from labelmill.operators.wording import counted
from labelmill.pipelines.config.pipeline import Pipeline
from labelmill.pipelines.engine.placement import Pool, place, segments
from labelmill.pipelines.engine.resources import parse_resources, resources_here, stated_gpu_memory
from labelmill.pipelines.inspection.look import missing_models
from labelmill.pipelines.run_folder.intake import take_in
from labelmill.pipelines.run_folder.layout import Layout
from labelmill.pipelines.run_folder.reopen import open_output
from labelmill.pipelines.sources import open_source


def plan_of(
    pipeline: Pipeline, workers: int | None, resources: str | None = None, gpu_memory_gb: float | None = None
) -> dict[str, Any]:
    """What a run would do, as plain values. Lists the source; computes and writes nothing.

    Args:
        pipeline: Which.
        workers: Upper bound of the workers of a pool.
        resources: A cluster in words that it would run on (see `parse_resources`); None for this machine.
        gpu_memory_gb: Of one GPU; None for what the words or the GPU say.

    Raises:
        UserError: The words are not those of a cluster, or the cluster cannot do it.
    """
    stated = stated_gpu_memory(gpu_memory_gb)
    there = parse_resources(resources, stated) if resources else resources_here(workers, stated)
    before = missing_models(pipeline)
    store = open_output(pipeline)
    intake = take_in(
        open_source(pipeline.settings.source), store, pipeline.settings.shard_size, pipeline.steps, write=False
    )
    layout = Layout.of(store, pipeline.steps)
    steps = []
    for step in pipeline.steps:
        done = len(layout.done(step.position) & intake.shards.keys())
        steps.append(
            {
                "step": step.name,
                "operator": step.operator_name,
                "fingerprint": step.fingerprint,
                "reads": [column.name(pipeline.steps) for column in step.inputs.values()],
                "writes": step.operator.writes().names,
                "done": done,
                "shards": len(intake.shards),
            }
        )
    stages: list[dict[str, Any]] = []
    for segment in segments(pipeline.steps):
        if all(steps[step.position]["done"] == len(intake.shards) for step in segment):
            continue
        if segment[0].is_dataset:
            stages.append({"steps": [segment[0].name], "workers": 1, "on": "all shards at once"})
            continue
        shards = len(intake.shards) - min(steps[step.position]["done"] for step in segment)
        # A cluster that is not here is looked at with more images in mind than are here.
        phases = place(segment, there, workers, None if resources else shards)
        for number, phase in enumerate(phases):
            for pool in phase.pools:
                stages.append(
                    {
                        "steps": [pipeline.steps[position].name for position in pool.positions],
                        "workers": pool.workers,
                        "on": _of_one(pool),
                        "cpus": pool.cpus,
                        "gpus": pool.gpus,
                        "shards": shards,
                        "phase": number + 1 if len(phases) > 1 else None,
                    }
                )
    return {
        "pipeline": pipeline.settings.name,
        "output": pipeline.settings.output,
        "before_a_run": before,
        "images": intake.images,
        "new_images": intake.added,
        "shards": len(intake.shards),
        "resources": {
            "of": resources or "this machine",
            "nodes": len(there.machines),
            "cpus": there.cpus,
            "gpus": there.gpus,
            "gpu_memory_gb": round(there.gpu_memory_gb, 1),
            "memory_gb": round(there.memory_gb, 1) if math.isfinite(there.memory_gb) else None,
        },
        "steps": steps,
        "stages": stages,
        "exports": [export.name for export in pipeline.exports],
    }


def print_plan(planned: dict[str, Any], console: Console) -> None:
    """Print `plan_of`."""
    new = f", {planned['new_images']:,} new" if 0 < planned["new_images"] < planned["images"] else ""
    size = f"{counted(planned['images'], 'image')}{new} in {counted(planned['shards'], 'shard')}"
    console.print(f"{planned['pipeline']}: {size} → {escape(planned['output'])}")
    for problem in planned["before_a_run"]:
        console.print(f"[yellow]before a run:[/] {escape(problem)}", soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for header in ("step", "done", "reads", "writes"):
        table.add_column(header, justify="right" if header == "done" else "left", overflow="fold")
    for step in planned["steps"]:
        table.add_row(
            step["step"], f"{step['done']:,}/{step['shards']:,}", "\n".join(step["reads"]) or "-", _few(step["writes"])
        )
    console.print(table)
    if not planned["stages"]:
        console.print("every step is done for every shard; a run computes nothing")
    if planned["stages"]:
        console.print(f"\nplacement on {_in_words(planned['resources'])}")
    for stage in planned["stages"]:
        phase = f"phase {stage['phase']}  " if stage.get("phase") else ""
        workers = counted(stage["workers"], "worker")
        console.print(f"  {phase}{workers}, {stage['on']}: {', '.join(stage['steps'])}")
    idle = [stage for stage in planned["stages"] if stage["workers"] > stage.get("shards", math.inf)]
    if idle:
        shards = max(stage["shards"] for stage in idle)
        console.print(f"  with {counted(shards, 'shard')} to do a run starts no more workers than that")
    console.print(f"exports: {', '.join(planned['exports']) or 'none'}")


def _of_one(pool: Pool) -> str:
    """What one worker has: ``2 CPUs and 1/8 GPU each``."""
    cpus = counted(int(pool.cpus), "CPU")
    if not pool.gpus:
        return f"{cpus} each"
    return f"{cpus} and {'a' if pool.gpus == 1 else f'1/{round(1 / pool.gpus)}'} GPU each"


def _in_words(there: dict[str, Any]) -> str:
    """``100 nodes (12,800 CPUs, 800 GPUs of 80 GB)``."""
    parts = [counted(int(there["cpus"]), "CPU")]
    if there["gpus"]:
        memory = f" of {there['gpu_memory_gb']:g} GB" if there["gpu_memory_gb"] else ""
        parts.append(counted(int(there["gpus"]), "GPU") + memory)
    here = there["of"] == "this machine"
    if there["memory_gb"] is not None:
        parts.append(f"{there['memory_gb']:g} GB free" if here else f"{there['memory_gb']:,g} GB of memory")
    return f"{there['of'] if here else counted(there['nodes'], 'node')} ({', '.join(parts)})"


def _few(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f", … {len(names) - 6} more" if len(names) > 6 else "") or "-"
