"""Listens: a port, logs as lines of JSON, and a stop that finishes what was taken."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import orjson

from labelmill.operators.secrets import hide


class JsonLines(logging.Formatter):
    """Each record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        fields: dict[str, Any] = {"time": at, "level": record.levelname.lower(), "message": record.getMessage()}
        fields.update(getattr(record, "fields", {}))
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return hide(orjson.dumps(fields).decode())


def listen(app: Any, host: str, port: int, drain: float, quiet: bool = False) -> None:
    """Serve until SIGTERM or SIGINT; then take nothing more, finish what was taken, and return.

    Args:
        app: The application.
        host: Where to listen.
        port: Where to listen.
        drain: Seconds that requests may still take after the signal.
        quiet: Log no line for each request.
    """
    import uvicorn

    # Threads that prepare images hold the interpreter; who answers must not wait five milliseconds for it each time.
    sys.setswitchinterval(0.001)
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name in ("labelmill.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.WARNING if quiet else logging.INFO)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=max(1, round(drain)),
        timeout_keep_alive=75,
        server_header=False,
        date_header=False,
    )
    uvicorn.Server(config).run()
