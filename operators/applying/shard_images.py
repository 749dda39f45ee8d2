"""The images of one shard, decoded once for all the operators that a worker applies to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from operators.base import RowError
from operators.images.decoded import DecodedImage, decode

Fetch = Callable[[str], bytes]


class ShardImages:
    """Fetches and decodes the images of one shard, and remembers as many as fit into a budget.

    Steps run over a shard one after the other, always in the same order. A cache that keeps the first images and turns
    later ones away then hits as often as its size allows, where one that evicts the least recently used never hits.

    Thread-safe for different images; one image is asked for by one thread at a time.
    """

    def __init__(self, uris: list[str], fetch: Fetch, budget_bytes: int = 512 * 2**20) -> None:
        """Args:
        uris: One per row of the shard.
        fetch: Gives the bytes behind a uri, or raises RowError.
        budget_bytes: Upper bound of the decoded pixels and file bytes that are remembered.
        """
        self._uris = uris
        self._fetch = fetch
        self._budget = budget_bytes
        self.remember = True  # whether images will be asked for again
        self._kept: dict[int, DecodedImage | RowError] = {}
        self._lock = threading.Lock()
        self.seconds = 0.0

    def get(self, row: int) -> DecodedImage:
        """The decoded image of a row.

        Raises:
            RowError: It cannot be read; the same error every time.
        """
        known = self._kept.get(row)
        if isinstance(known, RowError):
            raise known
        if known is not None:
            return known
        started = time.perf_counter()
        outcome: DecodedImage | RowError
        try:
            outcome = decode(self._fetch(self._uris[row]))
        except RowError as error:
            outcome = error
        size = 0 if isinstance(outcome, RowError) else outcome.pixels.nbytes + len(outcome.data)
        with self._lock:
            self.seconds += time.perf_counter() - started
            if self.remember and size <= self._budget:
                self._budget -= size
                self._kept[row] = outcome
        if isinstance(outcome, RowError):
            raise outcome
        return outcome
