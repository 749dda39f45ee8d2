"""Tasks as a cluster runs them, in one process: everything travels as bytes, and what is asked last ends first."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any


class PickledTasks:
    """Notes what it did.

    Attributes:
        folder, width: See `operators.base.Tasks`.
        calls: How often each function was called.
        largest: Bytes of the largest argument.
    """

    def __init__(self, folder: Path, width: int = 3) -> None:
        self.folder, self.width = str(folder), width
        self.calls: dict[str, int] = {}
        self.largest = 0

    def map(
        self, function: Callable[[Any, Any], Any], shared: Any, arguments: Iterable[Any]
    ) -> Iterator[tuple[int, Any]]:
        packed = pickle.dumps((function, shared))
        waiting: list[tuple[int, bytes]] = []
        for number, argument in enumerate(arguments):
            waiting.append((number, pickle.dumps(argument)))
            self.largest = max(self.largest, len(waiting[-1][1]))
            if len(waiting) > self.width:
                yield self._call(packed, waiting.pop())
        while waiting:
            yield self._call(packed, waiting.pop())

    def _call(self, packed: bytes, waiting: tuple[int, bytes]) -> tuple[int, Any]:
        function, shared = pickle.loads(packed)
        self.calls[function.__name__] = self.calls.get(function.__name__, 0) + 1
        # A worker that dies after its work was done: the same again.
        function(shared, pickle.loads(waiting[1]))
        return waiting[0], pickle.loads(pickle.dumps(function(shared, pickle.loads(waiting[1]))))
