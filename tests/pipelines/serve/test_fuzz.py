"""Whatever comes in, JSON comes out that says what to do, and the server goes on."""

from __future__ import annotations

import base64
import json
import random
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from tests.bad_images import bad_images
from tests.pipelines.serve.serving import CARDS, listening, sent


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with listening(
        cards=CARDS, max_images=8, max_body=1 << 20, max_pixels=2_000_000, body_timeout=1.5, timeout=20
    ) as address:
        yield address


WORTHLESS: list[Any] = [
    *(None, True, 0, -1, 1e308, "", "x", "\x00", "💥" * 50, "http://127.0.0.1/", "../../etc/passwd", [], {}, [[]]),
    *([None], [{}], {"type": "numpy", "value": "gASV"}, {"type": "url", "value": "file:///etc/passwd"}),
    *({"value": "A" * 5000}, {"value": ["x"]}, {"box": {"x": "nan"}}, {"prompts": [{"points": []}]}),
]


def good(address: str) -> None:
    answer = httpx.post(f"{address}/clip/embed_text", json={"text": "a car"})
    assert answer.status_code == 200


def told(answer: httpx.Response) -> None:
    assert answer.status_code < 500 or answer.status_code in (501, 503, 504, 507), answer.text
    if answer.status_code >= 400:
        body = answer.json()
        assert isinstance(body["message"], str) and len(body["message"]) > 10
        assert "Traceback" not in answer.text


def test_any_value_in_any_field_of_any_route(address: str, scenes: list[bytes]) -> None:
    api = httpx.get(f"{address}/openapi.json").json()
    schemas = api["components"]["schemas"]
    draw = random.Random(7)
    image = sent(scenes[0])
    with httpx.Client(timeout=60) as client:
        for path, methods in api["paths"].items():
            if "post" not in methods or path == "/model/clear":
                continue
            content = methods["post"]["requestBody"]["content"]["application/json"]["schema"]
            fields = list(schemas[content["$ref"].rpartition("/")[2]]["properties"])
            for name in fields:
                for value in draw.sample(WORTHLESS, 4):
                    body = {"image": image, "text": "car", "prompt": "What?", "subject": image, name: value}
                    told(client.post(address + path.replace("{model_id}", "x"), content=json.dumps(body), headers=JSON))
        for other in ("/..%2f..%2fetc/passwd", "/%00", "/v1/models/x", "/infer/lmm/../x"):
            told(client.get(address + other))
    good(address)


JSON = {"content-type": "application/json"}


def test_every_bad_image(address: str) -> None:
    before = None
    with httpx.Client(timeout=60) as client:
        for turn in range(3):
            for data, _ in bad_images().values():
                told(client.post(f"{address}/clip/embed_image", json={"image": sent(data)}))
                told(client.post(f"{address}/doctr/ocr", files={"image": data}))
            held = psutil.Process().memory_info().rss
            if turn == 1:
                before = held
    assert before is not None and held < 1.1 * before
    good(address)


def test_a_client_that_is_still_sending_sees_the_answer(address: str) -> None:
    """Not only a connection that is closed: urllib, like others, sends all of a body before it reads."""
    for path, size, status in (
        ("/nothing", 900_000, 404),
        ("/clip/embed_image", 1_900_000, 413),
        ("/info", 900_000, 405),
    ):
        for _ in range(5):
            answer = httpx.post(address + path, content=b"x" * size, headers=JSON)
            assert answer.status_code == status
            told(answer)
    good(address)


def test_cut_connections_slow_clients_and_nonsense(address: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    head = b"POST /clip/embed_image HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    part = b'{"image": {"value": "' + base64.b64encode(b"x" * 3000)
    for sentence in (
        b"\x00" * 200,
        b"GET / HTTP/9.9\r\n\r\n",
        head + b"content-length: -5\r\n\r\n",
        head + b"content-length: 99999999999999999999\r\n\r\n",
        head + b"content-length: 4000\r\n\r\n" + part[:100],
        head + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST /clip/embed_image HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=b\r\n"
        b"content-length: 5000\r\n\r\n--b\r\n",
    ):
        for _ in range(5):
            with socket.create_connection((host, int(port)), timeout=10) as link:
                link.sendall(sentence)
    good(address)
    with socket.create_connection((host, int(port)), timeout=30) as link:
        started = time.monotonic()
        link.sendall(head + b"content-length: 4000\r\n\r\n" + part[:100])
        answer = link.recv(4096)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"1.5 seconds" in answer
        assert time.monotonic() - started < 10
    figures = httpx.get(f"{address}/metrics").text
    assert "labelmill_bytes 0.0" in figures
    assert "labelmill_images 0.0" in figures
