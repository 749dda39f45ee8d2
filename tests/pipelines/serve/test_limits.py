"""What a server refuses, and how it says so."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from labelmill.pipelines.serve.errors import ApiError
from labelmill.pipelines.serve.server import Server
from tests.pipelines.serve.serving import client, sent

CLIP = "/clip/embed_image"


def refused(answer: Any, status: int, *words: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    body: dict[str, Any] = answer.json()
    for word in words:
        assert word in body["message"]
    assert body["error"]["message"] == body["message"] and body["request_id"] == answer.headers["x-request-id"]
    return body


def routes(server: TestClient) -> Iterator[tuple[str, str]]:
    for path, methods in server.get("/openapi.json").json()["paths"].items():
        for method in methods:
            yield method.upper(), path.replace("{model_id:path}", "x").replace("{model_id}", "x")


@pytest.mark.parametrize(
    ("image", "status", "word"),
    [
        ({"type": "numpy", "value": "gASV"}, 400, "pickle"),
        ({"type": "url", "value": "http://example.com/a.jpg"}, 400, "--allow-urls"),
        ({"type": "file", "value": "/etc/passwd"}, 400, "base64"),
        ({"type": "base64", "value": "!!"}, 400, "base64"),
        ({"type": "base64", "value": ""}, 400, "empty"),
        ({"type": "base64", "value": 5}, 400, "text"),
        ({"type": "base64", "value": "data:image/png,abc"}, 400, "data URL"),
        ({"type": "base64", "value": base64.b64encode(b"no image").decode()}, 400, "not an image"),
        (7, 422, "image"),
        ([], 422, "1 to 16 images"),
        ([{"value": "aaaa"}] * 17, 422, "1 to 16 images"),
    ],
)
def test_bad_images(server: TestClient, image: Any, status: int, word: str) -> None:
    refused(server.post(CLIP, json={"image": image}), status, word)


def test_a_bomb_and_a_cut_off_image_are_named_by_their_place(server: TestClient, scenes: list[bytes]) -> None:
    buffer = io.BytesIO()
    Image.new("1", (3000, 3000)).save(buffer, "PNG")
    good = sent(scenes[0])
    refused(server.post(CLIP, json={"image": sent(buffer.getvalue())}), 400, "9,000,000 pixels", "2,000,000")
    refused(server.post(CLIP, json={"image": [good, sent(scenes[0][:900]), good]}), 400, "image 2: ", "image")
    assert server.post(CLIP, json={"image": good}).status_code == 200


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 422),
        (b"[]", "application/json", 422),
        (b"", "application/json", 422),
        (b"\xff\xfe", "application/json", 422),
        (b"a=b", "application/x-www-form-urlencoded", 415),
        (b"x", "text/plain", 415),
        (b"nonsense", "multipart/form-data; boundary=x", 422),
        (b"nonsense", "multipart/form-data", 422),
    ],
)
def test_bad_bodies(server: TestClient, content: bytes, kind: str, status: int) -> None:
    refused(server.post(CLIP, content=content, headers={"content-type": kind}), status)


def test_too_large_a_body_is_refused_however_it_comes(server: TestClient) -> None:
    large = b'{"image": {"value": "' + b"A" * (5 << 20) + b'"}}'
    json = {"content-type": "application/json"}
    refused(server.post(CLIP, content=large, headers=json), 413, "4,194,304 bytes")
    parts = (large[start : start + 65536] for start in range(0, len(large), 65536))
    refused(server.post(CLIP, content=parts, headers=json), 413, "4,194,304 bytes")


def test_what_is_not_there(server: TestClient, scenes: list[bytes]) -> None:
    refused(server.get("/nothing"), 404, "/docs")
    refused(server.get(CLIP), 405, "/docs")
    refused(server.post("/model/add", json={"model_id": "clip-miniatur"}), 404, "did you mean 'clip-miniature'?")
    refused(server.post("/model/add", json={"model_id": "../conf/models/clip-miniature.yaml"}), 404)
    body = {"image": sent(scenes[0]), "clip_version_id": "sam-miniature"}
    refused(server.post(CLIP, json=body), 404, "must be a card for embedding")
    body = {"image": sent(scenes[0]), "model_id": "grounding-dino-miniature"}
    refused(server.post("/infer/object_detection", json=body), 400, "class_filter", "--ontology")
    refused(server.post("/clip/embed_text", json={"text": "car " * 40}), 400, "16 tokens")


def test_every_route_wants_the_key(scenes: list[bytes]) -> None:
    with client(cards=("clip-miniature",), keys=("first-key", "second-key")) as server:
        for method, path in routes(server):
            answer = server.request(method, path, json={"image": sent(scenes[0])} if method == "POST" else None)
            if path in ("/healthz", "/readiness"):
                assert answer.status_code == 200
            else:
                refused(answer, 401, "Authorization: Bearer")
        body = {"image": sent(scenes[0])}
        assert server.post(CLIP, json=body, headers={"authorization": "Bearer second-key"}).status_code == 200
        assert server.post(f"{CLIP}?api_key=first-key", json=body).status_code == 200
        assert server.post(CLIP, json={**body, "api_key": "first-key"}).status_code == 200
        form = server.post(CLIP, files={"image": scenes[0]}, data={"api_key": "first-key"})
        assert form.status_code == 200
        for wrong in ("first-ke", "first-key2", "", None, 5, ["first-key"], "ключ"):
            refused(server.post(CLIP, json={**body, "api_key": wrong}), 401)
        refused(server.get("/model/registry?api_key=None"), 401)


def inner(made: TestClient) -> Server:
    server: Server = made.app._app.state.server  # type: ignore[attr-defined]
    return server


def test_more_than_may_wait_is_told_to_come_back(scenes: list[bytes]) -> None:
    with client(cards=("clip-miniature",), queue=2, timeout=20) as server:
        model = inner(server).models.loaded()[0]
        held = threading.Event()
        model.batcher.call(lambda: held.wait(20))
        answers: list[Any] = []
        waiting = [
            threading.Thread(target=lambda: answers.append(server.post(CLIP, json={"image": sent(scenes[0])})))
            for _ in range(2)
        ]
        for each in waiting:
            each.start()
        until = time.monotonic() + 10
        while inner(server).images.used < 2 and time.monotonic() < until:
            time.sleep(0.01)
        answer = server.post(CLIP, json={"image": sent(scenes[0])})
        refused(answer, 503, "2 of 2 images")
        assert int(answer.headers["retry-after"]) >= 1
        refused(server.post("/model/remove", json={"model_id": "clip-miniature"}), 409, "in use")
        held.set()
        for each in waiting:
            each.join()
        assert [answer.status_code for answer in answers] == [200, 200]
        assert inner(server).images.used == 0 and inner(server).bytes.used == 0


def test_bytes_are_bounded_too(scenes: list[bytes]) -> None:
    with client(cards=("clip-miniature",), queue_bytes=300_000) as server:
        with inner(server).bytes.taken(299_000):
            answer = server.post(CLIP, json={"image": sent(scenes[0])})
            refused(answer, 503, "bytes")
            assert "retry-after" in answer.headers
        assert server.post(CLIP, json={"image": sent(scenes[0])}).status_code == 200


def test_what_takes_too_long_is_given_up(scenes: list[bytes]) -> None:
    with client(cards=("clip-miniature",), timeout=0.5, body_timeout=0.3) as server:
        held = threading.Event()
        inner(server).models.loaded()[0].batcher.call(lambda: held.wait(20))
        refused(server.post(CLIP, json={"image": sent(scenes[0])}), 504, "0.5 seconds")
        held.set()
        until = time.monotonic() + 10
        while inner(server).images.used and time.monotonic() < until:
            time.sleep(0.01)
        assert inner(server).images.used == 0 and inner(server).bytes.used == 0


def test_an_id_comes_back_and_a_bad_one_does_not(server: TestClient) -> None:
    assert server.get("/info", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    bad = [server.get("/info", headers={"x-request-id": "a b\tc"}).headers["x-request-id"] for _ in range(2)]
    assert len(set(bad)) == 2 and all(len(each) > 32 for each in bad)


def test_a_mistake_of_ours_says_nothing_of_itself(server: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(Server, "check_count", fail)
    answer = server.post("/clip/embed_text", json={"text": "x"})
    assert "secret" not in answer.text
    refused(answer, 500, "log")


def test_errors_have_statuses_of_http() -> None:
    assert ApiError(503, "x", 0.2).headers() == {"Retry-After": "1"}
    assert ApiError(400, "x").headers() == {}


def test_urls_where_they_are_allowed(scenes: list[bytes]) -> None:
    with client(cards=("clip-miniature",), allow_urls=True) as server:
        for url in ("http://127.0.0.1:9/x.jpg", "http://localhost/x.jpg", "http://169.254.169.254/latest", "file:///x"):
            refused(server.post(CLIP, json={"image": {"type": "url", "value": url}}), 400, "URL")
        refused(server.post(CLIP, json={"image": {"type": "url", "value": 5}}), 400, "URL")

        async def fetch(url: str, max_bytes: int) -> bytes:
            return scenes[0] if url == "https://example.com/a.jpg" else b""

        inner(server).fetch = fetch
        by_url = server.post(CLIP, json={"image": {"type": "url", "value": "https://example.com/a.jpg"}}).json()
        assert by_url["embeddings"] == server.post(CLIP, json={"image": sent(scenes[0])}).json()["embeddings"]
