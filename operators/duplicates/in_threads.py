"""Calls of a function in as many threads as torch may use, each of which computes with one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def in_threads(function: Callable[[In], Out], arguments: Iterable[In], most: int) -> Iterator[Out]:
    """What the function gives for each argument, in their order.

    Many small products take a thread each more gladly than they share one: nothing waits for the other's half.

    Args:
        function: Must release the GIL for most of its time, and may be called by several threads at once.
        arguments: Taken at once.
        most: Threads, at most.

    Raises:
        Exception: What the function raised.
    """
    import torch

    before = torch.get_num_threads()
    width = min(before, most)
    if width < 2:
        yield from map(function, arguments)
        return
    try:
        with ThreadPoolExecutor(width, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(function, arguments)
    finally:
        # Some of the libraries below torch have one number for all threads.
        torch.set_num_threads(before)
