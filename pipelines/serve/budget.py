"""What may be held at once: images and bytes, counted across all requests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from labelmill.pipelines.serve.errors import busy


class Budget:
    """A bound on something that requests take for a while. Thread-safe.

    Args:
        limit: How much there is.
        what: For the message, such as "bytes of images and requests".
    """

    def __init__(self, limit: int, what: str) -> None:
        self.limit, self.what = limit, what
        self.used = 0
        self._lock = threading.Lock()

    def take(self, amount: int) -> None:
        """Take some, to be given back.

        Raises:
            ApiError: 503, there is not enough left at the moment.
        """
        with self._lock:
            # What is larger than everything there is may go alone: the limits on one request bound it.
            if self.used and self.used + amount > self.limit:
                raise busy(f"{self.used:,} of {self.limit:,} {self.what} are in use")
            self.used += amount

    def give_back(self, amount: int) -> None:
        """Give back what was taken."""
        with self._lock:
            self.used -= amount

    @contextmanager
    def taken(self, amount: int) -> Iterator[None]:
        """Have some for a while; as `take`."""
        self.take(amount)
        try:
            yield
        finally:
            self.give_back(amount)
