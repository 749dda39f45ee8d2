"""The command itself: up, asked, and stopped while it works."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from labelmill.pipelines.cli import app
from tests.pipelines.serve.serving import sent


@pytest.fixture
def command(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`labelmill serve` in a process of its own, ready; and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", "clip-miniature", "--port", str(port), "--batch", "2"]
    log = (tmp_path / "log").open("w")
    checkout = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": checkout, "LABELMILL_SERVE_KEYS": "a-secret-key"}
    process = subprocess.Popen([sys.executable, "-m", "labelmill", *words], stderr=log, text=True, env=environment)
    address = f"http://127.0.0.1:{port}"
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(f"{address}/readiness").status_code == 200:
                break
        except httpx.TransportError:
            time.sleep(0.1)
    yield process, address
    process.kill()
    process.wait()
    log.close()


@pytest.mark.slow
def test_a_stop_under_load_loses_no_request_that_was_taken(
    command: tuple[subprocess.Popen[str], str], scenes: list[bytes], tmp_path: Path
) -> None:
    process, address = command
    body = json.dumps({"image": [sent(each) for each in scenes]}).encode()
    headers = {"content-type": "application/json", "authorization": "Bearer a-secret-key"}
    sending = 16  # with 12 images each: fewer than may wait

    def ask(number: int) -> tuple[str, Any]:
        """A request over a connection of its own, known to have been taken once its body was asked for."""
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as link:
            lines = [f"POST /clip/embed_image HTTP/1.1\r\nhost: x\r\nx-request-id: load-{number}\r\nconnection: close"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            head = "\r\n".join([*lines, "expect: 100-continue", f"content-length: {len(body)}", "", ""])
            try:
                link.sendall(head.encode())
                first = link.recv(4096)
            except OSError:
                return "not taken", None
            if not first.startswith(b"HTTP/1.1 100"):
                return ("not taken", None) if not first else ("taken", first)
            link.sendall(body)
            answer = b""
            while part := link.recv(1 << 16):
                answer += part
            return "taken", answer

    with ThreadPoolExecutor(sending) as pool:
        waiting = [pool.submit(ask, number) for number in range(sending)]
        time.sleep(0.15)
        process.send_signal(signal.SIGTERM)
        outcomes = [each.result(90) for each in waiting]
    assert process.wait(60) in (0, -signal.SIGTERM)
    taken = [answer for kind, answer in outcomes if kind == "taken"]
    assert taken
    for answer in taken:
        assert answer.startswith(b"HTTP/1.1 200"), answer[:300]
        assert len(json.loads(answer.partition(b"\r\n\r\n")[2])["embeddings"]) == len(scenes)
    log = (tmp_path / "log").read_text()
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    answered = {each["request_id"] for each in lines if each.get("status") == 200}
    assert len([each for each in answered if each.startswith("load-")]) == len(taken)
    assert "a-secret-key" not in log


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["clip-miniatur"], "did you mean 'clip-miniature'?"),
        (["clip-vit-b-32"], "labelmill models pull clip-vit-b-32"),
        (["--ontology", "no.yaml"], "no.yaml"),
        (["--pipeline", "no.yaml"], "no.yaml"),
    ],
)
def test_what_is_wrong_is_told_before_it_listens(words: list[str], told: str) -> None:
    result = CliRunner().invoke(app, ["serve", *words])
    assert result.exit_code == 2
    assert told in result.output
