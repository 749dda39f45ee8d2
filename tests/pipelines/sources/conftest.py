from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


class RangeHandler(SimpleHTTPRequestHandler):
    """Serves files, and parts of files where the server says so; may fail or forbid first."""

    def do_GET(self) -> None:
        server: Any = self.server
        server.requests.append((self.path, self.headers.get("Range")))
        if server.failures > 0:
            server.failures -= 1
            self.send_error(503)
            return
        if "forbidden" in self.path:
            self.send_error(403)
            return
        wanted = self.headers.get("Range")
        path = Path(self.translate_path(self.path))
        if wanted and server.ranges and path.is_file():
            data = path.read_bytes()
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            part = data[int(first) : int(last or len(data)) + 1]
            server.partial += 1
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part)
            return
        super().do_GET()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def http_server(tmp_path: Path) -> Iterator[Any]:
    """An http server of ``tmp_path/web``; `requests` and `partial` say what it did; set `failures`, `ranges`."""
    root = tmp_path / "web"
    root.mkdir()
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), partial(RangeHandler, directory=str(root)))
    server.requests, server.failures, server.ranges, server.partial, server.root = [], 0, True, 0, root
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A new bucket that is reached through storage options alone: `name`, `options`, `put(key, data)`."""
    import os

    import boto3

    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    client = boto3.client(
        "s3",
        endpoint_url=s3_server,
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )

    class Bucket:
        name = f"bucket-{os.urandom(6).hex()}"
        options = {"key": "test", "secret": "test", "client_kwargs": {"endpoint_url": s3_server}}  # noqa: RUF012

        def put(self, key: str, data: bytes) -> None:
            client.put_object(Bucket=self.name, Key=key, Body=data)

    client.create_bucket(Bucket=Bucket.name)
    return Bucket()
