"""Near-duplicates among many: seconds, peak memory, how time grows, and whether a planted pair is missed.

    python -m tests.benchmarks.near_duplicates [--vectors 100000 1000000] [--hashes 1000000 10000000] [--tasks]

Vectors (512 numbers, float16, memory-mapped) lie around 20,000 centres, themselves around 400, as pictures of things
of a kind do: the cosine is about .55 for two of a centre, .3 for two of neighbouring ones. 5 of a hundred are copies
of another at a cosine of .90 to 1. Hashes are random, 5 of a hundred with 0 to 5 bits of another changed. Each size
runs in a process of its own, whose largest resident size is its peak memory; memory-mapped pages that were read count.
With --tasks, vectors that do not fit into --memory-gb are compared in Ray tasks on all cores, and memory is that of all
processes together, shared pages counted once (PSS), looked at twice a second.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from tests.benchmarks.mill import watch_memory

if TYPE_CHECKING:
    from labelmill.operators.base import Tasks

DIMENSIONS = 512
THRESHOLD = 0.95
BITS = 4
BLOCK = 50_000


def main(arguments: list[str] | None = None) -> None:
    """Time every size and print a table; the arguments are those of the command line if None."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--hashes", type=int, nargs="*", default=[1_000_000, 10_000_000])
    parser.add_argument("--tasks", action="store_true", help="compare vectors in Ray tasks")
    parser.add_argument("--memory-gb", type=float, default=2.0, help="what the search may take (2)")
    parser.add_argument("--one", nargs=2, metavar=("KIND", "COUNT"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one:
        kind, count = given.one[0], int(given.one[1])
        print(json.dumps(hashes(count) if kind == "hashes" else vectors(count, given.memory_gb, given.tasks)))
        return
    print(f"{platform.processor() or platform.machine()}, {len(_cores())} cores, {date.today()}")
    for kind, counts in (("vectors", given.vectors), ("hashes", given.hashes)):
        before: tuple[int, float] | None = None
        for count in counts:
            command = [sys.executable, "-m", "tests.benchmarks.near_duplicates", "--one", kind, str(count)]
            command += ["--memory-gb", str(given.memory_gb), *(["--tasks"] if given.tasks else [])]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            grown = ""
            if before:
                exponent = math.log(found["seconds"] / before[1]) / math.log(count / before[0])
                grown = f", grown with exponent {exponent:.2f}"
            print(
                f"{count:>12,} {kind:8} {found['seconds']:7.1f} s  {found['memory_gb']:5.1f} GB at most  "
                f"{found['removed']:,} removed, {found['missed']:,} of {found['planted']:,} planted pairs missed, "
                f"{found['wrong']:,} wrongly removed{grown}",
                flush=True,
            )
            before = count, found["seconds"]


def vectors(count: int, memory_gb: float, tasks: bool) -> dict[str, float]:
    """Deduplicate so many vectors."""
    from labelmill.operators.columns.vectors import Vectors
    from labelmill.operators.duplicates.near_vectors import NearVectors
    from labelmill.operators.duplicates.representatives import choose

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.arrow"
        source, copy = write_vectors(path, count)
        with pa.memory_map(str(path)) as file:
            column = pa.ipc.open_file(file).read_all().column(0)
            few = column.slice(0, 4096)
            choose([NearVectors(Vectors(few), np.arange(len(few)), THRESHOLD)], len(few))  # imports are not timed
            with _tasks(Path(folder)) if tasks else nullcontext() as spread:
                peak = watch_memory(os.getpid(), 0.5) if tasks else None
                began = time.perf_counter()
                found = Vectors(column)
                kept_by = choose([NearVectors(found, np.arange(count), THRESHOLD, memory_gb, spread)], count)
                seconds = time.perf_counter() - began
                memory = _memory() if peak is None else peak() / 2**30
            near = found.cosines(source, copy) >= THRESHOLD
            removed = np.flatnonzero(kept_by != np.arange(count))
            wrong = found.cosines(removed, kept_by[removed]) < THRESHOLD - 1e-6
            return _report(seconds, memory, kept_by, source[near], copy[near], int(wrong.sum()))


def hashes(count: int) -> dict[str, float]:
    """Deduplicate so many hashes."""
    from labelmill.operators.duplicates.near_hashes import NearHashes
    from labelmill.operators.duplicates.representatives import choose

    found, source, copy = draw_hashes(count)
    began = time.perf_counter()
    kept_by = choose([NearHashes(found, BITS)], count)
    seconds = time.perf_counter() - began
    memory = _memory()
    near = np.bitwise_count(found[source] ^ found[copy]) <= BITS
    removed = np.flatnonzero(kept_by != np.arange(count))
    wrong = np.bitwise_count(found[removed] ^ found[kept_by[removed]]) > BITS
    return _report(seconds, memory, kept_by, source[near], copy[near], int(wrong.sum()))


def _report(
    seconds: float, memory: float, kept_by: np.ndarray, source: np.ndarray, copy: np.ndarray, wrong: int
) -> dict[str, float]:
    kept = kept_by == np.arange(len(kept_by))
    return {
        "seconds": seconds,
        "memory_gb": memory,
        "removed": int((~kept).sum()),
        "planted": len(source),
        "missed": int((kept[source] & kept[copy]).sum()),  # of two that resemble each other one must go
        "wrong": wrong,
    }


def draw_hashes(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The hashes, uint64 (count,); the rows that were copied, and those of the copies."""
    rng = np.random.default_rng(0)
    found = rng.integers(2**64, size=count, dtype=np.uint64)
    source, copy = rng.permutation(count)[: 2 * (count // 20)].reshape(2, -1)
    found[copy] = found[source]
    for change in range(5):
        some = copy[change * len(copy) // 6 :]
        found[some] ^= np.uint64(1) << rng.integers(64, size=len(some)).astype(np.uint64)
    return found, source, copy


def write_vectors(path: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Write the vectors; give the rows that were copied, and those of the copies."""
    rng = np.random.default_rng(0)
    source, copy = rng.permutation(count)[: 2 * (count // 20)].reshape(2, -1)
    wide = rng.normal(size=(400, DIMENSIONS)).astype(np.float32)
    centres = _unit(wide[rng.integers(400, size=20_000)] + rng.normal(size=(20_000, DIMENSIONS)).astype(np.float32))
    made = np.lib.format.open_memmap(path.with_suffix(".npy"), mode="w+", dtype=np.float16, shape=(count, DIMENSIONS))
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        around = rng.normal(size=(size, DIMENSIONS)).astype(np.float32) / math.sqrt(DIMENSIONS)
        made[start : start + size] = _unit(centres[rng.integers(len(centres), size=size)] + 0.9 * around)
    for start in range(0, len(copy), BLOCK):
        part = slice(start, start + BLOCK)
        original = _unit(made[source[part]].astype(np.float32))
        other = rng.normal(size=original.shape).astype(np.float32)
        other = _unit(other - (other * original).sum(axis=1, keepdims=True) * original)
        cosine = rng.uniform(0.9, 1, size=(len(original), 1)).astype(np.float32)
        made[copy[part]] = cosine * original + np.sqrt(1 - cosine**2) * other
    schema = pa.schema([("embedding", pa.list_(pa.float16(), DIMENSIONS))])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, count, BLOCK):
            flat = pa.array(np.asarray(made[start : start + BLOCK]).ravel())
            writer.write_batch(pa.record_batch([pa.FixedSizeListArray.from_arrays(flat, DIMENSIONS)], schema=schema))
    path.with_suffix(".npy").unlink()
    return source, copy


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@contextmanager
def _tasks(folder: Path) -> Iterator[Tasks]:
    from labelmill.pipelines.engine.ray_session import ray_session
    from labelmill.pipelines.engine.ray_tasks import RayTasks

    (folder / "partitions").mkdir()
    with ray_session(None, None, verbose=False):
        yield RayTasks(str(folder / "partitions"), gpu=False)


def _cores() -> set[int]:
    return os.sched_getaffinity(0)


if __name__ == "__main__":
    main()
