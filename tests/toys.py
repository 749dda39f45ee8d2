"""Small operators with known results, for tests of the engine. Used as `tests.toys:Name` like any user's own."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from labelmill.operators.base import (
    DatasetOperator,
    Decision,
    ImageOperator,
    Needs,
    OperatorParams,
    TableOperator,
    TableResult,
    tuning,
)
from labelmill.operators.errors import OperatorError, RowError
from labelmill.operators.images.decoded import DecodedImage


class Brightness(ImageOperator):
    """The mean of an image's pixels; logs every image that it computes, and fails where it is told to."""

    class Params(OperatorParams):
        batch: int = tuning(4)
        scale: float = 1.0
        log: str = tuning("")
        sleep: float = tuning(0.0)
        fail_in_infer: tuple[int, ...] = ()
        fail_in_prepare: tuple[int, ...] = ()
        refuse: tuple[int, ...] = ()
        memory: int = tuning(1000)
        die_at: int = tuning(0)
        die_marker: str = tuning("")

    def writes(self) -> pa.Schema:
        return pa.schema(
            [("brightness", pa.float32()), ("vector", pa.list_(pa.float16(), 3)), ("tags", pa.list_(pa.string()))]
        )

    def prepare(self, image: DecodedImage, row: Mapping[str, Any]) -> tuple[int, np.ndarray]:
        if row["image_id"] in self.params.fail_in_prepare:
            raise RowError("prepare was told to fail")
        return row["image_id"], image.pixels.astype(np.float32).mean(axis=(0, 1))

    def bucket(self, item: Any) -> int:
        return int(item[0]) % 2

    def infer(self, items: list[Any]) -> list[dict[str, Any] | RowError]:
        if len(items) > self.params.memory:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if any(image_id in self.params.fail_in_infer for image_id, _ in items):
            raise ValueError("infer was told to fail")
        if self.params.die_at and any(image_id == self.params.die_at for image_id, _ in items):
            die_once(self.params.die_marker)
        time.sleep(self.params.sleep * len(items))
        log(self.params.log, *(image_id for image_id, _ in items))
        outputs: list[dict[str, Any] | RowError] = []
        for image_id, mean in items:
            if image_id in self.params.refuse:
                outputs.append(RowError("infer refused this one"))
                continue
            value = float(mean.mean()) * self.params.scale
            outputs.append(
                {"brightness": value, "vector": (mean / 255).astype(np.float16), "tags": ["bright"] * (value > 128)}
            )
        return outputs


