"""The whole mill against a bare loop of the same operators on the same cores: images/s, start-up and peak memory.

    python -m tests.benchmarks.mill [--images 5000] [--rounds 3] [--large 50000] [--runner local]

Each round runs the bare loop and then `labelmill run`, so that a machine that speeds up or slows down does so for both;
what counts is the ratio. The rate of the mill is taken once it has started: from the moment that the first shard is
begun to the moment that the last is finished.

Memory is watched in runs of its own, because watching takes a tenth of the machine: the peak is the largest sum, over
samples two seconds apart, of the proportional set sizes of all processes of the run, Ray's included.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
SHARD = 256
BATCH = 32


def draw(folder: Path, count: int) -> None:
    """JPEGs of 640×480 at quality 90 with gradients, shapes and some noise: about 60 kB each, like photographs."""
    from PIL import Image, ImageDraw

    folder.mkdir(parents=True)
    for index in range(count):
        generator = np.random.default_rng(index)
        coarse = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)
        pen = ImageDraw.Draw(image)
        for _ in range(12):
            x, y = generator.integers(0, 600), generator.integers(0, 440)
            size = generator.integers(10, 160, 2)
            pen.ellipse((x, y, x + size[0], y + size[1]), fill=tuple(generator.integers(0, 256, 3).tolist()))
        noisy = np.asarray(image).astype(np.int16) + generator.normal(0, 6, (480, 640, 1)).astype(np.int16)
        buffer = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        (folder / f"{index:06d}.jpg").write_bytes(buffer.getvalue())


def bare_loop(paths: list[str]) -> int:
    """Decode, prepare, infer: nothing else. One process, one compute thread, one image after the other."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    from labelmill.operators.images.decoded import decode
    from labelmill.pipelines.config.pipeline import load_pipeline

    steps = load_pipeline(os.environ["BENCH_PIPELINE"]).steps
    for step in steps:
        step.operator.load()
    GATE.wait()
    items: list[list[Any]] = [[] for _ in steps]
    for number, path in enumerate(paths):
        image = decode(Path(path).read_bytes())
        for held, step in zip(items, steps, strict=True):
            held.append(step.operator.prepare(image, {"image_id": number, "key": path}))
            if len(held) == step.operator.batch or number == len(paths) - 1:
                step.operator.infer(held)
                held.clear()
    return len(paths)


GATE: Any = None


def _share_gate(gate: Any) -> None:
    global GATE
    GATE = gate


def time_bare_loop(folder: Path, processes: int) -> float:
    """Images per second of as many bare loops as there are cores, models loaded before the clock starts."""
    paths = sorted(str(path) for path in folder.rglob("*.jpg"))
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(processes + 1)
    with context.Pool(processes, _share_gate, (gate,)) as pool:
        parts = [pool.apply_async(bare_loop, (paths[start::processes],)) for start in range(processes)]
        gate.wait()
        started = time.perf_counter()
        count = sum(part.get() for part in parts)
        return count / (time.perf_counter() - started)


def time_mill(pipeline: Path, output: Path, workers: int, runner: str, watch: bool = False) -> dict[str, float]:
    """Images per second once started, seconds of start-up and in all of `labelmill run`; its peak memory if watched."""
    shutil.rmtree(output, ignore_errors=True)
    began = time.time()
    command = [sys.executable, "-m", "labelmill", "run", str(pipeline), f"--{runner}", f"--workers={workers}"]
    process = subprocess.Popen([*command, f"--set=output={output}"], cwd=CHECKOUT, stdout=subprocess.DEVNULL)
    peak = watch_memory(process.pid) if watch else lambda: 0.0
    if process.wait() != 0:
        raise SystemExit("labelmill run failed")
    ended = time.time()
    receipts = [json.loads(line) for line in (output / "events.jsonl").read_text().splitlines()]
    first = min(receipt["began"] for receipt in receipts)
    last = max(receipt["at"] for receipt in receipts)
    images = sum(receipt["images"] for receipt in receipts if receipt["step"] == receipts[0]["step"])
    return {
        "rate": images / (last - first),
        "start_up": first - began,
        "seconds": ended - began,
        "peak_mb": peak() / 1e6,
    }


def watch_memory(pid: int, every: float = 2.0) -> Callable[[], float]:
    """Look at the memory of a process and all that it started, every so many seconds.

    Returns:
        Stops, and gives the largest sum of their proportional set sizes, in bytes.
    """
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        root = psutil.Process(pid)
        while not done.wait(every):
            total = 0
            try:
                family = [root, *root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for process in family:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            peak[0] = max(peak[0], total)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()

    def stop() -> float:
        done.set()
        thread.join()
        return peak[0]

    return stop


def write_pipeline(path: Path, folder: Path) -> Path:
    """`inspect` and a small `embed`."""
    document = {
        "name": "bench",
        "source": {"folder": str(folder)},
        "shard_size": SHARD,
        "steps": ["inspect", {"embed": {"model": "clip-random", "batch": BATCH}}],
    }
    path.write_text(yaml.safe_dump(document))
    return path


def repeat(folder: Path, target: Path, times: int) -> None:
    """The same files under `times` names, without copying them."""
    for number in range(times):
        part = target / f"{number:03d}"
        part.mkdir(parents=True)
        for path in sorted(folder.glob("*.jpg")):
            os.link(path, part / path.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", type=int, default=50000, help="images of the memory run; 0 to leave it out")
    parser.add_argument("--runner", choices=["local", "ray", "inline"], default="local")
    options = parser.parse_args()
    cores = len(psutil.Process().cpu_affinity())
    with tempfile.TemporaryDirectory(prefix="labelmill-bench-") as name:
        work = Path(name)
        draw(work / "images", options.images)
        pipeline = write_pipeline(work / "bench.yaml", work / "images")
        os.environ["BENCH_PIPELINE"] = str(pipeline)
        ratios = []
        print(f"{platform.processor() or platform.machine()}, {cores} cores, Python {platform.python_version()}")
        print(f"{options.images} JPEGs of 640x480, shards of {SHARD}, inspect + embed (clip-random, batch {BATCH})")
        for number in range(options.rounds):
            bare = time_bare_loop(work / "images", cores)
            mill = time_mill(pipeline, work / "run", cores, options.runner)
            ratios.append(mill["rate"] / bare)
            print(
                f"round {number + 1}: bare {bare:.1f}/s, mill {mill['rate']:.1f}/s, ratio {ratios[-1]:.3f}, "
                f"start-up {mill['start_up']:.1f} s, in all {mill['seconds']:.1f} s",
                flush=True,
            )
        print(f"median ratio {statistics.median(ratios):.3f} (min {min(ratios):.3f}, max {max(ratios):.3f})")
        if options.large:
            repeat(work / "images", work / "large", options.large // options.images)
            small = time_mill(pipeline, work / "run", cores, options.runner, watch=True)["peak_mb"]
            pipeline = write_pipeline(work / "large.yaml", work / "large")
            large = time_mill(pipeline, work / "run-large", cores, options.runner, watch=True)["peak_mb"]
            print(
                f"peak memory: {small:.0f} MB at {options.images} images, {large:.0f} MB at {options.large}, ", end=""
            )
            print(f"{large / small:.2f} of the small run's")


if __name__ == "__main__":
    main()
