"""The images of one shard, decoded once for all the operators that a worker applies to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from labelmill.operators.applying.fetch_ahead import Fetch, FetchAhead
from labelmill.operators.errors import RowError
from labelmill.operators.images.decoded import DecodedImage, decode
from labelmill.operators.moment import kind_of


class ShardImages:
    """Fetches and decodes the images of one shard, and remembers as many as fit into a budget.

    Steps run over a shard one after the other, always in the same order. A cache that keeps the first images and turns
    later ones away then hits as often as its size allows, where one that evicts the least recently used never hits.

    Thread-safe for different images; one image is asked for by one thread at a time.
    """

    def __init__(
        self, uris: list[str], fetch: Fetch, budget_bytes: int = 512 * 2**20, ahead: FetchAhead | None = None
    ) -> None:
        """Args:
        uris: One per row of the shard.
        fetch: Gives the bytes behind a uri, or raises RowError.
        budget_bytes: Upper bound of the decoded pixels and file bytes that are remembered.
        ahead: Does the fetching, before it is needed; None to fetch each image when it is asked for.
        """
        self._uris = uris
        self._fetch = fetch
        self._budget = budget_bytes
        self._ahead = ahead
        self.remember = True  # whether images will be asked for again
        self._kept: dict[int, DecodedImage | RowError] = {}
        self._lock = threading.Lock()
        self.seconds = 0.0

    def forget(self) -> None:
        """Give the memory of remembered images back. They are decoded again when they are asked for."""
        with self._lock:
            kept = [row for row, outcome in self._kept.items() if isinstance(outcome, DecodedImage)]
            for row in kept:
                image = self._kept.pop(row)
                assert isinstance(image, DecodedImage)
                self._budget += image.pixels.nbytes + len(image.data)

    def expect(self, rows: Iterable[int]) -> None:
        """Say which images will be asked for next, in which order."""
        if self._ahead is not None:
            self._ahead.expect((row, self._uris[row]) for row in rows if row not in self._kept)

    def _bytes(self, row: int) -> bytes:
        uri = self._uris[row]
        return self._fetch(uri) if self._ahead is None else self._ahead.take(row, uri)

    def get(self, row: int) -> DecodedImage:
        """The decoded image of a row.

        Raises:
            RowError: It cannot be read; the same error every time, unless it is of the moment.
        """
        known = self._kept.get(row)
        if isinstance(known, RowError):
            raise known
        if known is not None:
            return known
        started = time.perf_counter()
        outcome: DecodedImage | RowError
        try:
            outcome = decode(self._bytes(row))
        except RowError as error:
            if kind_of(error) is not None:
                raise
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
