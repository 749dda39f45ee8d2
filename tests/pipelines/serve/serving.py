"""Servers for tests, and what runs say of the same images."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
from starlette.testclient import TestClient

from labelmill.operators.applying.apply import Job, apply
from labelmill.operators.applying.shard_images import ShardImages
from labelmill.operators.applying.worker import Worker
from labelmill.operators.base import Operator
from labelmill.operators.ontology import Ontology
from labelmill.pipelines.serve.app import create_app
from labelmill.pipelines.serve.settings import Settings

CARDS = (
    "clip-miniature",
    "grounding-dino-miniature",
    "sam-miniature",
    "doctr-detection-miniature",
    "doctr-recognition-miniature",
    "l2cs-miniature",
    "vlm-miniature",
)


def client(ontology: dict[str, Any] | None = None, **settings: Any) -> TestClient:
    """A server that starts when the client is entered."""
    classes = Ontology.model_validate(ontology) if ontology is not None else None
    return TestClient(create_app(Settings(**settings), classes), raise_server_exceptions=False)


def sent(data: bytes) -> dict[str, str]:
    """An image as Inference's client sends it."""
    return {"type": "base64", "value": base64.b64encode(data).decode()}


def as_in_a_run(operator: Operator, files: list[bytes], **columns: pa.Array) -> list[dict[str, Any]]:
    """What a run writes of some files."""
    operator.load()
    ids = pa.array(range(len(files)), pa.int64())
    rows = pa.table({"image_id": ids, "key": [str(place) for place in range(len(files))], **columns})
    images = ShardImages([str(place) for place in range(len(files))], lambda uri: files[int(uri)])
    table, _ = apply(Job(Worker(operator), rows, np.ones(len(files), dtype=bool)), images)
    return table.to_pylist()


@contextmanager
def listening(ontology: dict[str, Any] | None = None, **settings: Any) -> Iterator[str]:
    """The address of a server that listens on this machine, in a thread."""
    import torch
    import uvicorn

    torch.set_num_threads(1)
    classes = Ontology.model_validate(ontology) if ontology is not None else None
    config = uvicorn.Config(create_app(Settings(**settings), classes), port=0, log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    until = time.monotonic() + 60
    while not server.started and thread.is_alive() and time.monotonic() < until:
        time.sleep(0.02)
    assert server.started
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
