from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from labelmill.operators.errors import RowError
from labelmill.pipelines.sources import Fetcher, SourceError
from tests.pipelines.sources.helpers import fetch_all, picture, scan

OBJECTS: dict[str, bytes] = {
    "data/street/a#1 b%.jpg": picture(1),
    "data/street/ünï/b?.jpg": picture(2),
    "data/street/notes.txt": b"x",
    "data/streets/c.jpg": picture(3),
}


class StorageHandler(BaseHTTPRequestHandler):
    """As much of the Cloud Storage JSON API as reading takes: list, describe, download."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        match = re.search(r"/b/bucket/o(?:/(.+))?$", url.path)
        name = unquote(match[1]) if match and match[1] else None
        if not match or (name is not None and name not in OBJECTS):
            self._answer(404, b'{"error": {"code": 404, "message": "not found"}}')
        elif name is not None:
            self._answer(200, OBJECTS[name] if "alt" in query else json.dumps(self._describe(name)).encode())
        else:
            self._answer(200, json.dumps(self._list(query.get("prefix", ""), query.get("delimiter", ""))).encode())

    def _describe(self, name: str) -> dict[str, str]:
        size = str(len(OBJECTS[name]))
        return {"kind": "storage#object", "name": name, "bucket": "bucket", "size": size, "etag": f"tag-{size}"}

    def _list(self, prefix: str, delimiter: str) -> dict[str, Any]:
        rest = {name: name[len(prefix) :] for name in OBJECTS if name.startswith(prefix)}
        below = {name for name, part in rest.items() if delimiter and delimiter in part}
        folders = sorted({prefix + rest[name].split(delimiter)[0] + delimiter for name in below})
        items = [self._describe(name) for name in rest if name not in below]
        return {"kind": "storage#objects", "items": items, "prefixes": folders}

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def gs(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Storage options that reach a server on this machine."""
    import gcsfs.core
    from fsspec.registry import _registry

    # the class for zonal buckets asks for the bucket's type over gRPC, which this server does not speak
    monkeypatch.setitem(_registry, "gs", gcsfs.core.GCSFileSystem)
    server = ThreadingHTTPServer(("127.0.0.1", 0), StorageHandler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield {"token": "anon", "endpoint_url": f"http://127.0.0.1:{server.server_port}"}
    server.shutdown()
    server.server_close()
    thread.join()


def test_gs_folder(gs: dict[str, Any]) -> None:
    entries = scan({"folder": "gs://bucket/data/street"}, storage_options=gs)
    assert fetch_all(entries, gs) == {"a#1 b%.jpg": picture(1), "ünï/b?.jpg": picture(2)}
    assert entries["a#1 b%.jpg"].version == f"tag-{len(picture(1))}"
    assert entries["a#1 b%.jpg"].uri == "gs://bucket/data/street/a%231 b%25.jpg"


def test_gs_says_what_is_wrong(gs: dict[str, Any]) -> None:
    with pytest.raises(SourceError, match="did you mean gs://bucket/data/street"):
        scan({"folder": "gs://bucket/data/stret"}, storage_options=gs)
    with pytest.raises(RowError, match=r"the file is gone: gs://bucket/gone\.jpg"):
        Fetcher(gs)("gs://bucket/gone.jpg")