class OnGpu(ImageOperator):
    """Says that it needs a GPU, or memory of the host, and notes for every image where it was computed."""

    class Params(OperatorParams):
        batch: int = tuning(4)
        gpu: bool = tuning(True)
        memory_gb: float = 2.0
        log: str = tuning("")
        sleep: float = tuning(0.0)

    def writes(self) -> pa.Schema:
        return pa.schema([("width", pa.int32())])

    def needs(self) -> Needs:
        return Needs(self.params.gpu, self.params.memory_gb)

    def infer(self, items: list[Any]) -> list[dict[str, Any] | RowError]:
        import ray

        node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
        for _ in items:
            time.sleep(self.params.sleep)
            here = {"gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "pid": os.getpid(), "node": node}
            with open(self.params.log, "a") as file:
                file.write(json.dumps({**here, "step": self.params.memory_gb}) + "\n")
        return [{"width": item.width} for item in items]


class Slow(ImageOperator):
    """Sleeps for each image, and logs it."""

    class Params(OperatorParams):
        batch: int = tuning(1)
        memory_gb: float = 0.0
        sleep: float = 0.0
        log: str = tuning("")

    def writes(self) -> pa.Schema:
        return pa.schema([("image", pa.int64())])

    def needs(self) -> Needs:
        return Needs(memory_gb=self.params.memory_gb)

    def prepare(self, image: DecodedImage, row: Mapping[str, Any]) -> int:
        return int(row["image_id"])

    def infer(self, items: list[Any]) -> list[dict[str, Any] | RowError]:
        time.sleep(self.params.sleep * len(items))
        log(self.params.log, *items)
        return [{"image": item} for item in items]


class Wrong(ImageOperator):
    """Breaks its contract in the way that it is told to."""

    class Params(OperatorParams):
        how: str

    def writes(self) -> pa.Schema:
        return pa.schema([("number", pa.int32())])

    def infer(self, items: list[Any]) -> list[dict[str, Any] | RowError]:
        good: list[dict[str, Any] | RowError] = [{"number": 1} for _ in items]
        if self.params.how == "missing":
            return [{} for _ in items]
        if self.params.how == "extra":
            return [{"number": 1, "other": 2} for _ in items]
        if self.params.how == "short":
            return good[:-1]
        if self.params.how == "type":
            good[0] = {"number": "one"}
        return good


class Threshold(TableOperator):
    """Drops what is darker than a threshold; fails where it is told to."""

    decides: ClassVar[bool] = True

    class Params(OperatorParams):
        at_least: float = 0.0
        fail: tuple[int, ...] = ()
        log: str = tuning("")

    def reads(self) -> tuple[str, ...]:
        return ("brightness",)

    def writes(self) -> pa.Schema:
        return pa.schema([("margin", pa.float64())])

    def compute(self, table: pa.Table) -> TableResult:
        ids = table.column("image_id").to_pylist()
        if set(ids) & set(self.params.fail):
            raise ValueError("compute was told to fail")
        log(self.params.log, *ids)
        values = table.column("brightness").to_pylist()
        decisions = [
            Decision("kept")
            if value >= self.params.at_least
            else Decision("dropped", f"brightness < {self.params.at_least}", value, self.params.at_least)
            for value in values
        ]
        return TableResult(pa.table({"margin": [value - self.params.at_least for value in values]}), decisions)


class Rank(DatasetOperator):
    """The rank of an image's brightness among all that came with it, above all that came before."""

    class Params(OperatorParams):
        log: str = tuning("")

    def reads(self) -> tuple[str, ...]:
        return ("brightness",)

    def writes(self) -> pa.Schema:
        return pa.schema([("rank", pa.int64())])

    def compute(self, new: pa.Table, old: pa.Table) -> TableResult:
        log(self.params.log, *new.column("image_id").to_pylist())
        values = np.array(new.column("brightness").to_pylist(), dtype=np.float64)
        order = np.argsort(np.argsort(values, kind="stable"), kind="stable") + old.num_rows
        return TableResult(pa.table({"rank": pa.array(order, pa.int64())}))


class Parted(DatasetOperator):
    """The square of every image_id, each in a task if there are tasks; logs the process of each."""

    class Params(OperatorParams):
        log: str = tuning("")
        die_marker: str = tuning("")
        fail: int = 0

    def writes(self) -> pa.Schema:
        return pa.schema([("square", pa.int64())])

    def compute(self, new: pa.Table, old: pa.Table) -> TableResult:
        ids = new.column("image_id").to_pylist()
        squares = [0] * len(ids)
        if self.tasks is None:
            squares = [image_id**2 for image_id in ids]
        else:
            folder = Path(self.tasks.folder)
            assert folder.is_dir() and not list(folder.iterdir()) and self.tasks.width >= 1
            for number, square in self.tasks.map(square_of, (self.params, str(folder)), iter(ids)):
                squares[number] = square
            assert {int(file.name) for file in folder.iterdir()} == set(ids)
        return TableResult(pa.table({"square": pa.array(squares, pa.int64())}))


def square_of(shared: tuple[Parted.Params, str], image_id: int) -> int:
    """One part of `Parted`."""
    params, folder = shared
    (Path(folder) / str(image_id)).touch()
    log(params.log, os.getpid())
    if image_id == params.fail:
        raise OperatorError("this part was told to fail")
    if params.die_marker and image_id == 7:
        die_once(params.die_marker)
    return image_id**2


def log(path: str, *values: object) -> None:
    """Append values to a file, one a line; whole lines even when processes share it."""
    if path and values:
        with Path(path).open("a") as file:
            file.write("".join(f"{value}\n" for value in values))


def logged(path: str | Path) -> list[int]:
    """What `log` wrote."""
    return [int(line) for line in Path(path).read_text().split()] if Path(path).exists() else []


def die_once(marker: str) -> None:
    """End this process without a word, unless some process already did so; without a marker, every time."""
    if not marker:
        os._exit(1)
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os._exit(1)


class LosesGpu(Brightness):
    """Fails as a GPU does that is in error, once or always, in a worker of its own."""

    class Params(Brightness.Params):
        lose_at: int = tuning(0)
        marker: str = tuning("")

    params: Params

    def needs(self) -> Needs:
        return Needs(memory_gb=0.1)

    def infer(self, items: list[Any]) -> list[dict[str, Any] | RowError]:
        if any(image_id == self.params.lose_at for image_id, _ in items) and _first_time(self.params.marker):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super().infer(items)


def _first_time(marker: str) -> bool:
    """Whether no process came here before; without a marker, always."""
    try:
        if marker:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


class Unloadable(Brightness):
    """Finds out in `load` that what it needs is not here."""

    def load(self) -> None:
        raise OperatorError("the weights are of another model")
