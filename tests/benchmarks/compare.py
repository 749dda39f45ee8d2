"""Side by side with imagededup, fastdup, FiftyOne's brain and CleanVision: the same images, the same vectors, one run.

    python -m tests.benchmarks.compare [--tasks copies issues hashes vectors] [--images 600] [--side 640] [--seed 11]
        [--same 0.9] [--hashes 10000] [--vectors 20000] [--rounds 2] [--python NAME=/path/to/python] [--only [NAME ...]]
        [--json]

==========  ==============================================================================================
task        what each does
==========  ==============================================================================================
copies      a folder of pictures to pairs of copies: decode, hash or embed, compare
issues      a folder of pictures to the issues that CleanVision finds by default, both kinds of copies too
hashes      hashes of 64 bits to the rows to remove, so that no two stay of which 4 bits or fewer differ
vectors     vectors of 512 numbers to the rows to remove, so that no two at a cosine of 0.95 stay
==========  ==============================================================================================

Who is compared is installed on first use into build/rivals/NAME by uv, none of it into this project's environment; or
`--python` names an interpreter that has it. Each side is a process of its own (see `tests.benchmarks.compare_side`),
all on the same single core with one thread, and they take turns within each round. What is started and imported is not
timed. The ratio is that of the medians of CPU seconds, which other programs disturb less than those of the wall clock;
both are told. What cannot be installed or run is in the table with its error.

The truth of the pictures is that of the drawn world; that of the vectors is found by comparing all with all. This
project finds copies in three ways: by hashes, turned and mirrored ones too; by embeddings of the CLIP miniature, which
learned on other scenes of that world what is a copy, at a cosine of `--same`; by both. The default was chosen on other
scenes too: of .80, .82 … .98 the least at which .99 of the pairs of pictures that are not spoilt are copies, by

    python -m tests.benchmarks.compare --tasks copies --images 900 --side 320 --seed 12 --rounds 1 --only --same 0.9
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

THRESHOLD, DISTANCE, BITS = 0.95, 8, 4
"""Least cosine of vectors that are given; bits that may differ of the hashes of pictures, and of hashes that are given.
"""
SAME, SEED = 0.9, 11
"""Least cosine of embeddings of pictures that are copies; which pictures are drawn."""
FASTER = 3.0
"""How many times as fast as each of the others this project means to be."""

OURS = "labelmill"
WAYS = {OURS: "hashes", f"{OURS}-embeddings": "embeddings", f"{OURS}-both": "both"}
"""How this project's sides find copies of pictures."""
PACKAGES = {
    "imagededup": ("imagededup==0.3.3.post2",),
    "fastdup": ("fastdup==2.54",),
    "fiftyone": ("scikit-learn==1.9.1",),
    "cleanvision": ("cleanvision==0.3.7",),
}
TASKS = {
    "copies": (*WAYS, "imagededup", "cleanvision", "fastdup"),
    "issues": (OURS, "cleanvision"),
    "hashes": (OURS, "imagededup"),
    "vectors": (OURS, "imagededup", "fiftyone", "fastdup"),
}
HERE = Path(__file__).parent
RIVALS = HERE.parents[1] / "build" / "rivals"
LIMIT = 3600
"""Seconds that a side may take."""


class Failed(Exception):
    """A side could not be installed or run; the message says why."""


