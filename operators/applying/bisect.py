"""Finds the rows that fail: runs over all of them, then over halves, down to single ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from labelmill.operators.applying.patience import StopError
from labelmill.operators.applying.results import ContractError
from labelmill.operators.base import Decision
from labelmill.operators.errors import RowError
from labelmill.operators.moment import kind_of


def bisect(
    run: Callable[[Any], list[Any]],
    items: Any,
    fail: Callable[[Exception], list[Any]],
    on_memory: Callable[[Any], None] | None = None,
    whole: bool = False,
) -> list[Any]:
    """Run over all items at once; when that raises, over each half, down to single items.

    Args:
        run: Gives a list of results for a sliceable sequence of items.
        items: A list or a pyarrow.Table with at least one row.
        fail: Gives the result of a single item that raised.
        on_memory: Told of the items that did not fit into memory.
        whole: Do not split for what passes, other than a lack of memory: no half of the items would fare better.

    Raises:
        ContractError, StopError: From `run`: the operator or the model is wrong, not the row.
        RuntimeError: The accelerator is in a state that no retry in this process mends.
    """
    try:
        return run(items)
    except (ContractError, StopError):
        raise
    except Exception as error:
        kind = kind_of(error)
        if kind == "accelerator":
            raise
        if on_memory is not None and kind == "memory":
            on_memory(items)
        if len(items) == 1 or (whole and kind not in (None, "memory")):
            return [result for _ in range(len(items)) for result in fail(error)]
    middle = len(items) // 2
    first, second = (
        (items.slice(0, middle), items.slice(middle))
        if isinstance(items, pa.Table)
        else (items[:middle], items[middle:])
    )
    return bisect(run, first, fail, on_memory, whole) + bisect(run, second, fail, on_memory, whole)


def failed(error: Exception) -> Decision:
    """The decision for a row that raised: `failed`, or `undone` where what was in the way passes.

    A RowError speaks for itself, anything else is named by its type.
    """
    text = str(error).strip()
    reason = text if isinstance(error, RowError) and text else f"{type(error).__name__}: {text}".rstrip(": ")
    return Decision("failed" if kind_of(error) is None else "undone", reason)
