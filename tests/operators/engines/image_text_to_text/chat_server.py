"""A server of this machine that plays an OpenAI-compatible API."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "tiny-vlm"


@dataclass
class Response:
    """What the server sends, and after how many seconds; with `trickle`, one byte at a time with a pause each."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    trickle: float = 0.0


@dataclass(frozen=True)
class Request:
    """What came in: the chat completion's fields, the headers, and how often the same image came before."""

    body: dict[str, Any]
    headers: Mapping[str, str]
    before: int

    @property
    def image(self) -> str:
        """The first message's data URL."""
        url: str = self.body["messages"][0]["content"][0]["image_url"]["url"]
        return url

    @property
    def text(self) -> str:
        """The last message's text."""
        content = self.body["messages"][-1]["content"]
        return str(content if isinstance(content, str) else content[-1]["text"])


def says(text: str | None, logprobs: Sequence[Mapping[str, float]] | None = None, finish: str = "stop") -> Response:
    """A chat completion.

    Args:
        text: The answer.
        logprobs: At each place, the likeliest tokens, the one that was written first.
        finish: Why it ended.
    """
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    if logprobs is not None:
        content = []
        for place in logprobs:
            top = [{"token": token, "logprob": value, "bytes": None} for token, value in place.items()]
            content.append({**top[0], "top_logprobs": top})
        choice["logprobs"] = {"content": content}
    return Response({"id": "1", "object": "chat.completion", "created": 1, "model": MODEL, "choices": [choice]})


class ChatServer:
    """Answers as a function says, for the length of a `with`.

    Attributes:
        address: What a card calls `endpoint`.
        requests: What came in.
        most: Requests that were there at once, at most.
    """

    def __init__(self, answer: Callable[[Request], Response], key: str | None = None) -> None:
        self.requests: list[Request] = []
        self.most = 0
        self._there = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                self.send(Response({"object": "list", "data": [{"id": MODEL, "object": "model"}]}))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if key is not None and self.headers["Authorization"] != f"Bearer {key}":
                    said = self.headers["Authorization"].removeprefix("Bearer ")
                    self.send(Response({"error": {"message": f"Incorrect API key provided: {said}"}}, 401))
                elif body["model"] != MODEL:
                    self.send(Response({"error": {"message": f"The model `{body['model']}` does not exist."}}, 404))
                else:
                    outer.serve(self, body, answer)

            def send(self, response: Response) -> None:
                data = response.body if isinstance(response.body, bytes) else json.dumps(response.body).encode()
                self.send_response(response.status)
                for name, value in {"Content-Type": "application/json", **response.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                size = 1 if response.trickle else len(data)
                for start in range(0, len(data), max(1, size)):
                    self.wfile.write(data[start : start + size])
                    self.wfile.flush()
                    time.sleep(response.trickle)

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that gives up is no news."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}/v1"

    def serve(self, handler: Any, body: dict[str, Any], answer: Callable[[Request], Response]) -> None:
        with self._lock:
            first = Request(body, dict(handler.headers), 0)
            before = sum(other.image == first.image for other in self.requests)
            request = Request(body, first.headers, before)
            self.requests.append(request)
            self._there += 1
            self.most = max(self.most, self._there)
        try:
            response = answer(request)
            time.sleep(response.delay)
        finally:
            with self._lock:
                self._there -= 1
        handler.send(response)

    def __enter__(self) -> ChatServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._server.server_close()
