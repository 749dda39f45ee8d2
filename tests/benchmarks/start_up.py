"""Where the seconds go from the command to the first image: pieces one by one, and whole runs.

    python -m tests.benchmarks.start_up [--card clip-random] [--rounds 3] [--runners local inline ray]

Each piece is measured in a fresh process, on the clock and in seconds of the processor, which a busy machine changes
less. `inspect` and `embed` with a small card. A run's first image is the moment at which its first shard is begun, with
models loaded, as events.jsonl says. The best of the rounds counts, as anything else on the machine only adds to it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml

from tests.benchmarks.mill import draw

CHECKOUT = Path(__file__).resolve().parents[2]

PIECES = {
    "python": "",
    "the command line": "import labelmill.pipelines.cli",
    "the runner": "import labelmill.pipelines.engine.local, labelmill.pipelines.run",
    "the pipeline": "steps = load_pipeline('p.yaml').steps",
    "what every worker imports": "import_quietly(COMMON)",
    "what the models import": "import_quietly([name for step in steps for name in step.operator.libraries()])",
    "loading": "for step in steps: step.operator.load()",
    "the first image": (
        "image = decode(open(first, 'rb').read())\n"
        "for step in steps: step.operator.infer([step.operator.prepare(image, {'image_id': 1, 'key': first})])"
    ),
}
"""Name and code of each piece, in the order in which a run comes to them."""

BETWEEN = {
    "the pipeline": "from labelmill.pipelines.config.pipeline import load_pipeline",
    "what every worker imports": (
        "from labelmill.pipelines.engine.local import COMMON\n"
        "from labelmill.pipelines.engine.local_worker import import_quietly"
    ),
    "the first image": "from labelmill.operators.images.decoded import decode\nfirst = 'images/000000.jpg'",
}
"""What a piece needs, which is not of it."""


def time_pieces(folder: Path) -> dict[str, tuple[float, float]]:
    """Seconds on the clock and of the processor of each piece, all in one fresh process."""
    code = ["import json, time", "found = {}"]
    for name, piece in list(PIECES.items())[1:]:
        code += [BETWEEN.get(name, ""), "at = time.perf_counter(), time.process_time()", piece]
        code += [f"found[{name!r}] = time.perf_counter() - at[0], time.process_time() - at[1]"]
    code += ["print(json.dumps(found))"]
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    elapsed = time.perf_counter() - started
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(code)], cwd=folder, env=_environment(), capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    pieces: dict[str, tuple[float, float]] = json.loads(done.stdout.splitlines()[-1])
    return {"python": (elapsed, elapsed), **pieces}


def time_run(folder: Path, runner: str) -> tuple[float, float]:
    """Seconds from the command to the first image, and to the end."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    command = [sys.executable, "-m", "labelmill", "run", "p.yaml", "--no-report", f"--{runner}"]
    began = time.time()
    done = subprocess.run([*command, "--workers", "2"], cwd=folder, env=_environment(), capture_output=True, text=True)
    ended = time.time()
    if done.returncode:
        raise SystemExit(done.stderr)
    receipts = [json.loads(line) for line in (folder / "run/events.jsonl").read_text().splitlines()]
    return min(receipt["began"] for receipt in receipts) - began, ended - began


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", default="clip-random")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--runners", nargs="*", default=["local", "inline", "ray"])
    options = parser.parse_args()
    cores = len(psutil.Process().cpu_affinity())
    print(f"{platform.processor() or platform.machine()}, {cores} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory(prefix="labelmill-bench-") as name:
        folder = Path(name)
        draw(folder / "images", options.images)
        steps = ["inspect", {"embed": {"model": options.card}}]
        document = {"name": "bench", "source": {"folder": "images"}, "output": "run", "steps": steps}
        (folder / "p.yaml").write_text(yaml.safe_dump(document))
        rounds = [time_pieces(folder) for _ in range(options.rounds)]
        best = {piece: tuple(min(each[piece][i] for each in rounds) for i in (0, 1)) for piece in PIECES}
        for piece, (wall, cpu) in best.items():
            print(f"{piece:<28}{wall:6.2f} s, {cpu:6.2f} s of the processor", flush=True)
        print(f"{'together':<28}{sum(w for w, _ in best.values()):6.2f} s, {sum(c for _, c in best.values()):6.2f} s")
        for runner in options.runners:
            found = [time_run(folder, runner) for _ in range(options.rounds)]
            firsts = ", ".join(f"{first:.1f}" for first, _ in found)
            ends = ", ".join(f"{end:.1f}" for _, end in found)
            print(f"--{runner}: first image after {firsts} s; all {options.images} after {ends} s", flush=True)
        print(f"load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
