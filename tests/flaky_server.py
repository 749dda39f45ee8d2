"""A server of files on this machine that has outages."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What is sent instead of a file.

    Attributes:
        status: The HTTP status.
        headers: Such as Retry-After.
        hang: Seconds until anything is sent.
        body: What is sent then.
        cut: Send the file's headers and half of its body, then close the connection.
    """

    status: int = 503
    headers: Mapping[str, str] = field(default_factory=dict)
    hang: float = 0.0
    body: bytes = b"no"
    cut: bool = False


Trouble = Callable[[str, int], Answer | None]
"""Given a path and how often it was asked for before: what to send instead; None for the file."""


class FlakyServer:
    """Serves files for the length of a `with`.

    Attributes:
        files, trouble: May be changed at any time. Whether a file is there, the server always tells.
        asked: How often each path was asked for.
        pauses: Seconds between the requests for one path, in order.
    """

    def __init__(self, files: Mapping[str, bytes], trouble: Trouble = lambda path, before: None) -> None:
        self.files = dict(files)
        self.trouble = trouble
        self.asked: Counter[str] = Counter()
        self.times: dict[str, list[float]] = {}
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 2**16  # head and body in one packet

            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                with lock:
                    before = outer.asked[self.path]
                    outer.asked[self.path] += 1
                    outer.times.setdefault(self.path, []).append(time.monotonic())
                answer = outer.trouble(self.path, before)
                data = outer.files.get(self.path.partition("?")[0])
                if answer is None and data is not None:
                    self.answer(200, {}, data)
                elif answer is None:
                    self.answer(404, {}, b"")
                elif answer.cut and data is not None:
                    self.answer(200, {"Content-Length": str(len(data))}, data[: len(data) // 2])
                    self.close_connection = True
                else:
                    time.sleep(answer.hang)
                    self.answer(answer.status, answer.headers, answer.body)

            def do_HEAD(self) -> None:
                data = outer.files.get(self.path)
                self.answer(404 if data is None else 200, {"Content-Length": str(len(data or b""))}, b"")

            def answer(self, status: int, headers: Mapping[str, str], data: bytes) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
                self.wfile.flush()

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that gives up is no news."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FlakyServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._server.server_close()
