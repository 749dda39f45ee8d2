"""What holds for every request: an id, a log line, figures, limits on size and time; and every answer is JSON."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import time
import uuid
from typing import Any

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labelmill.pipelines.serve.budget import Budget
from labelmill.pipelines.serve.errors import ApiError
from labelmill.pipelines.serve.metrics import Metrics
from labelmill.pipelines.serve.settings import Settings
from labelmill.pipelines.serve.work import told

log = logging.getLogger("labelmill.serve")

# Drawn once and counted on: asking the system for chance each time lets go of the interpreter for milliseconds.
_FIRST = uuid.uuid4().hex
_NUMBERS = itertools.count(1)

_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)


class Limits:
    """The outermost layer.

    Args:
        app: What answers.
        settings: The limits.
        held: What bodies are counted in.
        metrics: Told of every request.
    """

    def __init__(self, app: ASGIApp, settings: Settings, held: Budget, metrics: Metrics) -> None:
        self._app, self._settings, self._held, self._metrics = app, settings, held, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        one = _Request(scope, receive, send, self._settings, self._held)
        try:
            one.admit()
            async with asyncio.timeout(self._settings.timeout):
                await self._app(scope, one.receive, one.send)
        except Exception as error:
            if isinstance(error, TimeoutError):
                error = ApiError(504, f"not answered within {self._settings.timeout:g} seconds; ask for less at once")
            elif not isinstance(error, ApiError):
                log.exception("request %s failed", one.id)
            await one.refuse(told(error))
        finally:
            one.close()
            seconds = time.monotonic() - one.started
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.request(route, one.status, seconds)
            log.info(
                "request",
                extra={
                    "fields": {
                        "request_id": one.id,
                        "method": scope["method"],
                        "path": scope["path"],  # never the query, which may hold a key
                        "status": one.status,
                        "seconds": round(seconds, 4),
                        "bytes": one.received,
                        "model": one.model,
                    }
                },
            )


class _Request:
    """One request on its way through."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, settings: Settings, held: Budget) -> None:
        self._receive, self._send, self._settings, self._held = receive, send, settings, held
        self.started = time.monotonic()
        wanted = (b"x-request-id", b"content-length", b"expect")
        headers = {name: value for name, value in scope["headers"] if name in wanted}
        self._expects = b"expect" in headers
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        self.id = given if _ID.fullmatch(given) else f"{_FIRST}-{next(_NUMBERS)}"
        length = headers.get(b"content-length", b"")
        self._declared = int(length) if length.isdigit() else None
        self._taken = 0
        self._complete = False
        self.received = 0
        self.status = 499  # nobody was there to be answered
        self.model: str | None = None
        self._answering = False
        scope.setdefault("state", {})["request_id"] = self.id

    def admit(self) -> None:
        """Refuse what is too large, or more than can be held now, before it is read."""
        if self._declared is not None:
            self._check(self._declared)
            self._take(self._declared)

    def _check(self, size: int) -> None:
        if size > self._settings.max_body:
            raise ApiError(
                413, f"a request must have at most {self._settings.max_body:,} bytes; send fewer or smaller images"
            )

    def _take(self, size: int) -> None:
        self._held.take(size)
        self._taken += size

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()
        left = self.started + self._settings.body_timeout - time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), max(left, 0.001))
        except TimeoutError:
            raise ApiError(408, f"a request must come in within {self._settings.body_timeout:g} seconds") from None
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self.received += size
            self._complete = not message.get("more_body", False)
            if self._declared is None:
                self._check(self.received)
                self._take(size)
        else:
            self._complete = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            seconds = f"{time.monotonic() - self.started:.6f}"
            await self._rest()
            own = [(b"x-request-id", self.id.encode()), (b"x-processing-time", seconds.encode())]
            if not self._complete and self._declared != 0:
                own.append((b"connection", b"close"))  # the rest of the body would be taken for the next request
            self.model = next(
                (value.decode() for name, value in message["headers"] if name.lower() == b"x-model-id"), None
            )
            message = {**message, "headers": [*message["headers"], *own]}
        await self._send(message)
        self._answering = True

    async def _rest(self) -> None:
        """Read what is left of a body that nobody wanted, and keep nothing of it.

        A client that is still sending sees a connection that is closed before it sees the answer. What is far too large
        is not waited for, nor what the client only sends when it is asked to.
        """
        waits = self._expects and not self.received
        while not self._complete and not waits and self.received <= 2 * self._settings.max_body:
            left = self.started + self._settings.body_timeout - time.monotonic()
            try:
                message = await asyncio.wait_for(self._receive(), left)
            except TimeoutError:
                return
            self.received += len(message.get("body", b""))
            self._complete = message["type"] != "http.request" or not message.get("more_body", False)

    async def refuse(self, error: ApiError) -> None:
        """Answer with an error, unless an answer is under way already."""
        if self._answering:
            return
        headers: list[tuple[bytes, bytes]] = [(b"content-type", b"application/json")]
        headers += [(name.lower().encode(), value.encode()) for name, value in error.headers().items()]
        body: dict[str, Any] = {**error.body(), "request_id": self.id}
        try:
            await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
            await self.send({"type": "http.response.body", "body": orjson.dumps(body)})
        except OSError:  # the client is gone
            pass

    def close(self) -> None:
        """Give back what its body held."""
        taken, self._taken = self._taken, 0
        if taken:
            self._held.give_back(taken)
