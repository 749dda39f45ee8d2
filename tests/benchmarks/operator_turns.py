"""What each process of `tests.benchmarks.operators` does: all sides of one comparison, turn by turn."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.operator_cases import CASES, Case, boxes_of, detections_of

TIMEOUT = 600.0
"""Seconds that a process waits for the others."""


@dataclass(frozen=True)
class Turn:
    """One side's turn in one process.

    Attributes:
        images: That this process did; 0 where it had none to do.
        began, ended: On the clock that all processes share, in seconds.
        cpu: Seconds of the CPU, all threads.
    """

    images: int
    began: float
    ended: float
    cpu: float


Rounds = dict[str, list[Turn]]
"""The turns of each side, round by round."""

GATE: Any = None


def share_gate(gate: Any) -> None:
    """Give a process the barrier at which all wait for each other."""
    global GATE
    GATE = gate


def measure(number: int, folder: Path, rank: int, cores: int, rounds: int, small: bool) -> tuple[Rounds, int]:
    """Time all sides of `CASES[number]`; all processes at once, each turn begun together.

    Returns:
        What was timed, and images per call of the model.
    """
    gc.collect()  # the model before
    try:
        return _measure(CASES[number], folder, rank, cores, rounds, small)
    except BaseException:
        GATE.abort()
        raise


def _measure(case: Case, folder: Path, rank: int, cores: int, rounds: int, small: bool) -> tuple[Rounds, int]:
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="labelmill-bench-") as name:
        operator = case.load(small, Path(name))
    applied = Applied(case, operator, sorted(folder.glob("*.jpg"))[rank:], cores)
    if torch.cuda.is_available():
        applied.choose_batch()
    sides = {"operator": applied.run, "bare": applied.bare()}
    if case.many:
        sides["many"] = lambda: applied.run(case.many)
    if case.loop is not None:
        sides["loop"] = applied.loop() if rank == 0 else lambda: 0
    found: Rounds = {side: [] for side in sides}
    for _ in range(rounds):
        for side, run in sides.items():
            # The loop has every core; the others wait for it.
            torch.set_num_threads(cores if side == "loop" else 1)
            GATE.wait(TIMEOUT)
            cpu, began = time.process_time(), time.perf_counter()
            images = run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            found[side].append(Turn(images, began, time.perf_counter(), time.process_time() - cpu))
    return found, applied.worker.batch


class Applied:
    """An operator with the images of one process."""

    def __init__(self, case: Case, operator: Any, paths: list[Path], cores: int) -> None:
        import torch

        from labelmill.operators.applying.worker import Worker

        self._case, self._operator, self._paths = case, operator, paths
        self._gpu = torch.cuda.is_available()
        self._threads = 2 * cores if self._gpu else 1  # as `pipelines.engine.placement` gives a worker
        self.worker = Worker(operator)
        self.worker.batch = case.batch

    def run(self, boxes: int | None = None, images: int = 0) -> int:
        """Apply the operator to the images of a turn, as a worker applies it to a shard."""
        import pyarrow as pa

        from labelmill.operators.applying.apply import Job, apply
        from labelmill.operators.applying.shard_images import ShardImages
        from labelmill.operators.columns.schemas import DETECTIONS

        count = images or self._images()
        paths = [self._paths[index % len(self._paths)] for index in range(count)]
        rows = pa.table({"image_id": pa.array(range(1, count + 1), pa.int64()), "key": [path.name for path in paths]})
        if boxes := boxes or self._case.boxes:
            found = [detections_of(index, boxes) for index in range(count)]
            rows = rows.append_column("detections", pa.array(found, DETECTIONS))
        shard = ShardImages([str(path) for path in paths], lambda uri: Path(uri).read_bytes())
        shard.remember = False
        table, _ = apply(Job(self.worker, rows, np.ones(count, bool)), shard, self._threads)
        bad = [row for row in table.select(["decision", "decision.reason"]).to_pylist() if row["decision"] != "kept"]
        if bad:
            raise RuntimeError(f"{self._case.name}: an image was {bad[0]['decision']}: {bad[0]['decision.reason']}")
        return count

    def bare(self) -> Callable[[], int]:
        """The bare pass over as many ready images as `run` sees."""
        from labelmill.operators.images.decoded import decode

        batch = self.worker.batch
        items = []
        for index in range(batch):
            row = {"image_id": index + 1, "key": "", "detections": detections_of(index, self._case.boxes)}
            image = decode(self._paths[index % len(self._paths)].read_bytes())
            items.append(self._operator.prepare(image, row))
        forward = self._case.bare(self._operator, items)

        def run() -> int:
            for _ in range(self._images() // batch):
                forward()
            return self._images()

        return run

    def loop(self) -> Callable[[], int]:
        """The reference loop over the images of a turn."""
        assert self._case.loop is not None
        see = self._case.loop(self._operator)

        def run() -> int:
            for index in range(self._images()):
                see(self._paths[index % len(self._paths)], boxes_of(index, self._case.boxes))
            return self._images()

        return run

    def choose_batch(self) -> None:
        """Take the batch at which the operator is fastest; the first time warms up."""
        rates = {}
        for batch in self._case.batches[:1] + self._case.batches:
            self.worker.batch = batch
            began = time.perf_counter()
            images = self.run(images=4 * batch)
            rates[self.worker.batch] = images / (time.perf_counter() - began)  # halved if memory ran out
        self.worker.batch = max(rates, key=lambda batch: rates[batch])

    def _images(self) -> int:
        return 4 * self.worker.batch if self._gpu else self._case.images
