"""Work of a dataset-wide operator that falls into parts, each computed from a few things alone, anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol


class Tasks(Protocol):
    """Where parts are computed: in other processes, on other machines.

    Attributes:
        folder: Path or fsspec URL of a folder that every part can read and write. It is there while the operator
            computes, and gone afterwards.
        width: How many parts are computed at once, at least 1.
    """

    folder: str
    width: int

    def map(
        self, function: Callable[[Any, Any], Any], shared: Any, arguments: Iterable[Any]
    ) -> Iterator[tuple[int, Any]]:
        """Call a function with each of many arguments.

        Args:
            function: Of a module that every worker has; called as ``function(shared, argument)``. It may be called
                again with the same argument if a worker dies, so it must give and write the same every time.
            shared: Sent to each machine once.
            arguments: Taken one by one, `width` and one ahead of the results at most.

        Returns:
            The number of each argument and what the function gave, in the order in which they end.

        Raises:
            Exception: What the function raised.
        """
        ...
