"""What exports that stream share: images with their bytes read ahead, and lists that grow on disk."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any

from labelmill.pipelines.exports.dataset import ExportImage, Fetch, unreadable
from labelmill.pipelines.exports.files import THREADS, WAITING


def with_bytes(images: Iterable[ExportImage], fetch: Fetch) -> Iterator[tuple[ExportImage, bytes]]:
    """Each image with its original bytes, in order. Threads read at most `WAITING` files ahead.

    Raises:
        ExportError: An image cannot be read.
    """

    def read(image: ExportImage) -> bytes:
        try:
            return fetch(image.uri)
        except Exception as error:
            raise unreadable(image.key, error) from error

    ahead: deque[tuple[ExportImage, Future[bytes]]] = deque()
    with ThreadPoolExecutor(THREADS, thread_name_prefix="export") as pool:
        try:
            for image in images:
                ahead.append((image, pool.submit(read, image)))
                if len(ahead) >= WAITING:
                    first, data = ahead.popleft()
                    yield first, data.result()
            while ahead:
                first, data = ahead.popleft()
                yield first, data.result()
        finally:
            for _, data in ahead:
                data.cancel()


class JsonList:
    """A JSON list written entry by entry, one a line, between a head and a tail."""

    def __init__(self, file: IO[bytes], head: bytes = b"[", tail: bytes = b"]\n") -> None:
        """Args:
        file: Written to from where it stands.
        head: Ends with the list's opening bracket.
        tail: Begins with its closing bracket.
        """
        self._file = file
        self._tail = tail
        self._empty = True
        file.write(head)

    def add(self, entry: Any) -> None:
        """Write one entry; `json_bytes` says how."""
        self._file.write((b"\n" if self._empty else b",\n") + json_bytes(entry))
        self._empty = False

    def close(self) -> None:
        """Write the tail. The file stays open."""
        self._file.write(self._tail if self._empty else b"\n" + self._tail)


def json_bytes(value: Any) -> bytes:
    """JSON on one line, keys sorted. ASCII only, since readers open files in the encoding of their locale."""
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":")).encode("ascii")
