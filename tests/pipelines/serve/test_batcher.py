"""What waits is taken in batches; one bad item is its own fault."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from labelmill.operators.base import ImageOperator, OperatorParams
from labelmill.operators.errors import RowError
from labelmill.pipelines.serve.batcher import Batcher
from labelmill.pipelines.serve.errors import ApiError
from labelmill.pipelines.serve.metrics import Metrics
from labelmill.pipelines.serve.work import OperatorWork
from tests.drawing import picture


class Echo:
    """Gives back what it is given; notes each batch."""

    def __init__(self, batch: int = 4, started: threading.Event | None = None) -> None:
        self.batch, self.batches = batch, []  # type: ignore[var-annotated]
        self.go = threading.Event()
        self.go.set()

    def bucket(self, item: Any) -> Hashable:
        return type(item)

    def run(self, items: list[Any]) -> list[Any]:
        self.go.wait(10)
        self.batches.append(list(items))
        return [ApiError(400, "bad") if item == "bad" else item for item in items]


@pytest.fixture
def batcher() -> Iterator[Batcher]:
    made = Batcher("toy", 0.5, Metrics())
    yield made
    made.close()


def test_what_comes_while_the_model_is_busy_is_one_batch(batcher: Batcher) -> None:
    work = Echo()
    work.go.clear()
    first = batcher.submit(work, 0)
    time.sleep(0.05)
    rest = [batcher.submit(work, number) for number in range(1, 7)]
    work.go.set()
    assert [each.result(5) for each in (first, *rest)] == list(range(7))
    assert work.batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_different_shapes_and_questions_never_share_a_batch_and_the_oldest_goes_first(batcher: Batcher) -> None:
    work, other = Echo(), Echo()
    work.go.clear()
    waiting = [batcher.submit(work, 0)]
    time.sleep(0.05)
    waiting += [batcher.submit(work, "a"), batcher.submit(other, 5), batcher.submit(work, 1), batcher.submit(work, "b")]
    work.go.set()
    for each in waiting:
        each.result(5)
    assert work.batches == [[0], ["a", "b"], [1]]
    assert other.batches == [[5]]


def test_one_alone_does_not_wait_and_one_with_others_on_their_way_does(batcher: Batcher) -> None:
    work = Echo()
    started = time.monotonic()
    batcher.submit(work, 1).result(5)
    assert time.monotonic() - started < 0.3
    batcher.coming(2)
    first = batcher.submit(work, 2)
    batcher.coming(-1)
    time.sleep(0.1)
    assert not first.done()
    second = batcher.submit(work, 3)
    batcher.coming(-1)
    first.result(5), second.result(5)
    assert work.batches == [[1], [2, 3]]


def test_what_never_comes_is_waited_for_no_longer_than_that(batcher: Batcher) -> None:
    batcher.coming(1)
    started = time.monotonic()
    batcher.submit(Echo(), 1).result(5)
    assert 0.4 < time.monotonic() - started < 3
    batcher.coming(-1)


def test_a_bad_item_fails_alone_and_one_that_nobody_wants_is_not_computed(batcher: Batcher) -> None:
    work = Echo()
    work.go.clear()
    first = batcher.submit(work, "x")
    time.sleep(0.05)
    waiting = [batcher.submit(work, each) for each in ("bad", "y", "gone")]
    assert waiting[2].cancel()
    work.go.set()
    assert first.result(5) == "x" and waiting[1].result(5) == "y"
    with pytest.raises(ApiError, match="bad"):
        waiting[0].result(5)
    assert work.batches == [["x"], ["bad", "y"]]


def test_closing_does_what_waits(batcher: Batcher) -> None:
    work = Echo()
    work.go.clear()
    waiting = [batcher.submit(work, number) for number in range(9)]
    threading.Timer(0.1, work.go.set).start()
    batcher.close()
    assert [each.result(0) for each in waiting] == list(range(9))
    with pytest.raises(RuntimeError, match="unloaded"):
        batcher.submit(work, 1)


class Mean(ImageOperator):
    """The mean of an image, from a model with little memory that cannot see black."""

    class Params(OperatorParams):
        batch: int = 8
        broken: str = ""

    sizes: list[int]

    def writes(self) -> pa.Schema:
        return pa.schema([("mean", pa.float32())])

    def infer(self, items: list[Any]) -> list[Any]:
        self.sizes = [*getattr(self, "sizes", []), len(items)]
        if self.params.broken == "contract":
            return items[1:]
        if self.params.broken == "lost":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if len(items) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if any(np.ptp(item.pixels) == 0 for item in items):
            raise ValueError("black")
        return [{"mean": item.pixels.mean()} if item.width > 1 else RowError("too narrow") for item in items]


def answers(batcher: Batcher, work: OperatorWork, images: list[Any]) -> list[Any]:
    hold = Future[None]()
    holding = batcher.call(lambda: hold.result(10))
    waiting = [batcher.submit(work, work.prepare(image, {})) for image in images]
    hold.set_result(None)
    holding.result(10)
    return [each.exception(20) or each.result() for each in waiting]


def test_out_of_memory_halves_the_batch_for_good_and_the_bad_image_is_found(batcher: Batcher) -> None:
    operator = Mean(Mean.Params())
    work = OperatorWork(operator)
    images = [picture(8, 8, seed) for seed in range(7)]
    black = picture(8, 8)
    images.insert(4, type(black)(np.zeros_like(black.pixels), b"", "PNG", "RGB", 1, 1))
    found = answers(batcher, work, images)
    assert isinstance(found[4], ApiError) and found[4].status == 400 and "ValueError: black" in found[4].message
    for place in (0, 1, 2, 3, 5, 6, 7):
        assert found[place].to_pylist() == [{"mean": np.float32(images[place].pixels.mean())}]
    assert work.batch <= 4


def test_an_operators_mistake_is_nobodys_image(batcher: Batcher) -> None:
    found = answers(batcher, OperatorWork(Mean(Mean.Params(broken="contract"))), [picture(8, 8)])
    assert found[0].status == 500 and batcher.lost is None


def test_a_lost_accelerator_is_told(batcher: Batcher) -> None:
    found = answers(batcher, OperatorWork(Mean(Mean.Params(broken="lost"))), [picture(8, 8)])
    assert found[0].status == 503 and "illegal" in str(batcher.lost)
