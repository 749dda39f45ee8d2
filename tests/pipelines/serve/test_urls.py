"""Images by URL come from public addresses only, whatever a URL says or redirects to."""

from __future__ import annotations

import asyncio
import http.server
import ipaddress
import threading
from collections.abc import Iterator

import pytest

from labelmill.pipelines.serve.errors import ApiError
from labelmill.pipelines.serve.urls import fetch_image, is_public


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "0.0.0.0",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
        *["::", "::1", "fe80::1", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"],
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_that_are(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


class Site(http.server.BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        to = {"/to-image": "/image", "/round": "/round", "/away": "http://127.0.0.2:1/", "/file": "file:///etc/passwd"}
        if self.path in to:
            self.send_response(302)
            self.send_header("Location", to[self.path])
            self.end_headers()
            return
        self.send_response(200 if self.path != "/gone" else 404)
        self.end_headers()
        self.wfile.write(b"x" * (100 if self.path == "/image" else 5000))

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[http.server.ThreadingHTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.asked = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def fetch(site: http.server.ThreadingHTTPServer, path: str, size: int = 1000) -> bytes:
    """With this machine's first address allowed, and no other."""
    only = ipaddress.ip_address("127.0.0.1")
    url = f"http://127.0.0.1:{site.server_port}{path}"
    return asyncio.run(fetch_image(url, size, lambda address: address == only))


def test_an_image_is_fetched_through_redirects(site: http.server.ThreadingHTTPServer) -> None:
    assert fetch(site, "/image") == b"x" * 100
    assert fetch(site, "/to-image") == b"x" * 100


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/away", "public address"),
        ("/file", "http or https"),
        ("/round", "5 times"),
        ("/large", "1,000 bytes"),
        ("/gone", "404"),
    ],
)
def test_what_is_not_fetched(site: http.server.ThreadingHTTPServer, path: str, word: str) -> None:
    with pytest.raises(ApiError, match=word) as caught:
        fetch(site, path)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:{port}/image",
        "http://127.0.0.1:{port}/image",
        "http://2130706433:{port}/image",
        "http://[::1]:{port}/image",
        "http://[::ffff:127.0.0.1]:{port}/image",
        "http://user@127.0.0.1:{port}/image",
        "ftp://127.0.0.1/image",
        "http:///image",
        "http://127.0.0.1:99999/",
        "nonsense",
        "http://no-such-host.invalid/",
    ],
)
def test_no_request_leaves_for_this_machine(site: http.server.ThreadingHTTPServer, url: str) -> None:
    before = list(site.asked)  # type: ignore[attr-defined]
    with pytest.raises(ApiError):
        asyncio.run(fetch_image(url.format(port=site.server_port), 1000))
    assert site.asked == before  # type: ignore[attr-defined]
