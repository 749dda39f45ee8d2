"""Bytes that are far away, asked for before they are needed.

An object store answers after tens of milliseconds, whatever it is asked for. A worker that waits for each image in turn
spends most of its time so; one that has some dozens of requests under way computes while they travel.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future

Fetch = Callable[[str], bytes]

UNDER_WAY = 32
"""Requests of one worker that are under way, or answered and not yet taken, at a time."""

AHEAD_BYTES = 2**28
"""Bytes of answers not yet taken above which no further request is sent."""


class FetchAhead:
    """Keeps requests under way for the rows that will be asked for next. Thread-safe.

    Args:
        fetch: Gives the bytes behind a uri, or raises. Called in the pool's threads.
        pool: As many threads as requests should travel at a time.
        under_way: Upper bound of the rows that are requested ahead.
        ahead_bytes: Bytes of answers not yet taken above which no further request is sent.
    """

    def __init__(
        self, fetch: Fetch, pool: Executor, under_way: int = UNDER_WAY, ahead_bytes: int = AHEAD_BYTES
    ) -> None:
        self._fetch, self._pool = fetch, pool
        self._under_way, self._ahead_bytes = under_way, ahead_bytes
        self._lock = threading.Lock()
        self._waiting: deque[tuple[int, str]] = deque()
        self._requested: dict[int, Future[bytes]] = {}
        self._bytes = 0

    def expect(self, rows: Iterable[tuple[int, str]]) -> None:
        """Replace what is expected.

        Args:
            rows: Number and uri of the images that `take` will be asked for, in about that order.
        """
        with self._lock:
            dropped, self._requested = self._requested, {}
            self._bytes = 0
            self._waiting = deque(rows)
        for future in dropped.values():
            future.cancel()
        self._send()

    def take(self, row: int, uri: str) -> bytes:
        """The bytes of a row, once; expected or not.

        Raises:
            Exception: Whatever `fetch` raised for it.
        """
        with self._lock:
            requested = self._requested
            future = requested.pop(row, None)
            if future is None and (row, uri) in self._waiting:
                self._waiting.remove((row, uri))
        if future is None:
            return self._fetch(uri)
        try:
            data = future.result()
            with self._lock:
                if requested is self._requested:
                    self._bytes -= len(data)
            return data
        finally:
            self._send()

    def _send(self) -> None:
        with self._lock:
            while self._waiting and len(self._requested) < self._under_way and self._bytes <= self._ahead_bytes:
                row, uri = self._waiting.popleft()
                self._requested[row] = self._pool.submit(self._counted, self._requested, uri)

    def _counted(self, requested: dict[int, Future[bytes]], uri: str) -> bytes:
        data = self._fetch(uri)
        with self._lock:
            if requested is self._requested:
                self._bytes += len(data)
        return data
