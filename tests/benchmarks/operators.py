"""Every operator of a model against the bare forward pass of that model, and against loops through reference code.

    python -m tests.benchmarks.operators [--only NAME …] [--rounds 3] [--json] [--small]

An operator is applied as a worker does it, from JPEGs of 640×480 in a folder to a finished table: one process with one
compute thread for each core this process may use, or one process for a GPU. The bare pass runs the same model on ready
tensors at the same batch in the same processes. The reference loop takes image after image in one process that has
every core, or the GPU, for itself. Architectures are full-size, weights drawn (see `tests.benchmarks.operator_cases`).

All that is compared takes turns within each round, so that a machine that speeds up or slows down does so for all of
it. What counts are ratios of medians over the rounds; the first of them also warms up. Where the CPU does the work, the
last column gives the same ratio of CPU seconds, which other programs on the machine disturb less.

On two idle cores it takes about ten minutes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.mill import draw
from tests.benchmarks.operator_cases import CASES, Case
from tests.benchmarks.operator_turns import Rounds, Turn, measure, share_gate

BARE = 0.90
"""Least share of the bare pass's images per second that an operator should reach."""
MANY = 1.3
"""What many boxes should cost at most, in times of what one does."""
LOOP = {"cpu": 1.2, "cuda": 5.0}
"""How many times as fast as the reference loop an operator should be."""

DRAWN = 256
"""Files at most; after these come the first ones again."""

# ---------------------------------------------------------------- ratios


def compare(case: Case, processes: list[Rounds], device: str) -> list[dict[str, Any]]:
    """The rows of the table: each thing that an operator is compared with, the ratio, and the goal."""
    speed = {side: _rates([rounds[side] for rounds in processes]) for side in processes[0]}
    rate = {side: statistics.median(rates) for side, (rates, _) in speed.items()}
    cpu = {side: statistics.median(seconds) for side, (_, seconds) in speed.items()}

    def row(other: str, what: str, ratio: float, goal: float, least: bool, work: float) -> dict[str, Any]:
        return {
            **{"operator": case.name, "against": what, "operator_per_s": rate["operator"], "other_per_s": rate[other]},
            **{"ratio": ratio, "goal": f"{'≥' if least else '<'} {goal:g}"},
            **{"met": ratio >= goal if least else ratio < goal, "cpu_ratio": work if device == "cpu" else None},
            "rounds": {"operator_per_s": speed["operator"][0], "other_per_s": speed[other][0]},
        }

    rows = [row("bare", "bare forward", rate["operator"] / rate["bare"], BARE, True, cpu["bare"] / cpu["operator"])]
    if "many" in rate:
        what = f"cost of {case.many} boxes"
        rows.append(row("many", what, rate["operator"] / rate["many"], MANY, False, cpu["many"] / cpu["operator"]))
    if "loop" in rate:
        ratio, work = rate["operator"] / rate["loop"], cpu["loop"] / cpu["operator"]
        rows.append(row("loop", "reference loop", ratio, LOOP[device], True, work))
    return rows


def _rates(processes: list[list[Turn]]) -> tuple[list[float], list[float]]:
    """Images per second, and CPU seconds per image, of all processes together, round by round."""
    rates, cpu = [], []
    for turns in zip(*processes, strict=True):
        busy = [turn for turn in turns if turn.images]
        images = sum(turn.images for turn in busy)
        rates.append(images / (max(turn.ended for turn in busy) - min(turn.began for turn in busy)))
        cpu.append(sum(turn.cpu for turn in busy) / images)
    return rates, cpu


# ---------------------------------------------------------------- all of it


HEADER = "operator                     against            batch  oper./s  other/s  ratio    goal         CPU"


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    cpu = "" if row["cpu_ratio"] is None else f"{row['cpu_ratio']:6.3f}"
    return (
        f"{row['operator']:28} {row['against']:18} {row['batch']:5} {row['operator_per_s']:8.3f} "
        f"{row['other_per_s']:8.3f} {row['ratio']:6.3f} {row['goal']:>7} {'met' if row['met'] else 'NOT':4} {cpu}"
    )


def main(arguments: list[str] | None = None) -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ", ".join(sorted({case.step for case in CASES}))
    parser.add_argument("--only", action="append", metavar="NAME", help=f"one of {names}, or a model card; repeatable")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--small", action="store_true", help="small models: to try the benchmark; ratios mean nothing")
    options = parser.parse_args(arguments)
    wanted = [n for n, case in enumerate(CASES) if not options.only or {case.step, case.card} & set(options.only)]
    if not wanted:
        parser.error(f"--only must be one of {names}, or the name of a model card, but is {options.only[0]}")
    gpu = torch.cuda.is_available()
    cores = len(psutil.Process().cpu_affinity())
    processes = 1 if gpu else cores
    machine = f"{platform.processor() or platform.machine()}, {cores} cores"
    if gpu:
        machine += f", {torch.cuda.get_device_name()}"
    about = {
        **{"machine": machine, "date": datetime.date.today().isoformat(), "python": platform.python_version()},
        **{"torch": torch.__version__, "processes": processes, "rounds": options.rounds, "small": options.small},
    }
    if not options.json:
        print(f"{machine}, Python {about['python']}, torch {torch.__version__}, {about['date']}")
        print(f"JPEGs of 640x480; {processes} process(es); medians of {options.rounds} rounds")
        print(HEADER, flush=True)
    rows = []
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes: a thread each, as workers have
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="labelmill-bench-") as name:
        images = Path(name) / "images"
        count = max(4 * max(CASES[n].batches) if gpu else processes * CASES[n].images for n in wanted)
        draw(images, min(count, DRAWN))
        with context.Pool(processes, share_gate, (context.Barrier(processes),)) as pool:
            for number in wanted:
                each = [(number, images, rank, cores, options.rounds, options.small) for rank in range(processes)]
                began = time.perf_counter()
                found = pool.starmap(measure, each, chunksize=1)
                compared = compare(CASES[number], [rounds for rounds, _ in found], "cuda" if gpu else "cpu")
                seconds = time.perf_counter() - began
                for row in compared:
                    rows.append({**row, "batch": found[0][1]})
                    if not options.json:
                        print(line(rows[-1]), flush=True)
                print(f"{CASES[number].name}: {seconds:.0f} s in all", file=sys.stderr, flush=True)
            pool.close()
            pool.join()
    if options.json:
        print(json.dumps({**about, "results": rows}, indent=2))


if __name__ == "__main__":
    main()
