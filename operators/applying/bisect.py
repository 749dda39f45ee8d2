"""Finds the rows that fail: runs over all of them, then over halves, down to single ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from operators.applying.results import ContractError
from operators.base import Decision, RowError
from operators.moment import kind_of


def bisect(
    run: Callable[[Any], list[Any]],
    items: Any,
    fail: Callable[[Exception], list[Any]],
    on_memory: Callable[[Any], None] | None = None,
) -> list[Any]:
    """Run over all items at once; when that raises, over each half, down to single items.

    Args:
        run: Gives a list of results for a sliceable sequence of items.
        items: A list or a pyarrow.Table with at least one row.
        fail: Gives the result of a single item that raised.
        on_memory: Told of the items that did not fit into memory.

    Raises:
        ContractError: From `run`: the operator is wrong, not the row.
        RuntimeError: The accelerator is in a state that no retry in this process mends.
    """
    try:
        return run(items)
    except ContractError:
        raise
    except Exception as error:
        if kind_of(error) == "accelerator":
            raise
        if on_memory is not None and kind_of(error) == "memory":
            on_memory(items)
        if len(items) == 1:
            return fail(error)
    middle = len(items) // 2
    first, second = (
        (items.slice(0, middle), items.slice(middle))
        if isinstance(items, pa.Table)
        else (items[:middle], items[middle:])
    )
    return bisect(run, first, fail, on_memory) + bisect(run, second, fail, on_memory)


def failed(error: Exception) -> Decision:
    """The decision for a row that raised: `failed`, or `undone` where what was in the way passes.

    A RowError speaks for itself, anything else is named by its type.
    """
    text = str(error).strip()
    reason = text if isinstance(error, RowError) and text else f"{type(error).__name__}: {text}".rstrip(": ")
    return Decision("failed" if kind_of(error) is None else "undone", reason)


def empty_accelerator_cache() -> None:
    """Give cached memory back, so that a smaller batch finds it in one piece. Does nothing where torch is not used."""
    import sys

    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
