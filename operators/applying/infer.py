"""One micro-batch through a model: halved where memory is short, split where a row fails, tried again if that helps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from labelmill.operators.applying.bisect import bisect, failed
from labelmill.operators.applying.memory import empty_accelerator_cache, free_memory
from labelmill.operators.applying.patience import StopError, passes
from labelmill.operators.applying.results import ContractError, RowValue
from labelmill.operators.base import ImageOperator

if TYPE_CHECKING:
    from labelmill.operators.applying.shard_images import ShardImages
    from labelmill.operators.applying.worker import Worker

GIVE_UP_AFTER = 4
"""Calls in a row that fail for the moment, when a batch is split for the last time."""


def infer(worker: Worker, items: list[Any], images: ShardImages) -> list[RowValue]:
    """One value per item: halves the batch when memory runs out, else bisects down to the rows that fail.

    What fails for the moment is tried again, together, as long as there is patience.
    """
    operator = worker.operator
    assert isinstance(operator, ImageOperator)
    values: list[Any] = [None] * len(items)

    def run(part: list[Any]) -> list[Any]:
        outputs = operator.infer(part)
        if not isinstance(outputs, list) or len(outputs) != len(part):
            count = len(outputs) if hasattr(outputs, "__len__") else type(outputs).__name__
            raise ContractError(f"{operator.name}.infer must give one dict per item: {len(part)} but gave {count}")
        return outputs

    def out_of_memory(part: list[Any]) -> None:
        worker.batch = max(1, min(worker.batch, (len(part) + 1) // 2))
        empty_accelerator_cache()

    def compute(numbers: list[int], run: Callable[[list[Any]], list[Any]] = run, whole: bool = True) -> list[int]:
        """Fill in values; which of them failed for the moment."""
        part = [items[number] for number in numbers]
        for number, value in zip(numbers, bisect(run, part, lambda error: [error], out_of_memory, whole), strict=True):
            values[number] = value
        return [number for number in numbers if isinstance(values[number], Exception) and passes(values[number])]

    waiting = compute(list(range(len(items))))
    if waiting:

        def attempt() -> None:
            nonlocal waiting
            waiting = compute(waiting)
            if waiting:
                raise values[waiting[0]]

        try:
            worker.patience.again(attempt, values[waiting[0]], free=partial(free_memory, images))
        except (ContractError, StopError):
            raise
        except Exception as error:
            if not passes(error):
                raise
    if len(waiting) > 1 and len({id(values[number]) for number in waiting}) == 1:
        # One call failed for all of them. One of them may be the reason, which only shows when they are split.
        compute(waiting, _until_it_fails_often(run), whole=False)
    return [failed(value) if isinstance(value, Exception) else value for value in values]


def _until_it_fails_often(run: Callable[[list[Any]], list[Any]]) -> Callable[[list[Any]], list[Any]]:
    """The same function; after some failures in a row for the moment it is not called any more, but fails."""
    failures: list[Exception] = []

    def bounded(part: list[Any]) -> list[Any]:
        if len(failures) >= GIVE_UP_AFTER:
            raise failures[-1]
        try:
            outputs = run(part)
        except Exception as error:
            failures.append(error)
            raise
        failures.clear()
        return outputs

    return bounded
