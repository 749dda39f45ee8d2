"""Reads a run without changing it: what is planned, how far it is, and one image's story."""

from __future__ import annotations

import json
import math
import shlex
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from operators.wording import counted
from pipelines.config.pipeline import Pipeline, build_pipeline
from pipelines.config.yaml_file import parse_yaml
from pipelines.engine.placement import Pool, place, segments
from pipelines.engine.terminal import outcome_line
from pipelines.errors import UserError, nearest
from pipelines.resources import parse_resources, resources_here, stated_gpu_memory
from pipelines.run import PIPELINE_FILE, SUMMARY_FILE, open_output, state_of
from pipelines.run_folder.layout import Layout
from pipelines.run_folder.shards import known_shards, read_shard, take_in
from pipelines.run_folder.store import Store
from pipelines.sources import open_source


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
    store = open_output(pipeline)
    intake = take_in(open_source(pipeline.settings.source), store, pipeline.settings.shard_size, write=False)
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


def reopen(folder: str) -> tuple[Pipeline, Layout, dict[int, int]]:
    """The pipeline of a run, as it was run last."""
    store = Store(folder)
    text = store.read(PIPELINE_FILE).decode()
    pipeline = build_pipeline(parse_yaml(store.address(PIPELINE_FILE), text, keys_may_lack=True))
    return pipeline, Layout.of(store, pipeline.steps), known_shards(store)


def status_of(folder: str) -> dict[str, Any]:
    """How far a run is, as plain values."""
    pipeline, layout, shards = reopen(folder)
    summary = json.loads(layout.store.read(SUMMARY_FILE)) if layout.store.exists(SUMMARY_FILE) else None
    steps = []
    for step in pipeline.steps:
        done = layout.done(step.position) & shards.keys()
        steps.append(
            {"step": step.name, "done": len(done), "shards": len(shards), "images": sum(shards[s] for s in done)}
        )
    complete = all(step["done"] == step["shards"] for step in steps)
    return {
        "run": folder,
        "pipeline": pipeline.settings.name,
        "images": sum(shards.values()),
        "complete": complete and summary is not None,
        "summary_is_current": summary is not None and summary.get("state") == state_of(layout, shards),
        "steps": steps,
        "summary": summary,
    }


def print_status(found: dict[str, Any], console: Console) -> None:
    """Print `status_of`."""
    state = "complete" if found["complete"] and found["summary_is_current"] else "not finished"
    console.print(
        f"{escape(found['run'])}: {found['pipeline']}, {counted(found['images'], 'image')}, {state}", soft_wrap=True
    )
    current = found["summary"] if found["summary_is_current"] else None
    sums = {row["step"]: row for row in (current or {}).get("steps", [])}
    table = Table(box=None, pad_edge=False)
    table.add_column("step")
    for header in ("shards", "seen", "kept", "dropped", "duplicate", "failed"):
        table.add_column(header, justify="right")
    for step in found["steps"]:
        row = sums.get(step["step"], {})
        counts = [
            f"{row[kind]:,}" if kind in row else "" for kind in ("seen", "kept", "dropped", "duplicate", "failed")
        ]
        table.add_row(step["step"], f"{step['done']:,}/{step['shards']:,}", *counts)
    console.print(table)
    if current:
        console.print(outcome_line(current["images"], current["outcome"]))
        for export in current.get("exports", []):
            console.print(f"{export['export']}: {escape(export['path'])}", soft_wrap=True)
    run = shlex.quote(found["run"])
    if state == "complete":
        console.print(f"\nOne image's story: labelmill explain KEY --run {escape(run)}", soft_wrap=True)
    else:
        file = "the pipeline again" if "://" in found["run"] else f"labelmill run {run}/{PIPELINE_FILE}"
        console.print(f"\nGo on with: {escape(file)}", soft_wrap=True)


def explain_image(folder: str, key: str) -> dict[str, Any]:
    """One image's story: where it is, and for each step what it computed and decided.

    Raises:
        UserError: The run has no such image.
    """
    _, layout, shards = reopen(folder)
    shard, row = _find(layout, shards, key)
    image = read_shard(layout.store, shard).slice(row, 1).to_pylist()[0]
    steps = []
    for step in layout.steps:
        try:
            values = layout.table(step.position, shard).slice(row, 1).to_pylist()[0]
        except FileNotFoundError:
            steps.append({"step": step.name, "decision": "not done yet", "columns": {}})
            continue
        columns = {name: values[name] for name in step.operator.writes().names}
        told = {name: values[f"decision.{name}"] for name in ("reason", "score", "threshold")}
        steps.append({"step": step.name, "decision": values["decision"] or "passed over", **told, "columns": columns})
    return {"run": folder, "shard": shard, **image, "steps": steps}


def _find(layout: Layout, shards: dict[int, int], key: str) -> tuple[int, int]:
    import pyarrow.compute as pc

    keys: list[str] = []
    for shard in sorted(shards):
        table = read_shard(layout.store, shard, ["image_id", "key"])
        row = pc.index(table.column("key"), pa.scalar(key)).as_py()
        if row < 0 and key.isdecimal():
            row = pc.index(table.column("image_id"), pa.scalar(int(key))).as_py()
        if row >= 0:
            return shard, row
        if len(keys) < 100_000:
            keys += table.column("key").to_pylist()
    hint = nearest(key, keys) or (f"; its keys are like {keys[0]!r}, its image_ids like 1" if keys else "")
    raise UserError(f"the run has no image {key!r}{hint}")


def print_explanation(story: dict[str, Any], console: Console) -> None:
    """Print `explain_image`."""
    console.print(f"{escape(story['key'])}  image_id {story['image_id']}, shard {story['shard']}")
    console.print(f"  {escape(story['uri'])}", soft_wrap=True)
    for name in ("split", "metadata", "problem"):
        if story[name] is not None:
            console.print(f"  source.{name}: {escape(str(story[name]))}", soft_wrap=True)
    if story["labels"] is not None:
        console.print(f"  source.labels: {escape(_short(story['labels']))}", soft_wrap=True)
    for step in story["steps"]:
        reason = f": {step['reason']}" if step.get("reason") else ""
        console.print(f"{step['step']:<14}{step['decision']}{escape(reason)}", soft_wrap=True)
        for name, value in step["columns"].items():
            if value is not None:
                console.print(f"  {name:<18}{escape(_short(value, max(40, console.width - 20)))}", soft_wrap=True)


def _short(value: Any, room: int = 160) -> str:
    """A value on one line of so many characters; detections are listed whole."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        if value and isinstance(value[0], dict):
            shown = "; ".join(_detection(item) for item in value[:5])
            return f"{len(value)}: {shown}" + ("; …" if len(value) > 5 else "")
        items = [_short(item) for item in value[:8]]
        rest = f", … {len(value)} values" if len(value) > 8 else ""
        while len(items) > 1 and len(", ".join(items)) + len(rest) + 2 > room:
            items.pop()
            rest = f", … {len(value)} values"
        return f"[{', '.join(items)}{rest}]"
    text = str(value)
    return text if len(text) <= room else text[: room - 1] + "…"


def _detection(item: dict[str, Any]) -> str:
    if {"class", "x1", "y1", "x2", "y2"} <= item.keys():
        score = "" if item.get("score") is None else f" {item['score']:.2f}"
        return f"{item['class']}{score} [{item['x1']:.0f} {item['y1']:.0f} {item['x2']:.0f} {item['y2']:.0f}]"
    return ", ".join(f"{name} {_short(value, 40)}" for name, value in item.items() if value is not None)