def main(arguments: list[str] | None = None) -> None:
    """Compare and print tables; the arguments are those of the command line if None."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--side", type=int, default=640, help="longer side of the pictures, in pixels")
    parser.add_argument("--seed", type=int, default=SEED, help="which pictures are drawn")
    parser.add_argument("--same", type=float, default=SAME, help="least cosine of embeddings of copies")
    parser.add_argument("--hashes", type=int, default=10_000)
    parser.add_argument("--vectors", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--only", nargs="*", choices=PACKAGES, default=list(PACKAGES))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    named = {name: Path(path) for name, path in _named(parser, given.python).items()}
    pythons = {**dict.fromkeys(WAYS, Path(sys.executable)), **named}
    with tempfile.TemporaryDirectory(prefix="compare-") as folder:
        if not given.json:
            print(f"one core, {given.rounds} rounds, {date.today()}")
        found = {}
        for task in given.tasks:
            found[task] = run_task(task, given, pythons, Path(folder))
            if not given.json:
                print("\n" + "\n".join(table(task, found[task])), flush=True)
    if given.json:
        print(json.dumps(found, indent=1))


def run_task(task: str, given: argparse.Namespace, pythons: dict[str, Path], folder: Path) -> dict[str, dict[str, Any]]:
    """Of each side: its version, the seconds of every round, how right it was; or its error."""
    from tests.benchmarks.compare_truth import Pictures, Planted

    request: dict[str, Any] = {"task": task, "threshold": THRESHOLD, "distance": DISTANCE, "same": given.same}
    judge: Callable[[dict[str, Any]], dict[str, float]]
    if task in ("hashes", "vectors"):
        if task == "hashes":
            request["distance"], rows = BITS, Planted.hashes(folder, given.hashes, BITS)
        else:
            rows = Planted.vectors(folder, given.vectors, THRESHOLD)
        request[task], judge = str(rows.path), rows.removed_well
    else:
        pictures = Pictures(folder / task, given.images, given.side, given.seed)
        request["images"] = str(pictures.folder)
        judge = pictures.copies_found if task == "copies" else pictures.issues_found
    sides = [side for side in TASKS[task] if side in WAYS or side in given.only]
    answers: dict[str, list[dict[str, Any]]] = defaultdict(list)
    errors: dict[str, str] = {}
    for number in range(given.rounds):
        for side in sides if number % 2 == 0 else sides[::-1]:
            if side in errors:
                continue
            try:
                python = pythons[side] if side in pythons else install(side)
                answers[side].append(ask(side, python, {**request, "by": WAYS.get(side)}))
            except Failed as error:
                errors[side] = str(error)
            print(f"  {task}, round {number + 1}: {side} {errors.get(side, 'done')}", file=sys.stderr, flush=True)
    return {side: {"error": errors[side]} if side in errors else _summary(answers[side], judge) for side in sides}


def _summary(answers: list[dict[str, Any]], judge: Callable[[dict[str, Any]], dict[str, float]]) -> dict[str, Any]:
    return {
        "version": answers[0]["version"],
        "seconds": [answer["seconds"] for answer in answers],
        "cpu_seconds": [answer["cpu_seconds"] for answer in answers],
        "quality": judge(answers[0]),
    }


def ask(side: str, python: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Run a side once.

    Raises:
        Failed: It did not answer.
    """
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")
    environment = {**os.environ, **threads}
    environment.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory(prefix=f"compare-{side}-") as folder:
        scratch, answer, asked = Path(folder) / "scratch", Path(folder) / "answer.json", Path(folder) / "request.json"
        scratch.mkdir()
        asked.write_text(json.dumps({**request, "scratch": str(scratch), "answer": str(answer)}), encoding="utf-8")
        script = HERE / f"compare_{OURS if side in WAYS else side}.py"
        command = [str(python), str(script), str(asked)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            raise Failed(f"took more than {LIMIT} s") from None
        except OSError as error:
            raise Failed(f"{python} cannot be run: {error}") from error
        if done.returncode or not answer.exists():
            raise Failed(_last_line(done.stderr or done.stdout) or f"ended with {done.returncode}")
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return found


def install(side: str) -> Path:
    """The interpreter of an environment with the side's packages; made by uv unless it is there.

    Raises:
        Failed: There is no uv, or it could not install them.
    """
    home = RIVALS / side
    python, ready = home / "bin" / "python", home / "ready"
    if ready.exists() and ready.read_text() == "\n".join(PACKAGES[side]):
        return python
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        raise Failed("is not installed, and there is no uv to do it: pip install uv")
    print(f"  installing {', '.join(PACKAGES[side])} into {home}", file=sys.stderr, flush=True)
    home.parent.mkdir(parents=True, exist_ok=True)
    for command in (
        [uv, "venv", "--clear", "--python", sys.executable, str(home)],
        [uv, "pip", "install", "--compile-bytecode", "--python", str(python), *PACKAGES[side]],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"could not be installed: {_last_line(done.stderr)}")
    ready.write_text("\n".join(PACKAGES[side]))
    return python


def table(task: str, sides: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of text."""
    lines = [f"{task:<42} {'wall s':>8} {'CPU s':>8} {'ratio':>7}  quality"]
    ours = sides[OURS]
    for side, found in sides.items():
        if "error" in found:
            continue
        cpu, wall = statistics.median(found["cpu_seconds"]), statistics.median(found["seconds"])
        theirs = side not in WAYS and "error" not in ours
        ratio = f"{cpu / statistics.median(ours['cpu_seconds']):.2f}" if theirs else ""
        mark = "" if not ratio else " " if float(ratio) >= FASTER else "<"
        right = "  ".join(
            f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value:,}"
            for name, value in found["quality"].items()
        )
        lines.append(f"{found['version']:<42} {wall:8.2f} {cpu:8.2f} {ratio:>6}{mark:1}  {right}")
    lines += [f"{side:<42} {found['error']}" for side, found in sides.items() if "error" in found]
    return lines


def _named(parser: argparse.ArgumentParser, given: list[str]) -> dict[str, str]:
    pairs = [each.partition("=") for each in given]
    for name, _, path in pairs:
        if name not in PACKAGES or not path:
            parser.error(f"--python must be NAME=PATH with a NAME of {', '.join(PACKAGES)} but is {name}={path}")
    return {name: path for name, _, path in pairs}


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


if __name__ == "__main__":
    main()
